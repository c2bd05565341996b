"""Writing: temporary name, flush, rename, flush."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import secrets
import shutil
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epy

from shoal.core import tree, types
from shoal.runs.checkpoint import layout

with epy.lazy_imports():
    import jax

KEEP = 3  # checkpoints left after a save
# Leaves of a replay memory: a reward of NaN that a simulator once paid stays there until it is overwritten. It is what
# happened, not a sign that learning broke, and must not keep a run from being saved; gradients of it are dropped.
EXPERIENCE = ".memory.experience."


class Saved(NamedTuple):
    """A checkpoint just written."""

    folder: pathlib.Path
    seconds: float  # wall time the save cost; what `due` paces by
    bytes: int  # of array data


def save(root: pathlib.Path, step: int, state: types.Tree, meta: Mapping[str, Any], keep: int = KEEP) -> Saved:
    """Writes ``root/step-<step>`` and removes all but the newest `keep`.

    A checkpoint of this step that is already there is left as it is: a good one is never deleted to be written again.

    Args:
        root: The run's ``checkpoints`` folder; made if it is missing.
        step: Environment steps.
        state: The tree to save; leaves are copied to the host here.
        meta: Anything JSON can hold, without NaN: counters, config digest, versions, log lengths, ...
        keep: How many checkpoints stay.

    Returns:
        Where it is, and what it cost.

    Raises:
        NotSaved: A file operation failed; the checkpoints before are intact and nothing half-written is left.
        NonFiniteError: A leaf holds NaN or infinity, and is no experience of a replay memory; nothing was written.
        TypeError: A leaf is no array of numbers, or `meta` no JSON.
        ValueError: `meta` holds NaN or infinity.
    """
    begin = time.perf_counter()
    target = layout.folder_of(root, step)
    size = _write(target, step, state, meta)
    _prune(root, target, keep)
    return Saved(target, time.perf_counter() - begin, size)


def save_best(root: pathlib.Path, step: int, state: types.Tree, meta: Mapping[str, Any]) -> Saved:
    """Writes ``root/best`` in the place of the one that is there; `save` neither counts nor removes it.

    Args:
        root: As `save`, like the others.
        step: Environment steps.
        state: The tree to save.
        meta: What is said of it.

    Raises:
        NotSaved: As `save`; the one before is where it was.
        NonFiniteError: Likewise.
    """
    begin = time.perf_counter()
    target = root / layout.BEST
    size = _write(target, step, state, meta, instead=True)
    return Saved(target, time.perf_counter() - begin, size)


def _write(
    target: pathlib.Path, step: int, state: types.Tree, meta: Mapping[str, Any], *, instead: bool = False
) -> int:
    """Write one, unless it is there or is to be replaced; the bytes of its array data."""
    root, arrays = target.parent, tree.host(state)
    _refuse_non_finite(arrays)
    body, size = _manifest(step, arrays, meta)
    temporary = root / f".tmp-{step:012d}-{secrets.token_hex(4)}"
    try:
        _make(root)
        if instead or not target.exists():
            temporary.mkdir()
            _put(temporary / layout.ARRAYS, *map(tree.raw, arrays.values()))
            _put(temporary / layout.MANIFEST, hashlib.sha256(body).hexdigest().encode(), b"\n", body)
            _sync(temporary)
            (_replace if instead else os.rename)(temporary, target)
            _sync(root)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise layout.NotSaved(
            f"checkpoint {target.name} was not saved in {root}: {reason}; earlier checkpoints are untouched"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return size


def _replace(temporary: pathlib.Path, target: pathlib.Path) -> None:
    """Rename in the place of the best one; a folder cannot be renamed over another, so that one steps aside first.

    A kill at any moment leaves one of them whole: `read.best` looks at both places.
    """
    before = target.with_name(layout.BEFORE)
    if target.exists():
        shutil.rmtree(before, ignore_errors=True)  # left by a kill after the new one was in place
        os.rename(target, before)
    try:
        os.rename(temporary, target)
    except OSError:
        with contextlib.suppress(OSError):
            os.rename(before, target)
        raise
    shutil.rmtree(before, ignore_errors=True)


def _manifest(step: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> tuple[bytes, int]:
    """The manifest's body, and the bytes of array data it describes."""
    digest, places, at = hashlib.sha256(), {}, 0
    for path, array in arrays.items():
        # The dtype by name: bfloat16's .str is '<V2', which would come back as raw bytes.
        places[path] = [array.dtype.name, list(array.shape), at, array.nbytes]
        digest.update(tree.raw(array))
        at += array.nbytes
    record = {
        "schema": layout.SCHEMA,
        "step": step,
        "arrays": places,
        "bytes": at,
        "sha256": digest.hexdigest(),
        "meta": dict(meta),
    }
    return json.dumps(record, sort_keys=True, allow_nan=False).encode(), at


def _refuse_non_finite(arrays: Mapping[str, np.ndarray]) -> None:
    """Raises `NonFiniteError` naming the first leaf with NaN or infinity."""
    for path, array in arrays.items():
        if EXPERIENCE in path or not jax.dtypes.issubdtype(array.dtype, np.inexact):
            continue
        if not np.isfinite(array).all():
            raise layout.NonFiniteError(f"leaf {path or 'tree'} holds NaN or infinity; the checkpoint was not written")


def _make(root: pathlib.Path) -> None:
    """Makes the checkpoints folder, and its name durable."""
    if not root.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        _sync(root.parent)


def _put(path: pathlib.Path, *parts: bytes | memoryview) -> None:
    """Writes a file whose bytes are on the disk, not in a cache, when this returns."""
    with open(path, "wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: pathlib.Path) -> None:
    """Makes the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _prune(root: pathlib.Path, latest: pathlib.Path, keep: int) -> None:
    """Removes old checkpoints, never `latest`; what cannot be removed stays, for the save itself succeeded."""
    with contextlib.suppress(OSError):
        for folder in layout.folders(root)[keep:]:
            if folder != latest:
                # Renamed first: a kill halfway must not leave a step folder with half its files.
                doomed = root / f".tmp-old-{folder.name}-{secrets.token_hex(4)}"
                os.rename(folder, doomed)
                shutil.rmtree(doomed, ignore_errors=True)
