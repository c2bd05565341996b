"""How parties fared that trained together, what they sent, and what that gives away: the section about federations."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.report import groups as experiments
from shoal.report import markup, tables
from shoal.report.federation import cards, courses, rounds, told

TITLE = "The parties"


def content(found: Sequence[experiments.Group]) -> list[markup.Markup | None]:
    """What the section shows, in order; nothing where no run is a federation's."""
    measured = told.measured(found)
    runs = [run for group in measured for run in group.runs]
    if not runs:
        return []
    if len(runs) > 1:
        return [cards.several(measured), courses.worst(measured), courses.halves(measured), cards.boundary(runs)]
    run = runs[0]
    return [
        tables.tiles(cards.tiles(run)),
        cards.boundary([run]),
        *courses.returns(run),
        cards.parties(run),
        rounds.figure(run) if told.exchanges(run) else None,
        courses.halves(measured),
        cards.facts(run),
    ]


def drawn(found: Sequence[experiments.Group]) -> frozenset[str]:
    """The columns of the metrics that the section draws."""
    return told.COLUMNS if told.measured(found) else frozenset()
