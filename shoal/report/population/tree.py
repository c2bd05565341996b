"""The family tree: a row for each member, a cell for each interval in the colour of its fitness, lines by source."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shoal.report import figures, markup, svg, words
from shoal.report.population import told

LEVELS = 8  # colours of fitness
ROW, LEAST, TALL = 30, 7, 520  # pixels of a member's row: at most, at least; and of all where that is possible
NAMED = 13  # pixels a row must have for its number to stand beside it
WIDE, NARROW = svg.Size("wide", 860, 0, 8, top=26), svg.Size("narrow", 380, 0, 4, top=26)


def figure(history: told.History) -> markup.Markup:
    """The tree with its key, in every size it is shown at."""
    levels = edges(history)
    pictures = [_picture(history, size, levels) for size in (WIDE, NARROW)]
    caption = (
        "A row is a member, a cell an interval between two measurements, its colour the fitness at its end. A line "
        "leads from the member whose weights were taken over to the one that took them; the thick one is the ancestry "
        f"of member {history.winner}, which won."
    )
    if history.apart:
        caption += " Rules part the sub-populations, which evolve the less often the lower they stand."
    body = markup.join(_key(history, levels), markup.tag("div", *pictures, class_="plot"))
    return figures.figure("Family tree", body, caption, "tree")


def edges(history: told.History) -> np.ndarray:
    """The fitness between two colours: a colour for each eighth of all measurements, ``[LEVELS + 1]``.

    Equal steps would show one bad start, and nothing of what came after it.
    """
    every = np.concatenate([round.fitness for round in history.rounds]) if history.rounds else np.zeros(0)
    finite = every[np.isfinite(every)]
    return np.quantile(finite, np.linspace(0.0, 1.0, LEVELS + 1)) if len(finite) else np.zeros(LEVELS + 1)


def _picture(history: told.History, size: svg.Size, levels: np.ndarray) -> markup.Markup:
    row = min(ROW, max(LEAST, TALL / history.members))
    size = size._replace(height=round(size.top + svg.BOTTOM + row * history.members))
    frame = svg.Frame(size, (0.0, float(max(history.end, 1))), (history.members - 0.5, -0.5))
    parts = [svg.named(frame, "environment steps, all members together")]
    for value in svg.ticks(*frame.x, size.ticks):
        at, bottom = round(float(frame.px(value)), 1), size.height - svg.BOTTOM
        parts.append(markup.tag("line", x1=at, x2=at, y1=bottom, y2=bottom + 5, class_="tick"))
        parts.append(svg.label(frame, float(value), words.short(float(value))))
    parts.append(markup.tag("text", "member", x=2, y=16, class_="axis-label"))
    every = 1 if row >= NAMED else -(-NAMED // int(row))
    for member in range(0, history.members, every):
        at = round(float(frame.py(member)) + 4, 1)
        strong = "goal-label" if member == history.winner else None
        parts.append(markup.tag("text", str(member), x=svg.LEFT - 8, y=at, text_anchor="end", class_=strong))
    parts += _cells(history, frame, row, levels)
    parts += _rules(history, frame)
    parts += _lines(history, frame, row)
    parts += [_failure(frame, *one) for one in history.failures]
    said = f"Family tree of {words.count(history.members, 'member')} over {words.count(len(history.rounds), 'round')}"
    return markup.tag(
        "svg", markup.tag("title", said), *parts, role="img", class_=size.name,
        viewBox=f"0 0 {size.width} {size.height}",
    )  # fmt: skip


def _cells(history: told.History, frame: svg.Frame, row: float, levels: np.ndarray) -> list[markup.Markup]:
    """A path for each colour: thousands of cells are a few elements."""
    air = 1.5 if row >= NAMED else 0.5
    shapes: dict[str, list[str]] = {}
    began = 0
    for round in history.rounds:
        left, right = (float(frame.px(at)) for at in (began, round.steps))
        for member, fitness in enumerate(round.fitness.tolist()):
            top = float(frame.py(member)) - row / 2 + air
            shape = f"M{left:.1f} {top:.1f}H{right:.1f}V{top + row - 2 * air:.1f}H{left:.1f}z"
            shapes.setdefault(_level(fitness, levels), []).append(shape)
        began = round.steps
    return [markup.tag("path", d="".join(drawn), class_=f"cell {level}") for level, drawn in sorted(shapes.items())]


def _level(fitness: float, levels: np.ndarray) -> str:
    if not np.isfinite(fitness):
        return "unfit"
    return f"fit{np.searchsorted(levels[1:-1], fitness, side='right' if levels[0] < levels[-1] else 'left')}"


def _rules(history: told.History, frame: svg.Frame) -> list[markup.Markup]:
    if not history.apart:
        return []
    right = frame.size.width - frame.size.right
    places = [float(frame.py(at - 0.5)) for at in range(history.apart, history.members, history.apart)]
    return [markup.tag("line", x1=8, x2=right, y1=round(y, 1), y2=round(y, 1), class_="rule") for y in places]


def _lines(history: told.History, frame: svg.Frame, row: float) -> list[markup.Markup]:
    """Who took over from whom, and above all the winner's ancestry."""
    reach = _reach(history, frame, row)
    others = [
        _curve(frame, round.steps, source, member, reach)
        for round in history.rounds
        for member, source in sorted(round.source.items())
    ]
    line = list(history.ancestry)
    ends = [*(steps for steps, _ in line[1:]), history.end]
    path = f"M{float(frame.px(line[0][0])):.1f} {float(frame.py(line[0][1])):.1f}" if line else ""
    for i, ((_, member), end) in enumerate(zip(line, ends, strict=True)):
        last = i == len(line) - 1
        path += f"H{float(frame.px(end)) - (0.0 if last else reach):.1f}"
        if not last:
            path += _curve(frame, end, member, line[i + 1][1], reach).replace("M", "L", 1)
    return [
        *(markup.tag("path", d="".join(others), class_=class_) for class_ in ("kin back", "kin") if others),
        markup.tag("path", d=path, class_="winning back"),
        markup.tag("path", d=path, class_="winning"),
    ]


def _reach(history: told.History, frame: svg.Frame, row: float) -> float:
    """Pixels left and right of an exchange that a line takes to go over."""
    steps = [0, *(round.steps for round in history.rounds)]
    widths = np.diff(frame.px(np.array(steps, float)))
    return float(min(0.4 * widths.min(), row)) if len(widths) else 0.0


def _curve(frame: svg.Frame, steps: int, source: int, member: int, reach: float) -> str:
    at, top, bottom = float(frame.px(steps)), float(frame.py(source)), float(frame.py(member))
    return f"M{at - reach:.1f} {top:.1f}C{at:.1f} {top:.1f} {at:.1f} {bottom:.1f} {at + reach:.1f} {bottom:.1f}"


def _failure(frame: svg.Frame, steps: int, member: int) -> markup.Markup:
    at, y = float(frame.px(steps)), float(frame.py(member))
    told = markup.tag("title", f"member {member} was not finite and was replaced at step {steps:,}")
    cross = markup.tag("path", d=f"M{at - 4:.1f} {y - 4:.1f}l8 8m-8 0l8-8", class_="cross")
    return markup.tag("g", told, cross)


def _key(history: told.History, levels: np.ndarray) -> markup.Markup:
    swatches = [markup.tag("i", class_=f"fit{level}") for level in range(LEVELS)]
    entries: Sequence[markup.Markup | None] = [
        markup.tag(
            "li",
            f"fitness {words.three(levels[0])} ",
            markup.tag("span", *swatches, class_="ramp"),
            f" {words.three(levels[-1])}, a colour for each eighth of all measurements",
        ),
        markup.tag("li", markup.tag("i", class_="unfit"), "no fitness")
        if any(not np.isfinite(round.fitness).all() for round in history.rounds)
        else None,
        markup.tag("li", markup.tag("b", "×"), " was not finite, and replaced") if history.failures else None,
    ]
    return markup.tag("ul", *(one for one in entries if one), class_="legend")
