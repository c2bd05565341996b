"""Checkpoints that are either whole or not there, and known to be whole before they are used.

``checkpoints/step-000000000123/`` holds ``arrays.bin`` (the leaves, one after the other by key path) and
``manifest.json`` (first line: the SHA-256 of the rest; then key path, dtype, shape and place of every leaf, the
SHA-256 of ``arrays.bin`` and whatever the caller adds). A folder is written under a ``.tmp-`` name, flushed to the
disk, renamed, and the rename flushed too, so a kill or a power cut leaves the old checkpoints or the new one as well.
Nothing is ever unpickled.

Source: Pillai et al., OSDI 2014 (which file operations survive a crash).
"""

from __future__ import annotations

from shoal.checkpoint.layout import SCHEMA, NonFiniteError, NotSaved, folders
from shoal.checkpoint.ownership import due, lock, remove_stale
from shoal.checkpoint.read import Loaded, load, newest, verify
from shoal.checkpoint.write import KEEP, Saved, save

__all__ = [
    "KEEP",
    "SCHEMA",
    "Loaded",
    "NonFiniteError",
    "NotSaved",
    "Saved",
    "due",
    "folders",
    "load",
    "lock",
    "newest",
    "remove_stale",
    "save",
    "verify",
]
