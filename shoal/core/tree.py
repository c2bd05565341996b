"""Pytrees of arrays: size, one flat vector and back, stacking, blending, a finite check, a digest.

Wherever an order of leaves matters it is that of the **sorted key paths** (``jax.tree_util.keystr``), so it does not
depend on the order in which a dict was filled or a container lists its fields. Leaves are arrays or plain numbers;
typed PRNG keys are refused, since keys are derived and never stored (see `seeds`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epy

from shoal.core import types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

# What a float32 element can carry without loss; wider integers and floats would come back changed.
_FITS_FLOAT32 = ("float32", "float16", "bfloat16", "bool", "int8", "uint8", "int16", "uint16")


@dataclasses.dataclass(frozen=True)
class Added:
    """A leaf, as data, that checkpoints of an older Shoal lack; in those it is read as zeros."""

    shape: tuple[int, ...]
    dtype: str


class Flattener(NamedTuple):
    """One float32 vector for a tree, and back; both functions may be used inside `jit`."""

    size: int  # elements of the vector
    flatten: Callable[[types.Tree], Any]  # tree -> [size] f32
    unflatten: Callable[[Any], types.Tree]  # [size] f32 -> tree like `like`; float32 leaves are views of a NumPy vector


def field(record: Any, name: str) -> Any:
    """A field of a NamedTuple by its name."""
    return record[record._fields.index(name)]


def replaced(record: Any, name: str | None, value: Any) -> Any:
    """A NamedTuple with a field replaced; as it is where no field is named."""
    return record if name is None else record._replace(**{name: value})


def paths(tree: types.Tree) -> dict[str, Any]:
    """The leaves by key path, e.g. ``".params['dense']['w']"``, in sorted order.

    Raises:
        TypeError: A leaf is a typed PRNG key.
        ValueError: Two leaves have one path (a dict key that itself looks like a path).
    """
    pairs = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    for path, leaf in pairs:
        if _is_key(leaf):
            raise TypeError(f"leaf {path or 'tree'} is a typed PRNG key; store the seed and counters it derives from")
    found = dict(sorted(pairs, key=lambda pair: pair[0]))
    if len(found) != len(pairs):
        raise ValueError("two leaves of the tree have the same key path")
    return found


def describe(leaf: Any) -> tuple[str, tuple[int, ...]]:
    """(dtype name, shape) of an array, a ``ShapeDtypeStruct`` or a plain number, without copying it."""
    if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
        leaf = np.asarray(leaf)
    return np.dtype(leaf.dtype).name, tuple(leaf.shape)


def host(tree: types.Tree) -> dict[str, np.ndarray]:
    """Every leaf as a NumPy array by sorted key path: C order, little-endian, original shape and dtype.

    Raises:
        TypeError: A leaf is a typed PRNG key or no number.
    """
    return {path: _host_leaf(path, leaf) for path, leaf in jax.device_get(paths(tree)).items()}


def bytes(tree: types.Tree) -> int:  # read as tree.bytes(...)
    """The size of all leaves in bytes; shapes are enough (``ShapeDtypeStruct``), no data is touched."""
    kinds = [describe(leaf) for leaf in paths(tree).values()]
    return sum(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize for dtype, shape in kinds)


def parted(tree: types.Tree, chosen: Callable[[tuple[types.Tree, ...]], bool]) -> tuple[types.Tree, types.Tree]:
    """Two trees of the same form, each with () in place of the other's leaves; inside `jit` too.

    Args:
        tree: Both together.
        chosen: A leaf's key path -> whether it is in the first.
    """
    there = jax.tree_util.tree_map_with_path(lambda path, _: chosen(path), tree)
    first = jax.tree.map(lambda leaf, here: leaf if here else (), tree, there)
    return first, jax.tree.map(lambda leaf, here: () if here else leaf, tree, there)


def whole(first: types.Tree, second: types.Tree) -> types.Tree:
    """The tree of which `parted` gave the parts, or parts of the same form."""
    return jax.tree.map(lambda one, other: other if _absent(one) else one, first, second, is_leaf=_absent)


def _absent(node: types.Tree) -> bool:
    return isinstance(node, tuple) and node == ()


def flattener(like: types.Tree) -> Flattener:
    """How trees with the structure, shapes and dtypes of `like` become one float32 vector, and return unchanged.

    Args:
        like: An example tree; its values are not used, abstract leaves will do.

    Returns:
        Size in elements, `flatten` and `unflatten`.

    Raises:
        TypeError: A leaf has a dtype that float32 cannot hold without loss (32-bit counters, float64).
    """
    found = paths(like)
    kinds = {path: describe(leaf) for path, leaf in found.items()}
    for path, (dtype, _) in kinds.items():
        if dtype not in _FITS_FLOAT32:
            raise TypeError(f"leaf {path or 'tree'} is {dtype}, which float32 cannot hold without loss; keep it apart")
    sizes = [int(np.prod(shape, dtype=np.int64)) for _, shape in kinds.values()]
    ends = np.cumsum(sizes, dtype=np.int64).tolist()
    rebuild = _rebuilder(like)

    def flatten(tree: types.Tree) -> Any:
        given = paths(tree)
        if {path: describe(leaf) for path, leaf in given.items()} != kinds:
            raise ValueError("the tree's key paths, shapes or dtypes differ from those the flattener was made for")
        parts = [jnp.ravel(jnp.asarray(leaf)).astype(jnp.float32) for leaf in given.values()]
        return jnp.concatenate(parts) if parts else jnp.zeros(0, jnp.float32)

    def unflatten(vector: Any) -> types.Tree:
        pieces = (vector[end - size : end] for size, end in zip(sizes, ends, strict=True))
        shaped = (
            piece.reshape(shape).astype(dtype, copy=False)
            for piece, (dtype, shape) in zip(pieces, kinds.values(), strict=True)
        )
        return rebuild(dict(zip(kinds, shaped, strict=True)))

    return Flattener(sum(sizes), flatten, unflatten)


def fill(like: types.Tree, leaves: Mapping[str, Any]) -> types.Tree:
    """A tree with the structure of `like` and the leaves of `leaves`, which are looked up by key path."""
    return _rebuilder(like)(leaves)


def all_finite(tree: types.Tree) -> Any:
    """Whether no floating-point leaf holds NaN or infinity: one boolean array, also inside `jit`."""
    checks = [
        jnp.all(jnp.isfinite(leaf))
        for leaf in paths(tree).values()
        if jax.dtypes.issubdtype(jnp.result_type(leaf), np.inexact)
    ]
    return jnp.all(jnp.stack(checks)) if checks else jnp.asarray(True)


def sha256(tree: types.Tree) -> str:
    """Hex digest over key path, dtype, shape and bytes of every leaf; the same for NumPy and JAX leaves."""
    digest = hashlib.sha256()
    for path, leaf in host(tree).items():
        # JSON keeps path, dtype and shape apart, and these fix how many bytes follow: no two trees read alike.
        digest.update(json.dumps([path, leaf.dtype.name, leaf.shape]).encode() + b"\n")
        digest.update(raw(leaf))
    return digest.hexdigest()


def raw(array: np.ndarray) -> memoryview:
    """The bytes of a C-ordered array without a copy, whatever its dtype (bfloat16 offers no buffer of its own)."""
    return array.reshape(-1).view(np.uint8).data


def stack(trees: Sequence[types.Tree]) -> types.Tree:
    """One tree whose leaves have a new leading axis over `trees`, which all look alike."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: types.Tree) -> list[types.Tree]:
    """The inverse of `stack`: one tree for each index of the leaves' common leading axis.

    Raises:
        ValueError: The leaves have no common leading axis.
    """
    lengths = {shape[:1] for _, shape in map(describe, paths(tree).values())}
    if len(lengths) != 1 or lengths == {()}:
        raise ValueError(f"the leaves have no common leading axis (found {sorted(lengths)})")
    count = lengths.pop()[0]
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(count)]


def lerp(old: types.Tree, new: types.Tree, weight: Any) -> types.Tree:
    """``old + weight * (new - old)`` in the dtypes of `old`; leaves that are not floats are those of `new`.

    Args:
        old: The tree at weight 0, e.g. a target network.
        new: The tree at weight 1, of the same structure.
        weight: Scalar, usually in [0, 1]; exact at both ends, and whatever it is where the two are equal.

    Returns:
        The blended tree.
    """

    def blend(a: Any, b: Any) -> Any:
        dtype = jnp.result_type(a)
        if not jax.dtypes.issubdtype(dtype, np.inexact):
            return b
        w, b = jnp.asarray(weight, dtype), jnp.asarray(b, dtype)
        return jnp.where(w == 1, b, a + w * (b - a))

    return jax.tree.map(blend, old, new)


def sometimes(change: Callable[..., types.Tree], due: types.Scalar, now: types.Tree, *given: types.Tree) -> types.Tree:
    """`change(now, *given)` where it is due, else `now`; under `vmap` nothing is computed while it is due for nobody.

    `lax.cond` under `vmap` computes both branches every time. Members of a population whose turns come together, as
    they do with one period, then cost what they cost alone; with other periods the results are the same.

    Args:
        change: Of arrays that are handed to it; it must not reach for traced ones itself.
        due: Scalar bool.
        now: What may change; `change` returns such a tree.
        given: What else it is computed from.
    """

    def alone(due: types.Scalar, now: types.Tree, given: tuple[types.Tree, ...]) -> types.Tree:
        return jax.lax.cond(due, change, lambda now, *_: now, now, *given)

    chosen = jax.custom_batching.custom_vmap(alone)

    @chosen.def_vmap
    def several(
        size: int, axes: types.Tree, due: types.Array, now: types.Tree, given: types.Tree
    ) -> tuple[types.Tree, types.Tree]:
        given_axes = jax.tree.map(lambda batched: 0 if batched else None, axes[2])
        due, now = (
            jax.tree.map(lambda leaf, batched: leaf if batched else jnp.broadcast_to(leaf, (size, *leaf.shape)), *both)
            for both in ((due, axes[0]), (now, axes[1]))
        )

        def changed(now: types.Tree, *given: types.Tree) -> types.Tree:
            new = jax.vmap(change, (0, *given_axes))(now, *given)
            return jax.vmap(lambda due, *both: jax.tree.map(functools.partial(jnp.where, due), *both))(due, new, now)

        after = jax.lax.cond(jnp.any(due), changed, lambda now, *_: now, now, *given)
        return after, jax.tree.map(lambda _: True, after)

    return chosen(due, now, given)


def _rebuilder(like: types.Tree) -> Callable[[Mapping[str, Any]], types.Tree]:
    """Puts leaves given by key path back into the structure of `like`."""
    pairs, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(path) for path, _ in pairs]
    return lambda leaves: jax.tree_util.tree_unflatten(structure, [leaves[name] for name in names])


def _is_key(leaf: Any) -> bool:
    """Whether the leaf is an array of typed PRNG keys."""
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _host_leaf(path: str, leaf: Any) -> np.ndarray:
    """One leaf on the host, C-ordered and little-endian."""
    array = np.asarray(leaf, order="C")
    if array.dtype.hasobject or array.dtype.kind in "USMm":
        raise TypeError(f"leaf {path or 'tree'} is no array of numbers but {type(leaf).__name__}")
    # Only a declared big-endian dtype is touched: bfloat16 and its like have no byte order to set.
    return array.astype(array.dtype.newbyteorder("<")) if array.dtype.byteorder == ">" else array
