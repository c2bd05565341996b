"""One actor-learner of the hogwild runtime: what a worker does, and what it shares with the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from shoal.core import types
from shoal.monitor import asynchrony
from shoal.runtimes.crew import life, messages, observed, sharing
from shoal.runtimes.experience import finite, segments
from shoal.runtimes.hogwild import games, learning, shared_state, staleness, ticketing

KEPT = ("overlapped", "contended", "returns", "ended_at", "episodes")  # beside the state in a checkpoint


class Job(NamedTuple):
    """What an actor-learner is told when it starts; all of it can be pickled."""

    block: sharing.Block
    rebuild: Callable[[], types.Parts]
    start: learning.Start
    worker: int
    incarnation: int
    steps: int
    goal: types.Goal | None


def layout(sizes: shared_state.Sizes, workers: int, window: int, tickets: int = 0) -> sharing.Layout:
    """The shared arrays; every slot of a ``[workers]`` array has a single writer, so no count is ever lost.

    Args:
        sizes: Of the learner.
        workers: Processes.
        window: Episodes remembered for the goal.
        tickets: The most that can be recorded; 0: applies are not recorded, and take no lock.
    """
    state = shared_state.layout(sizes, workers)
    return {
        **state,
        "reading": ((workers,), "i8"),  # the version a segment under way began with, or `staleness.IDLE`
        "applying": ((workers,), "i8"),  # odd while an apply is under way
        "overlapped": ((workers,), "i8"),  # see `staleness.Watch`; of all lives of the run, as the updates are
        "contended": ((workers,), "i8"),
        "split": ((workers, len(messages.SPLIT)), "f8"),  # seconds
        "unfit": ((workers, 2), "i8"),  # rewards and observations that were not finite, of this life
        "returns": ((workers, window), "f8"),  # rings of finished episodes, for the goal
        "ended_at": ((workers, window), "i8"),  # T at their ends; 0: none yet
        "episodes": ((workers,), "i8"),
        "solved_at": ((workers,), "i8"),  # T at which a worker saw the goal met; 0: not yet
        **(ticketing.layout(state, tickets) if tickets else {}),
    }


class ActorLearner(life.Worker):
    """A learner among others: when it reads and applies, what it counts and tells."""

    def __init__(self, job: Job, parent: life.Parent) -> None:
        """Build and compile everything."""
        parts = job.rebuild()
        self.games = games.Games(learning.Compiled(parts, job.start), job.worker, job.incarnation)
        self._job, self._block, self._worker, self._parent = job, job.block, job.worker, parent
        recorded = "record" in job.block.layout
        state = len(shared_state.layout(shared_state.Sizes(0), 0))
        self._tickets = ticketing.Tickets(job.block, state) if recorded else None
        self._watch = staleness.Watch(job.block, job.worker)
        self._read_at = 0  # tickets
        self._episodes: list[types.Episode] = []
        self._dropped_in_a_row = 0
        self.games.warm_up(job.block)

    @property
    def over(self) -> bool:
        """Enough steps, the goal, or the parent's word."""
        return self._parent.stopped or sharing.total(self._block["steps"]) >= self._job.steps

    def turn(self) -> bool:
        """Snapshot, act, gradient; apply, of every game. False: others' gradients under way would grow too old."""
        clock, split, due = time.perf_counter, self._block["split"][self._worker], self.games.due
        started, inside = clock(), 0.0
        if not due:
            for segment in self._act():
                inside += segment.environment_s + segment.inference_s
                split[0] += segment.environment_s
                split[1] += segment.inference_s
                if segment.unfit != finite.NONE:
                    self._block["unfit"][self._worker] += segment.unfit
        while due and self._settle(due[0].learner):
            if len(due) == 1:
                self._block["reading"][self._worker] = staleness.IDLE
            self._note(due.popleft())
        split[2] += clock() - started - inside
        return not due

    def wait(self) -> None:
        """See `life.Worker`; the time is accounted for."""
        began = time.perf_counter()
        super().wait()
        self._block["split"][self._worker, 3] += time.perf_counter() - began

    def _act(self) -> list[segments.Segment]:
        if self._tickets:
            with self._tickets:
                self._read_at = int(self._block["tickets"][0])
                self._read()
        else:
            self._read()
        return self.games.compute()

    def _read(self) -> None:
        self._block["reading"][self._worker] = sharing.total(self._block["updates"])
        self.games.read(self._block)

    def _settle(self, learner: learning.Learner) -> bool:
        """Apply, without a lock or as the next ticket; False: not now."""
        if not self._tickets:
            if not self._may_apply():
                return False
            seen = learner.observations
            if seen is not None:
                with self._block.locked():
                    observed.absorb(self._block, seen)
            self._count(learner.settle(self._block, watch=self._watch))
            return True
        with self._tickets:
            if not self._may_apply():
                return False
            self._tickets.begin()
            flag = learning.in_turn(learner, self._block)
            self._tickets.finish(self._worker, self._job.incarnation, self._read_at, learner.steps, flag)
        self._count(flag)
        return True

    def _may_apply(self) -> bool:
        block, policy = self._block, self._job.start.staleness
        free = policy.lets_in(block["reading"], sharing.total(block["updates"]), self._worker)
        return free or self._parent.gone()  # then nobody is left who would clear the place of one that died

    def _count(self, flag: int) -> None:
        if flag != asynchrony.NON_FINITE:
            self._dropped_in_a_row = 0
            return
        self._dropped_in_a_row += 1
        if self._dropped_in_a_row >= messages.DIVERGED:
            raise FloatingPointError(f"{messages.DIVERGED} gradients in a row were not finite; lower the learning rate")

    def _note(self, done: games.Due) -> None:
        segment = done.segment
        if not segment.finished:
            return
        block, worker, steps = self._block, self._worker, done.learner.steps
        total = sharing.total(block["steps"])
        window = block["returns"].shape[1]
        for finished in segment.finished:
            at = total - steps + finished.at
            self._episodes.append(
                types.Episode(
                    env_steps=at, episode_return=finished.episode_return, length=finished.length, worker=worker
                )
            )
            place = int(block["episodes"][worker]) % window
            block["returns"][worker, place] = finished.episode_return
            block["ended_at"][worker, place] = at
            block["episodes"][worker] += 1
            if self._job.goal and not self._parent.stopped and self._job.goal.met(_latest(block, window)):
                block["solved_at"][worker] = at
                self._parent.stop()

    def report(self) -> tuple[list[types.Episode], dict[str, float]]:
        """See `life.Worker`."""
        episodes, self._episodes = self._episodes, []
        return episodes, self.games.learners[-1].metrics()

    def close(self) -> None:
        """See `life.Worker`."""
        self.games.close()


def _latest(block: sharing.Block, window: int) -> list[float]:
    """The returns of the last `window` episodes of all workers, oldest first."""
    ended = block["ended_at"].ravel().copy()  # others write it: NumPy refuses to search what changes meanwhile
    known = np.flatnonzero(ended)
    order = known[np.argsort(ended[known], kind="stable")][-window:]
    return block["returns"].ravel()[order].tolist()
