"""How checkpoints lie on the disk, and the errors of those that cannot be written or read."""

from __future__ import annotations

import os
import pathlib
import re

from shoal.core import errors

SCHEMA = 1  # of the two files; a reader refuses what is newer
ARRAYS, MANIFEST = "arrays.bin", "manifest.json"
BEST, BEFORE = "best", "best-before"  # the one that is kept for its result; the one it takes the place of, meanwhile

_STEP = re.compile(r"step-(\d{12,})")


class NotSaved(errors.GaveUp):
    """A checkpoint could not be written (disk full, read-only, rename refused); those before it are untouched."""


class NonFiniteError(ValueError):
    """A floating-point leaf holds NaN or infinity: such a state must never become the one a run resumes from."""


class NewerError(Exception):
    """The checkpoint has a newer schema than this program knows."""


def folder_of(root: pathlib.Path, step: int) -> pathlib.Path:
    """Where the checkpoint of a step belongs; zero-padded, so that names sort like steps."""
    return root / f"step-{step:012d}"


def ever(root: pathlib.Path) -> bool:
    """Whether anything was ever saved in a ``checkpoints`` folder, what was set aside as damaged included."""
    return bool(folders(root)) or any(root.glob("bad-step-*"))


def folders(root: pathlib.Path) -> list[pathlib.Path]:
    """The ``step-...`` entries of a ``checkpoints`` folder, newest first; [] if there is no such folder."""
    try:
        names = os.listdir(root)
    except (FileNotFoundError, NotADirectoryError):
        return []
    steps = {name: int(match[1]) for name in names if (match := _STEP.fullmatch(name))}
    return [root / name for name in sorted(steps, key=lambda name: steps[name], reverse=True)]
