"""The figures of a search's page, drawn for the width they are shown at."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from shoal.report import figures, markup, svg, words
from shoal.report.tuning import axes

BARS = (svg.Size("wide", 860, 0, 8), svg.Size("narrow", 380, 0, 4))
TOP = 4  # one of so many trials is drawn as one of the best
FEW = 6  # failures up to which each is named
NEAR = 0.95  # of the longest training: as long
SCORE = "score: mean return of the evaluation"
ROW = 40  # pixels of a bar with its name above


def course(rows: Sequence[Mapping[str, Any]], default: float | None, of: str, *, together: bool) -> markup.Markup:
    """Every score over the environment steps of the search, and the best so far.

    Args:
        rows: Of ``trials.json``; at least one was scored.
        default: The score of the preset's own settings.
        of: What a row is: a trial, or a member.
        together: All are trained at once; else only those that were trained longest count as the best.
    """
    every = [(rung, row) for row in rows for rung in row["rungs"]]
    longest = 0 if together else max(rung["steps"] for rung, _ in every)
    whole = sorted((rung["at"], rung["score"]) for rung, _ in every if rung["steps"] >= longest * NEAR)
    end = float(max(rung["at"] for rung, _ in every))
    x, y = _stairs(whole, end)
    reach = svg.extent(np.array([rung["score"] for rung, _ in every] + ([] if default is None else [default])))
    failed = [_failed_at(rows, row) for row in rows if row["status"] == "failed"]
    pictures = []
    for size in (figures.WIDE, figures.NARROW):
        frame = svg.Frame(size, (0.0, end * 1.01), reach)
        parts = [svg.axes(frame, ("environment steps of the search", SCORE), (words.short, words.short))]
        parts += [svg.moment(frame, at, "hue7", "failed" if len(failed) <= FEW else "") for at in failed]
        if default is not None:
            parts.append(svg.level(frame, default, f"the preset's own settings {words.number(default)}"))
        parts.append(svg.line(frame, x, y, "bold hue0"))
        for rung, row in every:
            on = rung["steps"] >= longest * NEAR
            at = {"cx": round(float(frame.px(rung["at"])), 1), "cy": round(float(frame.py(rung["score"])), 1)}
            told = f"{of} {row['trial']}: {words.number(rung['score'])} after {words.number(rung['steps'])} steps"
            parts.append(markup.tag("circle", markup.tag("title", told), r=4 if on else 2.5, class_="seed hue1", **at))
        pictures.append(_svg(size, "score of every trial over the environment steps of the search", parts))
    return markup.tag("div", *pictures, class_="plot")


def _failed_at(rows: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> float:
    """Environment steps of the search when a trial failed; those of trials before it, where they are in turn."""
    before = [rung["at"] for one in rows for rung in one["rungs"][:1] if one["trial"] < row["trial"]]
    return float(max(before, default=0) + row["steps"])


def _stairs(points: Sequence[tuple[float, float]], end: float) -> tuple[np.ndarray, np.ndarray]:
    """The best so far as stairs, to the end of the search."""
    xs: list[float] = []
    ys: list[float] = []
    best = -math.inf
    for at, value in points:
        if value > best:
            if ys:
                xs.append(at)
                ys.append(best)
            best = value
            xs.append(at)
            ys.append(best)
    return np.array([*xs, end], float), np.array([*ys, best], float)


# ------------------------------------------------------------------------------------------------ what decides


def bars(told: Mapping[str, Any]) -> markup.Markup:
    """How much each setting decides, the most first."""
    shares = sorted(told["shares"].items(), key=lambda item: -item[1])
    pictures = []
    for size in BARS:
        height = ROW * len(shares) + 4
        parts = []
        room = size.width - 62
        for at, (name, share) in enumerate(shares):
            y = at * ROW
            sign = told.get("signed", {}).get(name)
            shown = f"{share:.2f}" if sign is None else f"{sign:+.2f}".replace("-", "−")
            width = max(2.0, room * min(1.0, share))
            parts.append(markup.tag("text", name, x=2, y=y + 13))
            parts.append(markup.tag("rect", x=2, y=y + 19, width=room, height=12, rx=2, class_="trough"))
            parts.append(
                markup.tag("rect", x=2, y=y + 19, width=round(width, 1), height=12, rx=2, class_="column hue0")
            )
            parts.append(markup.tag("text", shown, x=room + 10, y=y + 30))
        pictures.append(_svg(size._replace(height=height), f"importance of settings, {told['method']}", parts))
    return markup.tag("div", *pictures, class_="plot")


def slices(found: Sequence[axes.Axis], scores: Sequence[float], best: int) -> list[markup.Markup]:
    """The score against each setting, one small figure each."""
    reach = svg.extent(np.asarray(scores))
    drawn = []
    for axis in found:
        frame = svg.Frame(figures.SMALL, (-0.04, 1.04), reach)
        known = np.isfinite(axis.places)
        parts = [svg.scale(frame, "", words.short)]
        parts += [svg.label(frame, where, text) for where, text in _spaced(axis.marks, 4)]
        parts += [svg.named(frame, ""), svg.dots(frame, axis.places[known], np.asarray(scores)[known], "hue0 solid")]
        parts.append(svg.marker(float(frame.px(axis.places[best])), float(frame.py(scores[best])), 1))
        picture = _svg(figures.SMALL, f"score against {axis.name}", parts)
        drawn.append(figures.figure(axis.name, markup.tag("div", picture, class_="plot")))
    return drawn


def _spaced(marks: Sequence[tuple[float, str]], most: int) -> list[tuple[float, str]]:
    """Both ends, and as many between them as do not touch."""
    inner = list(marks[1:-1])
    every = max(1, math.ceil(len(inner) / max(1, most - 2)))
    return [marks[0], *inner[every - 1 :: every], marks[-1]] if len(marks) > 1 else list(marks)


# ------------------------------------------------------------------------------------------------ parallel coordinates


def parallel(found: Sequence[axes.Axis], order: Sequence[int]) -> markup.Markup:
    """Every trial as a line through its settings to its score.

    Args:
        found: The settings, and the score as the last.
        order: The trials from the worst to the best, which is drawn last.
    """
    gap = max(70, min(180, (860 - 130) // max(1, len(found) - 1)))
    wide = svg.Size("wide", 130 + gap * (len(found) - 1), 360, 0)
    narrow = svg.Size("narrow", 380, 46 + 74 * (len(found) - 1) + 26, 0)

    def upright(axis: int, at: float) -> tuple[float, float]:
        return 60 + gap * axis, 318 - at * 270

    def lying(axis: int, at: float) -> tuple[float, float]:
        return 20 + at * 340, 34 + 74 * axis

    pictures = [
        _svg(wide, "parallel coordinates", [*_lines(found, order, upright), *_uprights(found, upright)]),
        _svg(narrow, "parallel coordinates", [*_lines(found, order, lying), *_lyings(found, lying)]),
    ]
    return markup.tag("div", *pictures, class_="plot")


def _lines(
    found: Sequence[axes.Axis], order: Sequence[int], at: Callable[[int, float], tuple[float, float]]
) -> list[markup.Markup]:
    drawn = []
    for rank, trial in enumerate(order):
        spots = [at(number, float(axis.places[trial])) for number, axis in enumerate(found)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in spots if math.isfinite(x) and math.isfinite(y))
        left = len(order) - rank
        style = "bold hue1" if left == 1 else "thin hue0" if left <= max(2, len(order) // TOP) else "faint hue7"
        drawn.append(markup.tag("path", d=path, class_=f"line {style}"))
    return drawn


def _uprights(found: Sequence[axes.Axis], at: Callable[[int, float], tuple[float, float]]) -> list[markup.Markup]:
    parts = []
    for number, axis in enumerate(found):
        (x, low), (_, high) = at(number, 0.0), at(number, 1.0)
        parts.append(markup.tag("line", x1=x, x2=x, y1=low, y2=high, class_="axis"))
        kind, _, name = axis.name.rpartition(".")
        up = 16 if kind else 30
        parts.append(
            markup.tag("text", name, x=x, y=up + 14 if kind else up, text_anchor="middle", class_="axis-label")
        )
        parts.append(markup.tag("text", kind, x=x, y=up, text_anchor="middle") if kind else markup.Markup())
        for where, text in axis.marks:
            y = at(number, where)[1]
            parts.append(markup.tag("line", x1=x - 4, x2=x, y1=y, y2=y, class_="tick"))
            parts.append(markup.tag("text", text, x=x - 7, y=y + 4, text_anchor="end", class_="goal-label quiet"))
    return parts


def _lyings(found: Sequence[axes.Axis], at: Callable[[int, float], tuple[float, float]]) -> list[markup.Markup]:
    parts = []
    for number, axis in enumerate(found):
        (low, y), (high, _) = at(number, 0.0), at(number, 1.0)
        parts.append(markup.tag("line", x1=low, x2=high, y1=y, y2=y, class_="axis"))
        parts.append(markup.tag("text", axis.name, x=low, y=y - 10, class_="goal-label"))
        for where, text in _spaced(axis.marks, 4):
            x = at(number, where)[0]
            anchor = "start" if where < 0.05 else "end" if where > 0.95 else "middle"
            parts.append(markup.tag("line", x1=x, x2=x, y1=y, y2=y + 4, class_="tick"))
            parts.append(markup.tag("text", text, x=x, y=y + 17, text_anchor=anchor, class_="goal-label quiet"))
    return parts


# ------------------------------------------------------------------------------------------------ confirmation


def strip(sides: Mapping[str, Mapping[str, Any]]) -> markup.Markup:
    """The scores of fresh seeds: a dot each, the interquartile mean and its interval."""
    every = np.array([score for side in sides.values() for score in side["scores"]], float)
    low, high = svg.extent(every)
    pictures = []
    for size in (one._replace(height=30 + 58 * len(sides) + svg.BOTTOM) for one in BARS):
        frame = svg.Frame(size, (low, high), (0, 1))
        parts = [svg.label(frame, float(at), words.short(float(at))) for at in svg.ticks(low, high, size.ticks)]
        parts.append(svg.named(frame, "mean return of the evaluation"))
        for at, (name, side) in enumerate(sides.items()):
            y, hue = 44 + 58 * at, f"hue{at}"
            parts.append(markup.tag("text", name, x=svg.LEFT, y=y - 18, class_=f"name {hue}"))
            for score in side["scores"]:
                parts.append(
                    markup.tag("circle", cx=round(float(frame.px(score)), 1), cy=y, r=4.5, class_=f"seed {hue}")
                )
            if side["interval"]:
                ends = [round(float(frame.px(end)), 1) for end in side["interval"]]
                parts.append(markup.tag("path", d=f"M{ends[0]} {y + 12}H{ends[1]}", class_=f"line bold {hue}"))
            if side["iqm"] is not None:
                middle = round(float(frame.px(side["iqm"])), 1)
                parts.append(markup.tag("path", d=f"M{middle} {y + 6}v12", class_=f"line bold {hue}"))
        pictures.append(_svg(size, "scores of fresh seeds", parts))
    return markup.tag("div", *pictures, class_="plot")


def _svg(size: svg.Size, told: str, parts: Sequence[markup.Markup]) -> markup.Markup:
    return markup.tag(
        "svg", markup.tag("title", told), *parts, role="img", class_=size.name,
        viewBox=f"0 0 {size.width} {size.height}",
    )  # fmt: skip
