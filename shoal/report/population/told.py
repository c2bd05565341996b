"""What a population's run folder tells: its summary's object, and the history that its lineage holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shoal.core import errors
from shoal.report import groups as experiments
from shoal.report import runs as run_folders
from shoal.runtimes.population import chronicle, exchange, lineage, priors

COLUMNS = frozenset({"population.best", "population.mean"})  # of the metrics, which are drawn here


class Round(NamedTuple):
    """One measurement of all members, with the exchange after it."""

    steps: int  # environment steps of all members together
    fitness: np.ndarray  # [N], NaN where there is none
    source: Mapping[int, int]  # whose weights members took over; of those that did


class History(NamedTuple):
    """A lineage, ready to be drawn; steps are those of all members together."""

    members: int
    end: int  # steps of the run
    rounds: Sequence[Round]
    failures: Sequence[tuple[int, int]]  # (steps, member)
    ancestry: Sequence[tuple[int, int]]  # (steps from which on, member) of the winner
    winner: int
    values: Mapping[
        str, Sequence[tuple[np.ndarray, np.ndarray]]
    ]  # leaf -> of each member (steps, value) where it changes
    schedule: Sequence[tuple[int, Mapping[str, float]]]  # the winner's, along its ancestry
    priors: Mapping[str, priors.Prior]
    apart: int  # members of a sub-population; 0: there are none


def present(run: run_folders.Run) -> bool:
    """Whether a run is a population's."""
    return isinstance(run.inner("population"), Mapping) or (run.path / lineage.FILE).exists()


def measured(found: Sequence[experiments.Group]) -> list[experiments.Group]:
    """The groups with the runs that are; a group without one is left out."""
    kept = [group._replace(runs=tuple(run for run in group.runs if present(run))) for group in found]
    return [group for group in kept if group.runs]


def number(run: run_folders.Run, *keys: str) -> float | None:
    """A number inside the summary's object; None: not measured."""
    return run_folders.number(run.inner("population", *keys))


def setting(run: run_folders.Run, name: str) -> Any:
    """A setting of the runtime; None where it is not written."""
    parts = run.config.get("parts")
    runtime = parts.get("runtime") if isinstance(parts, Mapping) else None
    return runtime.get(name) if isinstance(runtime, Mapping) else None


def history(run: run_folders.Run) -> History | None:
    """The history of a run; None where its lineage cannot be read."""
    try:
        events = lineage.read(run.path)
    except errors.Refused:
        return None
    members, winner = lineage.members(events), lineage.winner(events)
    steps = {event.update: event.env_steps * members for event in events}
    rounds = _rounds(events, members)
    known = run.value("env_steps")
    end = max([*steps.values(), int(known or 0)])
    return History(
        members=members,
        end=end,
        rounds=rounds,
        failures=[(event.env_steps * members, event.member) for event in events if event.event == "failure"],
        ancestry=[(steps[since.update], since.member) for since in lineage.ancestry(events, winner)],
        winner=winner,
        values=_values(events, members),
        schedule=[(at * members, values) for at, values in lineage.schedule(events, winner)],
        priors=_priors(run),
        apart=_apart(run, members),
    )


def _rounds(events: Sequence[chronicle.Event], members: int) -> list[Round]:
    """Measurements in their order; the one at the end stands for an exchange that did not come any more."""
    found: dict[int, dict[int, chronicle.Event]] = {}
    for event in events:
        if event.event in ("exchange", "fitness"):
            each = found.setdefault(event.update, {})
            each[event.member] = event if event.event == "exchange" else each.get(event.member, event)
    return [
        Round(
            steps=next(iter(each.values())).env_steps * members,
            fitness=np.array([_fitness(each.get(member)) for member in range(members)]),
            source={member: one.source for member, one in each.items() if one.source is not None},
        )
        for each in found.values()
    ]


def _fitness(event: chronicle.Event | None) -> float:
    return float("nan") if event is None or event.fitness is None else event.fitness


def _values(events: Sequence[chronicle.Event], members: int) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    names = sorted({name for event in events for name in event.hyperparameters})
    found: dict[str, list[tuple[list[float], list[float]]]] = {
        name: [([], []) for _ in range(members)] for name in names
    }
    for event in events:
        for name, value in event.hyperparameters.items():
            at, values = found[name][event.member]
            at.append(event.env_steps * members)
            values.append(value)
    return {name: [(np.array(at), np.array(values)) for at, values in each] for name, each in found.items()}


def _priors(run: run_folders.Run) -> dict[str, priors.Prior]:
    given = setting(run, "prior")
    try:
        return dict(priors.parse(str(text)) for text in given or ())
    except (errors.Refused, TypeError):  # an edited config.json: the scale is then taken from the values
        return {}


def _apart(run: run_folders.Run, members: int) -> int:
    if setting(run, "exchange") != "mf_pbt":
        return 0
    given = setting(run, "intervals") or exchange.Settings().intervals
    count = exchange.groups(exchange.Settings(intervals=tuple(given)), members)
    return members // count if count > 1 else 0
