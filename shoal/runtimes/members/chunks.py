"""The host's side of a compiled loop: looks at a chunk of updates at a time, of one seed or of several together.

While the host looks at one chunk the device computes the next, if the loop is small enough to be kept twice; a large
one (a replay memory) is handed on in place, and the host looks first. Neither changes a bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epy

from shoal.core import tree, types
from shoal.formulas import optimise
from shoal.runtimes.experience import finite, rollouts

with epy.lazy_imports():
    import jax

TWICE = 64 * 2**20  # bytes up to which a loop is kept twice


class Told(NamedTuple):
    """What the device tells of a chunk of K updates; leaves have a leading axis where seeds run together."""

    metrics: types.Metrics  # means over the chunk
    ended: rollouts.Ended  # [K, T, B], but `unfit` [K, 2]: how many
    skipped: Any  # scalar: gradients dropped so far, for they were not finite


class Program(NamedTuple):
    """A compiled loop and how it is read."""

    chunk: Callable[[Any], tuple[Any, Told]]
    lane: Callable[[Any, int], Any] | None  # one seed's loop out of several; None: there is one
    policy: Callable[[Any], types.Policy]  # of the loop of one seed
    ahead: bool  # the loop before a chunk outlives it
    per_update: int  # environment steps
    per_chunk: int  # updates
    updates: int  # in all


def fits_twice(loop: Any) -> bool:
    """Whether a loop is small enough to be kept twice (`Program.ahead`); shapes are enough."""
    return tree.bytes(loop) <= TWICE


Seed = tuple[types.Observer, Callable[[types.Result], None]]  # who looks on; who takes the result, at once


class Drive:
    """Runs chunks until every seed is done."""

    def __init__(self, program: Program, seeds: Sequence[Seed | None], began: float) -> None:
        """Args: `seeds`, None where one only keeps its place; `began`, ``time.monotonic()`` of the call."""
        self._program = program
        self._seeds = {at: seed for at, seed in enumerate(seeds) if seed is not None}
        self._running = list(self._seeds)
        self._started = time.monotonic()
        self._startup = self._started - began
        self._upcoming: Any = None  # the chunk that the device computes while the host looks

    def __call__(self, loop: Any) -> None:
        """Run to the end."""
        program = self._program
        done, skipped = jax.device_get((loop.update, optimise.skipped(loop.state)))
        self._updates = np.atleast_1d(done).tolist()
        self._skipped = np.broadcast_to(skipped, len(self._updates)).tolist()  # before this life
        self._unfit = np.zeros((len(self._updates), 2), int)  # rewards and observations kept out in this life
        for at in self._running[:]:
            if self._updates[at] >= program.updates:  # saved after its last update
                self._end(at, loop, self._progress(at, None, loop))
        upcoming = program.chunk(loop) if self._running else None
        while upcoming:
            loop, told = upcoming
            self._upcoming = None
            self._updates = [updates + program.per_chunk for updates in self._updates]
            more = any(self._updates[at] < program.updates for at in self._running)
            upcoming = self._upcoming = program.chunk(loop) if more and program.ahead else None
            self._look(jax.device_get(told), loop)
            if self._running and not upcoming:
                upcoming = program.chunk(loop)
            elif not self._running:
                break

    def _look(self, told: Told, loop: Any) -> None:
        for at in self._running[:]:
            mine = jax.tree.map(lambda leaf, at=at: leaf[at], told) if self._program.lane else told
            self._unfit[at] += np.sum(mine.ended.unfit, axis=0)
            progress = self._progress(at, mine, loop)
            if not self._seeds[at][0](progress) or self._updates[at] >= self._program.updates:
                self._end(at, loop, progress._replace(episodes=[]))

    def _end(self, at: int, loop: Any, progress: types.Progress) -> None:
        self._running.remove(at)
        self._seeds[at][1](types.Result(self._policy(loop, at), progress, self._startup))

    def _policy(self, loop: Any, at: int) -> types.Policy:
        return jax.device_get(self._program.policy(self._lane(loop, at)))

    def _still(self, loop: Any, at: int) -> types.Policy:
        """The policy once the chunk under way is done: whatever its observer does with it, nothing is learned then."""
        jax.block_until_ready(self._upcoming)
        return self._policy(loop, at)

    def _lane(self, loop: Any, at: int) -> Any:
        return self._program.lane(loop, at) if self._program.lane else loop

    def _progress(self, at: int, told: Told | None, loop: Any) -> types.Progress:
        spent, updates = time.monotonic() - self._started, self._updates[at]
        before = (updates - self._program.per_chunk) * self._program.per_update
        return types.Progress(
            env_steps=updates * self._program.per_update,
            updates=updates,
            train_s=spent,
            episodes=_episodes(told.ended, before) if told else [],
            metrics={name: float(value) for name, value in told.metrics.items()} if told else {},
            split={"on_device": spent},  # one program: its parts cannot be timed apart
            workers={},
            faults={
                "non_finite": int(told.skipped) - self._skipped[at] if told else 0,
                **finite.faults(*self._unfit[at]),
            },
            save=lambda: jax.device_get(self._lane(loop, at)),
            policy=lambda: self._still(loop, at),
        )


def _episodes(ended: rollouts.Ended, before: int) -> list[types.Episode]:
    """Finished episodes of a chunk ``[K, T, B]`` in the order of steps."""
    batch = ended.over.shape[2]
    over = np.flatnonzero(ended.over.reshape(-1))
    steps = before + (over // batch + 1) * batch
    returns, lengths = ended.episode_return.reshape(-1)[over], ended.length.reshape(-1)[over]
    return [
        types.Episode(int(at), float(value), int(size), 0)
        for at, value, size in zip(steps, returns, lengths, strict=True)
    ]
