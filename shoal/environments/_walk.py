"""Random actions in an environment, written down: what `shoal check-env` judges and the tests compare."""

from __future__ import annotations

import contextlib
import time
from typing import Any, NamedTuple

from etils import epy

from shoal import environments
from shoal.core import types

with epy.lazy_imports():
    import numpy as np


class Walk(NamedTuple):
    """What random actions brought."""

    first: np.ndarray  # [*obs] after the reset
    obs: list[np.ndarray]  # [T] of [*obs], to act on next
    outcomes: list[types.Outcome]  # [T]
    seconds: float
    raised: str  # the exception that ended it early, "" if none did
    begun: bool = True  # the reset came back


def walk(opened: environments.Opened, steps: int, seed: int) -> Walk:
    """Random actions from a seed; ends early where the environment raises."""
    env, chance = opened.make_host(), np.random.default_rng(seed)
    first, raised, begun = np.zeros(0, np.float32), "", False
    obs: list[np.ndarray] = []
    outcomes: list[types.Outcome] = []
    start = time.perf_counter()
    try:
        first = env.reset(seed)
        begun = True
        start = time.perf_counter()  # the reset of a pure-JAX environment compiles
        for _ in range(steps):
            seen, outcome = env.step(action(opened.spec.action, chance))
            if not outcomes:
                start = time.perf_counter()  # and so does its first step
            obs.append(seen)
            outcomes.append(outcome)
    except Exception as problem:  # noqa: BLE001 whatever the environment raises is the finding
        raised = " ".join(f"{type(problem).__name__}: {problem}".split())
    finally:
        with contextlib.suppress(Exception):  # its library's own audit tells
            env.close()
    return Walk(first, obs, outcomes, time.perf_counter() - start, raised, begun)


def action(spec: types.ActionSpec, chance: np.random.Generator) -> Any:
    """A random action; unbounded components are drawn from a standard normal."""
    if spec.sizes:
        return chance.integers(spec.sizes, dtype=np.int32)
    if spec.discrete:
        return int(chance.integers(spec.n))
    low, high = np.array(spec.low), np.array(spec.high)
    bounded = np.isfinite(low) & np.isfinite(high)
    inside = chance.uniform(np.where(bounded, low, 0.0), np.where(bounded, high, 1.0))
    return np.where(bounded, inside, chance.standard_normal(spec.shape)).astype(np.float32)


def same(walk: Walk, again: Walk) -> bool:
    """Whether two walks are equal, observation by observation."""

    def equal(one: Any, other: Any) -> bool:
        return np.array_equal(one, other, equal_nan=True)

    told = [np.array([outcome[:3] for outcome in w.outcomes], float) for w in (walk, again)]
    seen = [[w.first, *w.obs, *(outcome.next_obs for outcome in w.outcomes)] for w in (walk, again)]
    return equal(*told) and all(map(equal, *seen))


def episodes(walk: Walk) -> tuple[list[int], list[float]]:
    """Lengths and returns of the episodes that ended."""
    lengths, returns, length, total = [], [], 0, 0.0
    for outcome in walk.outcomes:
        length, total = length + 1, total + outcome.reward
        if over(outcome):
            lengths.append(length)
            returns.append(total)
            length, total = 0, 0.0
    return lengths, returns


def over(outcome: types.Outcome) -> bool:
    """Whether the episode ended with this step, either way."""
    return outcome.discount == 0 or bool(outcome.truncated)
