"""What a person sees of a search: trials done, the best so far, time left; of the trial under way one more line.

On a terminal three lines are drawn again and again, elsewhere a line is written for each trial, and one now and then
while a trial is long.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TextIO

from shoal import log
from shoal.log import wording

EVERY, PERIOD = 10.0, 0.25  # seconds between lines, and between pictures
CELLS = 24  # of the bar


class Far(NamedTuple):
    """How far a search is."""

    done: int  # trials
    trials: int
    failed: int
    best: float | None
    best_trial: int | None
    steps: int  # environment steps by now, of what this process has to do those before it included
    of: int  # in all, confirmation included


class Screen:
    """Shows a search; makes the console of each of its trainings."""

    def __init__(
        self,
        title: str,
        of: str = "trials",
        *,
        quiet: bool,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin.

        Args:
            title: What is searched.
            of: What there are many of: trials, or members.
            quiet: Show nothing.
            stream: Instead of stderr.
            clock: In seconds.
        """
        self._stream = None if quiet else stream or sys.stderr
        self._title, self._of, self._clock = title, of, clock
        self._began, self._next = clock(), clock() + EVERY
        self._far, self._first = Far(0, 0, 0, None, None, 0, 1), 0
        self._said: set[str] = set()
        self._under_way: dict[str, int] = {}  # what is being trained -> environment steps, since something was done
        self._live: Any = None
        if self._stream is not None and log.suits_a_table(self._stream):
            self._live = _live(self._stream)

    def begin(self, far: Far) -> None:
        """Where it begins, or goes on; time left is told by what is done from here on."""
        self._far, self._first, self._began = far, far.steps, self._clock()

    def told(self, far: Far, line: str) -> None:
        """Something is done; `line` says what."""
        self._far = far
        self._under_way.clear()
        self.say(f"{line}; {self.words(far.steps)}")

    def say(self, text: str) -> None:
        """One line that stays."""
        text = " ".join(wording.clean(text).split())
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self._stream is not None:
            print(text, file=self._stream, flush=True)
        self._next = self._clock() + EVERY

    def training(self, what: str) -> log.Console:
        """The console of one training, that is called `what`."""
        return _Training(self, what)

    def show(self, what: str, status: log.Status) -> None:
        """How far the training under way is."""
        self._under_way[what] = status.step
        if self._stream is None or self._clock() < self._next:
            return
        steps = self._far.steps + sum(self._under_way.values())
        doing = wording.stage(status.stage, status.stage_s) if status.stage else ""
        here = doing or f"{status.step:,} of {status.steps:,} steps, return {wording.number(status.return_mean, 1)}"
        if self._live is None:
            self.say(f"{what}: {here}; {self.words(steps)}")
            return
        self._live.update(f"{self._title}\n{self._bar(steps)} {self.words(steps)}\n{what}: {here}", refresh=True)
        self._next = self._clock() + PERIOD

    def once(self, text: str) -> None:
        """A note that trainings repeat is said once."""
        if text not in self._said:
            self._said.add(text)
            self.say(text)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._live is not None:
            self._live.update("", refresh=True)
            self._live.stop()

    def words(self, steps: int) -> str:
        """How far it is after so many steps."""
        far = self._far
        failed = f", {far.failed} failed" if far.failed else ""
        best = f", best {far.best:.4g} ({self._of[:-1]} {far.best_trial})" if far.best is not None else ""
        return f"{far.done} of {far.trials} {self._of}{failed}{best}, {wording.duration(self.left(steps))} left"

    def left(self, steps: int) -> float | None:
        """Seconds, if what is to come takes as long a step as what was done here; None before anything was."""
        done = steps - self._first
        spent = self._clock() - self._began
        return spent * max(0, self._far.of - steps) / done if done > 0 else None

    def _bar(self, steps: int) -> str:
        full = min(CELLS, round(CELLS * steps / max(1, self._far.of)))
        return "█" * full + "░" * (CELLS - full)


class _Training:
    """A `log.Console` of one of a search's trainings."""

    def __init__(self, screen: Screen, what: str) -> None:
        self._screen, self._what = screen, what

    def show(self, status: log.Status) -> None:
        """To the screen."""
        self._screen.show(self._what, status)

    def note(self, text: str) -> None:
        """To the screen, once in a search."""
        self._screen.once(text)

    def fault(self, kind: str, text: str) -> None:
        """To the screen: the headline, and the last line of the traceback."""
        last = wording.clean(text).rstrip().rpartition("\n")[2]
        self._screen.say(f"{self._what}: fault: {kind}: {last}")

    def close(self) -> None:
        """Nothing: there is more to come."""


def _live(stream: TextIO) -> Any:
    import rich.console
    import rich.live

    console = rich.console.Console(file=stream, highlight=False, markup=False, emoji=False)
    live = rich.live.Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
    live.start()
    return live
