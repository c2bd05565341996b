"""What the run that owns a folder does around saving: hold the folder, clear what kills left, pace itself."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import shutil
from collections.abc import Iterator

from shoal.core import errors

PACE = 50  # a save may cost at most 1 / PACE of the wall time


def remove_stale(root: pathlib.Path) -> int:
    """Removes what killed saves left (``.tmp-*``); call it at the start of a run that holds the `lock`.

    Returns:
        How many were found.
    """
    stale = sorted(root.glob(".tmp-*"))
    for path in stale:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    return len(stale)


def due(last_save_seconds: float, since: float, every: float = 0.0) -> bool:
    """Whether the next save may begin: saving then costs at most 2 % of the wall time.

    Args:
        last_save_seconds: What the last save cost (`Saved.seconds`); 0 before the first.
        since: Seconds since the last save ended, or since the start.
        every: Seconds wanted between saves in any case.

    Returns:
        True if `since` has reached both `every` and 50 x the last save's seconds.
    """
    return since >= max(every, PACE * last_save_seconds)


@contextlib.contextmanager
def lock(folder: pathlib.Path) -> Iterator[None]:
    """Holds a run folder for this process, so that two never write one run; freed however the process ends.

    Raises:
        errors.Refused: Another process holds it, or the folder cannot be locked.
    """
    try:
        handle = open(folder / ".lock", "a+b")  # noqa: SIM115 - held open until the block ends
    except OSError as error:
        raise errors.Refused(f"cannot lock run folder {folder}: {error.strerror}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            owner = handle.read(32).decode("ascii", "replace").strip() or "unknown"
            raise errors.Refused(
                f"run folder {folder} is in use by another process (id {owner}); wait for it to end, or choose another"
            ) from None
        except OSError as error:  # some network file systems
            raise errors.Refused(f"cannot lock run folder {folder}: {error.strerror}") from error
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            handle.truncate(0)
            handle.write(str(os.getpid()).encode())
            handle.flush()
        yield
