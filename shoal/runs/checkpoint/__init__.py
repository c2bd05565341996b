"""Checkpoints that are either whole or not there, and known to be whole before they are used.

``checkpoints/step-000000000123/`` holds ``arrays.bin`` (the leaves, one after the other by key path) and
``manifest.json`` (first line: the SHA-256 of the rest; then key path, dtype, shape and place of every leaf, the
SHA-256 of ``arrays.bin`` and whatever the caller adds). A folder is written under a ``.tmp-`` name, flushed to the
disk, renamed, and the rename flushed too, so a kill or a power cut leaves the old checkpoints or the new one as well.
``checkpoints/best/`` is one that is kept for its result, written likewise: the best policy of those evaluated.
Nothing is ever unpickled.

Source: Pillai et al., OSDI 2014 (which file operations survive a crash).
"""

from __future__ import annotations

from shoal.runs.checkpoint.layout import SCHEMA, NonFiniteError, NotSaved, ever, folders
from shoal.runs.checkpoint.ownership import due, lock, remove_stale
from shoal.runs.checkpoint.read import Loaded, best, best_said, load, newest, verify
from shoal.runs.checkpoint.write import KEEP, Saved, save, save_best

__all__ = [
    "KEEP",
    "SCHEMA",
    "Loaded",
    "NonFiniteError",
    "NotSaved",
    "Saved",
    "best",
    "best_said",
    "due",
    "ever",
    "folders",
    "load",
    "lock",
    "newest",
    "remove_stale",
    "save",
    "save_best",
    "verify",
]
