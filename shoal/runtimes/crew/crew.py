"""A crew: the workers of one or several roles, as the parent's side of any runtime sees them.

Two forms: `Processes`, and `turns.Turns` in this process. What a runtime shares with its workers goes into their jobs;
nothing of how they are reached shows here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from shoal.core import errors, types
from shoal.runtimes.crew import life, messages, supervise

LIVES = 1_000_000  # incarnations of a worker in one life of a run, at most
STILL = 10.0  # seconds in which workers must hold still for a checkpoint
LOOK = 0.1  # seconds between two looks of the observer, at most

OnFault = Callable[[str, str], None]  # (kind, traceback)
Going = Callable[[], bool]  # asked while the parent waits: whether to go on


def number(life: int, incarnation: int) -> int:
    """An incarnation among those of all lives of a run: no seed is used twice."""
    return life * LIVES + incarnation


class Gathered(NamedTuple):
    """What workers told since the last time."""

    episodes: list[types.Episode]  # in the order of steps
    metrics: dict[str, float]  # of the last report that had some
    said: list[tuple[str, int, int, Any]]  # (role, worker, incarnation, message) of the runtime's own messages


class Crew(Protocol):
    """Workers of one or several roles; a context that never leaves one behind."""

    def begin(self, going: Going) -> bool:
        """Wait until all are ready, then start them together.

        Args:
            going: Asked a few times a second; False ends the wait.

        Returns:
            Whether all were ready, and nobody wanted it to end.
        """
        ...

    def gather(self, seconds: float = LOOK) -> Gathered:
        """What was told within so many seconds; those who died are replaced on the way.

        Raises:
            GaveUp: One died again and again without progress.
        """
        ...

    def look(self, seconds: float) -> None:
        """Let so much time pass; those who died are replaced, and what is told is kept for the next `gather`."""
        ...

    def send(self, role: str, worker: int, message: Any) -> None:
        """A message for one worker; lost without a word if it is dead."""
        ...

    def hold(self) -> np.ndarray:
        """Make all that hold still do so; which of the first role did, or do not run, ``[count]``."""
        ...

    def release(self) -> None:
        """Let them go on."""
        ...

    def stop(self, role: str) -> None:
        """Tell all of a role to end."""
        ...

    def finished(self, role: str) -> bool:
        """Whether all of a role are done."""
        ...

    def said(self, seconds: float) -> Sequence[tuple[str, int, int, Any]]:
        """As `gather`, the runtime's own messages alone; for those that serve, who report nothing."""
        ...

    def answered(self, role: str, worker: int, *, progress: bool = True) -> None:
        """Note that a worker that serves waits again: its silence is no sign of being hung.

        Args:
            role: Its role.
            worker: Its number.
            progress: Whether its answer is a sign of progress, so that earlier deaths no longer count.
        """
        ...

    def incarnation(self, role: str, worker: int) -> int:
        """How often this place was filled anew."""
        ...

    def stage(self) -> types.Stage:
        """That workers are being started, and how many of those that start together are ready."""
        ...

    def about(self, role: str) -> dict[str, Any]:
        """``up``, ``of``, ``restarts``, ``rss_mb``, ``pids``: for `types.Progress.workers`."""
        ...

    def __enter__(self) -> Crew:
        """The crew."""
        ...

    def __exit__(self, kind: Any, *_: Any) -> None:
        """Words first, then patience, then kill."""
        ...


def starting(roles: Iterable[life.Role]) -> str:
    """What a person is told while workers start, e.g. ``starting 2 workers``."""
    said = [f"{role.workers} {role.name}{'s' * (role.workers > 1)}" for role in roles]
    return f"starting {' and '.join(said)}"


class Team:
    """What both forms keep an account of."""

    def __init__(self, roles: Sequence[life.Role], on_fault: OnFault) -> None:
        self.roles = {role.name: role for role in roles}
        self._on_fault = on_fault
        self.restarts = dict.fromkeys(self.roles, 0)
        self._rss: dict[tuple[str, int], float] = {}

    def _fault(self, role: str) -> OnFault:
        def fault(kind: str, traceback: str) -> None:
            self.restarts[role] += 1
            self._on_fault(kind, traceback)

        return fault

    def _stage(self, ready: Iterable[str]) -> types.Stage:
        """Args: `ready`, the role of each that is."""
        awaited = [role for role in self.roles.values() if role.together] or list(self.roles.values())
        names = {role.name for role in awaited}
        return types.Stage(
            doing=starting(awaited),
            done=sum(name in names for name in ready),
            of=sum(role.workers for role in awaited),
        )

    def _about(self, role: str, up: int, pids: list[int]) -> dict[str, Any]:
        rss = sum(mb for (name, _), mb in self._rss.items() if name == role)
        of = self.roles[role].workers
        return {"up": up, "of": of, "restarts": self.restarts[role], "rss_mb": rss, "pids": pids}


class Processes(Team):
    """Every worker a spawned process (`supervise.Pool`)."""

    def __init__(self, roles: Sequence[life.Role], on_fault: OnFault) -> None:
        """Start them.

        Args:
            roles: The kinds of workers; a checkpoint asks the first one's.
            on_fault: Told of every death that was mended, and of simulators that could not be closed.
        """
        super().__init__(roles, on_fault)
        self._signals = life.Signals(list(roles))
        self._ready: dict[tuple[str, int], int] = {}  # (role, worker) -> the incarnation that is ready
        self._begun = False
        self._asked = 0  # checkpoints that were asked for
        self._early: list[tuple[str, int, int, Any]] = []  # told while a checkpoint was taken
        self._pools: dict[str, supervise.Pool] = {}
        try:
            for role in roles:
                self._pools[role.name] = self._start(role)
        except BaseException:
            self._close(0.0)
            raise

    def _start(self, role: life.Role) -> supervise.Pool:
        signals = self._signals

        def arguments(worker: int, incarnation: int) -> tuple[Any, ...]:
            seat = life.Seat(
                block=signals.block,
                role=signals.index[role.name],
                slot=signals.first[role.name] + worker,
                open=role.open,
                together=role.together,
                holds=role.holds,
                serves=role.serves,
                report_s=role.report_s,
            )
            return seat, role.job(worker, incarnation)

        return supervise.Pool(life.live, arguments, role.workers, self._fault(role.name), role.name)

    # ---------------------------------------------------------------- Crew

    def begin(self, going: Going) -> bool:
        """See `Crew`."""
        waiting = {
            (role.name, worker) for role in self.roles.values() for worker in range(role.workers) if role.together
        }
        goes = True
        while goes and waiting - self._ready.keys():
            for said in self._heard(LOOK):
                self._early.append(said)
            goes = going()
        if not goes:
            for name, _ in waiting:
                self._signals.stop(name)
        self._begun = True
        for name, worker in sorted(waiting):
            self._pools[name].send(worker, "go")
        return goes

    def gather(self, seconds: float = LOOK) -> Gathered:
        """See `Crew`."""
        early, self._early = self._early, []
        told = early + list(self._heard(0.0 if early else seconds))
        reports = [message for _, _, _, message in told if isinstance(message, messages.Report)]
        return Gathered(
            episodes=sorted((e for report in reports for e in report.episodes), key=lambda episode: episode.env_steps),
            metrics=next((dict(report.metrics) for report in reversed(reports) if report.metrics), {}),
            said=[said for said in told if not isinstance(said[3], messages.Report)],
        )

    def look(self, seconds: float) -> None:
        """See `Crew`."""
        self._early += self._heard(seconds)

    def send(self, role: str, worker: int, message: Any) -> None:
        """See `Crew`."""
        self._pools[role].send(worker, message)

    def hold(self) -> np.ndarray:
        """See `Crew`."""
        first = next(iter(self.roles.values()))
        whole = np.ones(first.workers, bool)
        if not (self._begun and first.holds and self._pools):
            return whole
        self._asked += 1
        self._signals.block["hold"][0] = self._asked
        until = time.monotonic() + STILL
        while (late := self._late(first)) and time.monotonic() < until:
            self._early += self._heard(0.002)
        whole[late] = False
        return whole

    def _late(self, role: life.Role) -> list[int]:
        """Workers that run and do not hold still yet."""
        pool, signals = self._pools[role.name], self._signals
        running = [
            worker for (name, worker), incarnation in self._ready.items()
            if name == role.name and pool.incarnation(worker) == incarnation and pool.alive(worker)
            and not pool.done(worker)
        ]  # fmt: skip
        return [worker for worker in running if signals.held(role.name, worker) != self._asked]

    def release(self) -> None:
        """See `Crew`."""
        self._signals.block["hold"][0] = 0

    def stop(self, role: str) -> None:
        """See `Crew`; those that wait for a common start, and are not there yet, have nothing to finish."""
        self._signals.stop(role)
        if role in self._pools:
            self._pools[role].leave_out()
            if self.roles[role].together:
                self._abandon(role)

    def _abandon(self, role: str) -> None:
        """End those that are not open yet: what they import and compile keeps them from hearing words."""
        pool = self._pools[role]
        for worker in range(self.roles[role].workers):
            if self._ready.get((role, worker)) != pool.incarnation(worker):
                pool.abandon(worker)

    def finished(self, role: str) -> bool:
        """See `Crew`."""
        return self._pools[role].finished

    def stage(self) -> types.Stage:
        """See `Crew`."""
        return self._stage(name for name, _ in self._ready)

    def about(self, role: str) -> dict[str, Any]:
        """See `Crew`."""
        pool = self._pools.get(role)
        return self._about(role, pool.up if pool else 0, pool.pids if pool else [])

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._close(5.0 if kind is None else 1.0)

    # ---------------------------------------------------------------- messages

    def _heard(self, seconds: float) -> Iterator[tuple[str, int, int, Any]]:
        """What was sent, `messages.Ready` apart; the first role that still runs is waited for."""
        for name, pool in self._pools.items():
            for worker, incarnation, message in pool.poll(0.0 if pool.finished else seconds):
                if self._noted(name, worker, incarnation, message):
                    yield name, worker, incarnation, message
            if not pool.finished:
                seconds = 0.0

    def _noted(self, name: str, worker: int, incarnation: int, message: Any) -> bool:
        """Take account of a message; whether it goes on to the runtime."""
        pool, role = self._pools[name], self.roles[name]
        if isinstance(message, messages.Ready):
            self._ready[name, worker] = incarnation
            self._rss[name, worker] = message.rss_mb
            if role.together and self._begun:  # in the place of one that died
                pool.send(worker, "go")
            elif role.together or role.serves:
                pool.rests(worker)
            return False
        if isinstance(message, messages.Unclosed):
            self._on_fault(f"{name} {worker}: {message.kind}", message.traceback)
            return False
        if isinstance(message, messages.Report):
            pool.progressed(worker)
            self._rss[name, worker] = message.rss_mb
            if message.done:
                pool.finish(worker)  # now: its end, which `poll` may see next, is no death
        return True

    def said(self, seconds: float) -> Sequence[tuple[str, int, int, Any]]:
        """See `Crew`."""
        early, self._early = self._early, []
        told = [*early, *self._heard(0.0 if early else seconds)]
        return [one for one in told if not isinstance(one[3], messages.Report)]

    def answered(self, role: str, worker: int, *, progress: bool = True) -> None:
        """See `Crew`."""
        pool = self._pools[role]
        pool.rests(worker)
        if progress:
            pool.progressed(worker)

    def incarnation(self, role: str, worker: int) -> int:
        """See `Crew`."""
        return self._pools[role].incarnation(worker)

    def _close(self, patience: float) -> None:
        """Roles in their order: bundles before the shards they wait for."""
        for role in self.roles:
            self._signals.stop(role)
        self.release()
        for name in self._pools:
            self._abandon(name)
        for name, pool in self._pools.items():
            if self.roles[name].serves:
                for worker in range(self.roles[name].workers):
                    pool.finish(worker)
                    pool.send(worker, None)
            for worker, incarnation, message in pool.close(patience):
                if isinstance(message, messages.Unclosed):
                    self._noted(name, worker, incarnation, message)
        self._pools = {}


class Watched(NamedTuple):
    """How a crew's work went."""

    startup_s: float  # until all were ready
    final: types.Progress


class Watch:
    """The parent's loop of a runtime whose workers report episodes: start together, gather, tell the observer, end."""

    def __init__(self, crew: Crew, role: str, observe: types.Observer) -> None:
        """Args: `role`, whose end is that of the work; `observe`, who is told."""
        self._crew, self._role, self._observe = crew, role, observe
        self.metrics: dict[str, float] = {}
        self._began: float | None = None
        self._ended: float | None = None

    @property
    def train_s(self) -> float:
        """Seconds of training so far; 0 before it began."""
        return (self._ended or time.monotonic()) - self._began if self._began is not None else 0.0

    def run(self, since: float, progress: Callable[[list[types.Episode]], types.Progress]) -> float:
        """Work until every worker of the role is done.

        Args:
            since: ``time.monotonic()`` when the runtime was asked to run.
            progress: Makes what the observer is told, from the episodes that ended.

        Returns:
            Seconds until all were ready.

        Raises:
            NotBegun: The observer said stop before that.
        """
        crew = self._crew
        if not crew.begin(lambda: self._observe(progress([])._replace(stage=crew.stage()))):
            raise errors.NotBegun("asked to end before the first step")
        self._began = time.monotonic()
        while not crew.finished(self._role):
            told = crew.gather()
            self.metrics = told.metrics or self.metrics
            if not self._observe(progress(told.episodes)):
                crew.stop(self._role)
            crew.release()  # a checkpoint, if one was taken, is written
        self._ended = time.monotonic()
        return self._began - since
