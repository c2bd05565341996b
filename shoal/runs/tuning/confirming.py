"""The winner beside the default: both trained anew, on seeds that no trial had, for equal steps.

The score that won a search was chosen for being high, so it promises too much; what is told here was not chosen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epy

from shoal import experiment
from shoal.core import errors
from shoal.experiment import presets
from shoal.runs import checkpoint, group, run_folder
from shoal.runs.tuning import trial

with epy.lazy_imports():
    from shoal.report import statistics
    from shoal.runs import training


class Side(NamedTuple):
    """One of the two."""

    name: str  # "best", "default" or "schedule"
    settings: Mapping[str, Any]  # by option name
    schedule: Path | None = None  # the population's run whose schedule it follows


class Work(NamedTuple):
    """What is trained with."""

    folder: Path  # of the search
    made: experiment.Experiment
    steps: int  # of each run
    seeds: int  # 0 to seeds - 1
    how: Callable[[str], trial.How]  # what is trained, in words -> how
    told: Callable[[str, int, int], None]  # side, seeds done, environment steps of them


def run(work: Work, sides: Sequence[Side]) -> dict[str, Any]:
    """Train every side on every seed; what is finished there is not trained again.

    Returns:
        ``confirm`` of the summary.

    Raises:
        Stopped: A signal ended it.
    """
    found: dict[str, Any] = {}
    for side in sides:
        try:
            runs = _side(work, side)
        except (errors.ShoalError, OSError) as problem:
            found[side.name] = {"scores": [], "why": " ".join(str(problem).split())}
            continue
        scores = [one["eval_return_mean"] for one in runs]
        found[side.name] = {"scores": [score for score in scores if score is not None], "why": ""}
        work.told(side.name, len(scores), sum(one["env_steps"] for one in runs))
    return {"seeds": list(range(work.seeds)), "steps": work.steps, **conclude(found)}


def conclude(sides: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Interquartile means and intervals of both sides, and of their difference.

    Args:
        sides: ``best`` and ``default``, and others beside them, each with ``scores``.
    """
    made: dict[str, Any] = {name: {**side, **_middle(side["scores"])} for name, side in sides.items()}
    ours, theirs = made["best"]["scores"], made["default"]["scores"]
    difference = made["best"]["iqm"] - made["default"]["iqm"] if ours and theirs else None
    within = list(statistics.difference(ours, theirs)) if len(ours) > 1 and len(theirs) > 1 else None
    made["difference"] = {"iqm": difference, "interval": within}
    made["verdict"] = _verdict(difference, within)
    return made


def _verdict(difference: float | None, within: Sequence[float] | None) -> str:
    if difference is None:
        return "not measured"
    if within is None:
        return "one seed tells nothing about others"
    return "better" if within[0] > 0 else "worse" if within[1] < 0 else "not told apart"


def _middle(scores: Sequence[float]) -> dict[str, Any]:
    return {
        "iqm": statistics.iqm(scores) if scores else None,
        "interval": list(statistics.interval(scores)) if len(scores) > 1 else None,
    }


def _side(work: Work, side: Side) -> list[dict[str, Any]]:
    """The summaries of a side's seeds."""
    asked = trial.request(work.made, side.settings, 0, work.steps)._replace(from_schedule=side.schedule)
    return seeds(work.folder / "confirm" / side.name, asked, work.seeds, work.made, work.how(f"confirming {side.name}"))


def seeds(
    place: Path, asked: presets.Request, count: int, made: experiment.Experiment, how: trial.How
) -> list[dict[str, Any]]:
    """Train one thing on several seeds, in one program where the runtime can; what is finished is not trained again.

    Args:
        place: Where their folders go.
        asked: The run of the first seed.
        count: How many.
        made: As the runs will be; its runtime decides.
        how: They are trained.

    Returns:
        Their summaries.

    Raises:
        Stopped: A signal ended it.
    """
    places = [group.seed_folder(place, asked.seed + more) for more in range(count)]
    if count > 1 and experiment.ways(made.runtime, made.configs["runtime"]).seeds:
        _train(place, asked, count, how, places)
    else:
        for more, one in enumerate(places):
            _train(one, asked._replace(seed=asked.seed + more), 0, how, [one])
    return [json.loads((one / "summary.json").read_text()) for one in places]


def _train(place: Path, asked: presets.Request, together: int, how: trial.How, saved: Sequence[Path]) -> None:
    if run_folder.status(place) == "completed":
        return
    run: Any
    given = trial.keywords(saved[-1], how)
    if place.exists() and any(checkpoint.folders(one / "checkpoints") for one in saved):
        run = training.resume(place, **given)
    else:
        trial.clear(place)
        given["command"] = "shoal tune"
        run = (
            training.train_seeds(asked, together, place, **given) if together else training.train(asked, place, **given)
        )
    if run.summary["status"] == "interrupted":
        raise trial.Stopped(run.summary["stopped_by"])
