"""A supervised pool of spawned processes: restart with back-off, tracebacks brought home, no orphan.

Every runtime with worker processes uses it. Workers are spawned (JAX deadlocks after a fork), run XLA and BLAS on one
thread, share JAX's compilation cache, ignore the terminal's signals (stopping is the parent's business) and die with
their parent, however it ends: they are bound to it before they import what they work with. No more start at once than
there are cores, for importing and compiling keep one busy each; so the parent hears signals meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import multiprocessing
import multiprocessing.connection
import multiprocessing.reduction
import multiprocessing.resource_tracker
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from shoal.core import compilation, errors
from shoal.runtimes.crew import threads

SINGLE_THREADED = {
    "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen=false {compilation.SCHEDULER}",
    "NPROC": "1",  # size of XLA's own thread pools
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
}
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # the parent's business
DEATHS = 5  # without a sign of progress between them: a crash loop
FIRST_WAIT = 0.1  # seconds before a restart; twice as many after each further death of a crash loop
SILENCE = 120.0  # seconds without a message after which a worker is taken for hung
FIRST = 5  # times that before its first message: many workers compile at once on few cores


Said = tuple[int, int, Any]  # worker, incarnation, message


class Failed(NamedTuple):
    """What a worker sends before it ends on an exception."""

    traceback: str


class Link:
    """A worker's end of the pool: messages to the parent, and whether the parent still lives."""

    def __init__(self, connection: Any, parent: int) -> None:
        self._connection = connection
        self._parent = parent

    def send(self, message: Any) -> None:
        """Send one message; a vanished parent ends the worker."""
        try:
            self._connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            os._exit(1)

    def receive(self) -> Any:
        """Wait for one message."""
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError):
            os._exit(1)

    def orphaned(self) -> bool:
        """Whether the parent is gone (where the kernel does not end its children by itself)."""
        return os.getppid() != self._parent


class _Later:
    """What a worker is to do, which arrives as bytes: reading them imports all that it needs."""

    def __init__(self, work: object) -> None:
        self._work = work

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        # Within the start of a process, which alone may hand over files: so it is not done before.
        return bytes, (bytes(multiprocessing.reduction.ForkingPickler.dumps(self._work)),)


def _serve(connection: Any, parent: int, work: bytes) -> None:
    """The life of a worker process."""
    _die_with(parent)
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    link = Link(connection, parent)
    try:
        target, arguments = multiprocessing.reduction.ForkingPickler.loads(work)
        target(link, *arguments)
    except BaseException:  # noqa: BLE001  whatever it was goes to the parent, then ends this process
        link.send(Failed(traceback.format_exc()))
        sys.exit(1)


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


class _Worker:
    """One place in the pool: the process that fills it now, and its history."""

    def __init__(self) -> None:
        self.process: Any = None
        self.connection: Any = None
        self.incarnation = -1
        self.deaths = 0  # since the last message that showed progress
        self.start_at = 0.0  # monotonic seconds; when it may be started (again)
        self.heard = 0.0  # monotonic seconds; infinite while it waits for a message
        self.begun = False  # whether this incarnation has said anything
        self.traceback = ""
        self.finished = False


class Pool:
    """``count`` workers running ``target(link, *arguments(worker, incarnation))``, kept alive.

    Args:
        target: A module-level function.
        arguments: Makes the (picklable) arguments of one incarnation of one worker.
        count: How many workers.
        on_fault: Called with ``(kind, traceback)`` for every death that was mended.
        noun: What one of them is called where its death is told.
    """

    def __init__(
        self,
        target: Callable[..., None],
        arguments: Callable[[int, int], tuple[Any, ...]],
        count: int,
        on_fault: Callable[[str, str], None],
        noun: str = "worker",
    ) -> None:
        self._target, self._arguments, self._on_fault, self._noun = target, arguments, on_fault, noun
        self._context = multiprocessing.get_context("spawn")
        self._workers = [_Worker() for _ in range(count)]
        self._listened = time.monotonic()  # until then
        try:
            self._start_some()
        except BaseException:
            self.close(0.0)
            raise

    @property
    def up(self) -> int:
        """Workers that are alive."""
        return sum(w.process is not None and w.process.is_alive() for w in self._workers)

    @property
    def finished(self) -> bool:
        """Whether every worker was told to be done (`finish`)."""
        return all(w.finished for w in self._workers)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that run."""
        return [w.process.pid for w in self._workers if w.process is not None and w.process.is_alive()]

    def alive(self, worker: int) -> bool:
        """Whether the process of this place runs."""
        process = self._workers[worker].process
        return process is not None and process.is_alive()

    def incarnation(self, worker: int) -> int:
        """How often this place was filled anew."""
        return self._workers[worker].incarnation

    def done(self, worker: int) -> bool:
        """Whether a worker has ended its work."""
        return self._workers[worker].finished

    def finish(self, worker: int) -> None:
        """Note that a worker has ended its work: its death is none."""
        self._workers[worker].finished = True

    def rests(self, worker: int) -> None:
        """Note that a worker waits for a message: until one is sent, its silence is no sign of being hung."""
        self._workers[worker].heard = math.inf

    def send(self, worker: int, message: Any) -> None:
        """Send a message; lost without a word if the worker is dead, which `poll` will find.

        Silence counts from now on: who was asked nothing had nothing to say.
        """
        w = self._workers[worker]
        w.heard = time.monotonic()
        if w.connection is not None:
            with contextlib.suppress(OSError):
                w.connection.send(message)

    def poll(self, timeout: float) -> Iterator[Said]:
        """Messages as ``(worker, incarnation, message)``; dead and hung workers are replaced on the way.

        A silence in which nobody listened for long does not count: workers hold still for a checkpoint as long as that
        takes to write.

        Raises:
            GaveUp: A worker died `DEATHS` times without progress.
        """
        now = time.monotonic()
        for w in self._workers:
            if now - self._listened > SILENCE / 2:
                w.heard = max(w.heard, now)
        self._start_some()
        sources = {w.connection: i for i, w in enumerate(self._workers) if w.connection is not None}
        sentinels = {w.process.sentinel: i for i, w in enumerate(self._workers) if w.process is not None}
        ready = multiprocessing.connection.wait([*sources, *sentinels], timeout)
        for source in ready:
            if source in sources:
                yield from self._receive(sources[source])
        for i, w in enumerate(self._workers):
            if w.process is not None and not w.process.is_alive():
                yield from self._receive(i)  # what it sent last
                self._bury(i)
            elif w.process is not None and time.monotonic() - w.heard > SILENCE:
                w.traceback = f"{self._noun} {i} gave no sign of life for {SILENCE:.0f} s or more and was killed"
                w.process.kill()
        self._listened = time.monotonic()

    def progressed(self, worker: int) -> None:
        """Note a sign of progress: earlier deaths no longer count towards a crash loop."""
        self._workers[worker].deaths = 0

    def close(self, patience: float = 5.0) -> list[Said]:
        """End every worker: wait `patience` seconds in all, then kill.

        Returns:
            What they said until then, as from `poll`.
        """
        until = time.monotonic() + patience
        said: list[Said] = []
        for i, w in enumerate(self._workers):
            if w.process is not None:
                said += self._last_words(i, until)
                w.process.join(max(0.0, until - time.monotonic()))
                if w.process.is_alive():
                    w.process.kill()
                    w.process.join()
                w.process.close()
                w.connection.close()
                w.process = w.connection = None
        return said

    def _last_words(self, worker: int, until: float) -> Iterator[Said]:
        """What one says until it ends; read as it comes, for a full pipe would keep it from ending."""
        w = self._workers[worker]
        sources = [w.process.sentinel, w.connection]
        while w.process.is_alive() and (left := until - time.monotonic()) > 0:
            ready = multiprocessing.connection.wait(sources, left)
            said = list(self._receive(worker))
            if w.connection in ready and not said:  # the end of its pipe
                sources = [w.process.sentinel]
            yield from said
        yield from self._receive(worker)

    def abandon(self, worker: int) -> None:
        """Kill one that has nothing to lose, and fill its place no more."""
        w = self._workers[worker]
        w.finished = True
        if w.process is not None:
            w.process.kill()

    def leave_out(self) -> None:
        """Let those be that were never started: there is nothing left for them to do."""
        for w in self._workers:
            w.finished = w.finished or w.incarnation < 0

    def _start_some(self) -> None:
        """Those whose time has come, as long as no more start at once than there are cores."""
        now = time.monotonic()
        room = threads.cores() - sum(w.process is not None and not w.begun for w in self._workers)
        due = [i for i, w in enumerate(self._workers) if w.process is None and not w.finished and now >= w.start_at]
        for worker in due[: max(0, room)]:
            self._start(worker)

    def _start(self, worker: int) -> None:
        w = self._workers[worker]
        w.incarnation += 1
        w.traceback, w.begun = "", False
        ours, theirs = self._context.Pipe()
        work = _Later((self._target, self._arguments(worker, w.incarnation)))
        arguments = (theirs, os.getpid(), work)
        w.process = self._context.Process(
            target=_serve, args=arguments, daemon=True, name=f"shoal-{self._noun}-{worker}"
        )
        multiprocessing.resource_tracker.ensure_running()  # now, for it unblocks signals when it starts
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # inherited: a Ctrl-C must not meet half a worker
        try:
            with single_threaded():
                w.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # or a death would not be seen as an end of the pipe
        w.connection, w.heard = ours, time.monotonic() + (FIRST - 1) * SILENCE

    def _receive(self, worker: int) -> Iterator[Said]:
        w = self._workers[worker]
        try:
            while w.connection is not None and w.connection.poll():
                message = w.connection.recv()
                w.heard, w.begun = time.monotonic(), True
                if isinstance(message, Failed):
                    w.traceback = message.traceback
                else:
                    yield worker, w.incarnation, message
        except (EOFError, OSError):
            return  # its death is handled where processes are looked at

    def _bury(self, worker: int) -> None:
        w = self._workers[worker]
        code = w.process.exitcode
        w.process.close()
        w.connection.close()
        w.process = w.connection = None
        if w.finished:
            return
        w.deaths += 1
        ending = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        story = w.traceback.rstrip() or f"{self._noun} {worker} ended without a traceback ({ending})"
        if w.deaths >= DEATHS:
            raise errors.GaveUp(
                f"{self._noun} {worker} died {w.deaths} times without progress; the last time:\n{story}"
            )
        wait = FIRST_WAIT * 2 ** (w.deaths - 1)
        w.start_at = time.monotonic() + wait
        self._on_fault(f"{self._noun} {worker} died ({ending}); restarting it in {wait:.1f} s", story)


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """The environment in which workers start; restored afterwards, this process is not concerned."""
    before = {name: os.environ.get(name) for name in SINGLE_THREADED}
    os.environ.update(SINGLE_THREADED)
    os.environ["XLA_FLAGS"] = f"{before['XLA_FLAGS'] or ''} {SINGLE_THREADED['XLA_FLAGS']}".strip()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
