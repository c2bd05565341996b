"""Where the time of actors and learner went, as bars of one scale, beside what full precision would have cost."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.report import columns, figures, markup, tables, words
from shoal.report import groups as experiments
from shoal.report import runs as run_folders
from shoal.report.acting import told

LOOKS = {  # part of the time -> what it is called, and the pattern it wears
    "inference": ("inference", "part inference"),
    "env": ("environment", "part environment"),
    "load": ("loading snapshots", "part loading"),
    "update": ("updates", "part learning"),
    "publish": ("publishing", "part publishing"),
    "other": ("other", "part other"),
    "wait": ("waiting", "part waiting"),
}


def split(found: Sequence[experiments.Group]) -> markup.Markup | None:
    """Bars of actors and learner of each run (of each group, when they are many); None if nobody measured."""
    runs = [run for group in found for run in group.runs]
    bars = _alone(runs[0]) if len(runs) == 1 else _several(found, pooled=len(runs) > tables.BARS // 2)
    if not bars:
        return None
    used = [
        part for part in LOOKS if any(part in told.shares(run, who) for run in runs for who in ("actor", "learner"))
    ]
    key = tables.swatches([LOOKS[part] for part in used])
    caption = "Shares of the wall-clock, which is the same for actors and learner; an actor's bar is their mean."
    if len(runs) == 1 and told.packed(runs[0]) and told.before(runs[0]):
        caption += " At full precision is computed from the measured times of both policies; the longest bar but for "
        caption += "its waiting sets the pace."
    drawn = markup.join(key, markup.tag("div", *bars, class_="bars"))
    return figures.figure("Time of actors and learner", drawn, caption)


def _alone(run: run_folders.Run) -> list[markup.Markup]:
    """Actors before and now, and the learner, on the scale of the longest."""
    before = told.before(run) if told.packed(run) else {}
    longest = max(1.0, sum(before.values()))
    bars = []
    if before:
        name = "Actors at full precision, computed"
        bars.append(tables.bar(name, [_piece(part, share) for part, share in before.items()],
            100 * sum(before.values()) / longest))  # fmt: skip
    for who, name in (("actor", "Actors, as they were"), ("learner", "Learner")):
        parts, seconds = told.shares(run, who), told.spent(run, who)
        if parts:
            pieces = [_piece(part, share, seconds[part]) for part, share in parts.items()]
            bars.append(tables.bar(name, pieces, 100 / longest))
    return bars


def _several(found: Sequence[experiments.Group], *, pooled: bool) -> list[markup.Markup]:
    bars = []
    for group in found:
        rows = [([run], f"{group.title}, {name}") for run, name in zip(group.runs, group.names(), strict=True)]
        if pooled:
            together = group.title + (
                f", {words.count(len(group.runs), 'run')} together" if len(group.runs) > 1 else ""
            )
            rows = [(list(group.runs), together)]
        for members, name in rows:
            for who, called in (("actor", "actors"), ("learner", "learner")):
                totals: dict[str, float] = {}
                for run in members:
                    for part, seconds in told.spent(run, who).items():
                        totals[part] = totals.get(part, 0.0) + seconds
                whole = sum(totals.values())
                if whole:
                    pieces = [_piece(part, seconds / whole, seconds) for part, seconds in totals.items()]
                    bars.append(tables.bar(f"{name}: {called}", pieces))
    return bars


def _piece(part: str, share: float, seconds: float | None = None) -> tuple[float, str, str]:
    name, class_ = LOOKS[part]
    took = f" ({words.seconds(seconds)})" if seconds is not None else ""
    return 100 * share, class_, f"{name} {words.percent(share)}{took}"


def engines(run: run_folders.Run) -> markup.Markup | None:
    """Microseconds a decision by engine, as measured at the start of a run."""
    values = told.numbers(run, "actor", "engines_us")
    if not values:
        return None
    ordered = dict(sorted(values.items(), key=lambda item: item[1]))
    chosen, batch = told.text(run, "actor", "engine"), told.number(run, "actor", "batch")
    of = f" for a batch of {words.number(batch)}" if batch else ""
    caption = f"Measured at the start{of}; {chosen} was chosen." if chosen else f"Measured at the start{of}."
    return figures.figure("Engines", columns.named(ordered, "µs a call", chosen), caption)
