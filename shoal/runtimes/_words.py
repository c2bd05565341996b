"""Many small arrays in one vector of 32-bit words, so that a compiled call receives one argument instead of thirty.

Every array that enters or leaves a jitted call costs microseconds, more than most of what is in it. The words are
integers, so no bit pattern is ever treated as a number on the way; booleans take a word each; other dtypes (images)
do not belong here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epy

from shoal import types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

WORD = ("float32", "int32", "uint32")


def fits(tree: types.Tree) -> bool:
    """Whether every leaf (anything with shape and dtype) can be held."""
    return all(np.dtype(leaf.dtype).name in (*WORD, "bool") for leaf in jax.tree.leaves(tree))


def make(like: types.Tree) -> tuple[np.ndarray, types.Tree, Callable[[Any], types.Tree]]:
    """Room for a tree.

    Args:
        like: Anything with shapes and dtypes, for which `fits` holds.

    Returns:
        The vector; the tree of NumPy views to write into (booleans as int32); and the function that reads the tree
        from the vector inside `jit`.
    """
    leaves, structure = jax.tree.flatten(like)
    kinds = [np.dtype(leaf.dtype).name for leaf in leaves]
    sizes = [int(np.prod(leaf.shape)) for leaf in leaves]
    ends = np.cumsum(sizes, dtype=int).tolist()
    words = np.zeros(sum(sizes), np.int32)
    views = [
        words[end - size : end].reshape(leaf.shape).view(np.int32 if kind == "bool" else kind)
        for leaf, kind, size, end in zip(leaves, kinds, sizes, ends, strict=True)
    ]

    def unpack(vector: Any) -> types.Tree:
        read = []
        for leaf, kind, size, end in zip(leaves, kinds, sizes, ends, strict=True):
            part = vector[end - size : end].reshape(leaf.shape)
            read.append(part != 0 if kind == "bool" else jax.lax.bitcast_convert_type(part, kind))
        return jax.tree.unflatten(structure, read)

    return words, jax.tree.unflatten(structure, views), unpack


def pack(tree: types.Tree) -> Any:
    """A tree as one vector of words, inside `jit`; the order is that of `make`."""
    parts = [
        leaf.astype(jnp.int32) if leaf.dtype == bool else jax.lax.bitcast_convert_type(leaf, jnp.int32)
        for leaf in map(jnp.asarray, jax.tree.leaves(tree))
    ]
    return jnp.concatenate([part.reshape(-1) for part in parts]) if parts else jnp.zeros(0, jnp.int32)
