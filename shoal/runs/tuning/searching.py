"""The methods of trials: random search and TPE, a whole run each; and successive halving, which goes on with the best.

Successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943): all trials are trained for a ninth of their steps,
the best third of them goes on to a third, and the best third of these to the end. It goes on exactly, with the schedule
of the learning rate that it would have had anyway. Optuna's own pruner decides about each trial when it comes to a
rung, by those before it, so that the first ones always go on; trials here are whole runs that wait for nobody,
so all can be compared at a rung first, and what the search will cost is known before it begins.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shoal import experiment
from shoal.core import errors
from shoal.runs.session import hearing
from shoal.runs.tuning import beside, optuna_side, space, trial
from shoal.runs.tuning import folder as folders
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
    plan = search.plan
    sampler = "tpe" if plan.method == "tpe" else "random"
    study = optuna_side.Study(search.folder, sampler, search.priors, plan.trials, plan.seed, plan.parallel)
    _reconcile(search, study)
    if (usual := defaults(search)) is not None:
        study.first(usual)
    if plan.parallel > 1:
        _beside(search, study)
        return
    for rung in range(len(plan.rungs)):
        queue = Queue(search, study, rung)
        while (row := queue.next()) is not None:
            _train(search, study, row, rung)
        _leave(search, study, rung)


def _beside(search: Search, study: optuna_side.Study) -> None:
    """The same with several trials at a time; what each is given does not depend on which of them ends first."""
    hired = beside.Hired(search.made, search.how("").eval_episodes)
    with hearing.Heard(search.how("the search").console.note) as heard, beside.Slots(
        search.plan.parallel, hired, functools.partial(_shown, search)
    ) as slots:  # fmt: skip
        for rung in range(len(search.plan.rungs)):
            queue = Queue(search, study, rung)
            ended = False
            while not ended:
                while slots.room and (row := queue.next()) is not None:
                    slots.give(_job(search, row, rung))
                for job, came in slots.take():
                    _ended(search, study, job, came, rung)
                if heard.stopped_by:
                    for job, came in slots.stop():
                        _ended(search, study, job, came, rung)
                    raise trial.Stopped(heard.stopped_by)
                ended = not slots.busy and queue.empty
            _leave(search, study, rung)


def _ended(search: Search, study: optuna_side.Study, job: beside.Job, came: beside.Came, rung: int) -> None:
    if came.outcome is not None:
        row = next(row for row in search.rows if row["trial"] == job.trial)
        _took(search, study, row, rung, came.outcome)


def _shown(search: Search, number: int, shown: beside.Shown) -> None:
    """What a trial elsewhere shows, or the death of a process (of no trial)."""
    console = search.how(_words(search, number) if number >= 0 else "the search").console
    {"show": console.show, "note": console.note, "fault": console.fault}[shown.kind](*shown.said)


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


class Queue:
    """The trials that are to come to a rung, in turn; the first rung's are asked for when there is room for them.

    What TPE proposes depends on what it was told. With K at a time it is asked for K at once, when all before them have
    ended, so that neither chance nor a kill decides what it knew.
    """

    def __init__(self, search: Search, study: optuna_side.Study, rung: int) -> None:
        """Begin with those that a life before this one began."""
        self._search, self._study, self._rung = search, study, rung
        if not rung:
            known = {row["trial"] for row in search.rows}
            for number, values in sorted(study.asked().items()):
                if number not in known:
                    _begin(search, optuna_side.Given(number, values))
        self._there = [row for row in search.rows if row["status"] == "running" and len(row["rungs"]) == rung]
        if self._there:  # what a kill left of those that are asked for together, before any of them ends
            self._there += [_begin(search, study.ask()) for _ in range(self._askable(begun=True))]

    @property
    def empty(self) -> bool:
        """Whether all were handed out."""
        return not self._there and not self._left

    @property
    def _left(self) -> int:
        """How many are still to be asked for."""
        return 0 if self._rung else self._search.plan.trials - len(self._search.rows)

    def next(self) -> dict[str, Any] | None:
        """The next one; None where there is none, or none before others have ended."""
        if not self._there:
            self._there = [_begin(self._search, self._study.ask()) for _ in range(self._askable())]
        return self._there.pop(0) if self._there else None

    def _askable(self, *, begun: bool = False) -> int:
        """How many may be asked for now; `begun`: to go with some that were."""
        plan, number = self._search.plan, len(self._search.rows)
        if plan.method != "tpe" or plan.parallel == 1:
            return 0 if begun else min(1, self._left)
        if begun and number % plan.parallel == 0:
            return 0
        first = number // plan.parallel * plan.parallel  # of those that are asked for together
        if any(row["status"] == "running" and row["trial"] < first for row in self._search.rows):
            return 0
        return min(first + plan.parallel - number, self._left)


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
    job = _job(search, row, rung)
    asked = trial.request(search.made, job.settings, job.seed, job.steps)._replace(anneal=job.anneal)
    how = search.how(_words(search, row["trial"]))
    _took(search, study, row, rung, trial.train(job.place, asked, job.steps, how))


def _words(search: Search, number: int) -> str:
    return f"trial {number + 1} of {search.plan.trials}"


def _job(search: Search, row: Mapping[str, Any], rung: int) -> beside.Job:
    plan = search.plan
    anneal = plan.steps if len(plan.rungs) > 1 else None
    return beside.Job(row["trial"], search.folder / row["run"], row["settings"], row["seed"], plan.rungs[rung], anneal)


def _took(search: Search, study: optuna_side.Study, row: dict[str, Any], rung: int, came: trial.Outcome) -> None:
    """Write down what a trial came to at a rung."""
    before = sum(one["steps"] for one in search.rows) - row["steps"]
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
    tried = [row for row in search.rows if row["status"] != "running" or row["rungs"]]
    if len(failed) >= HOPELESS and len(failed) == len(tried):
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
