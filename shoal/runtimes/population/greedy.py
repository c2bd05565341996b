"""Fitness in Python simulators: whole episodes with every member's own policy, greedy and frozen, none of training.

All members play at once, each in E simulators of its own, which play the same number of episodes up to one: short
episodes are not over-represented. An episode that a lost simulator cut is played again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from etils import epy

from shoal.core import errors, types
from shoal.runtimes.crew import beside
from shoal.runtimes.experience import finite
from shoal.runtimes.members import fitness
from shoal.runtimes.population import simulating, stepping

with epy.lazy_imports():
    import jax


class Greedy:
    """(learners' states ``[N, ...]``, keys ``[N]``, look) -> (mean returns ``[N]``, smallest distance)."""

    def __init__(self, room: simulating.Room, policies: Callable, act: Callable) -> None:
        """Nothing is opened yet.

        Args:
            room: Where simulators are stepped.
            policies: See `on_host.Compiler.greedy`.
            act: Decides, in E streams (`on_host.Programs.act`).
        """
        self._simulators = simulating.Evaluating(room)
        self._policies, self._act, self._about = policies, act, room.parts.agent.about
        self._shape, self._episodes = (room.members, room.greedy), room.episodes
        self._limit = fitness.LONGEST if room.parts.spec.time_limit else fitness.LONGEST_FREE
        self.close = self._simulators.close

    @property
    def restarts(self) -> int:
        """Simulators and processes that were replaced."""
        return self._simulators.restarts

    def __call__(self, states: types.State, keys: types.Key, look: beside.Look) -> tuple[types.Array, types.Scalar]:
        """Play.

        Args:
            states: Whose policies play.
            keys: One a member, consumed.
            look: Told how far it is, now and then.

        Raises:
            Stopped: It said that the run is to end.
        """
        try:
            return self._played(states, keys, look)
        except errors.NotBegun:
            raise fitness.Stopped from None

    def _played(self, states: types.State, keys: types.Key, look: beside.Look) -> tuple[types.Array, types.Scalar]:
        policies, far = self._policies(states)
        words = np.asarray(jax.random.key_data(keys)).astype(np.uint32)
        members, streams = self._shape
        quota = np.array([len(range(at, self._episodes, streams)) for at in range(streams)])
        left = np.broadcast_to(quota, self._shape).copy()
        sums, totals, lengths = np.zeros(members), np.zeros(self._shape), np.zeros(self._shape, int)
        kept, carry = finite.Streams(), self._first()
        obs = kept.first(self._simulators.begin(simulating.seed_of(words), look))
        step, looked = 0, time.monotonic()
        while left.any():
            if time.monotonic() - looked >= beside.LOOK:
                looked = time.monotonic()
                done = int(members * self._episodes - left.sum())
                beside.asked(look, types.Stage("measuring fitness", done, members * self._episodes))
            before = self._simulators.restarts
            apart = words[:, None] + np.array([[at, step] for at in range(streams)], np.uint32)
            action, _, after = self._act(policies, carry, obs.reshape(*self._shape, *obs.shape[1:]), apart)
            flat = np.asarray(action).reshape(members * streams, *np.shape(action)[2:])
            sums[~np.isfinite(flat).reshape(members, -1).all(axis=1)] = np.nan
            obs, outcome = kept.step(obs, self._simulators.step(stepping.bearable(flat)))
            reward, discount, truncated = (leaf.reshape(self._shape) for leaf in outcome[:3])
            over = truncated | (discount == 0)
            totals, lengths, step = totals + reward, lengths + 1, step + 1
            lost = truncated if self._simulators.restarts > before else np.zeros_like(over)
            late = (lengths >= self._limit) & ~over
            # One that is given up counts for all that its simulator still owed: it cannot begin anew out of turn.
            counts = np.where(late, left, (over & ~lost) & (left > 0))
            sums += (counts * totals).sum(axis=1)
            left = left - counts
            totals, lengths = np.where(over | late, 0.0, totals), np.where(over | late, 0, lengths)
            carry = stepping.restarted(self._about.carry, after, over)
        return (sums / self._episodes).astype(np.float32), far

    def _first(self) -> types.Carry:
        return jax.tree.map(
            lambda leaf: np.broadcast_to(np.asarray(leaf), (*self._shape, *leaf.shape)).copy(), self._about.carry
        )
