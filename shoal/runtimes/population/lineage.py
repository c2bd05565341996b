"""Who came from whom, as data: the events of a population, kept as ``lineage.jsonl``, one JSON object a line.

The file is enough to know every member's hyperparameters at any update, the ancestry of the winner, and the plan of
every exchange. What an event holds is in `chronicle`.
"""

from __future__ import annotations

import collections
import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from etils import epy

from shoal.core import errors, types
from shoal.runtimes.population import chronicle, exchange

with epy.lazy_imports():
    import numpy as np

FILE = "lineage.jsonl"
META = "lineage_events"  # what a checkpoint says: how many events had been


class Since(NamedTuple):
    """From when on an ancestry is in a member."""

    update: int
    member: int
    source: int | None  # the ancestor before it; None: it begins here


# ------------------------------------------------------------------------------------------------ the file


class Lineage:
    """The events of a run as its artefact (`types.Artefact`): those of earlier lives, and what this one adds."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, events: Iterable[chronicle.Event]) -> None:
        """What happened, in its order."""
        self._lines += [chronicle.line(event) for event in events]

    def events(self) -> list[chronicle.Event]:
        """All so far."""
        return [chronicle.parsed(text) for text in self._lines]

    def take_up(self, folder: Path, meta: Mapping[str, types.Scalar]) -> None:
        """See `types.Artefact`: what earlier lives told stands before what was added in this one."""
        wanted = int(meta.get(META, 0))
        found = [chronicle.line(event) for event in read(folder)] if wanted else []
        if len(found) < wanted:
            raise errors.Refused(f"{folder}/{FILE} holds {len(found)} of {wanted} events; restore it, or train anew")
        self._lines[:0] = found[:wanted]

    def write(self, folder: Path, about: Mapping[str, object]) -> dict[str, int]:
        """See `types.Artefact`; versions and machine stand in ``config.json``."""
        del about
        temporary = folder / f".tmp-{FILE}-{os.getpid()}"
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(f"{text}\n" for text in self._lines)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, folder / FILE)
        finally:
            temporary.unlink(missing_ok=True)
        return {META: len(self._lines)}


def read(folder: Path) -> list[chronicle.Event]:
    """The events of a run folder, in their order.

    Args:
        folder: Of the run.

    Raises:
        Refused: It has no lineage, or a damaged one.
    """
    path = Path(folder) / FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise errors.Refused(f"{folder} has no lineage ({FILE}): only a run of a population keeps one") from None
    except (OSError, ValueError) as error:
        raise errors.Refused(f"{path} cannot be read ({error}); restore it, or train anew") from None
    events = []
    for number, text in enumerate(lines, 1):
        try:
            events.append(chronicle.parsed(text))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise errors.Refused(f"{path}, line {number} is no event ({error}); restore it, or train anew") from None
    if wrong := _wrong(events):
        raise errors.Refused(f"{path} makes no lineage ({wrong}); restore it, or train anew")
    return events


def _wrong(events: Sequence[chronicle.Event]) -> str:
    """Why events fit no population; "" if they do."""
    count = members(events)
    if not count or [event.member for event in events[:count]] != list(range(count)):
        return "it does not begin with every member"
    update = 0
    for event in events:
        named = {event.member, event.source, event.hyperparameters_from} - {None}
        if event.event not in chronicle.KINDS or not named <= {*range(count)}:
            return f"an event {event.event!r} of {sorted(map(str, named))} among {count} members"
        if event.update < update:
            return f"update {event.update} after update {update}"
        update = event.update
    told = collections.Counter(event.round for event in events if event.event == "exchange")
    short = [round for round, each in told.items() if each != count]
    return f"exchange {short[0]} tells of {told[short[0]]} of {count} members" if short else ""


# ------------------------------------------------------------------------------------------------ what it tells


def members(events: Sequence[chronicle.Event]) -> int:
    """How many."""
    return sum(event.event == "init" for event in events)


def hyperparameters_at(events: Sequence[chronicle.Event], update: int) -> list[dict[str, float]]:
    """Every member's after so many updates, exchanges at that update included.

    Args:
        events: Of the run.
        update: Updates of a member.
    """
    known: list[dict[str, float]] = [{} for _ in range(members(events))]
    for event in events:
        if event.update > update:
            break
        known[event.member] |= event.hyperparameters
    return known


def rounds(events: Sequence[chronicle.Event]) -> list[chronicle.Round]:
    """The exchanges in their order."""
    found: dict[int, list[chronicle.Event]] = {}
    for event in events:
        if event.event == "exchange" and event.round is not None:
            found.setdefault(event.round, []).append(event)
    return [_round(number, sorted(each, key=lambda event: event.member)) for number, each in sorted(found.items())]


def _round(number: int, each: Sequence[chronicle.Event]) -> chronicle.Round:
    def whose(given: Iterable[int | None]) -> types.Array:
        return np.array([i if other is None else other for i, other in enumerate(given)], np.int32)

    fitness = np.array([np.nan if event.fitness is None else event.fitness for event in each], np.float32)
    explore = np.array([event.explore for event in each])
    weights, theirs = whose(event.source for event in each), whose(event.hyperparameters_from for event in each)
    plan = exchange.Plan(weights, theirs, explore)
    return chronicle.Round(number, each[0].update, each[0].env_steps, fitness, plan)


def winner(events: Sequence[chronicle.Event]) -> int:
    """The best member when fitness was measured last; 0 where nobody has had one."""
    best = [event.member for event in events if event.rank == 0 and event.fitness is not None]
    return best[-1] if best else 0


def ancestry(events: Sequence[chronicle.Event], member: int) -> list[Since]:
    """In which members a member's weights were, oldest first.

    Args:
        events: Of the run.
        member: Whose.
    """
    found: list[Since] = []
    done: int | None = None  # the round that was followed last: all took over from what there was before it
    for event in reversed(events):
        if event.member != member or event.event in ("cem", "fitness") or (done is not None and event.round == done):
            continue
        if event.event != "exchange" or event.source is not None:
            found.append(Since(event.update, member, event.source))
            if event.source is None:
                break
            member, done = event.source, event.round
    return found[::-1]


def schedule(events: Sequence[chronicle.Event], member: int) -> list[tuple[int, dict[str, float]]]:
    """The hyperparameters that a member's weights were trained with, along its ancestry.

    Args:
        events: Of the run.
        member: Whose, e.g. the `winner`.

    Returns:
        (environment steps of one member from which on, what changes then), ascending; the first names all.
    """
    line = ancestry(events, member)
    ends = [*(since.update for since in line[1:]), math.inf]
    known: list[dict[str, float]] = [{} for _ in range(members(events))]
    told: dict[str, float] = {}
    found: list[tuple[int, dict[str, float]]] = []
    line, ends = line[::-1], ends[::-1]
    for update, together in itertools.groupby(events, key=lambda event: event.update):
        steps = 0
        for event in together:
            known[event.member] |= event.hyperparameters
            steps = event.env_steps
        while update >= ends[-1]:  # the line has gone over to another member by now
            line, ends = line[:-1], ends[:-1]
        changed = {name: value for name, value in known[line[-1].member].items() if told.get(name) != value}
        if update >= line[-1].update and changed:
            told |= changed
            found.append((steps, changed))
    return found
