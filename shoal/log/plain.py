"""Plain lines on stderr, for files and pipes; and nothing at all."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from shoal.log import console, wording

ACTING = {"staleness": "late", "ess": "ess", "actor_inference_share": "acting"}


class Quiet:
    """Shows nothing."""

    def show(self, status: console.Status) -> None:
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
        self._stream, self._every, self._first, self._clock = stream, every, first, clock
        self._next = self._soon = clock() + first  # when a line is due, and when one that tells of something else
        self._latest: console.Status | None = None
        self._shown: console.Status | None = None

    def show(self, status: console.Status) -> None:
        """Writes a line if it is time, sooner where something else is being done than the last line said."""
        self._latest = status
        now = self._clock()
        if now >= self._next or (now >= self._soon and _doing(status) != _doing(self._shown)):
            self._draw()

    def note(self, text: str) -> None:
        """Writes one line."""
        self._line(" ".join(wording.clean(text).split("\n")))

    def fault(self, kind: str, text: str) -> None:
        """Writes the headline and the traceback."""
        self._line("\n".join([f"fault: {wording.clean(kind)}", *wording.clean(text).rstrip().splitlines()]))

    def close(self) -> None:
        """Writes where the run ended, unless that was the last line anyway, or it never began to train."""
        if self._latest is not None and self._latest.stage is None and self._latest != self._shown:
            self._draw()

    def _draw(self) -> None:
        assert self._latest is not None
        self._line(line(self._latest))
        now = self._clock()
        self._shown, self._next, self._soon = self._latest, now + self._every, now + self._first

    def _line(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


def _doing(status: console.Status | None) -> str | None:
    """What a line told of; None: of training."""
    return status.stage.doing if status is not None and status.stage is not None else None


def line(status: console.Status) -> str:
    """The plain line: ``name=value`` words, separated by blanks; ``-`` where a number is not known.

    While no step is taken it says what is done instead.
    """
    s = status
    if s.stage is not None:
        return wording.stage(s.stage, s.stage_s)
    words = {
        "step": f"{s.step}/{s.steps}",
        "steps/s": wording.number(s.steps_per_s, 0),
        "return": wording.number(s.return_mean, 1),
        **({"eval": wording.number(s.evaluated, 1)} if s.evaluated is not None else {}),
        **({"iqm": wording.number(s.together.iqm, 1)} if s.together else {}),
        "left": wording.duration(s.eta_s),
        **{name: f"{percent}%" for name, percent in wording.percents(s.split).items()},
    }
    if s.together:
        words["seeds"] = f"{s.together.finished}/{len(s.together.seeds)}"
    if s.workers:
        words["workers"] = f"{s.workers.get('up', '-')}/{s.workers.get('of', '-')}"
    words |= {name: f"{s.acting[key]:.3g}" for key, name in ACTING.items() if key in s.acting}
    words["restarts"] = str(s.restarts)
    words["mem"] = f"{s.rss_mb:.0f}MB" if s.rss_mb is not None else "-"
    if s.checkpoint_age_s is not None:
        words["ckpt"] = wording.duration(s.checkpoint_age_s)
    short = {"environment": "env"}
    return wording.clean(" ".join(f"{short.get(name, name)}={value}" for name, value in words.items()))
