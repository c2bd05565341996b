"""A population in blocks of members, each trained by itself; joined where it is looked at whole, and only as much.

What is one block's (its memories above all) stays where it is: an exchange joins the learners' states alone, and a
checkpoint joins all of it on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from etils import epy

from shoal.core import types
from shoal.runtimes.members import loop, spread

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


class Blocks(NamedTuple):
    """Loops of as many members each, one block after the other, all after the same number of updates."""

    loops: tuple[loop.Loop, ...]
    whole: spread.Cut  # all members over the devices
    each: spread.Cut  # those of a block


Held = loop.Loop | Blocks


def shares(tree: types.Tree, count: int) -> list[types.Tree]:
    """Leaves ``[N, ...]`` in so many equal pieces."""
    return [jax.tree.map(lambda leaf, at=at: leaf[_piece(leaf, at, count)], tree) for at in range(count)]


def _piece(leaf: types.Array, at: int, count: int) -> slice:
    size = leaf.shape[0] // count
    return slice(at * size, (at + 1) * size)


def _joined(at: Blocks, of: Callable[[loop.Loop], types.Tree]) -> types.Tree:
    pieces = [of(one) for one in at.loops]
    if len(pieces) == 1:
        return pieces[0]
    local = jax.local_devices()[0]  # blocks may be spread over other devices than the whole
    return at.whole.put(jax.tree.map(lambda *leaves: jnp.concatenate(jax.device_put(leaves, local)), *pieces))


def _split(at: Blocks, tree: types.Tree) -> list[types.Tree]:
    if len(at.loops) == 1:
        return [tree]
    local = jax.local_devices()[0]
    return [at.each.put(piece) for piece in shares(jax.device_put(tree, local), len(at.loops))]


def common(at: Held) -> loop.Common:
    """What all members have in common."""
    return at.loops[0].common if isinstance(at, Blocks) else at.common


def states(at: Held) -> types.State:
    """The learners of all members, ``[N, ...]``."""
    return _joined(at, lambda one: one.members.state) if isinstance(at, Blocks) else at.members.state


def with_states(at: Held, state: types.State) -> Held:
    """The same with other learners."""
    if isinstance(at, loop.Loop):
        return at._replace(members=at.members._replace(state=state))
    pieces = zip(at.loops, _split(at, state), strict=True)
    return at._replace(loops=tuple(one._replace(members=one.members._replace(state=mine)) for one, mine in pieces))


def members(at: Held) -> loop.Members:
    """All that is the members' own."""
    whole: loop.Members = _joined(at, lambda one: one.members) if isinstance(at, Blocks) else at.members
    return whole


def with_members(at: Held, all_: loop.Members) -> Held:
    """The same with other members."""
    if isinstance(at, loop.Loop):
        return at._replace(members=all_)
    return at._replace(
        loops=tuple(one._replace(members=mine) for one, mine in zip(at.loops, _split(at, all_), strict=True))
    )


def learner(at: Held, cut: spread.Cut, member: int) -> types.State:
    """One member's learner."""
    if isinstance(at, Blocks):
        size = cut.members // len(at.loops)
        cut, member, at = at.each, member % size, at.loops[member // size]
    state, place = cut.share(at.members.state, member)
    return jax.tree.map(lambda leaf: leaf[place], state)


def saved(at: Held) -> loop.Loop:
    """All of it on the host."""
    if isinstance(at, loop.Loop):
        return jax.device_get(at)
    pieces: Sequence[loop.Loop] = jax.device_get(at.loops)
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(one.members for one in pieces))
    return loop.Loop(whole, pieces[0].common)
