"""The finals: the best trials once more, on further seeds, before one of them is called the winner.

A trial's score is that of one seed, and the best of many such scores is mostly luck: reinforcement learning is noisier
across seeds than across settings. So a part of the budget trains the best few anew, and their mean decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shoal import experiment
from shoal.core import errors
from shoal.runs.tuning import confirming, searching, trial
from shoal.runs.tuning import folder as folders
from shoal.runs.tuning import plan as plans

FIRST = 2000  # seed


class Finals(NamedTuple):
    """What they are played with."""

    folder: Path
    plan: plans.Plan
    made: experiment.Experiment  # one learner
    rows: list[dict[str, Any]]  # of ``trials.json``
    settings: Callable[[Mapping[str, Any]], Mapping[str, Any]]  # of a row, as options
    how: Callable[[str], trial.How]
    told: Callable[[Mapping[str, Any]], None]


def run(finals: Finals) -> None:
    """Train the best few anew; what is finished is not trained again.

    Raises:
        Stopped: A signal ended it.
    """
    order = searching.furthest(finals.rows)
    order.sort(key=lambda row: (-row["score"], row["trial"]))
    for row in order[: finals.plan.finalists]:
        if "finals" not in row:
            row["finals"] = _again(finals, row)
            folders.keep(finals.folder, finals.rows)
            finals.told(row)


def _again(finals: Finals, row: Mapping[str, Any]) -> dict[str, Any]:
    asked = trial.request(finals.made, finals.settings(row), FIRST, finals.plan.steps)
    place, how = finals.folder / "finals" / f"{row['trial']:04d}", finals.how(f"finals of {row['trial']}")
    try:
        runs = confirming.seeds(place, asked, plans.FINAL_SEEDS, finals.made, how)
    except (errors.ShoalError, OSError) as problem:
        return {"scores": [], "mean": None, "steps": 0, "why": " ".join(str(problem).split())}
    scores = [one["eval_return_mean"] for one in runs]
    mean = sum(scores) / len(scores) if None not in scores else None
    return {"scores": scores, "mean": mean, "steps": sum(one["env_steps"] for one in runs), "why": "",
            "wall_s": max(one["wall_s"] for one in runs)}  # fmt: skip
