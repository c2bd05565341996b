"""Sarsa(λ) with binary features, one learner in one simulator, written in place.

δ = r + γ w·φ' - w·φ;  z ← γ λ z + φ;  w ← w + α δ z. Source: Sutton & Barto 2018, section 12.7 (accumulating and
replacing traces).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from shoal.core import seeds, types


class Numbers(NamedTuple):
    """What a learner is run with."""

    step_size: float  # α, of one weight
    trace: float  # λ
    discount: float  # γ
    epsilon: float
    replacing: bool  # traces of active features become 1 instead of growing by 1


class Learner:
    """See `types.Stream`.

    Args:
        numbers: The rule's.
        active: Indices of the features that are 1, ``[m]``.
        env: The simulator.
        weights: ``[A F]`` f64, one action after the other; written.
        visits: ``[A F]`` i64, how often each feature was active; written.
        actions: A.
    """

    def __init__(
        self,
        numbers: Numbers,
        active: Callable[[Any, Any], Any],
        env: types.HostEnv,
        weights: np.ndarray,
        visits: np.ndarray,
        actions: int,
    ) -> None:
        self._numbers, self._active, self._env = numbers, active, env
        self._weights, self._visits = weights.reshape(actions, -1), visits.reshape(actions, -1)
        self._traces, self._step = np.zeros(self._weights.shape), np.zeros(self._weights.shape)
        self._actions = actions
        self._metrics: dict[str, float] = {}
        self.non_finite = 0
        self.environment_s = 0.0
        self.length = 0

    def begin(self, seed: int) -> None:
        """See `types.Stream`."""
        obs = self._env.reset(seeds.derive(seed, "environment"))
        self._chance = np.random.default_rng(seeds.derive(seed, "action"))
        self._traces[:] = 0.0
        self._features = self._seen(obs)
        self._action = self._choose(self._features)[0]
        self._return, self.length, self._errors = 0.0, 0, 0.0

    def advance(self, most: int, seconds: float = math.inf) -> types.Episode | None:
        """See `types.Stream`; a time limit bootstraps from the true successor, a termination does not."""
        step, clock, gamma = self._env.step, time.perf_counter, self._numbers.discount
        until = clock() + seconds
        for _ in range(most):
            before = clock()
            _, (reward, discount, truncated, successor) = step(self._action)
            after = clock()
            self.environment_s += after - before
            self._return += reward
            self.length += 1
            following, action, target = self._features, 0, reward
            if discount != 0.0:
                following = self._seen(successor)
                action, value = self._choose(following)
                target += gamma * discount * value
            self._learn(target)
            self._features, self._action = following, action
            if truncated or discount == 0.0:
                self._metrics = {"td_error": self._errors / self.length, "steps_per_episode": float(self.length)}
                return types.Episode(0, self._return, self.length, 0)
            if after >= until:
                break
        return None

    def metrics(self) -> dict[str, float]:
        """See `types.Stream`."""
        return self._metrics

    def _seen(self, obs: np.ndarray) -> np.ndarray | None:
        """The features that are 1; None if the observation is not finite."""
        return self._active(obs, np) if all(map(math.isfinite, obs.tolist())) else None

    def _choose(self, features: np.ndarray | None) -> tuple[int, float]:
        """An ε-greedy action, ties broken at random, and its value; without features any action, of no known value."""
        if features is None:
            return int(self._chance.integers(self._actions)), math.nan
        values = self._weights[:, features].sum(1).tolist()
        if self._numbers.epsilon and self._chance.random() < self._numbers.epsilon:
            chosen = int(self._chance.integers(self._actions))
            return chosen, values[chosen]
        best = max(values)
        ties = [action for action, value in enumerate(values) if value == best] or [0]  # none: not finite
        chosen = ties[0] if len(ties) == 1 else ties[int(self._chance.integers(len(ties)))]
        return chosen, values[chosen]

    def _learn(self, target: float) -> None:
        self._traces *= self._numbers.discount * self._numbers.trace
        if self._features is None:
            self.non_finite += 1
            return
        here = self._action, self._features
        error = target - float(self._weights[here].sum())
        self._visits[here] += 1
        if self._numbers.replacing:
            self._traces[here] = 1.0
        else:
            self._traces[here] += 1.0
        if not math.isfinite(error):
            self.non_finite += 1
            return
        self._errors += abs(error)
        np.multiply(self._traces, self._numbers.step_size * error, out=self._step)
        self._weights += self._step
