"""Who took part in which round: a row for each party, and what became of its messages from left to right."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from shoal.report import figures, markup, svg, words
from shoal.report import runs as run_folders
from shoal.report.federation import told

ROW, LEAST, TALL = 26, 8, 480  # pixels of a party's row: at most, at least; and of all where that is possible
NAMED = 13  # pixels a row must have for its name to stand beside it
WIDE, NARROW = svg.Size("wide", 860, 0, 8, top=26), svg.Size("narrow", 380, 0, 4, top=26)
COLUMNS = {"wide": 120, "narrow": 50}  # stretches of rounds at most
LEVELS = 8
LETTERS = 12  # of a name that stand beside a row


class Taken(NamedTuple):
    """Shares of the rounds of each stretch, ``[N, C]``."""

    edges: np.ndarray  # [C + 1] the rounds at which stretches begin, and the end
    counted: np.ndarray  # in which a party's message was applied
    idle: np.ndarray  # in which it had nothing to say
    late: np.ndarray  # in which one came too late
    refused: np.ndarray  # in which one was rejected or failed


def taken(sent: told.Messages, parties: int, columns: int) -> Taken | None:
    """Messages by party and stretch of rounds; None where there are none."""
    known = (sent.party >= 0) & (sent.party < parties)
    if not known.any():
        return None
    first, last = int(sent.round[known].min()), int(sent.round[known].max())
    count = min(columns, last - first + 1)
    edges = first + (np.arange(count + 1) * (last - first + 1)) // count
    place = np.searchsorted(edges, sent.round, side="right") - 1
    kinds = np.array([told.kind(outcome) for outcome in sent.outcome])
    tables = []
    for kind in told.KINDS:
        table = np.zeros((parties, count))
        chosen = known & (kinds == kind)
        # Of several messages of a party in a round (an asynchronous run's) one makes the round count.
        pairs = np.unique(np.stack([sent.party[chosen], sent.round[chosen], place[chosen]]), axis=1)
        np.add.at(table, (pairs[0], pairs[2]), 1.0)
        tables.append(table / np.diff(edges))
    return Taken(edges, *tables)


def figure(run: run_folders.Run) -> markup.Markup | None:
    """The grid with its key, in every size it is shown at; None where no message is known."""
    names = [owner.name for owner in told.owners(run)]
    sent = told.messages(run)
    found = taken(sent, len(names), COLUMNS[WIDE.name])
    few = taken(sent, len(names), COLUMNS[NARROW.name])
    if found is None or few is None:
        return None
    late = bool(told.setting(run, "asynchronous"))
    axis = "job of each party" if late else "round"
    pictures = [_picture(names, found, WIDE, axis), _picture(names, few, NARROW, axis)]
    stretch = int(np.diff(found.edges).max())
    caption = f"A row is a party, from the first {'of its jobs' if late else 'round'} to the last."
    if stretch > 1:
        caption += " A cell is a stretch of rounds, its colour the share of them in which the party's update counted."
    else:
        caption += " A cell is a round, coloured where the party's update counted."
    body = markup.join(_key(found), markup.tag("div", *pictures, class_="plot"))
    return figures.figure("Who took part in which round", body, caption)


def _picture(names: list[str], found: Taken, size: svg.Size, axis: str) -> markup.Markup:
    row = min(ROW, max(LEAST, TALL / len(names)))
    size = size._replace(height=round(size.top + svg.BOTTOM + row * len(names)))
    frame = svg.Frame(size, (float(found.edges[0]), float(found.edges[-1])), (len(names) - 0.5, -0.5))
    parts = [svg.named(frame, axis)]
    for value in svg.ticks(*frame.x, size.ticks):
        at, bottom = round(float(frame.px(value)), 1), size.height - svg.BOTTOM
        if float(value).is_integer():
            parts.append(markup.tag("line", x1=at, x2=at, y1=bottom, y2=bottom + 5, class_="tick"))
            parts.append(svg.label(frame, float(value), words.short(float(value))))
    parts.append(markup.tag("text", "party", x=2, y=16, class_="axis-label"))
    every = 1 if row >= NAMED else -(-NAMED // int(row))
    for at in range(0, len(names), every):
        y = round(float(frame.py(at)) + 4, 1)
        shown = names[at] if len(names[at]) <= 6 else str(at)
        name = markup.tag("text", shown, markup.tag("title", names[at]), x=svg.LEFT - 7, y=y, text_anchor="end")
        parts.append(name)
    parts += _cells(found, frame, row)
    said = f"Rounds in which each of {words.count(len(names), 'party', 'parties')} took part"
    return markup.tag(
        "svg", markup.tag("title", said), *parts, role="img", class_=size.name,
        viewBox=f"0 0 {size.width} {size.height}",
    )  # fmt: skip


def _cells(found: Taken, frame: svg.Frame, row: float) -> list[markup.Markup]:
    """A path for each colour; what was refused or late lies as a bar at the foot of its cell."""
    air = 1.5 if row >= NAMED else 0.5
    shapes: dict[str, list[str]] = {}
    lefts = frame.px(found.edges.astype(float)).tolist()
    for party in range(len(found.counted)):
        top = float(frame.py(party)) - row / 2 + air
        foot = top + row - 2 * air
        for at, (left, right) in enumerate(itertools.pairwise(lefts)):
            gap = 0.6 if right - left > 4 else 0.0

            def shape(start: float, end: float, left: float = left, right: float = right - gap) -> str:
                return f"M{left:.1f} {start:.1f}H{right:.1f}V{end:.1f}H{left:.1f}z"

            shapes.setdefault(_level(found.counted[party, at]), []).append(shape(top, foot))
            for name in told.KINDS[1:]:
                if (share := getattr(found, name)[party, at]) > 0:
                    high = max(0.25, share) * (foot - top)
                    shapes.setdefault(name, []).append(shape(foot - high, foot))
    order = sorted(shapes, key=lambda name: (name in told.KINDS, name))
    return [markup.tag("path", d="".join(shapes[name]), class_=f"cell {name}") for name in order]


def _level(share: float) -> str:
    return "absent" if share <= 0 else f"fit{min(LEVELS - 1, int(share * LEVELS))}"


def _key(found: Taken) -> markup.Markup:
    swatches = [markup.tag("i", class_=f"fit{level}") for level in range(LEVELS)]
    shares = np.diff(found.edges).max() > 1
    ramp = markup.tag("li", "counted in few ", markup.tag("span", *swatches, class_="ramp"), " in all rounds")
    entries = [
        ramp if shares else markup.tag("li", markup.tag("span", swatches[-1], class_="ramp"), " counted"),
        markup.tag("li", markup.tag("i", class_="absent"), "took no part") if (found.counted <= 0).any() else None,
        markup.tag("li", markup.tag("i", class_="idle"), "had nothing to say") if found.idle.any() else None,
        markup.tag("li", markup.tag("i", class_="late"), "too late") if found.late.any() else None,
        markup.tag("li", markup.tag("i", class_="refused"), "rejected or failed") if found.refused.any() else None,
    ]
    return markup.tag("ul", *(one for one in entries if one), class_="legend")
