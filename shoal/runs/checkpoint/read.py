"""Reading: nothing is used before its digests, names, shapes and dtypes have been compared."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import secrets
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from shoal.core import errors, tree, types
from shoal.runs.checkpoint import layout

# All that reading a damaged or foreign file can raise; anything else is a bug and keeps its traceback.
_DAMAGE = (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)


class Loaded(NamedTuple):
    """A checkpoint just read and verified."""

    tree: types.Tree  # structure of `like`; NumPy leaves, plain numbers where `like` has plain numbers
    meta: dict[str, Any]  # what the caller of `save` added
    step: int  # environment steps
    folder: pathlib.Path


def load(folder: pathlib.Path, like: types.Tree) -> Loaded:
    """Reads one checkpoint; `newest` is the way to find a good one.

    Args:
        folder: A ``step-...`` folder.
        like: A tree with the structure, shapes and dtypes to come back with; abstract leaves will do.

    Returns:
        The verified tree and the caller's `meta`.

    Raises:
        errors.NoCheckpoint: It is damaged, of a newer schema, or holds other leaves than `like`.
    """
    try:
        manifest, data = _read(folder)
    except layout.NewerError as error:
        raise errors.NoCheckpoint(str(error)) from None
    except _DAMAGE as error:
        raise errors.NoCheckpoint(f"checkpoint {folder} is damaged: {_reason(error)}") from error
    return Loaded(_rebuild(folder, manifest, data, like), manifest["meta"], manifest["step"], folder)


def newest(root: pathlib.Path, like: types.Tree, report: Callable[[str], None], set_aside: bool = True) -> Loaded:
    """The newest checkpoint that is whole.

    A damaged one is named through `report`, renamed to ``bad-step-...-<random>``, and the one before is tried. An
    intact one that does not fit `like` belongs to another configuration: that is said, and nothing is renamed.

    Args:
        root: The run's ``checkpoints`` folder.
        like: A tree with the structure, shapes and dtypes to come back with.
        report: Takes one line for each damaged checkpoint.
        set_aside: False for readers that do not own the run (evaluation, export): nothing is renamed.

    Returns:
        The verified checkpoint.

    Raises:
        errors.NoCheckpoint: None is usable, the newest whole one has a newer schema, or it holds other leaves.
    """
    damaged = 0
    for folder in layout.folders(root):
        try:
            manifest, data = _read(folder)
        except layout.NewerError as error:
            raise errors.NoCheckpoint(str(error)) from None
        except _DAMAGE as error:
            damaged += 1
            action = _set_aside(folder) if set_aside else "left in place"
            report(f"checkpoint {folder.name} is damaged ({_reason(error)}): {action}; trying the one before")
            continue
        return Loaded(_rebuild(folder, manifest, data, like), manifest["meta"], manifest["step"], folder)
    found = f"all {damaged} found are damaged" if damaged else "none was saved"
    anew = "start the run anew in another folder" if layout.ever(root) else "`shoal resume` begins it anew"
    raise errors.NoCheckpoint(f"no usable checkpoint in {root}: {found}; {anew}")


def best(root: pathlib.Path, like: types.Tree) -> Loaded | None:
    """The one that is kept for its result (`write.save_best`); None if there is none.

    Args:
        root: The run's ``checkpoints`` folder.
        like: As `load`.

    Raises:
        errors.NoCheckpoint: As `load`.
    """
    found = _best(root)
    return load(found, like) if found else None


def best_said(root: pathlib.Path) -> dict[str, Any] | None:
    """What is said of that one; None if there is none that is whole."""
    found = _best(root)
    try:
        return _read(found)[0]["meta"] if found else None
    except (layout.NewerError, *_DAMAGE):
        return None


def _best(root: pathlib.Path) -> pathlib.Path | None:
    """Where it is: the one before is whole while its successor takes its place."""
    return next((root / name for name in (layout.BEST, layout.BEFORE) if (root / name).is_dir()), None)


def verify(folder: pathlib.Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None if it is whole. Changes nothing."""
    try:
        _read(folder)
    except layout.NewerError as error:
        return str(error)
    except _DAMAGE as error:
        return _reason(error)
    return None


def _read(folder: pathlib.Path) -> tuple[dict[str, Any], bytes]:
    """Manifest and array data of a checkpoint, all digests verified."""
    claimed, _, body = (folder / layout.MANIFEST).read_bytes().partition(b"\n")
    digest = hashlib.sha256(body).hexdigest()
    if claimed != digest.encode():
        raise ValueError("manifest.json does not match its digest")
    manifest = json.loads(body)
    if manifest["schema"] < 1:
        raise ValueError(f"manifest.json has schema {manifest['schema']}")
    if manifest["schema"] > layout.SCHEMA:
        raise layout.NewerError(
            f"checkpoint {folder} has schema {manifest['schema']}, this program reads up to {layout.SCHEMA}; "
            "use the version of Shoal that wrote it, or a newer one"
        )
    own = layout.folder_of(folder.parent, manifest["step"]).name
    if folder.name not in (own, layout.BEST, layout.BEFORE):
        raise ValueError(f"manifest.json is that of step {manifest['step']}")
    if not isinstance(manifest["meta"], dict) or not isinstance(manifest["arrays"], dict):
        raise ValueError("manifest.json has no table of arrays")
    size = (folder / layout.ARRAYS).stat().st_size  # before reading: a wrong file may be huge
    if size != manifest["bytes"]:
        raise ValueError(f"arrays.bin has {size} bytes instead of {manifest['bytes']}")
    data = (folder / layout.ARRAYS).read_bytes()
    if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
        raise ValueError("arrays.bin does not match its digest")
    return manifest, data


def _rebuild(folder: pathlib.Path, manifest: Mapping[str, Any], data: bytes, like: types.Tree) -> types.Tree:
    """The saved leaves in the structure of `like`, each compared by key path, dtype and shape."""
    wanted, places = tree.paths(like), manifest["arrays"]
    fix = "resume with the configuration the run was started with"
    added = {path for path, example in wanted.items() if isinstance(example, tree.Added) and path not in places}
    for path in sorted((wanted.keys() ^ places.keys()) - added):
        side = "lacks leaf" if path in wanted else "holds an unknown leaf"
        raise errors.NoCheckpoint(f"checkpoint {folder} {side} {path or 'tree'}; {fix}")
    leaves: dict[str, Any] = {}
    for path, example in wanted.items():
        dtype, shape = tree.describe(example)
        if path in added:
            leaves[path] = np.zeros(shape, dtype)
            continue
        name, dims, at, length = places[path]
        count = int(np.prod(shape, dtype=np.int64))
        if (name, tuple(dims), length) != (dtype, shape, count * np.dtype(dtype).itemsize):
            raise errors.NoCheckpoint(
                f"checkpoint {folder} has {name}{dims} at {path or 'tree'}, needed is {dtype}{list(shape)}; {fix}"
            )
        # Copied: the caller may write to it, and views into one block would be misaligned.
        array = np.frombuffer(data, np.dtype(dtype), count, at).reshape(shape).copy()
        leaves[path] = type(example)(array.item()) if isinstance(example, bool | int | float) else array
    return tree.fill(like, leaves)


def _set_aside(folder: pathlib.Path) -> str:
    """Renames a damaged checkpoint; says what was done. Random letters, since a step may go bad more than once."""
    target = folder.with_name(f"bad-{folder.name}-{secrets.token_hex(4)}")
    try:
        os.rename(folder, target)
    except OSError as error:
        return f"could not be set aside ({error.strerror})"
    return f"set aside as {target.name}"


def _reason(error: BaseException) -> str:
    """One line for a person about why reading failed."""
    if isinstance(error, OSError):
        return f"{pathlib.Path(error.filename or '').name}: {error.strerror}"
    return str(error) if isinstance(error, ValueError) and "\n" not in str(error) else f"malformed ({error!r})"
