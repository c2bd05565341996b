"""What a person sees while a run is under way: a live table, plain lines, or nothing; always on stderr.

Nothing here has a thread: pictures are drawn inside the calls of the training loop, a few times a second at most.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TextIO

SPLIT = ("environment", "inference", "learning", "waiting")  # order in which the time split is shown

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Together(NamedTuple):
    """Several seeds looked at as one."""

    seeds: tuple[int, ...]
    finished: int
    iqm: float | None  # interquartile mean of the seeds' `return_mean`


class Status(NamedTuple):
    """One look at a run; None where a number is not known."""

    preset: str
    env: str
    runtime: str
    seed: int
    step: int  # environment steps so far
    steps: int  # environment steps in all
    steps_per_s: float | None
    return_mean: float | None  # of the last 100 training episodes
    best: float | None  # the best such mean
    episodes: int
    split: Mapping[str, float]  # seconds by what they were spent on
    workers: Mapping[str, Any]  # "up" and "of"; {} where there are none
    restarts: int
    rss_mb: float | None
    checkpoint_age_s: float | None  # None before the first
    eta_s: float | None  # seconds left
    goal: float | None  # the return at which the run ends early
    together: Together | None = None  # several seeds: steps are sums, `return_mean` a mean over them


class Console(Protocol):
    """One way of showing a run."""

    def show(self, status: Status) -> None:
        """Takes the latest status; draws it when it is time to."""
        ...

    def note(self, text: str) -> None:
        """One line that stays."""
        ...

    def fault(self, kind: str, text: str) -> None:
        """Something failed: a headline and the traceback, which stay."""
        ...

    def close(self) -> None:
        """Draws the last status and leaves the terminal as it was."""
        ...


class Quiet:
    """Shows nothing."""

    def show(self, status: Status) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def fault(self, kind: str, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Plain:
    """One line every so often, for files and pipes: no colours, no control characters."""

    def __init__(
        self, stream: TextIO, every: float = 10.0, first: float = 2.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Args: `stream` to write to; seconds between lines and before the first; `clock` in seconds."""
        self._stream, self._every, self._clock = stream, every, clock
        self._next = clock() + first
        self._latest: Status | None = None
        self._shown: Status | None = None

    def show(self, status: Status) -> None:
        """Writes a line if it is time."""
        self._latest = status
        if self._clock() >= self._next:
            self._draw()

    def note(self, text: str) -> None:
        """Writes one line."""
        self._line(" ".join(clean(text).split("\n")))

    def fault(self, kind: str, text: str) -> None:
        """Writes the headline and the traceback."""
        self._line("\n".join([f"fault: {clean(kind)}", *clean(text).rstrip().splitlines()]))

    def close(self) -> None:
        """Writes where the run ended, unless that was the last line anyway."""
        if self._latest is not None and self._latest != self._shown:
            self._draw()

    def _draw(self) -> None:
        assert self._latest is not None
        self._line(line(self._latest))
        self._shown, self._next = self._latest, self._clock() + self._every

    def _line(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


def pick(quiet: bool = False, stream: TextIO | None = None, every: float = 10.0) -> Console:
    """The console that suits where stderr goes: live table on a terminal, else plain lines.

    Args:
        quiet: Show nothing at all.
        stream: Instead of ``sys.stderr``.
        every: Seconds between plain lines.

    Returns:
        A console.
    """
    target = stream or sys.stderr
    if quiet or target is None:  # a service may run without stderr
        return Quiet()
    if _suits_a_table(target):
        from shoal.log import live

        return live.Live(target)
    return Plain(target, every)


def line(status: Status) -> str:
    """The plain line: ``name=value`` words, separated by blanks; ``-`` where a number is not known."""
    s = status
    words = {
        "step": f"{s.step}/{s.steps}",
        "steps/s": number(s.steps_per_s, 0),
        "return": number(s.return_mean, 1),
        **({"iqm": number(s.together.iqm, 1)} if s.together else {}),
        "left": duration(s.eta_s),
        **{name: f"{percent}%" for name, percent in percents(s.split).items()},
    }
    if s.together:
        words["seeds"] = f"{s.together.finished}/{len(s.together.seeds)}"
    if s.workers:
        words["workers"] = f"{s.workers.get('up', '-')}/{s.workers.get('of', '-')}"
    words["restarts"] = str(s.restarts)
    words["mem"] = f"{s.rss_mb:.0f}MB" if s.rss_mb is not None else "-"
    if s.checkpoint_age_s is not None:
        words["ckpt"] = duration(s.checkpoint_age_s)
    short = {"environment": "env"}
    return clean(" ".join(f"{short.get(name, name)}={value}" for name, value in words.items()))


def percents(split: Mapping[str, float]) -> dict[str, int]:
    """The time split in whole percent that sum to 100, in the order of `SPLIT`; {} if nothing was measured."""
    names = sorted(split, key=lambda name: (SPLIT.index(name) if name in SPLIT else len(SPLIT), name))
    return dict(zip(names, shares([split[name] for name in names], 100), strict=True)) if any(split.values()) else {}


def shares(values: list[float], total: int) -> list[int]:
    """Whole numbers in proportion to `values` that sum to `total` (largest remainders)."""
    exact = [max(value, 0.0) * total / sum(max(v, 0.0) for v in values) for value in values]
    whole = [int(value) for value in exact]
    by_remainder = sorted(range(len(values)), key=lambda i: whole[i] - exact[i])
    for i in by_remainder[: total - sum(whole)]:
        whole[i] += 1
    return whole


def duration(seconds: float | None) -> str:
    """A duration in one short word: ``21s``, ``3m10s``, ``1h05m``, ``2d03h``; ``-`` if not known."""
    if seconds is None or not 0 <= seconds < 1e9:
        return "-"
    whole = round(seconds)
    for size, part, big, small in ((86400, 3600, "d", "h"), (3600, 60, "h", "m"), (60, 1, "m", "s")):
        if whole >= size:
            return f"{whole // size}{big}{whole % size // part:02d}{small}"
    return f"{whole}s"


def number(value: float | None, digits: int) -> str:
    """A number with a fixed count of decimals; ``-`` if not known."""
    return f"{value:.{digits}f}" if value is not None else "-"


def clean(text: str) -> str:
    """Text without colours and control characters other than line ends and tabs."""
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def _suits_a_table(stream: TextIO) -> bool:
    """Whether there is a person with a capable terminal at the other end."""
    env = os.environ
    return (
        stream.isatty()
        and env.get("CI", "").lower() in ("", "0", "false")
        and not env.get("NO_COLOR")
        and env.get("TERM", "") not in ("", "dumb", "unknown")
        and (stream.encoding or "").lower().replace("-", "").startswith("utf8")
    )
