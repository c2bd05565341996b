"""One trial: an ordinary run with some settings of its own, scored by an evaluation that is no part of its training."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from etils import epy

from shoal import experiment, log
from shoal.core import errors
from shoal.experiment import filed, presets
from shoal.runs import checkpoint, run_folder
from shoal.runs.session import hearing
from shoal.runs.tuning import workshop

with epy.lazy_imports():
    from shoal.runs import training

SPENT = (KeyboardInterrupt, SystemExit)


class Stopped(Exception):
    """A signal asked for the end; its name."""


class Outcome(NamedTuple):
    """What a trial came to."""

    score: float | None  # mean return of the evaluation; None: it failed
    std: float | None  # over its episodes
    steps: int  # environment steps taken in all
    why: str  # "" if it did not fail
    wall_s: float  # of this call


def request(made: experiment.Experiment, settings: Mapping[str, Any], seed: int, steps: int) -> presets.Request:
    """What a run with other settings is asked for by.

    Args:
        made: The preset on its environment.
        settings: By option name.
        seed: Of the run.
        steps: Of the run.
    """
    return presets.Request(
        preset=made.preset, env=made.env, steps=steps, seed=seed, runtime=made.runtime, corrector=made.corrector,
        compressor=made.compressor, configs=made.configs, settings=filed.nested(settings),
    )  # fmt: skip


class How(NamedTuple):
    """How trials are trained."""

    console: log.Console  # what a person sees of it
    eval_episodes: int  # of the evaluation
    workshop: workshop.Workshop


def train(place: Path, asked: presets.Request, steps: int, how: How) -> Outcome:
    """Bring a trial to some environment steps, from where it is, and evaluate it; a failure is its outcome.

    Args:
        place: Its run folder.
        asked: The run; where it is to be judged on the way, `anneal` holds its steps in all.
        steps: It is to have had.
        how: It is trained.

    Raises:
        Stopped: A signal ended it; it was saved, and goes on from there.
    """
    began = time.monotonic()
    try:
        summary = brought(place, asked._replace(steps=steps), how)
    except (Stopped, *SPENT):
        raise
    except Exception as problem:  # noqa: BLE001  whatever its settings led to: the search goes on
        why = " ".join(f"{problem}".split()) or type(problem).__name__
        told = why if isinstance(problem, errors.ShoalError) else f"{type(problem).__name__}: {why}"
        return Outcome(None, None, taken(place), told, time.monotonic() - began)
    score, std, had = summary["eval_return_mean"], summary["eval_return_std"], summary["env_steps"]
    spent = time.monotonic() - began
    if score is None or not math.isfinite(score):
        return Outcome(None, None, had, f"its evaluation is not finite ({score})", spent)
    return Outcome(score, std, had, "", spent)


def brought(place: Path, asked: presets.Request, how: How) -> dict[str, Any]:
    """The summary of a run that has had the steps asked for, from where it is; failures are raised.

    Raises:
        Stopped: A signal ended it.
    """
    given = keywords(place, how)
    if not checkpoint.folders(place / "checkpoints"):
        clear(place)
    if not place.exists():
        run: Any = training.train(asked, place, command="shoal tune", **given)
    else:
        before, wanted = experiment.from_json(run_folder.read_config(place)).steps, asked.steps or 0
        if run_folder.status(place) == "completed" and max(before, taken(place)) >= wanted:
            return _summary(place)
        run = training.resume(place, steps=wanted if before < wanted else None, **given)
    if run.summary["status"] == "interrupted":
        raise Stopped(run.summary["stopped_by"])
    return dict(run.summary)


def keywords(place: Path, how: How) -> dict[str, Any]:
    """Of `training.train` and its like."""
    how.workshop.at = str(sorted(folder.name for folder in checkpoint.folders(place / "checkpoints"))[-1:])
    return {"console": how.console, "eval_episodes": how.eval_episodes, "builder": how.workshop}


def clear(place: Path) -> None:
    """A run folder whose run was killed before it saved anything begins anew."""
    if place.exists():
        shutil.rmtree(place)


def _summary(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "summary.json").read_text())
    return found


def taken(place: Path) -> int:
    """Environment steps that a run has had, by its summary; 0 where there is none."""
    try:
        return int(_summary(place)["env_steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Between two trainings a signal raises `Stopped`; during one, the training hears it and saves first."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the program that called us
        return

    def stop(number: int, _: Any) -> None:
        raise Stopped(signal.Signals(number).name)

    before: dict[int, Any] = {number: signal.signal(number, stop) for number in hearing.SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
