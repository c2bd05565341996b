"""How many updates old the policies were whose rollouts were learned from, counted in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping

from shoal.monitor import asynchrony

EXACT = 4096  # lags from here on are counted as this one; their maximum is kept as it is


class Staleness:
    """Updates between the version that acted and the learner's, counted rollout by rollout."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.max: int | None = None

    def add(self, lag: int, rollouts: int = 1) -> None:
        """Counts rollouts that were so many updates old when they were learned from."""
        place = min(lag, EXACT)
        self._counts[place] = self._counts.get(place, 0) + rollouts
        self.max = lag if self.max is None else max(self.max, lag)

    @property
    def rollouts(self) -> int:
        """How many were counted."""
        return sum(self._counts.values())

    def quantile(self, share: float) -> int | None:
        """The least lag that this share of the rollouts does not pass; None before the first."""
        wanted, passed = share * self.rollouts, 0
        for lag in sorted(self._counts):
            passed += self._counts[lag]
            if passed >= wanted:
                return lag
        return None

    def told(self) -> dict[str, int | None]:
        """`actor.staleness` of the summary."""
        return {"median": self.quantile(0.5), "p95": self.quantile(0.95), "max": self.max}

    def histogram(self) -> Mapping[str, int]:
        """`actor.staleness_histogram` of the summary: rollouts by lag; lags of 16 and more by powers of two."""
        binned = [0] * asynchrony.BINS
        for lag, count in self._counts.items():
            binned[asynchrony.place(lag)] += count
        return asynchrony.histogram(binned)
