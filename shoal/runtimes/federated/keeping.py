"""A party's own folder: its private state in one file that is whole or not there, and its log.

The file is the SHA-256 of the rest in hex, a line of JSON that names every array with its dtype, shape and place, and
the arrays. It is written under another name, flushed to the disk and renamed, so a kill at any moment leaves the state
before or the one after. Nothing is ever unpickled. Only its owner can read it (mode 0600).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
from etils import epy

from shoal.core import types

with epy.lazy_imports():
    from shoal.core import tree

SCHEMA = 1
STATE, BEFORE, LOG = "state", "state-before", "party.log"
DIGEST = 64  # hex digits


class Damaged(ValueError):
    """The file is not one that was written here for this party."""


def write(folder: Path, kept: types.Tree) -> None:
    """Write the state, flushed to the disk; the one before is kept beside it.

    Args:
        folder: The party's own; it is made if need be.
        kept: A tree of arrays.

    Raises:
        OSError: It could not be written; what was there is intact.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = folder / f".tmp-{STATE}-{os.getpid()}"
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(packed(kept))
            file.flush()
            os.fsync(file.fileno())
        if (folder / STATE).exists():
            os.replace(folder / STATE, folder / BEFORE)
        os.replace(temporary, folder / STATE)
        _sync(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def read(folder: Path, like: types.Tree) -> types.Tree | None:
    """The newest state that is whole.

    Args:
        folder: The party's own.
        like: A tree of the same structure, shapes and dtypes.

    Returns:
        None where there never was one.

    Raises:
        Damaged: There was, and neither it nor the one before can be read.
    """
    wrong = ""
    for name in (STATE, BEFORE):
        try:
            return unpacked((folder / name).read_bytes(), like)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError) as error:
            wrong = f"{folder / name}: {error}"
    if wrong:
        raise Damaged(wrong)
    return None


def log(folder: Path, what: str, story: str) -> None:
    """Add an entry to the party's own log; a disk that is full costs the entry and no more.

    Args:
        folder: The party's own.
        what: What happened.
        story: With its traceback, if there is one.
    """
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {what}\n{story}")


def packed(kept: types.Tree) -> bytes:
    """A tree of arrays as bytes, `size` of them."""
    body = _head(kept) + b"\n" + b"".join(leaf.tobytes() for leaf in tree.host(kept).values())
    return hashlib.sha256(body).hexdigest().encode() + body


def size(like: types.Tree) -> int:
    """How many bytes a tree becomes; shapes are enough."""
    return DIGEST + len(_head(like)) + 1 + tree.bytes(like)


def _head(like: types.Tree) -> bytes:
    about, at = {}, 0
    for path, leaf in tree.paths(like).items():
        dtype, shape = tree.describe(leaf)
        about[path] = [dtype, list(shape), at]
        at += int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return json.dumps({"schema": SCHEMA, "arrays": about, "bytes": at}, sort_keys=True).encode()


def unpacked(data: bytes, like: types.Tree) -> types.Tree:
    """The tree again; every leaf is checked against `like`.

    Raises:
        ValueError: It is damaged, of a newer schema, or of another tree.
    """
    digest, body = data[:DIGEST], data[DIGEST:]
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise Damaged("the digest is another")
    head, _, raw = body.partition(b"\n")
    about = json.loads(head)
    if about["schema"] > SCHEMA or about["bytes"] != len(raw):
        raise Damaged(f"schema {about['schema']}, {len(raw)} bytes")
    leaves = {}
    for path, leaf in tree.paths(like).items():
        dtype, shape, at = about["arrays"][path]
        if (dtype, tuple(shape)) != tree.describe(leaf):
            raise Damaged(f"{path} is {dtype} {shape}")
        count = int(np.prod(shape, dtype=np.int64))
        leaves[path] = np.frombuffer(raw, dtype, count, at).reshape(shape).copy()
    if leaves.keys() != about["arrays"].keys():
        raise Damaged("it holds other arrays")
    return tree.fill(like, leaves)


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
