"""Many small arrays in one vector of 32-bit words, so that a compiled call receives one argument instead of thirty.

Every array that enters or leaves a jitted call costs microseconds, more than most of what is in it. The words are
integers, so no bit pattern is ever treated as a number on the way; booleans take a word each, bytes (images) a quarter.
A whole rollout of images does not belong here, where it would be copied once more (`fits`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epy

from shoal.core import types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

WORD = ("float32", "int32", "uint32")


def fits(tree: types.Tree) -> bool:
    """Whether every leaf (anything with shape and dtype) is made of words, or of booleans."""
    return all(np.dtype(leaf.dtype).name in (*WORD, "bool") for leaf in jax.tree.leaves(tree))


def size(tree: types.Tree) -> int:
    """Words that a tree takes."""
    return sum(_length(leaf) for leaf in jax.tree.leaves(tree))


def _length(leaf: Any) -> int:
    count = int(np.prod(np.shape(leaf)))
    return -(-count // 4) if np.dtype(leaf.dtype) == np.uint8 else count


def make(like: types.Tree) -> tuple[np.ndarray, types.Tree, Callable[[Any], types.Tree]]:
    """Room for a tree.

    Args:
        like: Anything with shapes and dtypes, of 32 bits, booleans or bytes.

    Returns:
        The vector; the tree of NumPy views to write into (booleans as int32); and the function that reads the tree
        from the vector inside `jit`.
    """
    leaves, structure = jax.tree.flatten(like)
    kinds = [np.dtype(leaf.dtype).name for leaf in leaves]
    sizes = [_length(leaf) for leaf in leaves]
    ends, counts = np.cumsum(sizes, dtype=int).tolist(), [int(np.prod(leaf.shape)) for leaf in leaves]
    words = np.zeros(sum(sizes), np.int32)
    views = [
        words[end - size : end].view(np.int32 if kind == "bool" else kind)[:count].reshape(leaf.shape)
        for leaf, kind, size, end, count in zip(leaves, kinds, sizes, ends, counts, strict=True)
    ]

    def unpack(vector: Any) -> types.Tree:
        read = []
        for leaf, kind, size, end, count in zip(leaves, kinds, sizes, ends, counts, strict=True):
            part = vector[end - size : end]
            part = part != 0 if kind == "bool" else jax.lax.bitcast_convert_type(part, kind)
            read.append(part.reshape(-1)[:count].reshape(leaf.shape))
        return jax.tree.unflatten(structure, read)

    return words, jax.tree.unflatten(structure, views), unpack


def reader(like: types.Tree) -> Callable[[np.ndarray], types.Tree]:
    """The function that gives a tree of NumPy views of a vector, as `pack` made it outside or inside `jit`.

    Args:
        like: Anything with shapes and dtypes, of 32 bits.
    """
    leaves, structure = jax.tree.flatten(like)
    sizes = [_length(leaf) for leaf in leaves]
    ends = np.cumsum(sizes, dtype=int).tolist()
    plan = [
        (end - size, end, np.dtype(leaf.dtype), leaf.shape) for leaf, size, end in zip(leaves, sizes, ends, strict=True)
    ]

    def read(words: np.ndarray) -> types.Tree:
        views = [words[start:end].view(dtype).reshape(shape) for start, end, dtype, shape in plan]
        return jax.tree.unflatten(structure, views)

    return read


def pack(tree: types.Tree) -> Any:
    """A tree as one vector of words, inside `jit`; the order is that of `make`."""
    parts = [_as_words(jnp.asarray(leaf).reshape(-1)) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate(parts) if parts else jnp.zeros(0, jnp.int32)


def _as_words(flat: Any) -> Any:
    if flat.dtype == bool:
        return flat.astype(jnp.int32)
    if flat.dtype == jnp.uint8:
        flat = jnp.pad(flat, (0, -len(flat) % 4)).reshape(-1, 4)
    return jax.lax.bitcast_convert_type(flat, jnp.int32)
