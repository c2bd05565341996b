"""A Unix socket with one verb: bytes come in, bytes go out. Readable by one user; nothing is ever unpickled."""

from __future__ import annotations

import contextlib
import os
import socket
from multiprocessing import connection
from pathlib import Path

LIMIT = 1 << 28  # bytes of a frame


class Door:
    """A context: the socket is there within it, and gone afterwards."""

    def __init__(self, path: Path, user: int | None = None) -> None:
        """Nothing happens yet.

        Args:
            path: Short: the system takes about 100 letters.
            user: Who may come in; None: who made it.
        """
        self.path, self._user = path, user
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self) -> Door:
        """Open it, in place of one that a process which was killed left behind."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        before = os.umask(0o177)
        try:
            self.socket.bind(str(self.path))
        finally:
            os.umask(before)
        if self._user is not None:
            os.chown(self.path, self._user, -1)
        self.socket.listen(8)
        return self

    def __exit__(self, *_: object) -> None:
        """Close and remove it."""
        self.socket.close()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def visitor(self, seconds: float) -> connection.Connection | None:
        """Whoever comes within so many seconds; None: nobody."""
        if not connection.wait([self.socket], seconds):
            return None
        accepted, _ = self.socket.accept()
        accepted.setblocking(True)
        return connection.Connection(accepted.detach())


def taken(visitor: connection.Connection, seconds: float = 30.0) -> bytes | None:
    """What a visitor sends; None: nothing in time, too much, or not whole."""
    try:
        return visitor.recv_bytes(LIMIT) if visitor.poll(seconds) else None
    except (EOFError, OSError):
        return None


def given(visitor: connection.Connection, body: bytes) -> bool:
    """Hand bytes to a visitor; False: it is gone."""
    try:
        visitor.send_bytes(body)
        return True
    except OSError:
        return False
