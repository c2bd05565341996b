"""Who came from whom, and with which hyperparameters: the section about populations."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.report import figures, markup, tables
from shoal.report import groups as experiments
from shoal.report.population import cards, courses, told, tree

TITLE = "The population"


def content(found: Sequence[experiments.Group]) -> list[markup.Markup | None]:
    """What the section shows, in order; nothing where no run is a population's."""
    measured = told.measured(found)
    runs = [run for group in measured for run in group.runs]
    if not runs:
        return []
    if len(runs) > 1:
        return [cards.several(measured), courses.best(measured)]
    run = runs[0]
    history = told.history(run)
    if history is None:
        return [tables.tiles(cards.tiles(run, None)), cards.lost(run), _facts(run, None)]
    small = courses.schedules(history)
    return [
        tables.tiles(cards.tiles(run, history)),
        tree.figure(history),
        figures.figure("Fitness", courses.fitness(history), courses.CAPTION),
        markup.tag("h3", "Hyperparameters along the winner's ancestry") if small else None,
        markup.tag("p", courses.SCHEDULES, class_="note") if small else None,
        markup.tag("div", *small, class_="multiples") if small else None,
        _facts(run, history),
    ]


def drawn(found: Sequence[experiments.Group]) -> frozenset[str]:
    """The columns of the metrics that the section draws."""
    return told.COLUMNS if told.measured(found) else frozenset()


def _facts(run: experiments.run_folders.Run, history: told.History | None) -> markup.Markup | None:
    facts = [card for card in (cards.winner(history), cards.dispatch(run), cards.exchanges(run, history)) if card]
    return markup.tag("div", *facts, class_="configuration") if facts else None
