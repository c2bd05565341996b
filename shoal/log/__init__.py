"""What a run tells: metrics and episodes to files, a status to whoever watches, from one set of calls.

``metrics.jsonl`` is the truth; the CSV, TensorBoard, the live table and the report are views of it. A sink that breaks
(disk full, folder gone) is dropped with one warning and the run goes on. Standard output is never written to.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from shoal.core import types
from shoal.log import sinks
from shoal.log.console import Console, Status, Together
from shoal.log.picking import pick, suits_a_table
from shoal.log.plain import Plain, Quiet
from shoal.log.sinks import Evaluated

__all__ = ["Console", "Evaluated", "Log", "Plain", "Quiet", "Status", "Together", "pick", "suits_a_table"]


class Log:
    """The sinks of one run, behind one set of calls; a context manager."""

    def __init__(
        self,
        folder: pathlib.Path,
        console: Console,
        resume_at: Mapping[str, int] | None = None,
        *,
        evaluations: bool = False,
    ) -> None:
        """Opens the files.

        Args:
            folder: The run folder.
            console: What a person sees, usually `pick()`.
            resume_at: None for a new run; else what `lengths` said at the checkpoint: files are cut there.
            evaluations: There will be some on the way.
        """
        self._console: Console = console
        keep = resume_at or {}
        self._lines = sinks.JsonLines(folder, keep.get("metrics.jsonl", 0))
        self._episodes = sinks.Csv(folder, keep.get("episodes.csv", 0))
        self._evaluations = sinks.Evaluations(folder, keep.get("evaluations.csv", 0)) if evaluations else None
        self._files = [file for file in (self._lines, self._episodes, self._evaluations) if file]
        self._sinks: list[sinks.Sink] = [*self._files]
        self.dropped: list[str] = []  # names of sinks that broke
        self._each(lambda sink: sink.start())
        # Events of a life that ended before it was saved are hidden as those after a checkpoint are.
        fresh = resume_at is None and not any(folder.glob("events.out.tfevents.*"))
        self._board = sinks.TensorBoard(folder, None if fresh else self._resumes_after() + 1)
        self._sinks.append(self._board)
        self._each(lambda sink: sink.start() if sink is self._board else None)

    def write(self, step: int, wall_s: float, metrics: Mapping[str, Any]) -> None:
        """Records scalars.

        Args:
            step: Environment steps.
            wall_s: Seconds since the run began, those before a resume included.
            metrics: Scalars by name; None or a non-finite number becomes null.
        """
        plain = sinks.scalars(metrics)
        self._each(lambda sink: sink.write(int(step), float(wall_s), plain))

    def episodes(self, episodes: Sequence[types.Episode], wall_s: float) -> None:
        """Records finished episodes; `wall_s` as in `write`."""
        if episodes:
            self._each(lambda sink: sink.episodes(episodes, wall_s))

    def evaluation(self, evaluated: Evaluated, wall_s: float) -> None:
        """Records an evaluation on the way; `wall_s` as in `write`."""
        kept, shown = self._evaluations, {"eval/return_mean": evaluated.return_mean}
        self._each(lambda sink: kept.take(evaluated, wall_s) if kept and sink is kept else None)
        self._each(lambda sink: sink.write(evaluated.env_steps, wall_s, shown) if sink is self._board else None)

    def tick(self, status: Status) -> None:
        """Shows the status, if it is time to; call it as often as convenient."""
        self._tell(lambda shown: shown.show(status))

    def note(self, text: str) -> None:
        """Says one line to whoever watches."""
        self._tell(lambda shown: shown.note(text))

    def fault(self, kind: str, traceback_text: str) -> None:
        """Says that something failed: a headline and the traceback."""
        self._tell(lambda shown: shown.fault(kind, traceback_text))

    def earlier(self, name: str) -> tuple[tuple[int, float], ...]:
        """(step, value) of a scalar in the lines that a resumed run kept, oldest first; none if it cannot be read."""
        try:
            return tuple(self._lines.column(name))
        except OSError:
            return ()

    def lengths(self) -> dict[str, int]:
        """Bytes of whole lines in ``metrics.jsonl`` and the CSV files: belongs into every checkpoint."""
        return {lines.name: lines.length for lines in self._files}

    def sync(self) -> None:
        """Returns when what was recorded is on the disk; call it before a checkpoint."""
        self._each(lambda sink: sink.sync())

    def close(self) -> None:
        """Ends the files and the live table; calling it twice is harmless."""
        self._each(lambda sink: sink.close())
        self._sinks = []
        self._tell(lambda shown: shown.close())

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _each(self, call: Callable[[sinks.Sink], None]) -> None:
        """Calls every sink; one that fails is closed and dropped, and that is said once."""
        for sink in tuple(self._sinks):
            try:
                call(sink)
            except OSError as error:
                self._sinks.remove(sink)
                self.dropped.append(sink.name)
                self.note(f"warning: {sink.name} is no longer written ({error.strerror or error}); the run goes on")
                with contextlib.suppress(OSError):  # nothing more can be saved from it
                    sink.close()

    def _tell(self, call: Callable[[Console], None]) -> None:
        """Calls the console; a terminal that went away must not end the run."""
        try:
            call(self._console)
        except OSError:
            self._console = Quiet()

    def _resumes_after(self) -> int:
        """The last step kept in ``metrics.jsonl``; -1 if none or it cannot be read."""
        try:
            last = self._lines.last_step()
        except (OSError, ValueError, KeyError, TypeError):
            return -1
        return -1 if last is None else last
