"""What a person sees of a run while it is under way, as data (a status), and what may show it (a console).

Nothing that shows has a thread: pictures are drawn inside the calls of the training loop, a few times a second at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from shoal.core import types


class Together(NamedTuple):
    """Several seeds looked at as one."""

    seeds: tuple[int, ...]
    finished: int
    iqm: float | None  # interquartile mean of the seeds' `return_mean`


class Status(NamedTuple):
    """One look at a run; None where a number is not known."""

    preset: str
    env: str
    runtime: str
    seed: int
    step: int  # environment steps so far
    steps: int  # environment steps in all
    steps_per_s: float | None
    return_mean: float | None  # of the last 100 training episodes
    best: float | None  # the best such mean
    episodes: int
    split: Mapping[str, float]  # seconds by what they were spent on
    workers: Mapping[str, Any]  # "up" and "of"; {} where there are none
    restarts: int
    rss_mb: float | None
    checkpoint_age_s: float | None  # None before the first
    eta_s: float | None  # seconds left
    goal: float | None  # the return at which the run ends early
    evaluated: float | None = None  # mean return of the last evaluation on the way; None: there was none
    together: Together | None = None  # several seeds: steps are sums, `return_mean` a mean over them
    acting: Mapping[str, float] = {}  # of actors apart from a learner: `staleness`, `ess`, `actor_inference_share`
    stage: types.Stage | None = None  # what is done while no step is taken; None: it trains
    stage_s: float = 0.0  # seconds that this takes by now
    earlier: Sequence[tuple[int, float]] = ()  # (step, `return_mean`) of the lives before a resume, oldest first


class Console(Protocol):
    """One way of showing a run."""

    def show(self, status: Status) -> None:
        """Takes the latest status; draws it when it is time to."""
        ...

    def note(self, text: str) -> None:
        """One line that stays."""
        ...

    def fault(self, kind: str, text: str) -> None:
        """Something failed: a headline and the traceback, which stay."""
        ...

    def close(self) -> None:
        """Draws the last status and leaves the terminal as it was."""
        ...
