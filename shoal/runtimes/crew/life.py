"""A worker's life, whatever it does: open, say so, wait for the start, then turn after turn; hold still when asked.

What a worker does is a `Worker`: it is given its job and its `Parent`, and takes one *turn* after the other, none of
which waits for anybody. So the same worker runs in a process of its own (`live`), or takes turns with the others in
one process (`turns.Turns`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from shoal.core import types
from shoal.runtimes.crew import closing, messages, sharing, supervise

PAUSE = 2e-4  # seconds between two looks of a worker that waits
STILL = 5e-4  # seconds between two looks of a worker that holds still


class Parent(Protocol):
    """What a worker sees of whoever started it."""

    @property
    def stopped(self) -> bool:
        """Whether this worker's role was told to end."""
        ...

    def stop(self) -> None:
        """Tell all workers of this role to end."""
        ...

    def gone(self) -> bool:
        """Whether the parent has died: nobody would ever answer."""
        ...

    def tell(self, message: Any) -> None:
        """Send a message of the runtime's own; it may be pickled."""
        ...

    def next(self) -> Any:
        """The next message from the parent; None where there is none yet and waiting for it would stop others."""
        ...


class Worker:
    """One worker of a role; what it does not say is nothing."""

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        raise NotImplementedError

    def turn(self) -> bool:
        """A stretch of work; False: nothing can be done before others have moved."""
        raise NotImplementedError

    def wait(self) -> None:
        """Let time pass after a turn in which nothing could be done."""
        time.sleep(PAUSE)

    def report(self) -> tuple[list[types.Episode], Mapping[str, float]]:
        """Episodes that ended since the last report, and the latest metrics."""
        return [], {}

    def keep(self) -> None:
        """Leave what a checkpoint needs where the parent finds it; it may be changed until the next call."""

    def finish(self) -> None:
        """Do what is left to do at the end."""

    def close(self) -> None:
        """Let go of simulators, of all of them even if one raises; what is raised here is told and undoes nothing."""


class Role(NamedTuple):
    """One kind of worker."""

    name: str  # what one of them is called where its death is told
    workers: int  # how many
    open: Callable[[Any, Parent], Worker]  # (job, parent) -> worker; a module-level function or class
    job: Callable[[int, int], Any]  # (worker, incarnation) -> what `open` is given; it can be pickled
    together: bool = True  # whether all wait until the last one is ready
    holds: bool = False  # whether they hold still for a checkpoint, and `keep`
    serves: bool = False  # whether they only answer what they are sent, and end when they are sent None
    report_s: float = 0.1  # seconds between two reports


class Signals:
    """The few words that cross at any moment: end, hold still, and who does."""

    def __init__(self, roles: list[Role]) -> None:
        """Nobody is told anything yet."""
        ends = [sum(role.workers for role in roles[: i + 1]) for i in range(len(roles))]
        self.first = {role.name: end - role.workers for role, end in zip(roles, ends, strict=True)}
        self.index = {role.name: i for i, role in enumerate(roles)}
        total = ends[-1]
        self.block = sharing.Block({"stop": ((len(roles),), "i4"), "hold": ((1,), "i8"), "held": ((total,), "i8")})

    def stop(self, role: str) -> None:
        """Tell all of a role to end."""
        self.block["stop"][self.index[role]] = 1

    def stopped(self, role: str) -> bool:
        """Whether they were told."""
        return bool(self.block["stop"][self.index[role]])

    def held(self, role: str, worker: int) -> int:
        """Number of the last checkpoint that a worker held still for."""
        return int(self.block["held"][self.first[role] + worker])


class Seat(NamedTuple):
    """Where a worker's process is among the others; all of it can be pickled."""

    block: sharing.Block  # of `Signals`
    role: int
    slot: int
    open: Callable[[Any, Parent], Worker]
    together: bool
    holds: bool
    serves: bool
    report_s: float


def live(link: supervise.Link, seat: Seat, job: Any) -> None:
    """The life of a worker in a process of its own."""
    line = _Line(link, seat)
    worker = seat.open(job, line)
    link.send(messages.Ready(messages.peak_mb()))
    if seat.together:
        link.receive()
    told, clock = time.monotonic(), time.monotonic
    while not worker.over and not link.orphaned():
        if seat.holds:
            _hold_still(seat, worker, link)
        if not worker.turn():
            worker.wait()
        if not seat.serves and clock() - told >= seat.report_s:
            told = clock()
            link.send(_report(worker, done=False))
    worker.finish()
    link.send(_report(worker, done=True))
    closing.told(worker.close, lambda kind, story: link.send(messages.Unclosed(kind, story)))


class _Line:
    """`Parent` over a pipe and shared memory."""

    def __init__(self, link: supervise.Link, seat: Seat) -> None:
        self._link, self._stop, self._role = link, seat.block["stop"], seat.role
        self.tell, self.next, self.gone = link.send, link.receive, link.orphaned

    @property
    def stopped(self) -> bool:
        return bool(self._stop[self._role])

    def stop(self) -> None:
        self._stop[self._role] = 1


def _hold_still(seat: Seat, worker: Worker, link: supervise.Link) -> None:
    """If a checkpoint is to be taken: leave what it needs, and wait until it was written."""
    hold, held = seat.block["hold"], seat.block["held"]
    asked = int(hold[0])
    if not asked or held[seat.slot] == asked:
        return
    worker.keep()
    held[seat.slot] = asked
    while hold[0] == asked and not link.orphaned():
        time.sleep(STILL)


def _report(worker: Worker, *, done: bool) -> messages.Report:
    episodes, metrics = worker.report()
    return messages.Report(episodes, metrics, messages.peak_mb(), done)
