"""One actor-learner of the hogwild runtime: what a spawned process does, and what it shares with the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from shoal import asynchrony, types
from shoal.runtimes import _learner, _pool, _segment, _shared, _staleness, _state, _tickets

SPLIT = ("environment", "inference", "learning", "waiting")
DIVERGED = 1000  # non-finite gradients in a row after which a worker gives up
PAUSE = 2e-4  # seconds between two looks of a worker that waits
KEPT = ("overlapped", "contended", "returns", "ended_at", "episodes")  # beside the state in a checkpoint


class Job(NamedTuple):
    """What a worker is told when it starts; all of it can be pickled."""

    block: _shared.Block
    rebuild: Callable[[], types.Parts]
    start: _learner.Start
    worker: int
    incarnation: int
    steps: int
    goal: types.Goal | None
    report_s: float


class Ready(NamedTuple):
    """A worker has compiled and waits for the start."""


class Report(NamedTuple):
    """What a worker tells a few times a second; the last one when it is done."""

    episodes: list[types.Episode]
    metrics: dict[str, float]
    rss_mb: float
    done: bool


def layout(sizes: _state.Sizes, workers: int, window: int, tickets: int = 0) -> _shared.Layout:
    """The shared arrays; every slot of a ``[workers]`` array has a single writer, so no count is ever lost.

    Args:
        sizes: Of the learner.
        workers: Processes.
        window: Episodes remembered for the goal.
        tickets: The most that can be recorded; 0: applies are not recorded, and take no lock.
    """
    state = _state.layout(sizes, workers)
    return {
        **state,
        "reading": ((workers,), "i8"),  # the version a segment under way began with, or `_staleness.IDLE`
        "applying": ((workers,), "i8"),  # odd while an apply is under way
        "overlapped": ((workers,), "i8"),  # see `_staleness.Watch`; of all lives of the run, as the updates are
        "contended": ((workers,), "i8"),
        "split": ((workers, len(SPLIT)), "f8"),  # seconds
        "returns": ((workers, window), "f8"),  # rings of finished episodes, for the goal
        "ended_at": ((workers, window), "i8"),  # T at their ends; 0: none yet
        "episodes": ((workers,), "i8"),
        "solved_at": ((workers,), "i8"),  # T at which a worker saw the goal met; 0: not yet
        "stop": ((1,), "i4"),
        **(_tickets.layout(state, tickets) if tickets else {}),
    }


def work(link: _pool.Link, job: Job) -> None:
    """A worker's life: build, compile, wait for the start, then segment after segment."""
    parts = job.rebuild()
    worker = _Worker(_learner.Learner(_learner.Compiled(parts, job.start), job.worker, job.incarnation), job, link)
    worker.learner.warm_up(job.block)
    link.send(Ready())
    link.receive()
    while not worker.over() and not link.orphaned():
        worker.cycle()
        worker.tell()
    link.send(worker.report(done=True))
    worker.learner.segments.close()


class _Worker:
    """A learner among others: when it reads and applies, what it counts and tells."""

    def __init__(self, learner: _learner.Learner, job: Job, link: _pool.Link) -> None:
        self.learner, self._job, self._block, self._worker = learner, job, job.block, job.worker
        self._link, self._told = link, time.monotonic()
        recorded = "record" in job.block.layout
        self._tickets = _tickets.Tickets(job.block, len(_state.layout(_state.Sizes(0), 0))) if recorded else None
        self._watch = _staleness.Watch(job.block, job.worker)
        self._read_at = 0  # tickets
        self._episodes: list[types.Episode] = []
        self._dropped_in_a_row = 0

    def over(self) -> bool:
        """Whether the run is to end: enough steps, the goal, or the parent's word."""
        block = self._block
        return bool(block["stop"][0]) or int(block["steps"].sum()) >= self._job.steps

    def cycle(self) -> None:
        """Snapshot, act, gradient, apply."""
        block, clock = self._block, time.perf_counter
        started = clock()
        if self._tickets:
            with self._tickets:
                self._read_at = int(block["tickets"][0])
                self._read()
        else:
            self._read()
        segment = self.learner.compute()
        waited = self._settle_in_turn() if self._tickets else self._settle_at_once()
        block["reading"][self._worker] = _staleness.IDLE
        self._note(segment)
        split = block["split"][self._worker]
        split[0] += segment.environment_s
        split[1] += segment.inference_s
        split[2] += clock() - started - segment.environment_s - segment.inference_s - waited
        split[3] += waited

    def _read(self) -> None:
        self._block["reading"][self._worker] = int(self._block["updates"].sum())
        self.learner.read(self._block)

    def _settle_at_once(self) -> float:
        """Apply without a lock; returns the seconds it had to wait."""
        waited = 0.0
        while not self._may_apply():
            waited += self._rest()
        seen = self.learner.observations
        if seen is not None:
            with self._block.locked():
                _state.absorb(self._block, seen)
        self._count(self.learner.settle(self._block, watch=self._watch))
        return waited

    def _settle_in_turn(self) -> float:
        """Take the next ticket; returns the seconds it had to wait for the others' lag, the lock's apart."""
        assert self._tickets is not None
        waited = 0.0
        while True:
            with self._tickets:
                if self._may_apply():
                    self._tickets.begin()
                    flag = _learner.in_turn(self.learner, self._block)
                    self._tickets.finish(self._worker, self._job.incarnation, self._read_at, self.learner.steps, flag)
                    break
            waited += self._rest()
        self._count(flag)
        return waited

    def _may_apply(self) -> bool:
        block, policy = self._block, self._job.start.staleness
        free = policy.lets_in(block["reading"], int(block["updates"].sum()), self._worker)
        return free or self._link.orphaned()  # then nobody is left who would clear the place of one that died

    def _rest(self) -> float:
        """A moment's sleep of a worker that waits; the seconds it took."""
        began = time.perf_counter()
        self.tell()
        time.sleep(PAUSE)
        return time.perf_counter() - began

    def _count(self, flag: int) -> None:
        if flag != asynchrony.NON_FINITE:
            self._dropped_in_a_row = 0
            return
        self._dropped_in_a_row += 1
        if self._dropped_in_a_row >= DIVERGED:
            raise FloatingPointError(f"{DIVERGED} gradients in a row were not finite; lower the learning rate")

    def _note(self, segment: _segment.Segment) -> None:
        if not segment.finished:
            return
        block, worker, steps = self._block, self._worker, self.learner.steps
        total = int(block["steps"].sum())
        window = block["returns"].shape[1]
        for finished in segment.finished:
            at = total - steps + finished.at
            self._episodes.append(types.Episode(at, finished.episode_return, finished.length, worker))
            place = int(block["episodes"][worker]) % window
            block["returns"][worker, place] = finished.episode_return
            block["ended_at"][worker, place] = at
            block["episodes"][worker] += 1
            if self._job.goal and not block["stop"][0] and self._job.goal.met(_latest(block, window)):
                block["solved_at"][worker] = at
                block["stop"][0] = 1

    def tell(self) -> None:
        """Send a report if one is due."""
        if time.monotonic() - self._told >= self._job.report_s:
            self._link.send(self.report(done=False))
            self._told = time.monotonic()

    def report(self, done: bool) -> Report:
        """What happened since the last report."""
        import resource

        episodes, self._episodes = self._episodes, []
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return Report(episodes, self.learner.metrics(), rss, done)


def _latest(block: _shared.Block, window: int) -> list[float]:
    """The returns of the last `window` episodes of all workers, oldest first."""
    ended = block["ended_at"].ravel().copy()  # others write it: NumPy refuses to search what changes meanwhile
    known = np.flatnonzero(ended)
    order = known[np.argsort(ended[known], kind="stable")][-window:]
    return block["returns"].ravel()[order].tolist()
