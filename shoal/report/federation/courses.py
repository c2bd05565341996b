"""What changed while parties trained together: the return of each, their mean and the worst, and epsilon spent."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from shoal.report import columns, figures, markup, svg, words
from shoal.report import groups as experiments
from shoal.report import runs as run_folders
from shoal.report.federation import told

GREEDY = (
    "Greedy episodes of every party with its own policy: the global part of that moment and its local one. The worst "
    "is whichever party is lowest then."
)
TRAINING = "Each line is a party: the mean return of its last 100 training episodes."
STEPS = "Steps are those of one party, not of all together."
GRID, FEW = 200, 8  # points of a mean of curves; parties up to which each has a hue and a legend entry of its own


def returns(run: run_folders.Run) -> list[markup.Markup]:
    """Curves of every party in one chart, or a small chart for each where their returns are not of one scale."""
    names = [owner.name for owner in told.owners(run)]
    found = told.evaluations(run)
    evaluated = len(found.steps) > 1 and found.returns.shape[1] == len(names)
    if evaluated:
        curves = [(found.each[:, at], found.returns[:, at]) for at in range(len(names))]
    else:
        curves = [told.episodes(run, at) for at in range(len(names))]
    if not any(np.isfinite(y).any() for _, y in curves):
        return []
    title = "Evaluation of every party" if evaluated else "Return of every party"
    caption = f"{GREEDY if evaluated else TRAINING} {STEPS}"
    if not told.comparable(run):
        caption = f"{GREEDY.partition(' The worst')[0] if evaluated else TRAINING} {STEPS}"
        return [_apart(names, curves, run), markup.tag("p", caption, class_="note")]
    return [figures.figure(title, _together(names, curves), caption)]


def _together(names: Sequence[str], curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> markup.Markup:
    series, few = [], len(names) <= FEW
    for at, (name, (x, y)) in enumerate(zip(names, curves, strict=True)):
        thin = svg.thin(x, y, figures.POINTS // 2)
        hue = (at + 2) % svg.HUES if few else 7
        legend = name if few else "" if at else "parties"
        series.append(figures.Series(name, *thin, at + 2, hue, "thin" if few else "faint", legend=legend))
    grid, table = shared(curves)
    if len(names) > 1 and len(grid):
        with np.errstate(all="ignore"):
            known = np.isfinite(table).all(axis=0)
        mean = np.where(known, table.mean(axis=0), math.nan)
        worst = np.where(known, table.min(axis=0), math.nan)
        series.append(figures.Series("mean", grid, mean, 0, 0, "bold", legend="mean"))
        series.append(figures.Series("worst", grid, worst, 1, 1, "bold", "7 3", legend="worst"))
    series = [one for one in series if np.isfinite(one.y).any()]
    chart = figures.Chart("each", "return", (figures.WIDE, figures.NARROW), zero=True)
    return markup.join(figures.legend(series), figures.plot(series, chart))


def shared(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """All curves on one grid, ``[G]`` and ``[N, G]``: where every party has begun; its last value counts after it."""
    begun = [(x[np.isfinite(y)], y[np.isfinite(y)]) for x, y in curves]
    if not all(len(x) for x, _ in begun):
        return np.zeros(0), np.zeros((len(curves), 0))
    same = all(len(x) == len(begun[0][0]) and (x == begun[0][0]).all() for x, _ in begun)
    low, high = max(x[0] for x, _ in begun), max(x[-1] for x, _ in begun)
    grid = begun[0][0] if same else np.linspace(low, high, GRID)
    return grid, np.stack([np.interp(grid, x, y) for x, y in begun])


def _apart(
    names: Sequence[str], curves: Sequence[tuple[np.ndarray, np.ndarray]], run: run_folders.Run
) -> markup.Markup:
    """A small chart for each party."""
    charts = []
    for name, owner, (x, y) in zip(names, told.owners(run), curves, strict=True):
        series = [figures.Series(name, *svg.thin(x, y, figures.POINTS // 2), 0, 0, "bold", legend=name)]
        chart = figures.Chart("each", "", (figures.SMALL,))
        charts.append(
            figures.figure(f"{name}: return", figures.plot(series, chart), None if owner.env == name else owner.env)
        )
    return markup.tag("div", *charts, class_="multiples")


def worst(found: Sequence[experiments.Group]) -> markup.Markup | None:
    """The worst party of several federations, at each evaluation; thin lines are runs."""
    runs = [(group, run) for group in found for run in group.runs if told.comparable(run)]
    series, seen = [], set()
    for group, run in runs:
        evaluated = told.evaluations(run)
        if not len(evaluated.steps):
            continue
        lowest = np.where(np.isfinite(evaluated.returns).all(axis=1), evaluated.returns.min(axis=1), math.nan)
        hue, dash = group.place % svg.HUES, svg.DASHES[group.place % len(svg.DASHES)]
        legend = "" if group.place in seen else group.called
        seen.add(group.place)
        thin = svg.thin(evaluated.steps, lowest, figures.POINTS // 2)
        series.append(figures.Series(group.called, *thin, group.place, hue, "thin", dash, legend=legend))
    if not series:
        return None
    chart = figures.Chart("each", "return of the worst party", (figures.WIDE, figures.NARROW), zero=True)
    body = markup.join(figures.legend(series), figures.plot(series, chart))
    return figures.figure("The worst party", body, f"{GREEDY} A line is a run.")


def halves(found: Sequence[experiments.Group]) -> markup.Markup | None:
    """Staleness of what was applied, and epsilon over the rounds; nothing where neither was told."""
    counted = []
    for group in found:
        total: dict[str, float] = {}
        for run in group.runs:
            for label, count in told.lags(run).items():
                total[label] = total.get(label, 0.0) + count
        counted.append((group, dict(sorted(total.items(), key=lambda item: told.place(item[0])))))
    charts = []
    late = any(label != "0" and count for _, counts in counted for label, count in counts.items())
    drawn = columns.lags(counted, "updates", "versions between download and apply") if late else None
    if drawn is not None:
        charts.append(figures.figure("Staleness of the updates applied", drawn))
    runs = [run for group in found for run in group.runs]
    spent = epsilon(runs[0]) if len(runs) == 1 else None
    charts += [spent] if spent is not None else []
    return markup.tag("div", *charts, class_="halves") if charts else None


def epsilon(run: run_folders.Run) -> markup.Markup | None:
    """Epsilon of all releases so far, against the releases of a party."""
    rounds, spent = told.spending(run)
    if not len(rounds):
        return None
    most = told.limit(run)
    series = [figures.Series("epsilon", *svg.thin(rounds, spent, figures.POINTS), 0, 0, "bold", legend="epsilon")]
    shown = most if most is not None and most <= 3 * spent.max() else None
    chart = figures.Chart("release", "epsilon", (figures.HALF,), shown, zero=True, goal_name="budget")
    said = "" if most is None or shown is not None else f" The budget is {words.number(most)}."
    return figures.figure("Epsilon spent", figures.plot(series, chart), f"Of the party that has spent most.{said}")
