"""Rollouts on their way from actors to the learner: a bounded queue in shared memory for each actor.

An actor writes a rollout where it will be read, and one number tells that it is whole; so a queue has one writer, one
reader and no lock, and a rollout that its actor died over is never seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epy

from shoal.core import seeds, types
from shoal.runtimes.crew import sharing

with epy.lazy_imports():
    import jax


class Taken(NamedTuple):
    """What an update learns from, and what is known of who acted."""

    rollout: types.Rollout  # [T, B], B: the environments of each rollout, one rollout after the other
    log_mu: np.ndarray  # [T, B] f32, of the policy that really acted
    returns: np.ndarray  # [T, B] f64, of episodes that ended
    lengths: np.ndarray  # [T, B] i32, of them; 0: none ended
    workers: tuple[int, ...]  # whose rollouts they are
    begun: bool  # one of them is the first of an actor in the place of one that died


def like(parts: types.Parts, environments: int) -> types.Rollout:
    """Shapes and dtypes of one actor's rollout, ``[T, E]``."""
    agent, seen = parts.agent, parts.spec.observation
    policy = jax.eval_shape(lambda key: agent.snapshot(agent.init(key)), seeds.key(0))
    obs = jax.ShapeDtypeStruct(seen.shape, seen.dtype)
    action, extras, _ = jax.eval_shape(agent.act, policy, agent.about.carry, obs, seeds.key(0))
    steps = agent.about.rollout_length

    def over_time(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct((steps, environments, *leaf.shape), leaf.dtype)

    number, flag = jax.ShapeDtypeStruct((), np.float32), jax.ShapeDtypeStruct((), np.bool_)
    step = types.Transition(obs, action, number, number, flag, obs, extras)
    carry = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((environments, *leaf.shape), leaf.dtype), agent.about.carry)
    version = jax.ShapeDtypeStruct((environments,), np.int32)
    return types.Rollout(jax.tree.map(over_time, step), carry, (), version)


def joined(shapes: types.Rollout, count: int) -> types.Rollout:
    """Of several rollouts side by side, as an update learns from them.

    Args:
        shapes: From `like`, of one.
        count: How many.
    """

    def several(leaf: Any, axis: int) -> Any:
        shape = (*leaf.shape[:axis], count * leaf.shape[axis], *leaf.shape[axis + 1 :])
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    return types.Rollout(
        jax.tree.map(lambda leaf: several(leaf, 1), shapes.transitions),
        jax.tree.map(lambda leaf: several(leaf, 0), shapes.carry),
    )


def layout(shapes: types.Rollout, workers: int, depth: int) -> sharing.Layout:
    """The shared arrays of all queues.

    Args:
        shapes: From `like`.
        workers: Actors.
        depth: Rollouts of each that may wait.
    """
    leaves = jax.tree.leaves(shapes)
    arrays = {f"leaf_{i}": ((workers, depth, *leaf.shape), np.dtype(leaf.dtype).str) for i, leaf in enumerate(leaves)}
    reward = shapes.transitions.reward
    return {
        **arrays,
        "log_mu": ((workers, depth, *reward.shape), "f4"),
        "returns": ((workers, depth, *reward.shape), "f8"),
        "lengths": ((workers, depth, *reward.shape), "i4"),
        "incarnation": ((workers, depth), "i8"),  # of the actor that wrote it
        "written": ((workers,), "i8"),  # rollouts so far; the actor's own
        "taken": ((workers,), "i8"),  # of them; the learner's own
    }


class Slot(NamedTuple):
    """Where an actor writes one rollout."""

    rollout: types.Rollout  # leaves [T, E, ...]
    log_mu: np.ndarray  # [T, E]
    returns: np.ndarray  # [T, E]
    lengths: np.ndarray  # [T, E]


def good(slot: Slot, updates: int) -> bool:
    """Whether what an actor sent is finite, and of a policy that there was.

    Args:
        slot: Its rollout.
        updates: The learner's so far.
    """
    version = slot.rollout.version
    if version.min() < 0 or version.max() > updates or not np.isfinite(slot.log_mu).all():
        return False
    leaves = [slot.rollout.transitions.action, *jax.tree.leaves(slot.rollout.transitions.extras)]
    return all(bool(np.isfinite(leaf).all()) for leaf in leaves if leaf.dtype.kind == "f")


class Queues:
    """The queues, as both sides see them."""

    def __init__(self, arrays: Mapping[str, np.ndarray], shapes: types.Rollout) -> None:
        """Args: `arrays` of a block with `layout`; `shapes`, from `like`."""
        leaves, self._structure = jax.tree.flatten(shapes)
        self._leaves = [arrays[f"leaf_{i}"] for i in range(len(leaves))]
        self._beside = [arrays[name] for name in ("log_mu", "returns", "lengths")]
        self._incarnation = arrays["incarnation"]
        self.written, self.taken = arrays["written"], arrays["taken"]
        self._depth = self._incarnation.shape[1]
        self._last = [0] * len(self.written)  # incarnation of the last rollout that was taken

    # ---------------------------------------------------------------- the actor's side

    def full(self, worker: int) -> bool:
        """Whether as many rollouts of an actor wait as may."""
        return bool(self.written[worker] - self.taken[worker] >= self._depth)

    def slot(self, worker: int) -> Slot:
        """Where its next rollout is written."""
        return self._slot(worker, int(self.written[worker]) % self._depth)

    def _slot(self, worker: int, at: int) -> Slot:
        rollout = jax.tree.unflatten(self._structure, [leaf[worker, at] for leaf in self._leaves])
        return Slot(rollout, *(array[worker, at] for array in self._beside))

    def put(self, worker: int, incarnation: int) -> None:
        """The rollout in its slot is whole."""
        self._incarnation[worker, int(self.written[worker]) % self._depth] = incarnation
        self.written[worker] += 1

    # ---------------------------------------------------------------- the learner's side

    def waiting(self) -> np.ndarray:
        """How many rollouts of each actor wait, ``[workers]``."""
        return self.written - self.taken

    def peek(self, worker: int) -> Slot:
        """The oldest that waits."""
        return self._slot(worker, int(self.taken[worker]) % self._depth)

    def drop(self, worker: int) -> None:
        """Pass over the oldest that waits."""
        self.taken[worker] += 1

    def take(self, workers: Sequence[int]) -> Taken:
        """The oldest that waits of each of these actors (one that is named twice gives two), copied out."""
        behind: dict[int, int] = {}
        places, begun = [], False
        for worker in workers:
            ahead = behind.get(worker, 0)
            behind[worker] = ahead + 1
            at = (int(self.taken[worker]) + ahead) % self._depth
            places.append((worker, at))
            incarnation = int(self._incarnation[worker, at])
            begun |= incarnation != self._last[worker]
            self._last[worker] = incarnation
        log_mu, returns, lengths = (
            np.concatenate([array[place] for place in places], axis=1) for array in self._beside
        )
        leaves = [
            np.concatenate([leaf[place] for place in places], axis=axis)
            for leaf, axis in zip(self._leaves, self._axes(), strict=True)
        ]
        for worker, count in behind.items():
            self.taken[worker] += count
        return Taken(
            rollout=jax.tree.unflatten(self._structure, leaves),
            log_mu=log_mu,
            returns=returns,
            lengths=lengths,
            workers=tuple(workers),
            begun=begun,
        )

    def _axes(self) -> list[int]:
        """Along which axis streams lie, leaf by leaf."""
        steps = jax.tree.unflatten(self._structure, [1] * len(self._leaves))
        found: list[int] = jax.tree.leaves(
            steps._replace(
                carry=jax.tree.map(lambda _: 0, steps.carry), version=jax.tree.map(lambda _: 0, steps.version)
            )
        )
        return found
