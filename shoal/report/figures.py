"""The figures of the page, each an HTML ``figure`` with inline SVG; and the learning curve as a picture file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from shoal.report import groups as experiments
from shoal.report import markup, svg, words
from shoal.report import runs as run_folders

WIDE = svg.Size("wide", 860, 380, 8)
NARROW = svg.Size("narrow", 380, 300, 4)
HALF = svg.Size("half", 430, 240, 5)
SMALL = svg.Size("small", 300, 165, 3, top=10)
POINTS, DOTS = 400, 1500  # what a screen can show of one curve, and of its episodes
FEWEST, TOTAL = 60, 4000  # points of one curve at least, and of all curves of a chart about
NAMED = 6  # up to so many runs of a group get a line style and a legend entry of their own
AXES = {
    "step": "environment steps",
    "each": "environment steps of a party",  # where several train together
    "wall_s": "wall time",
    "release": "releases",
}


class Series(NamedTuple):
    """One curve of a chart."""

    name: str
    x: np.ndarray
    y: np.ndarray
    place: int  # its marker
    hue: int
    class_: str  # "bold", "thin", "faint"
    dash: str = ""
    low: np.ndarray | None = None  # a band around it
    high: np.ndarray | None = None
    legend: str = ""  # what the legend calls it; "": it is not in the legend


class Moment(NamedTuple):
    """Something that happened to a run at one place of x."""

    x: float
    hue: int
    label: str = ""
    told: str = ""  # the label is but a number, and this is said of it


class Chart(NamedTuple):
    """What a line chart shows besides its curves."""

    axis: str  # a key of `AXES`
    label: str  # of y
    sizes: tuple[svg.Size, ...]
    goal: float | None = None
    dots: tuple[np.ndarray, np.ndarray] | None = None
    zero: bool = False  # y begins at 0 where that is near
    goal_name: str = "goal"
    named: bool = False  # bold curves are named at their ends, in sizes with room for it
    moments: tuple[Moment, ...] = ()


def figure(title: str, body: markup.Markup, caption: Any = None, class_: str = "") -> markup.Markup:
    """A titled card with a caption."""
    note = markup.tag("figcaption", caption) if caption else None
    return markup.tag("figure", markup.tag("h3", title), body, note, class_=f"card {class_}".strip())


def _time_unit(longest: float) -> tuple[float, str]:
    if longest > 3 * 3600:
        return 3600.0, "hours"
    return (60.0, "minutes") if longest > 300 else (1.0, "seconds")


def plot(series: Sequence[Series], chart: Chart) -> markup.Markup:
    """A line chart in every size it is shown at, and the numbers its tooltip reads."""
    drawn = [one for one in series if np.isfinite(one.y).any()]
    if not drawn:
        return markup.tag("p", "Nothing was measured yet.", class_="missing")
    longest = max(float(np.nanmax(one.x)) for one in drawn)
    scale, unit = _time_unit(longest) if chart.axis == "wall_s" else (1.0, "")
    drawn = [one._replace(x=one.x / scale) for one in drawn]
    dots = chart.dots and (chart.dots[0] / scale, chart.dots[1])
    chart = chart._replace(moments=tuple(one._replace(x=one.x / scale) for one in chart.moments))
    label = AXES[chart.axis] + (f" ({unit})" if unit else "")
    ys = [one for s in drawn for one in (s.y, s.low, s.high) if one is not None] + ([dots[1]] if dots else [])
    if chart.goal is not None:
        ys.append(np.array([chart.goal]))
    longest = max(float(np.nanmax(one.x)) for one in drawn)
    span = (min(0.0, *(float(np.nanmin(one.x)) for one in drawn)), longest if longest > 0 else 1.0)
    reach = svg.extent(np.concatenate(ys), chart.zero)
    pictures = [_picture(drawn, chart, svg.Frame(size, span, reach), label, dots) for size in chart.sizes]
    return markup.tag(
        "div",
        *pictures,
        _tooltip(drawn, unit or (AXES[chart.axis] if chart.axis == "release" else "steps")),
        class_="plot",
    )


def _picture(
    series: Sequence[Series], chart: Chart, frame: svg.Frame, label: str, dots: tuple[np.ndarray, np.ndarray] | None
) -> markup.Markup:
    size = frame.size
    parts = [svg.axes(frame, (label, chart.label), (words.short, words.short))]
    parts += [svg.moment(frame, one.x, f"hue{one.hue}", one.label) for one in chart.moments if not one.told]
    parts.append(svg.numbered(frame, [(one.x, one.label, one.told) for one in chart.moments if one.told]))
    parts += [svg.dots(frame, *dots, f"hue{series[0].hue}")] if dots else []
    bands = [s for s in series if s.low is not None and s.high is not None]
    parts += [
        svg.area(frame, s.x, s.low, s.high, f"hue{s.hue}") for s in bands if s.low is not None and s.high is not None
    ]
    parts += [svg.line(frame, s.x, s.y, f"{s.class_} hue{s.hue}", s.dash) for s in series]
    if chart.goal is not None:
        parts.append(svg.level(frame, chart.goal, f"{chart.goal_name} {words.number(chart.goal)}"))
    for one in series:
        if one.class_ != "faint" and len(series) > 1:
            parts.append(svg.markers(frame, one.x, one.y, one.place, 5 if one.class_ == "bold" else 2))
    if chart.named and size.right > svg.RIGHT:
        parts.append(svg.names(frame, [ending(one) for one in series if one.class_ == "bold"]))
    names = words.few([one.legend for one in series if one.legend])
    return markup.tag(
        "svg",
        markup.tag("title", f"{chart.label} over {label}: {names}"),
        *parts,
        role="img",
        class_=size.name,
        viewBox=f"0 0 {size.width} {size.height}",
        data_x=f"{frame.x[0]} {frame.x[1]}",
        data_y=f"{frame.y[0]} {frame.y[1]}",
        data_plot=f"{svg.LEFT} {size.width - size.right} {size.top} {size.height - svg.BOTTOM}",
    )


def ending(one: Series) -> tuple[float, float, str, int]:
    """Where a curve ends, what it is called there, and its hue."""
    last = int(np.flatnonzero(np.isfinite(one.y))[-1])
    return float(one.x[last]), float(one.y[last]), one.name, one.hue


def _tooltip(series: Sequence[Series], unit: str) -> markup.Markup:
    """The numbers under the pointer, for the page's script."""

    def plain(values: np.ndarray, known: np.ndarray) -> list[float]:
        return [float(f"{value:.6g}") for value in values[known]]

    entries = []
    for one in series:
        known = np.isfinite(one.x) & np.isfinite(one.y)
        entry: dict[str, Any] = {"name": one.name, "hue": one.hue, "x": plain(one.x, known), "y": plain(one.y, known)}
        if one.low is not None and one.high is not None:
            entry |= {"low": plain(one.low, known), "high": plain(one.high, known)}
        entries.append(entry)
    return markup.data({"unit": unit, "series": entries})


def legend(series: Sequence[Series]) -> markup.Markup | None:
    """Line, marker and name of every curve that has its own."""
    named = sorted((one for one in series if one.legend), key=lambda one: one.low is None)
    if len(series) < 2:
        return None
    entries = []
    for one in named:
        frame = svg.Frame(svg.Size("", 34 + svg.LEFT + svg.RIGHT, 12 + svg.BOTTOM, 0, top=0), (0, 1), (0, 1))
        stroke = svg.line(frame, np.array([0.0, 1.0]), np.array([0.5, 0.5]), f"{one.class_} hue{one.hue}", one.dash)
        at = svg.marker(svg.LEFT + 17, 6, one.place) if one.class_ != "faint" else None
        box = f"{svg.LEFT} 0 34 12"
        swatch = markup.tag("svg", stroke, at, viewBox=box, width=34, height=12, aria_hidden="true")
        entries.append(markup.tag("li", swatch, one.legend))
    return markup.tag("ul", *entries, class_="legend")


def _styled(
    found: Sequence[experiments.Group], aggregated: Collection[int]
) -> Iterator[tuple[run_folders.Run, Series]]:
    """Every run with the style it is drawn in; its curve is still to come.

    One group with few runs: each run has its own style (the first is the aggregate's). Otherwise a run wears its
    group's, and is only texture where an aggregate is drawn or the runs are many.

    Args:
        found: The groups of one chart.
        aggregated: Places of the groups whose aggregate is drawn too.
    """
    alone, none = len(found) == 1, np.zeros(0)
    for group in found:
        few, middle = len(group.runs) <= NAMED, group.place in aggregated
        for i, (run, name) in enumerate(zip(group.runs, group.names(), strict=True)):
            place = i + 1 if alone and few and len(group.runs) > 1 else group.place
            full = name if alone else f"{group.title}, {name}"
            if alone:
                class_, called = ("thin", name) if few else ("faint", "" if i else "single runs")
                class_ = "bold" if len(group.runs) == 1 else class_
            else:
                class_, called = ("faint", "") if middle else ("thin", "" if i else group.title)
            dash = svg.DASHES[place % len(svg.DASHES)]
            yield run, Series(full, none, none, place, place % svg.HUES, class_, dash, legend=called)


def _points(found: Sequence[experiments.Group]) -> int:
    return max(FEWEST, min(POINTS, TOTAL // sum(len(group.runs) for group in found)))


def runs_of(found: Sequence[experiments.Group], name: str, axis: str) -> list[Series]:
    """A metrics column of every run, one curve each."""
    series = []
    for run, style in _styled(found, ()):
        x, y = svg.thin(experiments.column(run, axis), experiments.column(run, name), _points(found))
        series.append(style._replace(x=x, y=y))
    return series


def learning_series(found: Sequence[experiments.Group], axis: str) -> list[Series]:
    """The learning curve of every run, then the interquartile mean of every group with two seeds or more."""
    runs, middles = [], []
    bands = {group.place: band for group in found if (band := experiments.band(group, axis))}
    for run, style in _styled(found, bands):
        curve = experiments.learning(run, axis)
        x, y = svg.thin(curve.x, curve.y, _points(found))
        runs.append(style._replace(x=x, y=y))
    for group in found:
        band = bands.get(group.place)
        if band:
            of = f"IQM of {words.count(len(group.runs), 'run')}"
            name, dash = (
                (of, "") if len(found) == 1 else (f"{group.title}, {of}", svg.DASHES[group.place % len(svg.DASHES)])
            )
            bounds = (band.low, band.high)
            hue = group.place % svg.HUES
            middles.append(Series(name, band.x, band.middle, group.place, hue, "bold", dash, *bounds, legend=name))
    return runs + middles


def evaluation_series(found: Sequence[experiments.Group], axis: str) -> list[Series]:
    """The evaluations on the way of every run that had some, dotted; the band is a deviation of the returns."""
    series = []
    alone = sum(len(group.runs) for group in found) == 1
    for run, style in _styled(found, ()):
        x, y = (
            run.evaluations.get(name, np.zeros(0))
            for name in ("wall_s" if axis == "wall_s" else "env_steps", "return_mean")
        )
        x = x / experiments.share(run, axis)
        if not np.isfinite(x).any():
            continue
        one = style._replace(name=f"{style.name}, greedy evaluations", x=x, y=y, dash="2 3", legend="")
        if alone:
            name, std = "greedy evaluations", run.evaluations["return_std"]
            hue = (style.hue + 1) % svg.HUES
            one = one._replace(name=name, place=style.place + 1, hue=hue, low=y - std, high=y + std, legend=name)
        series.append(one)
    return series


def learning(found: Sequence[experiments.Group], key: str) -> markup.Markup:
    """The learning curves of groups that share an environment, over steps or (a switch) over wall time.

    Args:
        found: The groups; their returns are comparable.
        key: Makes the switch's ids unique on the page.
    """
    goal = next((group.goal for group in found if group.goal is not None), None)
    only = found[0].runs[0] if len(found) == 1 and len(found[0].runs) == 1 else None
    bodies, every, series = [], 1, []
    moments: tuple[Moment, ...] = ()
    axes = (experiments.steps_of(found), "wall_s")
    for axis in axes:
        dots = None
        if only is not None:
            dots, every = _dots(only, axis)
        moments = tuple(_resumed(found, axis))
        chart = Chart(
            axis, "return, mean of the last 100 episodes", (WIDE, NARROW), goal, dots, zero=True, moments=moments
        )
        series = learning_series(found, axis) + evaluation_series(found, axis)
        bodies.append(markup.tag("div", plot(series, chart), class_=f"by-{_switch(axis)}"))
    switches = [
        markup.join(
            markup.tag(
                "input",
                type="radio",
                name=key,
                id=f"{key}-{axis}",
                class_=f"pick-{_switch(axis)}",
                checked=axis != "wall_s",
            ),
            markup.tag("label", AXES[axis], for_=f"{key}-{axis}"),
        )
        for axis in axes
    ]
    caption = _learning_caption(found, every if only is not None else None)
    if any(len(run.evaluations.get("env_steps", ())) for group in found for run in group.runs):
        caption += " Dotted: greedy evaluations on the way, whole episodes with the policy of that moment"
        caption += "; the band is their deviation." if only is not None else "."
    if moments:
        caption += " Vertical lines: there a run was stopped and resumed."
    return figure(f"Learning on {found[0].env}", markup.join(legend(series), *switches, *bodies), caption, "switched")


def _switch(axis: str) -> str:
    """What the page's switch calls an axis."""
    return axis if axis == "wall_s" else "step"


def _resumed(found: Sequence[experiments.Group], axis: str) -> Iterator[Moment]:
    """Where runs were resumed; of a single one it is written beside the line, unless the lines are many."""
    alone = sum(len(group.runs) for group in found) == 1
    for run, style in _styled(found, ()):
        places = run.resumed(_switch(axis)) / experiments.share(run, axis)
        for x in places[np.isfinite(places)].tolist():
            yield Moment(x, style.hue, "resumed" if alone and len(places) <= NAMED else "")


def _dots(run: run_folders.Run, axis: str) -> tuple[tuple[np.ndarray, np.ndarray] | None, int]:
    x = run.episodes["wall_s" if axis == "wall_s" else "env_steps"] / experiments.share(run, axis)
    y = run.episodes["episode_return"]
    every = -(-len(x) // DOTS) or 1
    x, y = x[::every], y[::every]
    known = np.isfinite(x)
    return ((x[known], y[known]) if known.any() else None), every


def _learning_caption(found: Sequence[experiments.Group], every: int | None) -> str:
    if every is not None:
        which = "a finished episode" if every == 1 else f"one of every {every:,} finished episodes"
        return f"The line is the mean return of the last 100 training episodes; each dot is {which}."
    said = "Thin lines are single runs: the mean return of the last 100 training episodes."
    if any(group.seeds > 1 for group in found):
        said += (
            " The bold line is their interquartile mean (IQM), the band its 95 % bootstrap interval over seeds;"
            " a run that met its goal and stopped counts with its last value."
        )
        least = min(group.seeds for group in found if group.seeds > 1)
        said += f" With {least} seeds the interval is a rough guide." if least < 10 else ""
    return said
