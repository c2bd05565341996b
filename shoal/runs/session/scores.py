"""Episodes and their returns: how many, the mean of the last, the best mean, and whether the goal is met."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from shoal.core import types

SHOWN = 100  # training episodes whose mean return is told


class Scores:
    """Of the training episodes of one run, all its lives."""

    def __init__(self, goal: types.Goal | None, asked: int | None, meta: Mapping[str, Any]) -> None:
        """Begin, or go on.

        Args:
            goal: Of the run.
            asked: Training episodes after which it ends; None: any number.
            meta: What `meta` said at the checkpoint the run goes on from; empty for a new one.
        """
        self._goal, self._asked = goal, asked
        self._window = max(SHOWN, goal.window if goal else 0)
        self.episodes: int = meta.get("episodes", 0)
        self.solved_at: int | None = meta.get("solved_at_step") if goal else None  # it goes on without its goal
        self.best: float | None = meta.get("best")
        self._returns: list[tuple[int, int, float]] = [tuple(r) for r in meta.get("returns", [])]
        # (step, worker, return), in this order
        self._total: float = meta.get("return_total", 0.0)
        self._squares: float = meta.get("return_squares", 0.0)
        self._counted: int = meta.get("returns_counted", 0)

    def take(self, progress: types.Progress) -> Sequence[types.Episode]:
        """Count what has ended since the last report; returns the episodes that are counted."""
        goal, asked = self._goal, self._asked
        # What other environments or seeds finish in the same breath is not counted.
        episodes = progress.episodes if asked is None else progress.episodes[: max(0, asked - self.episodes)]
        for episode in episodes:
            self.episodes += 1
            if math.isfinite(episode.episode_return):  # a simulator that paid NaN: told in episodes.csv, in no mean
                self._total += episode.episode_return
                self._squares += episode.episode_return**2
                self._counted += 1
                bisect.insort(self._returns, (episode.env_steps, episode.worker, episode.episode_return))
            if goal and not progress.watches_goal and self.solved_at is None and goal.met(self._last(goal.window)):
                self.solved_at = episode.env_steps
        if self.solved_at is None:
            self.solved_at = progress.solved_at
        del self._returns[: -4 * self._window]  # late reports of other workers still find their place
        mean = self.mean
        if len(self._returns) >= SHOWN and mean is not None and episodes:
            self.best = mean if self.best is None else max(mean, self.best)
        return episodes

    @property
    def over(self) -> bool:
        """Whether the goal is met, or there are as many episodes as were asked for."""
        enough = self._asked is not None and self.episodes >= self._asked
        return self.solved_at is not None or enough

    @property
    def mean(self) -> float | None:
        """Mean return of the last 100 training episodes; None before the first."""
        last = self._last()
        return sum(last) / len(last) if last else None

    @property
    def deviation(self) -> float | None:
        """Population deviation of the last 100 returns; None before the first."""
        last, mean = self._last(), self.mean
        return (sum((r - mean) ** 2 for r in last) / len(last)) ** 0.5 if mean is not None else None

    def overall(self) -> tuple[float | None, float | None]:
        """Mean and deviation of the returns of all training episodes."""
        if not self._counted:
            return None, None
        mean = self._total / self._counted
        return mean, max(0.0, self._squares / self._counted - mean * mean) ** 0.5

    def meta(self) -> dict[str, Any]:
        """What a checkpoint says of them."""
        return {
            "episodes": self.episodes,
            "returns": self._returns,
            "return_total": self._total,
            "return_squares": self._squares,
            "returns_counted": self._counted,
            "best": self.best,
            "solved_at_step": self.solved_at,
        }

    def _last(self, count: int = SHOWN) -> list[float]:
        """The latest returns in the order of steps; once the goal is met, those up to that moment."""
        end = len(self._returns)
        if self.solved_at is not None:
            end = bisect.bisect_right(self._returns, self.solved_at, key=lambda entry: entry[0])
        return [value for _, _, value in self._returns[max(0, end - count) : end]]
