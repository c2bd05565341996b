"""SVG line charts from numbers: a frame maps data to the page, and a few marks are drawn in it.

Text stays text, colours are classes of the page's style sheet (so they follow its light and dark mode), and a chart
is drawn for the width it is shown at instead of being shrunk until its labels cannot be read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from shoal.report import markup

HUES = 8
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 2 1 2")
SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",  # circle
    "M-3.5-3.5h7v7h-7z",  # square
    "M0-4.5L4.5 3.5h-9z",  # triangle
    "M0-5L5 0L0 5L-5 0z",  # diamond
    "M0 4.5L4.5-3.5h-9z",  # triangle down
)
LEFT, RIGHT, BOTTOM = 50, 14, 42  # pixels around the plot


class Size(NamedTuple):
    """What a chart is drawn for."""

    name: str  # a class of the style sheet, which decides when it is shown
    width: int  # pixels
    height: int
    ticks: int  # about so many along x
    top: int = 30  # pixels above the plot, for the name of y
    right: int = RIGHT  # pixels right of the plot; more where curves are named at their ends


class Frame(NamedTuple):
    """Data coordinates to pixels."""

    size: Size
    x: tuple[float, float]  # data range
    y: tuple[float, float]

    def px(self, values: np.ndarray | float) -> np.ndarray:
        """Data to horizontal pixels."""
        span = self.size.width - LEFT - self.size.right
        return LEFT + (np.asarray(values) - self.x[0]) / (self.x[1] - self.x[0]) * span

    def py(self, values: np.ndarray | float) -> np.ndarray:
        """Data to vertical pixels, which count downwards."""
        span = self.size.height - self.size.top - BOTTOM
        return self.size.top + (self.y[1] - np.asarray(values)) / (self.y[1] - self.y[0]) * span


def extent(values: np.ndarray, zero: bool = False) -> tuple[float, float]:
    """A range that holds all finite values with a little air; `zero` makes it begin at 0 where that is near."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    bottom = 0.0 if 0 <= low < 0.5 * high and zero else low - air
    return bottom, high + air


def ticks(low: float, high: float, about: int) -> np.ndarray:
    """Round values (1, 2, 5 times a power of ten) within a range."""
    rough = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * min((m for m in (1, 2, 5, 10) if m * power >= rough), default=10)
    first = math.ceil(low / step - 1e-9)
    return np.arange(first, math.floor(high / step + 1e-9) + 1) * step


def thin(x: np.ndarray, y: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """At most about `points` of a curve: the lowest and highest of each stretch, so that no spike is lost."""
    if len(x) <= points:
        return x, y
    kept = {0, len(x) - 1}
    for stretch in np.array_split(np.arange(len(x)), points // 2):
        values = y[stretch]
        if np.isfinite(values).any():
            kept |= {int(stretch[np.nanargmin(values)]), int(stretch[np.nanargmax(values)])}
        if not np.isfinite(values).all():
            kept.add(int(stretch[np.argmin(np.isfinite(values))]))  # a gap stays a gap
    order = np.array(sorted(kept))
    return x[order], y[order]


def _path(px: np.ndarray, py: np.ndarray) -> str:
    """A polyline; a NaN lifts the pen."""
    written, pen = [], "M"
    for x, y in zip(px.tolist(), py.tolist(), strict=True):
        if math.isfinite(x) and math.isfinite(y):
            written.append(f"{pen}{x:.1f} {y:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(written)


def line(frame: Frame, x: np.ndarray, y: np.ndarray, class_: str, dash: str = "") -> markup.Markup:
    """A curve."""
    return markup.tag("path", d=_path(frame.px(x), frame.py(y)), class_=f"line {class_}", stroke_dasharray=dash or None)


def area(frame: Frame, x: np.ndarray, low: np.ndarray, high: np.ndarray, class_: str) -> markup.Markup:
    """The region between two curves, one closed shape for each stretch without NaN."""
    known = np.isfinite(low) & np.isfinite(high)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]]).astype(int)))
    shapes = []
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        across = frame.px(x[start:end])
        there, back = frame.py(high[start:end]), frame.py(low[start:end])[::-1]
        shapes.append(_path(np.concatenate([across, across[::-1]]), np.concatenate([there, back])) + "z")
    return markup.tag("path", d="".join(shapes), class_=f"area {class_}")


def dots(frame: Frame, x: np.ndarray, y: np.ndarray, class_: str) -> markup.Markup:
    """Points, as one path of zero-length strokes with round ends."""
    pairs = zip(frame.px(x).tolist(), frame.py(y).tolist(), strict=True)
    return markup.tag("path", d="".join(f"M{a:.1f} {b:.1f}h0" for a, b in pairs), class_=f"dots {class_}")


def markers(frame: Frame, x: np.ndarray, y: np.ndarray, place: int, amount: int) -> markup.Markup:
    """The shape of a curve, at its end and at `amount` - 1 places before."""
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if not len(known):
        return markup.Markup()
    # Shifted by the place, so that the markers of curves that lie on each other stand side by side.
    shift = 0.13 * (place % 5)
    spots = {int(known[-1])} | {int(known[int((i + shift) / amount * (len(known) - 1))]) for i in range(1, amount)}
    return markup.join(*(marker(float(frame.px(x[i])), float(frame.py(y[i])), place) for i in sorted(spots)))


def marker(px: float, py: float, place: int) -> markup.Markup:
    """One shape, centred."""
    shape = SHAPES[place % len(SHAPES)]
    return markup.tag("path", d=shape, class_=f"marker hue{place % HUES}", transform=f"translate({px:.1f} {py:.1f})")


def level(frame: Frame, y: float, label: str) -> markup.Markup:
    """A horizontal line across the plot with its name, such as a goal."""
    at, right = round(float(frame.py(y)), 1), frame.size.width - frame.size.right
    return markup.join(
        markup.tag("line", x1=LEFT, x2=right, y1=at, y2=at, class_="goal"),
        markup.tag("text", label, x=LEFT + 6, y=at - 5, class_="goal-label"),
    )


def moment(frame: Frame, x: float, class_: str, label: str = "") -> markup.Markup:
    """A vertical line through the plot, such as where a run was resumed; its name runs along it."""
    at, bottom = round(float(frame.px(x)), 1), frame.size.height - BOTTOM
    name = markup.tag(
        "text", label, x=at + 4, y=bottom - 6, transform=f"rotate(-90 {at + 4} {bottom - 6})", class_="moment-label",
        dominant_baseline="hanging",
    )  # fmt: skip
    line = markup.tag("line", x1=at, x2=at, y1=frame.size.top, y2=bottom, class_=f"moment {class_}")
    return markup.join(line, name if label else None)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels near where they are wanted, no two closer than `gap`, within a range where that is possible.

    Args:
        wanted: Where each label would stand, in any order.
        gap: Least distance.
        low: The range's start; labels that do not fit go over its end, never before its start.
        high: The range's end.

    Returns:
        A place for each, in the order given.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [0.0] * len(wanted)
    below = high
    for i in reversed(order):  # from the end: leave room for those that follow
        placed[i] = below = min(wanted[i], below)
        below -= gap
    above = low
    for i in order:
        placed[i] = above = max(placed[i], above)
        above += gap
    return placed


def names(frame: Frame, ends: Sequence[tuple[float, float, str, int]]) -> markup.Markup:
    """Curves named at their ends: (x, y, name, hue) each; a thin line leads to a name that had to move."""
    size = frame.size
    left = size.width - size.right + 12
    wanted = [float(frame.py(y)) for _, y, _, _ in ends]
    parts = []
    placed = spread(wanted, 16, size.top, size.height - BOTTOM)
    for (x, _, name, hue), at, place in zip(ends, wanted, placed, strict=True):
        start = float(frame.px(x)) + 6
        if abs(place - at) > 4 or start < left - 8:
            lead = f"M{start:.1f} {at:.1f}L{left - 3} {place:.1f}"
            parts.append(markup.tag("path", d=lead, class_=f"lead hue{hue}"))
        parts.append(markup.tag("text", name, x=left, y=round(place + 4, 1), class_=f"name hue{hue}"))
    return markup.join(*parts)


def axes(
    frame: Frame, labels: tuple[str, str], show: tuple[Callable[[float], str], Callable[[float], str]]
) -> markup.Markup:
    """Grid, ticks and the names of both axes.

    Args:
        frame: Where.
        labels: Name of x (right below) and of y (above the plot, so that it is read without turning the head).
        show: How the ticks of x and y are written.
    """
    size = frame.size
    bottom = size.height - BOTTOM
    parts = [scale(frame, labels[1], show[1])]
    for value in ticks(*frame.x, size.ticks):
        at = round(float(frame.px(value)), 1)
        parts.append(markup.tag("line", x1=at, x2=at, y1=bottom, y2=bottom + 5, class_="tick"))
        parts.append(label(frame, float(value), show[0](float(value))))
    return markup.join(*parts, named(frame, labels[0]))


def scale(frame: Frame, name: str, show: Callable[[float], str]) -> markup.Markup:
    """The grid of y, its ticks and its name."""
    size = frame.size
    right = size.width - size.right
    parts = [markup.tag("text", name, x=2, y=16, class_="axis-label")]
    for value in ticks(*frame.y, 4 if size.height < 250 else 6):
        at = round(float(frame.py(value)), 1)
        parts.append(markup.tag("line", x1=LEFT, x2=right, y1=at, y2=at, class_="grid"))
        parts.append(markup.tag("text", show(float(value)), x=LEFT - 7, y=at + 4, text_anchor="end"))
    return markup.join(*parts)


def label(frame: Frame, x: float, text: str, strong: bool = False) -> markup.Markup:
    """What stands below a place on x."""
    at, class_ = round(float(frame.px(x)), 1), "goal-label" if strong else None
    return markup.tag("text", text, x=at, y=frame.size.height - BOTTOM + 18, text_anchor="middle", class_=class_)


def above(frame: Frame, x: float, y: float, text: str) -> markup.Markup:
    """What stands above a point."""
    at = {"x": round(float(frame.px(x)), 1), "y": round(float(frame.py(y)) - 5, 1)}
    return markup.tag("text", text, text_anchor="middle", **at)


def numbered(frame: Frame, found: Sequence[tuple[float, str, str]]) -> markup.Markup:
    """Moments as vertical lines: (x, short name, what is told when it is pointed at) each.

    A name that would touch the one before is left out; its line is drawn.
    """
    size, parts, free = frame.size, [], -math.inf
    for x, name, told in sorted(found):
        at = round(float(frame.px(x)), 1)
        line = markup.tag("line", x1=at, x2=at, y1=size.top, y2=size.height - BOTTOM, class_="moment decided")
        named = at >= free
        flag = markup.tag("text", name, x=at + 3, y=size.top + 9, class_="moment-label decided") if named else None
        parts.append(markup.tag("g", markup.tag("title", told), line, flag))
        free = at + 8 + 7 * len(name) if named else free
    return markup.join(*parts)


def named(frame: Frame, name: str) -> markup.Markup:
    """The line of x, and its name."""
    size = frame.size
    right, bottom = size.width - size.right, size.height - BOTTOM
    line = markup.tag("line", x1=LEFT, x2=right, y1=bottom, y2=bottom, class_="axis")
    return markup.join(
        line, markup.tag("text", name, x=right, y=size.height - 5, text_anchor="end", class_="axis-label")
    )


def column(frame: Frame, left: float, right: float, height: float, class_: str, told: str) -> markup.Markup:
    """One column from zero, which tells what it stands for when pointed at."""
    start, end, top, bottom = (float(at) for at in (*frame.px(_array(left, right)), *frame.py(_array(height, 0.0))))
    at = {"x": round(start, 1), "y": round(top, 1), "width": round(end - start, 1), "height": round(bottom - top, 1)}
    return markup.tag("rect", markup.tag("title", told), class_=f"column {class_}", **at)


def _array(*values: float) -> np.ndarray:
    return np.asarray(values)
