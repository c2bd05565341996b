"""Evaluations while a run trains: when the next is due, what the last came to, and the best policy that is kept.

They play the same episodes every time, whose seeds have a purpose of their own, and touch nothing of the learner: a run
has the bits of one without them. Of the best there is a checkpoint of the policy alone, ``checkpoints/best/``; what its
manifest says is the mean to beat, also after a resume, so a better one is never lost to a worse one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shoal import experiment, log
from shoal.core import seeds, types
from shoal.runs import checkpoint

PURPOSE = "evaluation on the way"  # of its seeds


class Still:
    """Seconds in which training stood still for evaluations; the seeds of one program stand still together."""

    def __init__(self) -> None:
        self.seconds = 0.0


class Judge(NamedTuple):
    """What evaluations on the way are played with."""

    built: experiment.Built
    still: Still  # of the program


class Evaluations:
    """Of one run."""

    def __init__(self, folder: Path, made: experiment.Experiment, meta: Mapping[str, Any], still: Still | None) -> None:
        """Begin, or go on.

        Args:
            folder: The run folder.
            made: What is run; without `evaluate_every` there are none.
            meta: What `meta` said at the checkpoint the run goes on from; empty for a new one.
            still: Of this program; None: its own.
        """
        self.every, self.episodes = made.evaluate_every, made.evaluate_episodes or 0
        self.seed = seeds.derive(made.seed, PURPOSE)
        self.latest: float | None = meta.get("evaluated")  # mean return of the last
        self._at: tuple[int, int] = tuple(meta.get("evaluated_at", (0, 0)))  # environment steps and updates of the last
        self._root, self._still = folder / "checkpoints", still or Still()
        # Learners that go on meanwhile train in that time.
        self._stands = not experiment.ways(made.runtime, made.configs["runtime"]).meanwhile
        self._gross, self._taken = -1.0, 0.0  # seconds of training as last reported; of these, evaluations
        self._best: Mapping[str, Any] = {}
        if self.every is not None:
            self._best = checkpoint.best_said(self._root) or {}

    def due(self, progress: types.Progress, *, last: bool) -> bool:
        """Whether one is to be played now.

        Args:
            progress: Of now.
            last: There is no more: what was learned since the last one is still to be judged.
        """
        if self.every is None or not progress.updates:
            return False
        if last:
            return (progress.env_steps, progress.updates) != self._at
        return progress.env_steps // self.every > self._at[0] // self.every

    @contextlib.contextmanager
    def playing(self, progress: types.Progress) -> Iterator[None]:
        """Within, one is played; one that is left is still due after a resume."""
        began = time.perf_counter()
        try:
            yield
            self._at = progress.env_steps, progress.updates
        finally:
            self._still.seconds += time.perf_counter() - began

    def net(self, progress: types.Progress) -> types.Progress:
        """A report of the runtime without the time of evaluations in which it stood still."""
        if not self._stands:
            return progress
        if progress.train_s != self._gross:  # else it is the last report once more, from before what came since
            self._gross, self._taken = progress.train_s, self._still.seconds
        if not self._taken:
            return progress
        train_s = max(0.0, progress.train_s - self._taken)
        split = {name: min(seconds, train_s) for name, seconds in progress.split.items()}
        return progress._replace(train_s=train_s, split=split)

    def take(self, evaluated: log.Evaluated, policy: types.Policy, said: Mapping[str, Any]) -> None:
        """Take account of one; its policy is kept if it is the best.

        Args:
            evaluated: What it came to.
            policy: Of what.
            said: What the checkpoint says besides.

        Raises:
            NotSaved: It is the best, and could not be written; the one before is still there.
            NonFiniteError: Likewise, for its parameters are not finite.
        """
        self.latest = evaluated.return_mean
        if self._best and evaluated.return_mean <= self._best["return_mean"]:
            return
        about = {**evaluated._asdict(), **said}
        checkpoint.save_best(self._root, evaluated.env_steps, policy, about)
        self._best = about

    def meta(self) -> dict[str, Any]:
        """What a checkpoint says of them; nothing where there are none."""
        return {} if self.every is None else {"evaluated_at": list(self._at), "evaluated": self.latest}

    def summary(self) -> dict[str, Any]:
        """The object of the summary; without any, none."""
        if self.every is None:
            return {}
        told = {
            "every": self.every,
            "last_return_mean": self.latest,
            "best_return_mean": self._best.get("return_mean"),
            "best_env_steps": self._best.get("env_steps"),
            "evaluation_s": self._still.seconds,
        }
        return {"evaluations": told}
