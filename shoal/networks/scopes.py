"""Whose a parameter is, where several owners train together: the one place that knows.

Parameters of a *global* layer are everybody's: one copy lies at the server. Those of a *local* layer never leave their
owner. Names of local layers begin with `LOCAL` (`networks.forms` gives them), so that any tree that is keyed like
parameters, as gradients, moments and targets are, and those of a rule with several networks, can be told apart by its
paths alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from etils import epy

from shoal.core import types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np

    from shoal.core import tree

LOCAL = "own_"  # what the name of a local layer begins with
ARRAYS = ("kernel", "bias")  # of a layer; what is called otherwise is no layer's, e.g. the temperature of SAC

Layout = tuple[tuple[str, tuple[int, ...]], ...]


class Counts(NamedTuple):
    """Numbers in a learner's parameters, by whose they are."""

    shared: int  # of global layers
    own: int  # of local layers, and of no layer


def is_global(path: tuple[Any, ...]) -> bool:
    """Whether a leaf is everybody's.

    Args:
        path: Of the leaf, from `jax.tree_util`, in a tree that is keyed like a learner's parameters.

    Returns:
        False where the leaf is of a local layer, or of no layer.
    """
    names = _names(path)
    return bool(names) and names[-1] in ARRAYS and not any(name.startswith(LOCAL) for name in names)


def _names(path: tuple[Any, ...]) -> list[str]:
    return [str(jax.tree_util.keystr((key,), simple=True)) for key in path]


def split(params: types.Params) -> tuple[types.Tree, types.Tree]:
    """The two parts of a tree that is keyed like parameters.

    Args:
        params: Such a tree.

    Returns:
        The global and the local part, each with () in place of the other's leaves.
    """
    return tree.parted(params, is_global)


def join(shared: types.Tree, own: types.Tree) -> types.Params:
    """The whole of which `split` gave the parts, or parts of the same form.

    Args:
        shared: The global part.
        own: The local part.
    """
    return tree.whole(shared, own)


def _sorted(params: types.Tree) -> list[tuple[str, Any]]:
    """(name, global leaf), in the order of the names."""
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    return sorted((("/".join(_names(path)), leaf) for path, leaf in paths if is_global(path)), key=lambda pair: pair[0])


def layout(params: types.Params) -> Layout:
    """Names and shapes of the global part, in the order in which `vector` lays them out.

    Args:
        params: Arrays or what has their shapes.
    """
    return tuple((name, tuple(leaf.shape)) for name, leaf in _sorted(params))


def vector(params: types.Params) -> types.Array:
    """The global part as one vector; inside `jit` and `vmap` too.

    Args:
        params: A tree that is keyed like parameters, as gradients are; local leaves may be absent.

    Returns:
        ``[d]`` f32, leaves in the order of their names (`layout`), each in C order.
    """
    leaves = [jnp.ravel(leaf).astype(jnp.float32) for _, leaf in _sorted(params)]
    return jnp.concatenate(leaves) if leaves else jnp.zeros(0, jnp.float32)


def install(params: types.Params, given: types.Array) -> types.Params:
    """Parameters with another global part; the local part, and all else, is as it was.

    Args:
        params: Whose shapes and dtypes are kept.
        given: As `vector` gives it, ``[d]``.
    """
    places, at = {}, 0
    for name, leaf in _sorted(params):
        places[name] = at, at + leaf.size
        at += leaf.size
    if given.shape != (at,):
        raise ValueError(f"a global part {list(given.shape)} was given, and there is place for [{at}]")

    def put(path: tuple[Any, ...], leaf: Any) -> Any:
        if not is_global(path):
            return leaf
        start, end = places["/".join(_names(path))]
        return given[start:end].reshape(leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(put, params)


def counts(params: types.Params) -> Counts:
    """How many numbers are everybody's, and how many the owner's.

    Args:
        params: Arrays or what has their shapes.
    """
    shared, own = (sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(part)) for part in split(params))
    return Counts(shared, own)
