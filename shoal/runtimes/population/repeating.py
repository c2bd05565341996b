"""A population once more: from its seed, with the fitness that was recorded in place of a measurement.

The plans of the exchanges follow from the fitness, so they come out as they were; that they do is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shoal.core import types
from shoal.runtimes.members import dispatch
from shoal.runtimes.population import chronicle, compiling, lineage, running, standing


class Again(NamedTuple):
    """What is done again (`types.Repeats`)."""

    events: Sequence[chronicle.Event]  # of the run
    standing: standing.Standing  # of its checkpoint: how members were computed


class Repeating(running.Running):
    """One life, from the beginning."""

    def __init__(
        self,
        again: Again,
        parts: types.Parts,
        rules: compiling.Rules,
        machine: running.Machine,
        cut: running.Plan,
        seed: int,
        way: dispatch.Way,
    ) -> None:
        super().__init__(parts, rules, machine, cut, seed, way)
        self._recorded = {done.update: done for done in lineage.rounds(again.events)}

    def _measured(self) -> None:
        done = self._recorded.get(self._update)
        if done is None or self._now.measured_at == self._update:
            super()._measured()
        else:
            self._now = standing.take(self._now, done.fitness, self._update, float(self._now.spread))


def difference(was: Sequence[chronicle.Event], now: Sequence[chronicle.Event]) -> int | None:
    """Updates at the first event that is not as it was; None: all are, as far as both go.

    Args:
        was: As recorded.
        now: As they came out.
    """
    for one, other in zip(_exchanges(was), _exchanges(now), strict=False):
        if one != other:
            return min(one.update, other.update)
    return None


def _exchanges(events: Sequence[chronicle.Event]) -> list[chronicle.Event]:
    return [event for event in events if event.event != "fitness"]
