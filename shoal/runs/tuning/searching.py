"""The methods of trials: random search and TPE, a whole run each; and successive halving, which goes on with the best.

Successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943): all trials are trained for a ninth of their steps,
the best third of them goes on to a third, and the best third of these to the end. It goes on exactly, with the schedule
of the learning rate that it would have had anyway. Optuna's own pruner decides about each trial when it comes to a
rung, by those before it, so that the first ones always go on; trials here run one after the other and wait for nobody,
so all can be compared at a rung first, and what the search will cost is known before it begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shoal import experiment
from shoal.core import errors
from shoal.runs.tuning import folder as folders
from shoal.runs.tuning import optuna_side, space, trial
from shoal.runs.tuning import plan as plans

HOPELESS = 3  # trials that fail one after the other before any did not: it is not the settings


class Search(NamedTuple):
    """What a method works with."""

    folder: Path
    plan: plans.Plan
    made: experiment.Experiment  # the preset on its environment
    typed: Mapping[str, Any]  # settings by option name that hold for every trial
    priors: Mapping[str, space.Prior]
    rows: list[dict[str, Any]]  # of ``trials.json``
    how: Callable[[str], trial.How]  # what is trained, in words -> how
    told: Callable[[dict[str, Any]], None]  # called with every row that changed


def run(search: Search) -> None:
    """Do what is left of a search.

    Raises:
        Stopped: A signal ended it.
        GaveUp: Trials fail whatever their settings are.
    """
    sampler = "tpe" if search.plan.method == "tpe" else "random"
    study = optuna_side.Study(search.folder, sampler, search.priors, search.plan.trials, search.plan.seed)
    _reconcile(search, study)
    if (usual := defaults(search)) is not None:
        study.first(usual)
    for rung in range(len(search.plan.rungs)):
        for row in _entering(search, study, rung):
            _train(search, study, row, rung)
        _leave(search, study, rung)


def defaults(search: Search) -> dict[str, float] | None:
    """The preset's own settings, as the first trial's; None where a prior cannot give one of them."""
    values = {name: space.before(search.made, name) for name in search.priors}
    inside = all(space.within(prior, values[name]) for name, prior in search.priors.items())
    return {name: float(value) for name, value in values.items()} if inside else None


def _reconcile(search: Search, study: optuna_side.Study) -> None:
    """What was written down before a kill, and not told."""
    given = study.asked()
    for row in search.rows:
        if row["trial"] in given and row["status"] != "running":
            study.tell(row["trial"], row["score"], left=row["status"] == "left")


def _entering(search: Search, study: optuna_side.Study, rung: int) -> Any:
    """The trials that are to come to a rung, in turn; the first rung's are asked for one by one."""
    if rung:
        yield from [row for row in search.rows if row["status"] == "running" and len(row["rungs"]) == rung]
        return
    known = {row["trial"]: row for row in search.rows}
    given = study.asked()
    for number in sorted(given):
        if number not in known:
            known[number] = _begin(search, optuna_side.Given(number, given[number]))
    yield from [row for row in search.rows if row["status"] == "running" and not row["rungs"]]
    while len(search.rows) < search.plan.trials:
        yield _begin(search, study.ask())


def _begin(search: Search, given: optuna_side.Given) -> dict[str, Any]:
    settings = {name: space.setting(search.made, name, value) for name, value in given.values.items()}
    row = {
        "trial": given.number, "seed": plans.SEED + given.number, "settings": settings, "status": "running",
        "score": None, "std": None, "steps": 0, "rungs": [], "why": "", "wall_s": 0.0,
        "run": f"trials/{given.number:04d}",
        "default": given.number == 0 and given.values == defaults(search),
    }  # fmt: skip
    search.rows.append(row)
    folders.keep(search.folder, search.rows)
    return row


def _train(search: Search, study: optuna_side.Study, row: dict[str, Any], rung: int) -> None:
    """Bring a trial to a rung, and write down what it came to."""
    steps = search.plan.rungs[rung]
    asked = trial.request(search.made, row["settings"], row["seed"], steps)
    if len(search.plan.rungs) > 1:
        asked = asked._replace(anneal=search.plan.steps)
    how = search.how(f"trial {row['trial'] + 1} of {search.plan.trials}")
    before = sum(one["steps"] for one in search.rows) - row["steps"]
    came = trial.train(search.folder / row["run"], asked, steps, how)
    row |= {"score": came.score, "std": came.std, "steps": came.steps, "why": came.why}
    row["wall_s"] = round(row["wall_s"] + came.wall_s, 3)
    if came.score is None:
        row["status"] = "failed"
    else:
        row["rungs"].append({"steps": came.steps, "score": came.score, "std": came.std, "at": before + came.steps,
                             "when": time.time()})  # fmt: skip
        if rung == len(search.plan.rungs) - 1:
            row["status"] = "completed"
    folders.keep(search.folder, search.rows)
    if came.score is not None:
        study.report(row["trial"], came.steps, came.score)
    if row["status"] != "running":
        study.tell(row["trial"], came.score)
    search.told(row)
    _hope(search)


def _hope(search: Search) -> None:
    failed = [row for row in search.rows if row["status"] == "failed"]
    if len(failed) >= HOPELESS and len(failed) == len(search.rows):
        raise errors.GaveUp(
            f"the first {len(failed)} trials failed, the last one with: {failed[-1]['why']}; mend that, or narrow the "
            f"priors, and begin anew"
        )


def _leave(search: Search, study: optuna_side.Study, rung: int) -> None:
    """After a rung, all but the best are left as they are."""
    if rung == len(search.plan.rungs) - 1:
        return
    there = [row for row in search.rows if row["status"] == "running" and len(row["rungs"]) == rung + 1]
    gone = [row for row in search.rows if len(row["rungs"]) + (row["status"] == "failed") > rung + 1]
    room = plans.survivors(search.plan.trials, rung + 1) - len(gone)
    there.sort(key=lambda row: (-row["score"], row["trial"]))
    for row in there[max(room, 0) :]:
        row["status"] = "left"
        folders.keep(search.folder, search.rows)
        study.tell(row["trial"], row["score"], left=True)
        search.told(row)


def furthest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trials that came to the last rung that any of them came to."""
    scored = [row for row in rows if row["rungs"] and row["status"] != "failed"]
    most = max((len(row["rungs"]) for row in scored), default=0)
    return [row for row in scored if len(row["rungs"]) == most]


def best(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The winner of the finals; before them, the best score of those that came furthest. The earlier of equals."""
    there = furthest(rows)
    judged = [row for row in there if row.get("finals", {}).get("mean") is not None]
    return max(judged or there, key=lambda row: (value(row), -row["trial"]), default=None)


def value(row: Mapping[str, Any]) -> float:
    """What a trial is judged by: the mean of the finals' seeds, else its own score."""
    mean = row.get("finals", {}).get("mean")
    return float(row["score"] if mean is None else mean)
