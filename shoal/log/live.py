"""The live table on a terminal: one panel of at most 14 lines, drawn by rich four times a second."""

from __future__ import annotations

import bisect
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from shoal.log import console, wording

PERIOD = 0.25  # seconds between pictures
MEMORY = 2000  # means of returns remembered for the small curve
CURVE = 18  # characters of it
WIDEST = 96  # columns; wider tables are harder to read, not easier
TWO_COLUMNS = 76  # columns from which numbers stand in two columns

_COLOURS = {"environment": "cyan", "inference": "blue", "learning": "magenta", "waiting": "bright_black"}
_SHORT = {"environment": "env"}
_LABEL = "bright_black"
_BLOCKS = "▁▂▃▄▅▆▇█"


class Live:
    """Keeps one table at the bottom of the terminal; notes and faults scroll above it."""

    def __init__(self, stream: TextIO, width: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Args: `stream`, a terminal; `width` in columns, else the terminal's; `clock` in seconds."""
        import rich.console
        import rich.live

        self._console = rich.console.Console(file=stream, width=width, highlight=False, markup=False, emoji=False)
        # Standard output is not ours to touch: it carries the JSON result.
        self._live = rich.live.Live(
            console=self._console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=stream is sys.stderr,
            vertical_overflow="crop",
        )
        self._clock, self._next = clock, 0.0
        self._latest: console.Status | None = None
        self._returns: list[tuple[int, float]] = []  # (step, mean)

    def show(self, status: console.Status) -> None:
        """Draws the table if a quarter of a second has passed."""
        if self._latest is None:
            self._returns = [*status.earlier]
        self._latest = status
        if status.return_mean is not None and (not self._returns or self._returns[-1][1] != status.return_mean):
            self._returns.append((status.step, status.return_mean))
        while len(self._returns) > MEMORY:  # a curve over the whole run needs no more points than this
            self._returns = self._returns[::2]
        if self._clock() >= self._next:
            self._draw()

    def note(self, text: str) -> None:
        """Prints one line above the table."""
        import rich.text

        self._console.print(rich.text.Text(" ".join(wording.clean(text).split("\n"))))

    def fault(self, kind: str, text: str) -> None:
        """Prints a headline and the traceback above the table."""
        import rich.text

        self._console.print(rich.text.Text(f"fault: {wording.clean(kind)}", style="bold red"))
        self._console.print(rich.text.Text(wording.clean(text).rstrip(), style="red"))

    def close(self) -> None:
        """Draws the last status, which stays on the terminal, and shows the cursor again."""
        if self._latest is not None:
            self._draw()
            self._latest = None
        self._live.stop()

    def _draw(self) -> None:
        assert self._latest is not None
        if not self._live.is_started:
            self._live.start()
        self._live.update(render(self._latest, self._console.width, evenly(self._returns)), refresh=True)
        self._next = self._clock() + PERIOD


def render(status: console.Status, width: int, returns: list[float]) -> Any:
    """The table as something rich can print.

    Args:
        status: What to show.
        width: Columns of the terminal.
        returns: Means of returns so far, oldest first, at equal distances, for the small curve.

    Returns:
        A panel of at most 14 lines.
    """
    import rich.box
    import rich.console
    import rich.panel
    import rich.text

    width = min(width, WIDEST)
    inner = width - 4  # borders and padding
    roomy = width >= TWO_COLUMNS
    blank = [rich.text.Text()] if roomy else []
    rows = [_progress(status, inner), *blank, _numbers(status, returns, roomy), *blank, *_split(status, inner)]
    parts = (status.preset, status.env, status.runtime, _seeds(status))
    title = rich.text.Text.assemble(
        ("shoal", "bold cyan"),
        *[(f" · {wording.clean(part)}", "bold" if i < 2 else "") for i, part in enumerate(parts)],
    )
    title.truncate(max(width - 6, 1), overflow="ellipsis")  # a longer one would widen the panel
    return rich.panel.Panel(
        rich.console.Group(*rows),
        title=title,
        title_align="left",
        box=rich.box.ROUNDED,
        width=width,
        border_style=_LABEL,
    )


def _seeds(status: console.Status) -> str:
    return (
        f"seeds {status.together.seeds[0]} to {status.together.seeds[-1]}" if status.together else f"seed {status.seed}"
    )


def _progress(status: console.Status, width: int) -> Any:
    """Bar, percent and time left, on one line; while no step is taken, what is done in place of the time left."""
    import rich.text

    share = min(max(status.step / max(status.steps, 1), 0.0), 1.0)
    left = "done" if share >= 1 else f"{wording.duration(status.eta_s)} left" if status.eta_s is not None else ""
    if status.stage is not None:
        left = wording.stage(status.stage, status.stage_s)
    tail = f" {int(share * 100):3d} %  {left:>11}"[: width - 4]
    cells = max(width - len(tail), 4)
    full = round(cells * share)
    style = "green" if share >= 1 else "cyan"
    return rich.text.Text.assemble(
        ("━" * full, style),
        ("━" * (cells - full), "grey23"),
        (tail[:6], "bold"),
        tail[6:],
        no_wrap=True,
        overflow="crop",
    )


def _numbers(status: console.Status, returns: list[float], roomy: bool) -> Any:
    """The grid of names and numbers, in two columns if there is room."""
    import rich.table

    cells = _cells(status, returns)
    grid = rich.table.Table.grid(padding=(0, 1), expand=roomy)
    for _ in range(2 if roomy else 1):
        grid.add_column(style=_LABEL, no_wrap=True, min_width=10)
        grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1 if roomy else None)
    half = len(cells) // 2
    rows = [(*a, *b) for a, b in zip(cells[:half], cells[half:], strict=True)] if roomy else cells
    for row in rows:
        grid.add_row(*row)
    return grid


def _cells(status: console.Status, returns: list[float]) -> list[tuple[str, Any]]:
    """Eight pairs of name and value, the first column's four first."""
    import rich.text

    s = status
    text = rich.text.Text
    reached = s.goal is not None and s.return_mean is not None and s.return_mean >= s.goal
    goal = f"  goal {s.goal:g}" if s.goal is not None else ""
    goal += f"  eval {wording.number(s.evaluated, 1)}" if s.evaluated is not None else ""
    restarted = (f", {s.restarts} restarted", "yellow" if s.restarts else _LABEL)
    up, of = s.workers.get("up"), s.workers.get("of")
    lag = s.workers.get("lag_mean")
    if lag is not None and not s.restarts:  # there is room for one of them
        restarted = (f", lag {lag:.1f}", _LABEL)
    if s.acting and not s.restarts:
        restarted = ("".join(f", {told}" for told in wording.acting(s.acting)), _LABEL)
    workers = (
        text.assemble((f"{up} of {of}", "bold red" if up != of else "bold"), restarted) if s.workers else text("-")
    )
    who = ("workers", workers)
    best = ("best", text.assemble(f"{wording.number(s.best, 1)}  ", (curve(returns), "green")))
    if s.together:
        who = (
            "seeds",
            text.assemble((f"{s.together.finished} of {len(s.together.seeds)}", "bold"), (" finished", _LABEL)),
        )
        best = ("IQM", text.assemble((f"{wording.number(s.together.iqm, 1)}  ", "bold"), (curve(returns), "green")))
    age = f"{wording.duration(s.checkpoint_age_s)} ago" if s.checkpoint_age_s is not None else "none yet"
    speed = f"{s.steps_per_s:,.0f}" if s.steps_per_s is not None else "-"
    return [
        ("steps", text.assemble((f"{s.step:,}", "bold"), (f" of {s.steps:,}", _LABEL))),
        ("steps/s", text(speed, "bold")),
        who,
        ("memory", text(f"{s.rss_mb:,.0f} MB" if s.rss_mb is not None else "-")),
        (
            "return",
            text.assemble((wording.number(s.return_mean, 1), "bold green" if reached else "bold"), (goal, _LABEL)),
        ),
        best,
        ("episodes", text(f"{s.episodes:,}")),
        ("checkpoint", text(age)),
    ]


def _split(status: console.Status, width: int) -> list[Any]:
    """The time split as one bar of coloured parts, and what the colours mean."""
    import rich.text

    percents = wording.percents(status.split)
    if not percents:
        return [rich.text.Text("━" * width, "grey23"), rich.text.Text("time split: not measured yet", _LABEL)]
    parts = zip(percents, wording.shares([float(p) for p in percents.values()], width), strict=True)
    bar = rich.text.Text.assemble(*[("█" * cells, _COLOURS.get(name, "yellow")) for name, cells in parts])
    lines = [rich.text.Text(no_wrap=True)]
    for name, percent in percents.items():
        label = f" {name if width >= TWO_COLUMNS else _SHORT.get(name, name)} {percent} %"
        if lines[-1] and len(lines[-1]) + len(label) + 4 > width:
            lines.append(rich.text.Text(no_wrap=True))
        gap = "   " if lines[-1] else ""
        lines[-1].append(gap).append("■", _COLOURS.get(name, "yellow")).append(label)
    return [bar, *lines[:2]]


def evenly(points: list[tuple[int, float]], count: int = CURVE) -> list[float]:
    """Values at equal distances of steps, of a curve told now and then: each is the last that was told by then.

    Args:
        points: (step, value), in the order of steps.
        count: Values, at most.
    """
    count = min(count, len(points))
    if count < 2:
        return [value for _, value in points]
    first, last = points[0][0], points[-1][0]
    wanted = (first + (last - first) * i / (count - 1) for i in range(count))
    return [points[max(0, bisect.bisect_right(points, step, key=lambda point: point[0]) - 1)][1] for step in wanted]


def curve(values: list[float], width: int = CURVE) -> str:
    """A small curve of at most `width` characters, from the lowest to the highest value; "" for fewer than two."""
    if len(values) < 2:
        return ""
    count = min(width, len(values))
    picked = [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]
    low, high = min(picked), max(picked)
    return "".join(_BLOCKS[int((v - low) / (high - low) * 7.999)] if high > low else _BLOCKS[0] for v in picked)
