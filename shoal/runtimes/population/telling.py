"""What a population tells: episodes of all members, means of what they measure, and the summary's `population`."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epy

from shoal.core import types
from shoal.runtimes.crew import messages
from shoal.runtimes.members import dispatch, loop
from shoal.runtimes.population import standing

with epy.lazy_imports():
    import jax

LAST = 100  # training episodes of a member that its return is the mean of


def episodes(ended: loop.rollouts.Ended, before: int, updates: int) -> list[types.Episode]:
    """Finished episodes of a call in the order of steps; a member is their worker.

    Args:
        ended: ``[N, K, T, B]``.
        before: Environment steps of all members before it.
        updates: Of them those that were done.
    """
    members, _, _, batch = ended.over.shape
    lanes = [np.moveaxis(leaf[:, :updates], 0, 2).reshape(-1) for leaf in ended[:3]]  # [K, T, N, B]
    over = np.flatnonzero(lanes[0])
    each = members * batch
    steps, who = before + (over // each + 1) * each, over % each // batch
    return [
        types.Episode(int(step), float(value), int(size), int(member))
        for step, value, size, member in zip(steps, lanes[1][over], lanes[2][over], who, strict=True)
    ]


class Accounts:
    """What adds up over a life of the run."""

    def __init__(self, members: int) -> None:
        self.members = members
        self.returns: list[collections.deque[float]] = [collections.deque(maxlen=LAST) for _ in range(members)]
        self.non_finite = 0
        self.unfit = np.zeros(2, int)  # rewards and observations kept out
        self.measuring = 0.0  # seconds
        self.metrics: dict[str, float] = {}

    def take(self, told: loop.Told, found: Sequence[types.Episode]) -> None:
        """After a call.

        Args:
            told: On the host.
            found: Its episodes.
        """
        for episode in found:
            self.returns[episode.worker].append(episode.episode_return)
        good = np.asarray(told.finite)
        self.non_finite += int(told.skipped[good].sum() + (~good).sum())
        self.unfit += told.ended.unfit.sum(axis=0)
        if good.any():
            self.metrics = {name: float(np.mean(value[good])) for name, value in told.metrics.items()}

    def means(self) -> list[float | None]:
        """Mean return of each member's last training episodes; None before the first."""
        return [float(np.mean(one)) if one else None for one in self.returns]


def metrics(accounts: Accounts, now: standing.Standing) -> dict[str, float]:
    """Learning metrics, and how the population stands."""
    fit = now.fitness[now.measured]
    more = {"best": fit.max(), "mean": fit.mean(), "spread": fit.std()} if len(fit) else {}
    more |= {"min_distance": now.spread} if now.spread >= 0 else {}
    told = accounts.metrics | {f"population.{name}": float(value) for name, value in more.items()}
    return {name: value for name, value in told.items() if math.isfinite(value)}


class Held(NamedTuple):
    """What the members take."""

    each_bytes: int  # a member: learner, memory and environments
    before_mb: float | None  # that the process took when all was compiled, and no member there; None: not known

    def told(self) -> dict[str, object]:
        """Of the summary."""
        more = None if self.before_mb is None else max(0.0, messages.peak_mb() - self.before_mb)
        return {"bytes_per_member": self.each_bytes, "peak_increase_mb": more}


def before_mb() -> float | None:
    """Of `Held`, now; None where members lie in another memory than the process."""
    return messages.resident_mb() if jax.default_backend() == "cpu" else None


def summary(
    accounts: Accounts, now: standing.Standing, way: dispatch.Way, each: int, more: Mapping[str, object]
) -> dict[str, object]:
    """The summary's object; what was not measured is None.

    Args:
        accounts: Of this life.
        now: How they stand.
        way: How they are computed.
        each: Members on one device.
        more: What else is told.
    """
    fit, best = now.fitness[now.measured], standing.best(now)
    known = bool(len(fit))
    return {
        "members": accounts.members,
        "best": {"member": best, "fitness": float(fit.max())} if known else None,
        "mean": float(fit.mean()) if known else None,
        "spread": float(fit.std()) if known else None,
        "min_distance": float(now.spread) if now.spread >= 0 else None,
        "fitness": [float(value) if ok else None for value, ok in zip(now.fitness, now.measured, strict=True)],
        "returns": accounts.means(),
        "exchanges": int(now.exchanges),
        "dispatch": dispatch.told(standing.times(now, each), way),
        **more,
    }
