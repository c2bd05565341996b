"""Why a run ends before its steps are used up, its goal apart: a signal, or numbers that are not finite."""

from __future__ import annotations

from shoal import experiment
from shoal.core import types
from shoal.runs.session import hearing

DIVERGED = 1000  # numbers of a kind that were not finite, after which a run under way is given up:
DIVERGED_SHARE = 0.01  # gradients, if they are so many of all;
HOPELESS = 0.5  # and what simulators give. At its end a run that lost so many, of whatever kind, has learned nothing

SIMULATORS = {  # what is counted of them (`Progress.faults`) -> what it is, and what becomes of it
    "non_finite_rewards": ("rewards", "taken as 0"),
    "non_finite_observations": ("observations", "taken as they were a step before"),
}


class Ending:
    """What one run has heard and seen."""

    def __init__(
        self, made: experiment.Experiment, env_steps: int = 0, updates: int = 0, heard: hearing.Heard | None = None
    ) -> None:
        """Args: `made`, what is run; environment steps and updates of the lives before; the signals it shares."""
        self._heard = heard or hearing.Heard()
        self.gave_up: str | None = None  # the reason
        self._env, self._before = made.env, (env_steps, updates)
        self._gradients = experiment.traits(made.algorithm, made.configs["algorithm"]).gradients

    @property
    def stopped_by(self) -> str | None:
        """The signal that asked for the end."""
        return self._heard.stopped_by

    def take(self, progress: types.Progress, *, last: bool = False) -> None:
        """Give up where too many numbers of this life were not finite.

        Args:
            progress: Of now.
            last: There is no more: the shares alone decide. A run that a signal ended may still get better.
        """
        if self.gave_up is None and not (last and self.stopped_by):
            self.gave_up = self._simulator(progress, last) or self._learner(progress, last)

    def _simulator(self, progress: types.Progress, last: bool) -> str | None:
        steps = progress.env_steps - self._before[0]
        for kind, (what, _) in SIMULATORS.items():
            bad = progress.faults.get(kind, 0)
            if bad >= max(HOPELESS * steps, 1 if last else DIVERGED):
                return (
                    f"{bad:,} of {steps:,} {what} that the simulator gave were not finite, so there is nothing to "
                    f"learn from; mend it: `shoal check-env {self._env}` tells more"
                )
        return None

    def _learner(self, progress: types.Progress, last: bool) -> str | None:
        lost = progress.faults.get("non_finite", 0)
        every = max((progress.updates - self._before[1]) * self._gradients, lost)  # those dropped may be no updates
        if lost < (max(HOPELESS * every, 1) if last else max(DIVERGED_SHARE * every, DIVERGED)):
            return None
        share = f" of {every:,}" if last else ""
        return f"{lost:,}{share} gradients were not finite; lower the learning rates, or keep their guards"
