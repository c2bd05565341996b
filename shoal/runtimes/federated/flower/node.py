"""A party's side of Flower: the SuperNode, which dials out only, and tries for two minutes where it is refused."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import time
from pathlib import Path

from shoal.core import errors, files
from shoal.runtimes.federated.flower import children as processes
from shoal.runtimes.federated.flower import keys

PATIENCE = 120.0  # seconds of refusals in a row: a node that was killed is refused until the server has missed it
PAUSE = 3.0  # seconds between two tries
STAYED = 20.0  # seconds alive after which a node is taken to have been accepted


def split(server: str) -> tuple[str, int]:
    """``HOST:PORT`` as two.

    Raises:
        Refused: It is not that.
    """
    host, colon, port = server.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise errors.Refused(f"--server {server!r} is no HOST:PORT; give e.g. --server 127.0.0.1:9100")
    return host.strip("[]"), int(port)


def reachable(host: str, port: int, authority: Path) -> None:
    """Refuse a server that is not there, or is another.

    Raises:
        Refused: Says which.
    """
    try:
        context = ssl.create_default_context(cafile=str(authority))
        with socket.create_connection((host, port), 5.0) as plain, context.wrap_socket(plain, server_hostname=host):
            return
    except FileNotFoundError:
        raise errors.Refused(f"there is no {authority}; --keys names the folder that holds it") from None
    except ssl.SSLError as error:
        raise errors.Refused(
            f"--server {host}:{port} shows no certificate that {authority} vouches for ({error.reason or error}): it "
            "is another server, or the certificate is of another name or expired; ask its owner for the one in use"
        ) from None
    except OSError as error:
        raise errors.Refused(
            f"--server {host}:{port} cannot be reached ({files.reason(error)}); start it with `shoal federate server`, "
            "or see that nothing is between"
        ) from None


class Node:
    """A SuperNode that is started again where it ends."""

    def __init__(
        self, children: processes.Children, folder: Path, keys_folder: Path, server: str, door: Path,
        user: int | None = None,
    ) -> None:  # fmt: skip
        """Nothing is started yet.

        Args:
            children: Where its process belongs.
            folder: Its own; it holds nothing of the party's.
            keys_folder: As `keys.make_party` fills it, with the authority's certificate.
            server: ``HOST:PORT``.
            door: The party's socket.
            user: As whom; None: as this process.
        """
        self._children, self._keys, self._server, self._door, self._user = children, keys_folder, server, door, user
        self._home = folder
        self._process: processes.Child | None = None
        self._started = self._again = 0.0
        self._refused: float | None = None  # since when
        self.restarts = -1

    def watch(self) -> None:
        """Start it, and again where it has ended.

        Raises:
            GaveUp: It was refused all the time.
        """
        now = time.monotonic()
        if self._process is not None and not self._process.died:
            if now - self._started > STAYED:
                self._refused = None
            return
        if self._process is not None and self._again <= self._started:  # it has just ended
            self._refused = self._refused or now
            if now - self._refused > PATIENCE:
                raise errors.GaveUp(
                    f"the server at {self._server} does not take this party: its key is not registered there, or a "
                    "node with the same key was killed and the server has not missed it yet (it does within a minute); "
                    f"compare the keys, or try again; the log is {self._process.log}"
                )
            self._again = now + PAUSE
            return
        if now < self._again:
            return
        self._start()

    def stop(self) -> None:
        """Ask it to end; it takes leave of the server."""
        if self._process is not None and not self._process.died:
            self._process.process.terminate()
            self._process.process.wait(processes.GRACE)
        self._process = None

    def _start(self) -> None:
        mine = self._keys if self._user is None else self._handed_over()
        command = [
            processes.program("flower-supernode"), "--superlink", self._server,
            "--root-certificates", str(mine / keys.AUTHORITY), "--auth-supernode-private-key", str(mine / keys.KEY),
            "--port", str(free_port()), "--node-config", f'socket="{self._door}"',
        ]  # fmt: skip
        self._home.mkdir(parents=True, exist_ok=True)
        env = {"FLWR_HOME": str(self._home), "HOME": str(self._home)}
        try:
            self._process = self._children.start("supernode", command, rank=0, env=env, user=self._user)
        except PermissionError:
            raise errors.Refused(
                f"--node-user: that user cannot execute {command[0]}; install Shoal where that user can read it"
            ) from None
        self._started, self.restarts = time.monotonic(), self.restarts + 1

    def _handed_over(self) -> Path:
        """A copy of the key for the node's user, who can read nothing else of the party's."""
        assert self._user is not None
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in (keys.AUTHORITY, keys.KEY):
            shutil.copy(self._keys / name, self._home / name)
            os.chown(self._home / name, self._user, -1)
        os.chown(self._home, self._user, -1)
        return self._home


def free_port() -> int:
    """One that nobody has now; the SuperNode talks there with the processes it starts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
