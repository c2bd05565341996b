"""Trials beside each other: each in a spawned process of its own, which trains one after the other.

What crosses is a few numbers and the settings of a trial; the trial itself is an ordinary run folder. A process that
dies loses the trial it was at, and is started again. They compute on the CPU, with one thread each (`supervise`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from shoal import experiment, log
from shoal.core import errors
from shoal.runs.tuning import trial, workshop
from shoal.runtimes.crew import messages, spawning, supervise, threads

LOOK = 0.2  # seconds between two looks at them
EVERY = 0.5  # seconds between two pictures that a trial sends
PATIENCE = 60.0  # seconds that those under way have to save
DIED = "its process died"


class Job(NamedTuple):
    """One trial to a rung."""

    trial: int
    place: Path
    settings: Mapping[str, Any]  # by option name
    seed: int
    steps: int  # it is to have had
    anneal: int | None  # over how many steps its rate falls; None: these


class Hired(NamedTuple):
    """What every process is made with."""

    made: experiment.Experiment  # the preset on its environment
    eval_episodes: int


class Came(NamedTuple):
    """What a trial came to; None: a signal ended it, and it was saved."""

    outcome: trial.Outcome | None


class Shown(NamedTuple):
    """What a trial under way shows."""

    kind: str  # a method of `log.Console`
    said: tuple[Any, ...]


def check(parallel: int, method: str) -> None:
    """Refuse what cannot be done beside each other.

    Raises:
        Refused: Names the option.
    """
    if parallel < 1:
        raise errors.Refused(f"--parallel {parallel} is too small; give at least 1")
    if parallel == 1:
        return
    if method == "pbt":
        raise errors.Refused(
            f"--parallel {parallel}: --method pbt trains all of its members at the same time anyway; leave it out"
        )
    if parallel > (cores := threads.cores()):
        raise errors.Refused(f"--parallel {parallel}, but this machine has {cores} cores; give at most {cores}")
    if reason := spawning.hindrance():
        raise errors.Refused(f"--parallel {parallel} starts processes, but {reason}")


def check_runtime(parallel: int, made: experiment.Experiment) -> None:
    """Refuse trials that would start processes of their own, which a process of ours may not.

    Raises:
        Refused: Names the runtime.
    """
    if parallel > 1 and experiment.processes(made):
        raise errors.Refused(
            f"--parallel {parallel}: each trial is one process, but the runtime {made.runtime} starts others; leave "
            "--parallel out, or let its trials be of another --runtime"
        )


class Slots:
    """Processes that trials are given to; a context, which leaves none of them behind."""

    def __init__(self, count: int, hired: Hired, show: Callable[[int, Shown], None]) -> None:
        """Args: `show`, called with a trial's number and what it shows."""
        self._count, self._hired, self._show = count, hired, show
        self._at: dict[int, tuple[Job, int, float]] = {}  # slot -> its job, the incarnation that has it, since when
        self._ready: set[int] = set()

    def __enter__(self) -> Slots:
        self._pool = supervise.Pool(serve, lambda *_: (self._hired,), self._count, self._died, "trial process")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            for slot in range(self._count):
                self._pool.finish(slot)
                self._pool.send(slot, None)
        self._pool.close(5.0 if kind is None else 0.0)

    @property
    def busy(self) -> bool:
        """Whether a trial is under way."""
        return bool(self._at)

    @property
    def room(self) -> bool:
        """Whether another would begin at once."""
        return bool(self._ready)

    def give(self, job: Job) -> None:
        """Begin one; there is room."""
        slot = min(self._ready)
        self._ready.remove(slot)
        self._at[slot] = job, self._pool.incarnation(slot), time.monotonic()
        self._pool.send(slot, job)
        self._pool.rests(slot)  # what it compiles, or plays, may take its time

    def take(self) -> Iterator[tuple[Job, Came]]:
        """What ended within a moment; dead processes are replaced on the way, and their trials told.

        Raises:
            GaveUp: A process dies again and again before it has begun anything.
        """
        for slot, incarnation, message in self._pool.poll(LOOK):
            if isinstance(message, messages.Ready):
                self._ready.add(slot)
                self._pool.rests(slot)
            elif slot in self._at and self._at[slot][1] == incarnation:
                self._pool.rests(slot)
                if isinstance(message, Shown):
                    self._show(self._at[slot][0].trial, message)
                else:
                    job = self._at.pop(slot)[0]
                    self._ready.add(slot)
                    self._pool.progressed(slot)
                    yield job, message
        yield from self._lost()

    def _lost(self) -> Iterator[tuple[Job, Came]]:
        for slot, (job, incarnation, since) in list(self._at.items()):
            if self._pool.incarnation(slot) != incarnation or not self._pool.alive(slot):
                del self._at[slot]
                self._pool.progressed(slot)  # it is the trial's fault, and there may be another one
                yield job, Came(trial.Outcome(None, None, trial.taken(job.place), DIED, time.monotonic() - since))
        self._ready = {slot for slot in self._ready if self._pool.alive(slot)}

    def _died(self, kind: str, story: str) -> None:
        self._show(-1, Shown("fault", (kind, story)))

    def stop(self) -> Iterator[tuple[Job, Came]]:
        """Let those under way save, and wait until they have; then none is busy."""
        until = time.monotonic() + PATIENCE
        for slot in range(self._count):
            self._pool.finish(slot)  # none is started again
        for pid in self._pool.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        while self._at and time.monotonic() < until:
            for job, came in self.take():
                if came.outcome is not None and came.outcome.why != DIED:
                    yield job, came


# ------------------------------------------------------------------------------------------------ in such a process


class _Console:
    """A `log.Console` that is elsewhere."""

    def __init__(self, link: supervise.Link) -> None:
        self._link, self._next = link, 0.0

    def show(self, status: log.Status) -> None:
        """Now and then."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY
            plain = status._replace(split=dict(status.split), workers=dict(status.workers), acting=dict(status.acting))
            self._link.send(Shown("show", (plain,)))

    def note(self, text: str) -> None:
        """At once."""
        self._link.send(Shown("note", (text,)))

    def fault(self, kind: str, text: str) -> None:
        """At once."""
        self._link.send(Shown("fault", (kind, text)))

    def close(self) -> None:
        """Nothing: there is more to come."""


def serve(link: supervise.Link, hired: Hired) -> None:
    """The life of such a process: one trial after the other.

    Args:
        link: To whom trials are told.
        hired: What they have in common.
    """
    how = trial.How(_Console(link), hired.eval_episodes, workshop.Workshop(hired.made))
    job: Job | None = None
    try:
        with trial.interruptible():
            link.send(messages.Ready(messages.peak_mb()))
            while (job := link.receive()) is not None:
                asked = trial.request(hired.made, job.settings, job.seed, job.steps)._replace(anneal=job.anneal)
                came = Came(trial.train(job.place, asked, job.steps, how))
                job = None
                link.send(came)
    except trial.Stopped:
        if job is not None:
            link.send(Came(None))
