"""Numbers that are not finite, kept out where they enter, and counted: the fault is the simulator's, not the learner's.

A reward that is NaN, infinite or beyond float32 is taken as 0. Of an observation, each such number is taken as it was a
step before, in an episode's first one as 0. What is finite passes through untouched, so its runs keep their bits.
Whoever gathers experience asks here: `Guard` for one simulator, `Streams` for many in lock-step, `within` inside a
compiled program.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epy

from shoal.core import types

with epy.lazy_imports():
    import jax.numpy as jnp
    import numpy as np

LARGEST = 3.4028234663852886e38  # of float32


class Unfit(NamedTuple):
    """How many were kept out."""

    rewards: int = 0
    observations: int = 0  # steps that showed one


NONE = Unfit()


def faults(rewards: types.Scalar, observations: types.Scalar) -> dict[str, int]:
    """`Unfit` as entries of `types.Progress.faults`; none where all was finite."""
    told = {"non_finite_rewards": int(rewards), "non_finite_observations": int(observations)}
    return {name: count for name, count in told.items() if count}


class Guard:
    """One simulator that gives finite numbers alone; a `types.HostEnv`."""

    def __init__(self, env: types.HostEnv) -> None:
        self.spec = env.spec
        self._env = env
        self.unguarded = self._step = env.step
        self._whole = False  # bytes, which are finite
        self._before: Any = ()  # what was shown last
        self._rewards = self._observations = 0

    def reset(self, seed: int) -> np.ndarray:
        """See `types.HostEnv`."""
        obs = self._env.reset(seed)
        self._whole = obs.dtype.kind != "f"
        if not self._whole and not _finite(obs):
            self._observations += 1
            obs = _filled(obs, 0.0)
        self._before = obs
        return obs

    def step(self, action: types.Action) -> tuple[np.ndarray, types.Outcome]:
        """See `types.HostEnv`."""
        obs, outcome = self.mend(self._before, *self._step(action))
        self._before = obs
        return obs, outcome

    @property
    def looks(self) -> Callable[[np.ndarray, np.ndarray], Any] | None:
        """Whoever steps the simulator itself and calls `mend` only where something may be wrong asks with this.

        The product of an observation with itself, which is finite unless the observation is not, or is very large; None
        where they are bytes.
        """
        return None if self._whole else np.vdot  # `ndarray.dot` is quicker, and warns where it overflows

    def mend(self, before: np.ndarray, obs: np.ndarray, outcome: types.Outcome) -> tuple[np.ndarray, types.Outcome]:
        """What the simulator gave, made finite.

        Args:
            before: What was acted on.
            obs: To act on next.
            outcome: Of the step.
        """
        if not -LARGEST <= outcome.reward <= LARGEST:  # NaN compares to nothing
            self._rewards += 1
            outcome = outcome._replace(reward=0.0)
        if not self._whole:
            successor = outcome.next_obs
            if not _finite(successor) or (obs is not successor and not _finite(obs)):
                self._observations += 1
                outcome = outcome._replace(next_obs=_filled(successor, before))
                over = outcome.truncated or outcome.discount == 0.0
                obs = _filled(obs, 0.0) if over else outcome.next_obs
        return obs, outcome

    def take(self) -> Unfit:
        """What was kept out since the last call."""
        if not self._rewards and not self._observations:
            return NONE
        found = Unfit(self._rewards, self._observations)
        self._rewards = self._observations = 0
        return found

    def close(self) -> None:
        """See `types.HostEnv`."""
        self._env.close()


class Streams:
    """``B`` simulators in lock-step, looked at together."""

    def __init__(self) -> None:
        self.rewards = self.observations = 0

    def first(self, obs: np.ndarray) -> np.ndarray:
        """First observations ``[B, *obs]``."""
        if obs.dtype.kind == "f" and not _finite(obs):
            self.observations += _streams(obs)
            obs = _filled(obs, 0.0)
        return obs

    def step(self, before: np.ndarray, batch: types.Batch) -> types.Batch:
        """One step of each; `before` is what they showed then, ``[B, *obs]``."""
        obs, outcome = batch
        reward = outcome.reward
        if not _finite(reward):
            finite = np.isfinite(reward)
            self.rewards += int((~finite).sum())
            outcome = outcome._replace(reward=np.where(finite, reward, np.float32(0.0)))
        if obs.dtype.kind != "f" or (_finite(outcome.next_obs) and _finite(obs)):
            return types.Batch(obs, outcome)
        over = outcome.truncated | (outcome.discount == 0)
        self.observations += _streams(outcome.next_obs, obs)
        successor = _filled(outcome.next_obs, before)
        ended = over.reshape(-1, *[1] * (obs.ndim - 1))
        return types.Batch(np.where(ended, _filled(obs, 0.0), successor), outcome._replace(next_obs=successor))


def within(before: types.Obs, obs: types.Obs, outcome: types.Outcome) -> tuple[types.Obs, types.Outcome, types.Array]:
    """The same inside a compiled program, of ``B`` streams.

    Args:
        before: What was acted on, ``[B, *obs]``.
        obs: To act on next.
        outcome: Leaves ``[B, ...]``.

    Returns:
        Both made finite, and ``[B, 2]`` bool: whether a reward, an observation was not.
    """
    paid = jnp.isfinite(outcome.reward)
    reward = jnp.where(paid, outcome.reward, 0.0)
    if not jnp.issubdtype(obs.dtype, jnp.floating):
        return obs, outcome._replace(reward=reward), jnp.stack([~paid, jnp.zeros_like(paid)], axis=-1)
    over = ((outcome.discount == 0) | outcome.truncated).reshape(-1, *[1] * (obs.ndim - 1))
    good, seen = jnp.isfinite(outcome.next_obs), jnp.isfinite(obs)
    bad = ~(good & seen).reshape(len(paid), -1).all(axis=1)
    outcome = outcome._replace(reward=reward, next_obs=jnp.where(good, outcome.next_obs, before))
    obs = jnp.where(seen, obs, jnp.where(over, 0.0, before))
    return obs, outcome, jnp.stack([~paid, bad], axis=-1)


def start(obs: types.Obs) -> types.Obs:
    """First observations inside a compiled program."""
    return jnp.where(jnp.isfinite(obs), obs, 0.0) if jnp.issubdtype(obs.dtype, jnp.floating) else obs


def _finite(array: np.ndarray) -> bool:
    """Whether every number is; a product is faster than asking each. Where it overflows, vdot is silent."""
    return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


def _filled(array: np.ndarray, instead: Any) -> np.ndarray:
    filled: np.ndarray = np.where(np.isfinite(array), array, instead)
    return filled


def _streams(*arrays: np.ndarray) -> int:
    """Streams of which one of the arrays ``[B, ...]`` shows a number that is not finite."""
    bad = [~np.isfinite(array).reshape(len(array), -1).all(axis=1) for array in arrays]
    return int(np.logical_or.reduce(bad).sum())
