"""When a checkpoint is written, and what: the state, what the run says of itself, the artefacts of its runtime."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shoal.core import errors, types
from shoal.runs import checkpoint, run_folder

EVERY = 20.0  # seconds between checkpoints at least; the environment variable SHOAL_SAVE_EVERY overrides it
FIRST = 1.0  # seconds of training before a run's first: a kill soon after the start must not cost the start-up


class Saver:
    """The checkpoints of one run."""

    def __init__(
        self, folder: Path, resumed: checkpoint.Loaded | None, together: int, every: float | None = None
    ) -> None:
        """Begin, or go on.

        Args:
            folder: The run folder.
            resumed: The checkpoint that the run goes on from; None for a new one.
            together: Seeds that share the program, and so the time that saving may take.
            every: As `types.Ways.save_every` of its runtime.
        """
        self._folder, self._meta, self._together = folder, resumed.meta if resumed else None, together
        self._every = save_every(every)
        self._saved: checkpoint.Saved | None = None  # the newest of this life
        self._newest = resumed.folder.name if resumed else None
        self._saved_at = _written(resumed) if resumed else 0.0  # ``time.time()`` at the newest
        self._tried_at: float | None = time.monotonic() if resumed else None  # None: a new run that has tried none
        self._known: dict[str, types.Artefact] = {}  # of this life, by the file's name

    @property
    def newest(self) -> str | None:
        """The name of the newest checkpoint, maybe of an earlier life."""
        return self._newest

    @property
    def age_s(self) -> float | None:
        """Seconds since it was written."""
        return max(0.0, time.time() - self._saved_at) if self._newest else None

    def take(self, progress: types.Progress) -> None:
        """Show artefacts that are seen for the first time the folder; in a resumed run they go on from their files.

        Raises:
            Refused: A file is lost, or does not reach as far as the checkpoint the run goes on from.
        """
        for name, artefact in progress.artefacts.items():
            if name not in self._known:
                artefact.take_up(self._folder, self._meta or {})
            self._known[name] = artefact

    def due(self, progress: types.Progress, now: float) -> bool:
        """Whether the next may be written: a run's first soon, the others not too soon and at little cost."""
        if not progress.updates:
            return False
        if self._tried_at is None:
            return progress.train_s >= min(FIRST, self._every)
        pace = self._saved.seconds * self._together if self._saved and self._every else 0.0
        return checkpoint.due(pace, now - self._tried_at, self._every)

    def save(self, progress: types.Progress, said: Callable[[], Mapping[str, Any]]) -> None:
        """Write one.

        Args:
            progress: Of now.
            said: What it says of the run.

        Raises:
            NotSaved: It could not be written, or an artefact of it; the older ones are intact.
            NonFiniteError: The state must not become one to go on from.
        """
        state = progress.save()
        began = time.perf_counter()
        try:
            meta = {**self._artefacts(progress), **said(), "saved_at": time.time()}
            before = time.perf_counter() - began
            saved = checkpoint.save(self._folder / "checkpoints", progress.env_steps, state, meta)
            self._saved, self._saved_at = saved._replace(seconds=saved.seconds + before), time.time()
            self._newest = saved.folder.name
        finally:
            self._tried_at = time.monotonic()

    def _artefacts(self, progress: types.Progress) -> dict[str, Any]:
        """Write them, at least as long as the state; what the checkpoint says of them.

        Raises:
            NotSaved: One could not be written; a checkpoint that goes beyond it could not be resumed.
        """
        meta: dict[str, Any] = {}
        for name, artefact in progress.artefacts.items():
            about = {"versions": run_folder.versions(), "machine": run_folder.machine()}
            try:
                meta |= artefact.write(self._folder, about)
            except OSError as error:
                raise checkpoint.NotSaved(f"{self._folder}/{name} could not be written: {error}") from None
        return meta


def _written(resumed: checkpoint.Loaded) -> float:
    """``time.time()`` when a checkpoint was; of one that does not say, its file's."""
    try:
        return float(resumed.meta.get("saved_at") or resumed.folder.stat().st_mtime)
    except OSError:
        return time.time()


def save_every(declared: float | None = None) -> float:
    """Seconds between checkpoints at least: the environment variable SHOAL_SAVE_EVERY, or what is declared.

    0 saves at every report of the runtime, whatever saving costs.

    Args:
        declared: As `types.Ways.save_every`; None: `EVERY`.

    Raises:
        Refused: The variable does not hold a number of seconds.
    """
    given = os.environ.get("SHOAL_SAVE_EVERY", str(EVERY if declared is None else declared))
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds < float("inf"):
        raise errors.Refused(f"SHOAL_SAVE_EVERY={given!r} is no number of seconds; give e.g. 20, or unset it")
    return seconds
