"""What a run took in all its lives, those before a resume included: seconds and faults; whether it is exact."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from shoal import experiment
from shoal.core import types


class Lives:
    """Sums over the lives of one run."""

    def __init__(
        self,
        made: experiment.Experiment,
        since: float,
        meta: Mapping[str, Any] | None,
        together: int,
        spent_s: float = 0.0,
    ) -> None:
        """Begin, or go on.

        Args:
            made: What is run.
            since: ``time.time()`` when this life's command began.
            meta: What the checkpoint says that the run goes on from; None for a new one.
            together: Seeds that share the program, this one included.
            spent_s: Seconds of the lives that have ended, whether or not they saved anything.
        """
        before = meta or {}
        self._since, self._together = since, together
        self._wall_before: float = max(before.get("wall_s", 0.0), spent_s)
        self._train_before: float = before.get("train_s", 0.0)
        self._faults_before: dict[str, int] = before.get("faults", {})
        self._not_saved = 0  # in this life
        self.number: int = 0 if meta is None else before.get("life", 0) + 1  # how often the run was resumed
        # Alone and together are different programs, which round differently.
        same = before.get("together", together) == together
        self.exact: bool = before.get("exact", True) and (meta is None or (same and _resumes_exactly(made)))

    @property
    def wall_s(self) -> float:
        """Seconds since the command began."""
        return self._wall_before + time.time() - self._since

    def train_s(self, progress: types.Progress) -> float:
        """Seconds of training, start-up and compilation apart."""
        return self._train_before + progress.train_s

    def faults(self, progress: types.Progress) -> dict[str, int]:
        """Faults by kind."""
        before, now = self._faults_before, dict(progress.faults)
        if self._not_saved:
            now["not_saved"] = self._not_saved
        return {name: before.get(name, 0) + now.get(name, 0) for name in {**before, **now}}

    def not_saved(self) -> None:
        """Count a checkpoint that could not be written."""
        self._not_saved += 1

    def meta(self, progress: types.Progress) -> dict[str, Any]:
        """What a checkpoint says of them."""
        return {
            "wall_s": self.wall_s,
            "train_s": self.train_s(progress),
            "faults": self.faults(progress),
            "exact": self.exact,
            "life": self.number,
            "together": self._together,
        }


def _resumes_exactly(made: experiment.Experiment) -> bool:
    """Simulators in Python cannot be saved, whatever the runtime."""
    exact = experiment.ways(made.runtime, made.configs["runtime"]).exact_resume
    return exact and experiment.compiled(made)
