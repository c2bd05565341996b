"""What learner and compressor share: the newest policy, recent observations, and what the compressor remembers.

Two places each for policies and memories, written in turn under a lock that the kernel lets go of if its holder dies;
who dies while writing leaves the one before.
"""

from __future__ import annotations

import numpy as np
from etils import epy

from shoal.core import seeds, types
from shoal.runtimes.crew import sharing

with epy.lazy_imports():
    import jax

MEMORY = 2  # first of the places that lock memories; those before lock policies


def remembered(agent: types.Agent, compressor: types.Compressor) -> types.Tree:
    """What a checkpoint holds of the compressor's memory (`types.Compressor.kept`), before it has compressed anything.

    Args:
        agent: Whose policies are compressed.
        compressor: It.
    """
    shapes = jax.eval_shape(lambda key: agent.snapshot(agent.init(key)), seeds.key(0))
    policy = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    with np.errstate(all="ignore"):
        kept = compressor.kept(compressor.init(policy, seeds.key(0)))
    return jax.tree.map(np.asarray, kept)


def layout(shapes: types.Policy, rows: int, seen: types.ObservationSpec, memory: types.Tree) -> sharing.Layout:
    """The learner's policy, recent observations and the compressor's memory in shared memory.

    Args:
        shapes: Of the policy.
        rows: Observations that are kept.
        seen: What one looks like.
        memory: From `remembered`.
    """
    leaves, kept = jax.tree.leaves(shapes), jax.tree.leaves(memory)
    return {
        **{f"leaf_{i}": ((2, *leaf.shape), np.dtype(leaf.dtype).str) for i, leaf in enumerate(leaves)},
        **{f"memory_{i}": ((2, *leaf.shape), leaf.dtype.str) for i, leaf in enumerate(kept)},
        "keeps": ((1,), "i8"),  # memories so far; the newest is in place (keeps - 1) % 2
        "done": ((1,), "i8"),  # of the policies that were given, those that the newest memory has seen
        "version": ((2,), "i8"),
        "plain": ((1,), "i8"),  # 1: it is to be posted in full precision, the controller said so
        "given": ((1,), "i8"),  # policies so far; the newest is in place (given - 1) % 2
        "observations": ((rows, *seen.shape), np.dtype(seen.dtype).str),
        "seen": ((1,), "i8"),  # observations so far
    }


class Teacher:
    """The learner's policy, recent observations and the compressor's memory, as both sides see them."""

    def __init__(self, block: sharing.Block, shapes: types.Policy, memory: types.Tree) -> None:
        """Args: `block` with `layout`; `shapes`, of the policy; `memory`, from `remembered`."""
        self._block, self._shapes, self._like = block, shapes, memory
        self._leaves = [block[f"leaf_{i}"] for i in range(len(jax.tree.leaves(shapes)))]
        self._memory = [block[f"memory_{i}"] for i in range(len(jax.tree.leaves(memory)))]

    @property
    def given(self) -> int:
        """How many policies there were."""
        return int(self._block["given"][0])

    @property
    def done(self) -> int:
        """How many of them the compressor is done with, and its memory here has seen."""
        return int(self._block["done"][0])

    def keep(self, memory: types.Tree, done: int) -> None:
        """The compressor's memory, for whoever saves, or begins in the place of one that died.

        Args:
            memory: `types.Compressor.kept` of it.
            done: Policies that the compressor is done with.
        """
        at = int(self._block["keeps"][0]) % 2
        with self._block.locked(MEMORY + at):
            for room, leaf in zip(self._memory, jax.tree.leaves(memory), strict=True):
                room[at] = leaf
        self._block["keeps"][0] += 1
        self.passed(done)

    def passed(self, done: int) -> None:
        """So many policies are done with."""
        self._block["done"][0] = done

    def memory(self) -> tuple[types.Tree, bool]:
        """The newest memory, copied out, and whether there is one."""
        keeps = int(self._block["keeps"][0])
        at = (keeps - 1) % 2
        with self._block.locked(MEMORY + at, reading=True):
            leaves = [room[at].copy() for room in self._memory]
        return jax.tree.unflatten(jax.tree.structure(self._like), leaves), keeps > 0

    @property
    def plain(self) -> bool:
        """Whether policies are to be posted in full precision."""
        return bool(self._block["plain"][0])

    def level(self, *, plain: bool) -> None:
        """From now on compressed, or in full precision."""
        self._block["plain"][0] = plain

    def give(self, policy: types.Policy, version: int) -> None:
        """The learner's newest."""
        at = self.given % 2
        with self._block.locked(at):
            for room, leaf in zip(self._leaves, jax.tree.leaves(policy), strict=True):
                room[at] = leaf
            self._block["version"][at] = version
        self._block["given"][0] += 1

    def newest(self) -> tuple[types.Policy, int]:
        """The newest and its version, copied out."""
        at = (self.given - 1) % 2
        with self._block.locked(at, reading=True):
            leaves = [room[at].copy() for room in self._leaves]
            version = int(self._block["version"][at])
        return jax.tree.unflatten(jax.tree.structure(self._shapes), leaves), version

    def show(self, obs: np.ndarray) -> None:
        """Keep some observations ``[N, *obs]``, the oldest give way."""
        rows, seen = len(self._block["observations"]), int(self._block["seen"][0])
        obs = obs[-rows:]
        at = (seen + np.arange(len(obs))) % rows
        self._block["observations"][at] = obs
        self._block["seen"][0] = seen + len(obs)

    def observations(self) -> np.ndarray:
        """Those that are kept, copied out."""
        rows = min(int(self._block["seen"][0]), len(self._block["observations"]))
        return self._block["observations"][:rows].copy()
