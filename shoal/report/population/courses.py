"""What changed while a population trained: fitness of every member, and hyperparameters along the winner's ancestry."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from shoal.report import figures, markup, svg, words
from shoal.report import groups as experiments
from shoal.report.population import told
from shoal.runtimes.population import priors

CAPTION = (
    "Each thin line is a member: the mean return of greedy episodes with its frozen policy. A member that takes over "
    "goes on from where the other one was. Steps are those of all members together."
)
SCHEDULES = (
    "Thick: what the winner's weights were trained with, from member to member; thin: all members. The height is the "
    "prior's range, logarithmic where the prior is."
)
FEW = 60  # points of each member's line in a small chart


def fitness(history: told.History) -> markup.Markup:
    """Of all members, their mean, and the best."""
    steps = np.array([round.steps for round in history.rounds], float)
    table = np.array([round.fitness for round in history.rounds]).reshape(len(steps), history.members)
    none = np.full(len(steps), math.nan)
    known = np.isfinite(table).any(axis=1) if len(steps) else np.zeros(0, bool)
    best, mean = none.copy(), none.copy()
    best[known], mean[known] = np.nanmax(table[known], axis=1), np.nanmean(table[known], axis=1)
    series = [
        _thin(f"member {member}", steps, table[:, member], 7, "faint", legend="" if member else "members")
        for member in range(history.members)
    ]
    series.append(_thin("mean", steps, mean, 1, "thin", "7 3", legend="mean"))
    series.append(_thin("best", steps, best, 0, "bold", legend="best"))
    chart = figures.Chart("step", "fitness", (figures.WIDE, figures.NARROW), zero=True)
    return markup.join(figures.legend(series), figures.plot(series, chart))


def _thin(
    name: str, x: np.ndarray, y: np.ndarray, hue: int, class_: str, dash: str = "", legend: str = ""
) -> figures.Series:
    return figures.Series(name, *svg.thin(x, y, figures.POINTS), hue, hue, class_, dash, legend=legend)


def best(found: Sequence[experiments.Group]) -> markup.Markup | None:
    """The best fitness of several populations."""
    series = figures.runs_of(found, "population.best", "step")
    if not any(np.isfinite(one.y).any() for one in series):
        return None
    chart = figures.Chart("step", "best fitness", (figures.WIDE, figures.NARROW), zero=True)
    body = markup.join(figures.legend(series), figures.plot(series, chart))
    return figures.figure(
        "Best fitness", body, "Mean return of greedy episodes of the best member at each measurement."
    )


# ------------------------------------------------------------------------------------------------ schedules


def schedules(history: told.History) -> list[markup.Markup]:
    """A small chart for each hyperparameter."""
    return [figures.figure(short(name), _schedule(history, name), _said(history, name)) for name in history.values]


def short(name: str) -> str:
    """``algorithm.entropy_cost`` -> ``entropy cost``; of optimisers, whose it is."""
    part, _, leaf = name.partition(".")
    return leaf.replace("_", " ") if part == "algorithm" else name.replace("_", " ").replace(".", ", ")


def along(history: told.History, name: str) -> tuple[list[int], list[float]]:
    """Where a hyperparameter changes along the winner's ancestry, and to what."""
    points = [(steps, values[name]) for steps, values in history.schedule if name in values]
    return [steps for steps, _ in points], [value for _, value in points]


def _said(history: told.History, name: str) -> str:
    _, values = along(history, name)
    if not values:
        return ""
    ended = f"{words.three(values[0])} → {words.three(values[-1])}" if len(values) > 1 else words.three(values[0])
    changes = len(values) - 1
    return f"{ended}, {words.count(changes, 'change') if changes else 'never changed'}"


def _schedule(history: told.History, name: str) -> markup.Markup:
    prior = history.priors.get(name)
    every = np.concatenate([values for _, values in history.values[name]])
    logarithmic = bool(prior and prior.kind == "log_uniform" and every.min() > 0)
    bring = np.log10 if logarithmic else np.asarray
    ends = bring(np.array([prior.low, prior.high] if prior else [every.min(), every.max()], float))
    frame = svg.Frame(figures.SMALL, (0.0, float(max(history.end, 1))), svg.extent(ends))
    parts = [_scale(frame, prior, logarithmic)]
    for value in svg.ticks(*frame.x, figures.SMALL.ticks):
        parts.append(svg.label(frame, float(value), words.short(float(value))))
    parts.append(svg.named(frame, "environment steps"))
    for steps, values in history.values[name]:
        parts.append(svg.line(frame, *_stairs(steps, bring(values), history.end), "faint hue7"))
    steps, values = (np.array(one, float) for one in along(history, name))
    parts.append(svg.line(frame, *_stairs(steps, bring(values), history.end), "bold hue0"))
    size = figures.SMALL
    picture = markup.tag(
        "svg", markup.tag("title", f"{name} along the winner's ancestry"), *parts, role="img", class_=size.name,
        viewBox=f"0 0 {size.width} {size.height}",
    )  # fmt: skip
    return markup.tag("div", picture, class_="plot")


def _scale(frame: svg.Frame, prior: priors.Prior | None, logarithmic: bool) -> markup.Markup:
    """Grid and ticks; of a logarithm at 1, 2 and 5 times the powers of ten, as many as there is room for."""
    if not logarithmic:
        whole = prior is not None and prior.kind == "integer"
        ticks = [value for value in svg.ticks(*frame.y, 4) if not whole or float(value).is_integer()]
        return _grid(frame, [(value, words.short(float(f"{value:.6g}"))) for value in ticks])
    low, high = (math.floor(frame.y[0]), math.ceil(frame.y[1]))
    for steps in ((1,), (1, 3), (1, 2, 5)):
        ticks = [(math.log10(m) + power, m * 10.0**power) for power in range(low, high + 1) for m in steps]
        ticks = [(at, value) for at, value in ticks if frame.y[0] <= at <= frame.y[1]]
        if len(ticks) >= 3:
            break
    return _grid(frame, [(at, _plain(value)) for at, value in ticks[:: 1 + len(ticks) // 6]])


def _plain(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".") if value >= 0.001 else f"{value:.0e}".replace("e-0", "e−")


def _grid(frame: svg.Frame, ticks: Sequence[tuple[float, str]]) -> markup.Markup:
    size, parts = frame.size, []
    for value, name in ticks:
        at = round(float(frame.py(value)), 1)
        parts.append(markup.tag("line", x1=svg.LEFT, x2=size.width - size.right, y1=at, y2=at, class_="grid"))
        parts.append(markup.tag("text", name, x=svg.LEFT - 7, y=at + 4, text_anchor="end"))
    return markup.join(*parts)


def _stairs(steps: np.ndarray, values: np.ndarray, end: int) -> tuple[np.ndarray, np.ndarray]:
    """A value holds until the next one comes."""
    if not len(steps):
        return np.zeros(0), np.zeros(0)
    x = np.repeat(np.append(steps, end), 2)[1:-1]
    return x, np.repeat(values, 2)
