"""Columns instead of curves: how often each lag occurred, and a number for each of a few names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shoal.report import figures, markup, svg, words
from shoal.report import groups as experiments

SHARE = 0.8  # of a place that its columns take
MOST = 12  # labels of x that stand side by side without touching
THICK = 0.5  # of a place that the column of a name takes


def lags(counted: Sequence[tuple[experiments.Group, Mapping[str, float]]], of: str, axis: str) -> markup.Markup | None:
    """Share of something at each lag, the groups side by side; None where nothing was counted.

    Args:
        counted: Counts of each group by lag, in order.
        of: What was counted.
        axis: Name of x.
    """
    counted = [(group, counts) for group, counts in counted if sum(counts.values())]
    if not counted:
        return None
    labels = max((list(counts) for _, counts in counted), key=len)
    shares = [[counts.get(label, 0.0) / sum(counts.values()) for label in labels] for _, counts in counted]
    size = figures.HALF
    frame = svg.Frame(size, (-0.5, len(labels) - 0.5), (0.0, 1.08 * max(map(max, shares))))
    every = -(-len(labels) // MOST)
    names = {i: label for i, label in enumerate(labels) if i % every == 0}
    parts = [svg.scale(frame, f"share of the {of}", lambda value: f"{100 * value:.0f} %")]
    parts += [svg.label(frame, i, name) for i, name in names.items()]
    parts.append(svg.named(frame, axis))
    width = SHARE / len(counted)
    for at, ((group, counts), heights) in enumerate(zip(counted, shares, strict=True)):
        for i, height in enumerate(heights):
            left = i - SHARE / 2 + at * width
            told = f"{group.title}: lag {labels[i]}, {words.number(counts.get(labels[i], 0.0))} ({100 * height:.1f} %)"
            parts.append(svg.column(frame, left, left + width, height, f"hue{group.place % svg.HUES}", told))
    title = f"share of the {of} at each lag: {words.few([group.title for group, _ in counted])}"
    return _drawn(frame, title, parts)


def named(values: Mapping[str, float], label: str, chosen: str) -> markup.Markup:
    """A column for each name with its number on top; the chosen one in colour.

    Args:
        values: One or more numbers by name, none negative.
        label: What the numbers are, with their unit.
        chosen: One of the names, or none of them.
    """
    frame = svg.Frame(figures.HALF, (-0.5, len(values) - 0.5), (0.0, 1.15 * max(values.values()) or 1.0))
    parts = [svg.scale(frame, label, words.short), svg.named(frame, "")]
    for i, (name, value) in enumerate(values.items()):
        told = f"{name}: {words.number(value)}" + (", chosen" if name == chosen else "")
        hue = "hue0" if name == chosen else "hue7"
        parts.append(svg.column(frame, i - THICK / 2, i + THICK / 2, value, hue, told))
        parts += [svg.label(frame, i, name, strong=name == chosen), svg.above(frame, i, value, words.three(value))]
    return _drawn(frame, f"{label}: {words.few(list(values))}", parts)


def _drawn(frame: svg.Frame, title: str, parts: Sequence[markup.Markup]) -> markup.Markup:
    size = frame.size
    drawn = markup.tag(
        "svg",
        markup.tag("title", title),
        *parts,
        role="img",
        class_=size.name,
        viewBox=f"0 0 {size.width} {size.height}",
    )
    return markup.tag("div", drawn, class_="plot")
