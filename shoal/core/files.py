"""Files that are whole or not there: written under another name, then renamed."""

from __future__ import annotations

import contextlib
import os
import shlex
from pathlib import Path


def replace(path: Path, data: bytes) -> None:
    """Write a file in one step: nobody ever reads half of it, and a failure leaves what was there.

    Args:
        path: The file; its folder exists.
        data: All of it.

    Raises:
        OSError: It cannot be written (disk full, read-only); nothing of it is left behind.
    """
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def reason(error: OSError) -> str:
    """Why, in a few words."""
    return error.strerror or str(error) or type(error).__name__


def typed(path: Path | str) -> str:
    """A path as it is typed in a command, in quotes where it has blanks and the like."""
    return shlex.quote(str(path))
