"""How a function of one member becomes one of all: by an axis in front, in blocks of some, or one after the other.

No way is best everywhere. An axis in front makes products large, which pays on an accelerator and for small networks;
on a CPU the numbers of many large members leave the caches, and blocks or turns are faster. So it is measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from etils import epy

from shoal.core import types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

MODES = ("auto", "vmap", "map", "sequential")
BLOCKS = (4, 8, 2)  # in the order in which they are tried
SECONDS, SHARE = 30.0, 0.02  # that choosing takes at most: seconds, or this share of the run
CALLS, ENOUGH, LEAST = 5, 0.3, 3  # a candidate is timed for so many calls, or so many seconds, but never for fewer;
SEVERAL = 8  # updates of a call, at least, where they are short;
CALL = 0.05  # seconds that it lasts at least, if it may


class Way(NamedTuple):
    """One way; on each device it serves the members there."""

    mode: str  # "vmap" | "map" | "sequential"
    block: int  # members computed at once; 0: one, without an axis

    def __str__(self) -> str:
        return f"map in blocks of {self.block}" if self.mode == "map" else self.mode


def way(mode: str, block: int, members: int) -> Way | None:
    """What was asked for.

    Args:
        mode: One of `MODES`.
        block: Of "map"; 0: the largest of `BLOCKS` that fits, or any other divisor.
        members: On each device.

    Returns:
        None where it is to be measured.
    """
    if mode == "auto":
        return None
    if mode == "sequential":
        return Way(mode, 0)
    if mode == "map" and members > 1:
        fitting = [one for one in (*BLOCKS, 1) if members % one == 0 and one < members]
        return Way(mode, block or fitting[0])
    return Way("vmap", members)


def of(block: int, members: int) -> Way:
    """The way whose block is known, e.g. from a checkpoint."""
    return Way("sequential" if block == 0 else "vmap" if block == members else "map", block)


def candidates(members: int) -> list[Way]:
    """What is worth trying, in this order.

    Args:
        members: On each device.
    """
    if jax.default_backend() != "cpu" or members == 1:
        return [Way("vmap", members)]
    blocks = [Way("map", block) for block in BLOCKS if members % block == 0 and block < members]
    return [Way("vmap", members), Way("sequential", 0), *blocks]


# ------------------------------------------------------------------------------------------------ carried out


One = Callable[[types.Tree, types.Key], tuple[types.Tree, types.Tree]]  # (tree, key) -> (tree, told)


def in_turn(one: One) -> One:
    """A function of every member, one member after the other, each in its place in the joined tree."""

    def every(trees: types.Tree, keys: types.Key) -> tuple[types.Tree, types.Tree]:
        def turn(trees: types.Tree, which: tuple[Any, Any]) -> tuple[types.Tree, types.Tree]:
            at, key = which
            tree, told = one(jax.tree.map(lambda leaf: leaf[at], trees), key)
            return jax.tree.map(lambda all_, mine: all_.at[at].set(mine), trees, tree), told

        return jax.lax.scan(turn, trees, (jnp.arange(len(keys)), keys))

    return every


Several = Callable[..., tuple[Any, Any, Any]]
# (trees of the members [M, ...], tree of what all have in common, keys [M], ...) -> (trees, common, told [M, ...])


def every(one: Several, several: Several, way: Way) -> Several:
    """A function of all members.

    What they have in common (the rows of a memory that are filled) comes out alike whoever computes it, so each block
    begins with what there was before, and the last one's is kept.

    Args:
        one: Of a single member, whose trees, key and telling have no axis of members.
        several: Of some members.
        way: How many at once.
    """
    if way.mode == "vmap":
        return several
    size = way.block or 1

    def block(mine: types.Tree, common: types.Tree, keys: types.Key, *more: Any) -> tuple[Any, Any, Any]:
        if way.block:
            return several(mine, common, keys, *more)
        mine, common, told = one(jax.tree.map(lambda leaf: leaf[0], mine), common, keys[0], *more)
        return *jax.tree.map(lambda leaf: leaf[None], (mine,)), common, jax.tree.map(lambda leaf: leaf[None], told)

    def all_(trees: types.Tree, common: types.Tree, keys: types.Key, *more: Any) -> tuple[Any, Any, Any]:
        def turn(at: Any, which: tuple[Any, Any]) -> tuple[Any, Any]:
            (trees, _), (first, keys) = at, which
            mine = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, size), trees)
            mine, after, told = block(mine, common, keys, *more)
            trees = jax.tree.map(
                lambda whole, new: jax.lax.dynamic_update_slice_in_dim(whole, new, first, 0), trees, mine
            )
            return (trees, after), told

        firsts = jnp.arange(0, len(keys), size)
        (trees, common), told = jax.lax.scan(turn, (trees, common), (firsts, keys.reshape(-1, size)))
        return trees, common, jax.tree.map(lambda leaf: leaf.reshape(len(firsts) * size, *leaf.shape[2:]), told)

    return all_


# ------------------------------------------------------------------------------------------------ measured


class Timed(NamedTuple):
    """What a candidate took."""

    way: Way
    seconds: float  # of an update of all members, the median
    compiling: float  # seconds until it could be called


class Clock:
    """Times candidates one after the other, and knows when another is not worth it."""

    def __init__(self, updates: int) -> None:
        """Args: `updates`, that the whole run will make."""
        self.timed: list[Timed] = []
        self._updates, self._began = updates, time.monotonic()

    def take(self, way: Way, call: Callable[[int], None], most: int, compiling: float) -> None:
        """Time one.

        Args:
            way: Which.
            call: Does so many updates and waits for them.
            most: Of a call.
            compiling: Seconds that it took to make.
        """
        call(1)  # the first is slower
        first = _seconds(call, 1)
        if first < CALL:
            few = min(SEVERAL, most)
            length, seconds = min(most, max(few, int(few * CALL / max(_seconds(call, few), 1e-6)))), []
        else:  # what a call costs is nothing beside its update
            length, seconds = 1, [first]
        while len(seconds) < CALLS and (sum(seconds) < ENOUGH or len(seconds) < LEAST):
            seconds.append(_seconds(call, length))
        self.timed.append(Timed(way, statistics.median(seconds) / length, compiling))

    def worth(self) -> bool:
        """Whether there is time for another, and the run is long enough for it to pay."""
        if not self.timed:
            return True
        spent, run = time.monotonic() - self._began, self.best.seconds * self._updates
        price = max(one.compiling for one in self.timed)
        return spent + price <= max(SECONDS, SHARE * run) and price <= run

    @property
    def best(self) -> Timed:
        """The fastest."""
        return min(self.timed, key=lambda one: one.seconds)


def _seconds(call: Callable[[int], None], updates: int) -> float:
    began = time.perf_counter()
    call(updates)
    return time.perf_counter() - began


def told(timed: Sequence[Timed], chosen: Way) -> dict[str, object]:
    """As plain data, for a summary."""
    return {
        "mode": chosen.mode,
        "block": chosen.block or 1,
        "candidates": [
            {"mode": one.way.mode, "block": one.way.block or 1, "seconds": one.seconds, "compiling_s": one.compiling}
            for one in timed
        ],
    }
