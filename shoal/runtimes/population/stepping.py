"""Acting in Python simulators and learning, in turns: a call of a population whose environments are on the host.

In lock-step: all members act T steps on one batched decision a step, then all learn from what they saw. So for every
member the samples it learns from and the steps it acted are in the ratio that its rule asks for at every moment, which
is a rate limiter (Cassirer et al. 2021, "Reverb", arXiv:2102.04736) whose error buffer is 0, and no policy acts that is
older than the last update. The price is that a slow simulator is waited for by all.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from etils import epy

from shoal.core import types
from shoal.runtimes.crew import closing
from shoal.runtimes.experience import finite, rollouts
from shoal.runtimes.members import lanes, spread
from shoal.runtimes.population import loop, on_host, simulating

with epy.lazy_imports():
    import jax


class Stepping:
    """Calls of a life; see `loop.call` for what one is. It returns early when it is time to tell of it."""

    def __init__(
        self, room: simulating.Room, learner: on_host.Learner, programs: on_host.Programs, cut: spread.Cut
    ) -> None:
        """Simulators are opened by `open`.

        Args:
            room: Where they are stepped.
            learner: Learns.
            programs: What is compiled beside.
            cut: Members over the devices.
        """
        self._room, self._learn, self._programs, self._cut = room, learner.learn, programs, cut
        self._agent = room.parts.agent
        self._shape = (room.members, room.streams)
        self._finite = finite.Streams()
        self._vector: Any = None
        self.split = {"environment": 0.0, "inference": 0.0, "learning": 0.0}

    def open(self, life: int) -> None:
        """Begin the first episodes.

        Args:
            life: Apart for each life of the run.

        Raises:
            NotBegun: Whoever looks on said that the run is to end.
        """
        self._vector = simulating.training(self._room, life)
        self._obs = self._finite.first(self._vector.reset())
        self._returns, self._lengths = np.zeros(self._shape, np.float32), np.zeros(self._shape, np.int32)

    @property
    def restarts(self) -> int:
        """Simulators and processes that were replaced."""
        return int(self._vector.restarts) if self._vector else 0

    def about(self) -> types.Tree:
        """Of the processes, for `types.Progress.workers`."""
        return self._vector.about() if self._vector and self._room.processes else {}

    def close(self) -> None:
        """Release the simulators."""
        vector, self._vector = self._vector, None
        if vector is not None:
            closing.told(vector.close, self._room.fault)

    def __call__(self, at: loop.Loop, keys: types.Key, ask: loop.Ask) -> tuple[loop.Loop, loop.Told]:
        """Some updates of all members.

        Args:
            at: Where they begin; given away.
            keys: ``[N]``, of learning.
            ask: How many at most.

        Returns:
            The loop, and what there is to tell of the updates that were done. Whether numbers are finite is looked at
            where all were done that were asked for, or an action was not finite; else all count as finite.
        """
        began, updates = time.monotonic(), int(ask.updates)
        unfit = np.array([self._finite.rewards, self._finite.observations])
        before = np.asarray(self._programs.skipped(at.members.state)[0])
        carry, update = jax.device_get((at.members.actors, at.common.update))
        metrics: list[types.Metrics] = []
        ended: list[rollouts.Ended] = []
        self._suspect = False
        while len(ended) < updates and not self._suspect:
            a = time.perf_counter()
            policies, words, learn_keys = self._programs.begin(at.members.state, keys, update)
            update = np.uint32(update + 1)
            words = np.ascontiguousarray(np.moveaxis(np.asarray(words), 1, 0))
            self.split["learning"] += time.perf_counter() - a
            rollout, carry, found = self._collect(policies, carry, words)
            a = time.perf_counter()
            at, told = self._learn(at, self._cut.put(rollout), learn_keys, ask.force)
            self.split["learning"] += time.perf_counter() - a
            metrics.append(told)
            ended.append(found)
            if time.monotonic() - began >= lanes.REPORT_EVERY:
                break
        at = at._replace(members=at.members._replace(actors=self._cut.put(carry)))
        a = time.perf_counter()
        means = jax.tree.map(lambda *values: np.mean(values, axis=0, dtype=np.float32), *jax.device_get(metrics))
        skipped = np.asarray(self._programs.skipped(at.members.state)[0]) - before
        good = np.ones(self._room.members, bool)
        if len(ended) == updates or self._suspect:
            good &= np.asarray(self._programs.finite(at.members.state)[0])
        for value in means.values() if len(ended) == updates or self._suspect else ():
            good &= np.isfinite(value)
        self.split["learning"] += time.perf_counter() - a
        whole: rollouts.Ended = jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *ended)
        counts = np.zeros((self._room.members, 2), np.int32)  # of all together
        counts[0] = np.array([self._finite.rewards, self._finite.observations]) - unfit
        return at, loop.Told(means, whole._replace(unfit=counts), skipped, good)

    def _collect(
        self, policies: types.Policy, carry: types.Carry, words: types.Array
    ) -> tuple[types.Rollout, types.Carry, rollouts.Ended]:
        """A rollout of every member, ``[N, T, B]``; the carry after it, and the episodes that ended in it."""
        first, steps, ends, clock = carry, [], [], time.perf_counter
        for word in words:
            a = clock()
            obs = self._obs.reshape(*self._shape, *self._obs.shape[1:])
            action, extras, after = self._programs.act(policies, carry, obs, word)
            action, extras = np.asarray(action), jax.tree.map(np.asarray, extras)
            b = clock()
            reward, discount, truncated, successor = self._step(action)
            over = truncated | (discount == 0)
            carry = restarted(self._agent.about.carry, after, over)
            steps.append(types.Transition(obs, action, reward, discount, truncated, successor, extras))
            ends.append(self._ended(reward, over))
            self.split["inference"] += b - a
            self.split["environment"] += clock() - b
        transitions = jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *steps)
        ended = jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *ends)
        return types.Rollout(transitions, first), carry, ended

    def _step(self, action: types.Action) -> types.Outcome:
        """Step every simulator; outcomes ``[N, B]``."""
        flat = action.reshape(-1, *action.shape[2:])
        if flat.dtype.kind == "f" and not np.isfinite(flat).all():
            self._suspect, flat = True, np.nan_to_num(flat, posinf=0.0, neginf=0.0)  # simulators need not stand that
        batch = self._finite.step(self._obs, self._vector.step(flat))
        self._obs = batch.obs
        return types.Outcome(*(leaf.reshape(*self._shape, *leaf.shape[1:]) for leaf in batch.outcome))

    def _ended(self, reward: types.Array, over: types.Array) -> rollouts.Ended:
        self._returns, self._lengths = self._returns + reward, self._lengths + 1
        found = rollouts.Ended(over, self._returns, self._lengths, ())
        self._returns, self._lengths = np.where(over, np.float32(0.0), self._returns), np.where(over, 0, self._lengths)
        return found


def restarted(first: types.Carry, carry: types.Carry, over: types.Array) -> types.Carry:
    """The recurrent state after a step, that of streams that ended anew.

    Args:
        first: At the start of an episode.
        carry: Leaves ``[N, B, ...]``.
        over: ``[N, B]``.
    """

    def one(start: types.Array, now: types.Array) -> types.Array:
        now = np.asarray(now)
        return np.where(over.reshape(*over.shape, *[1] * (now.ndim - 2)), np.asarray(start), now)

    return jax.tree.map(one, first, carry)
