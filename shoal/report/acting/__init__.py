"""Where the time goes and what compression costs: the section about compressed actors and corrected experience."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.report import groups as experiments
from shoal.report import markup, tables, words
from shoal.report import runs as run_folders
from shoal.report.acting import cards, courses, pace, told

TITLE = "Where the time goes and what compression costs"


def content(found: Sequence[experiments.Group]) -> list[markup.Markup | None]:
    """What the section shows, in order; nothing where no run measured it."""
    measured = told.measured(found)
    runs = [run for group in measured for run in group.runs]
    if not runs:
        return []
    if len(runs) == 1:
        return _alone(measured[0])
    key, halves, small = courses.several(measured)
    return [
        _said(measured),
        pace.split(measured),
        cards.several(measured),
        key,
        _grid(halves, "halves"),
        _grid(small, "multiples"),
    ]


def drawn(found: Sequence[experiments.Group]) -> frozenset[str]:
    """The columns of the metrics that the section draws."""
    return told.COLUMNS if told.measured(found) else frozenset()


def _alone(group: experiments.Group) -> list[markup.Markup | None]:
    run = group.runs[0]
    halves, small = courses.alone(run, group)
    engines = pace.engines(run)
    facts = [card for card in (cards.snapshots(run), cards.correction(run)) if card]
    return [
        _said([group]),
        tables.tiles(cards.tiles(run)) if run.summary else None,
        pace.split([group]),
        _grid([*halves, *([engines] if engines else [])], "halves"),
        cards.decisions(run),
        _grid(small, "multiples"),
        markup.tag("div", *facts, class_="configuration") if facts else None,
    ]


def _said(found: Sequence[experiments.Group]) -> markup.Markup | None:
    """Whether it pays, and what set off an alarm."""
    lines = []
    for group in found:
        who = f"{group.title}: " if len(found) > 1 else ""
        for pays, said in told.verdicts(group.runs):
            class_ = {True: "pays", False: "not", None: None}[pays]
            lines.append(markup.tag("li", f"{who}{said}", class_=class_))
        lines += [markup.tag("li", f"{who}{alarm}", class_="alarm") for alarm in _alarms(group.runs)]
    return markup.tag("ul", *lines, class_="findings") if lines else None


def _alarms(runs: Sequence[run_folders.Run]) -> list[str]:
    """All of one run; of several how many had some, and the first."""
    of = [[str(alarm) for alarm in told.listed(run, "correction", "alarms")] for run in runs]
    some = [alarms for alarms in of if alarms]
    if len(runs) == 1 or not some:
        return [f"Alarm: {alarm}." for alarms in some for alarm in alarms]
    return [f"Alarms in {len(some)} of {words.count(len(runs), 'run')}, the first: {some[0][0]}."]


def _grid(parts: Sequence[markup.Markup], class_: str) -> markup.Markup | None:
    return markup.tag("div", *parts, class_=class_) if parts else None
