"""One process that does, one ticket after the other, what several workers did at once, or could have done.

Let θ_n be the state after ticket n. Then θ_n = settle(θ_{n-1}, gradient(θ_v, stream of worker w)), where v is what the
worker had read; the stream depends only on the seed, the worker, its incarnation and what it has read before. So the
state follows from the seed and the record. Reading, computing and settling are the workers' own functions.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epy

from shoal.core import types
from shoal.monitor import asynchrony
from shoal.runtimes.crew import crew, life, sharing
from shoal.runtimes.experience import segments
from shoal.runtimes.hogwild import games, learning, shared_state

with epy.lazy_imports():
    from shoal.core import tree

SIGN_OF_LIFE = 1.0  # seconds between two reports of a replay


class Done(NamedTuple):
    """One ticket that was done."""

    ticket: int  # how many are done now
    flag: int  # what became of the gradient
    finished: list[segments.Finished]  # episodes that ended in its segment


class Sequence:
    """The state of a run and the streams of its workers, stepped by a record."""

    def __init__(
        self,
        parts: types.Parts,
        start: learning.Start,
        layout: sharing.Layout,
        first: Mapping[str, np.ndarray],
    ) -> None:
        """Begin.

        Args:
            parts: The agent and its environment.
            start: What learners begin with.
            layout: Of the state.
            first: What of it is not zero.
        """
        self._compiled, self._first = learning.Compiled(parts, start), first
        self.state = {name: np.zeros(shape, dtype) for name, (shape, dtype) in layout.items()}
        self._learners: dict[int, tuple[int, games.Games]] = {}  # worker -> incarnation, what it plays
        self.begin()

    def begin(self) -> None:
        """Back to the beginning, with what is compiled already."""
        self.close()
        for name, array in self.state.items():
            array[...] = self._first.get(name, 0)

    def run(self, record: asynchrony.Record, judge: bool = False) -> Iterator[Done]:
        """Do the tickets of a record, from the first.

        Args:
            record: Of a run, or made up. Only states that are still to be read are kept.
            judge: Decide anew what becomes of each gradient, instead of following the record's flags.
        """
        reads = record.read.tolist()
        last = {read: n for n, read in enumerate(reads)}  # the ticket that reads a state last
        kept: dict[int, dict[str, np.ndarray]] = {}
        rows = zip(record.worker.tolist(), record.incarnation.tolist(), reads, record.flag.tolist(), strict=True)
        for n, (worker, incarnation, read, flag) in enumerate(rows):
            if n in last:
                kept[n] = {name: self.state[name].copy() for name in shared_state.SEEN}
            played = self._games(worker, incarnation)
            if not played.due:  # or an earlier ticket read for all its games
                played.read(kept[read])
                played.compute()
            if last[read] == n:
                del kept[read]
            learner, segment = played.due.popleft()
            became = learning.in_turn(learner, self.state, None if judge else flag)
            self.state["tickets"][0] += 1
            yield Done(n + 1, became, segment.finished)

    def params(self) -> types.Params:
        """The parameters now; a copy."""
        return self._compiled.flat.unflatten(self.state["theta"].copy())

    def close(self) -> None:
        """Release the simulators."""
        learners, self._learners = self._learners, {}
        for _, played in learners.values():
            _quietly(played)

    def _games(self, worker: int, incarnation: int) -> games.Games:
        known = self._learners.get(worker)
        if known is None or known[0] != incarnation:
            if known:
                _quietly(known[1])  # it died; what it had not applied is lost here as it was there
            known = incarnation, games.Games(self._compiled, worker, incarnation)
            self._learners[worker] = known
        return known[1]


def _quietly(played: games.Games) -> None:
    """Release its simulators; what that raises was told by the run that is repeated."""
    with contextlib.suppress(Exception):
        played.close()


# ------------------------------------------------------------------------------------------------ in a process


class Job(NamedTuple):
    """What a process needs to do a record; all of it can be pickled."""

    rebuild: Callable[[], types.Parts]
    start: learning.Start
    layout: sharing.Layout
    first: Mapping[str, np.ndarray]
    record: asynchrony.Record
    looks: list[int]  # tickets after which the parameters are to be told, ascending


class Reached(NamedTuple):
    """How far it is, and what the parameters are where that was asked for."""

    tickets: int
    sha256: str | None


class Replaying(life.Worker):
    """Does a record, a ticket a turn: started as workers are, so that it computes as they did."""

    def __init__(self, job: Job, parent: life.Parent) -> None:
        """Nothing is done yet."""
        self._sequence = Sequence(job.rebuild(), job.start, job.layout, job.first)
        self._parent, self._looks, self._tickets = parent, set(job.looks), job.record.tickets
        self._done = self._sequence.run(job.record)
        self._told, self._over = time.monotonic(), False
        if 0 in self._looks:
            self._tell(0)

    @property
    def over(self) -> bool:
        """The record is done."""
        return self._over

    def turn(self) -> bool:
        """One ticket."""
        done = next(self._done, None)
        if done is None:
            self._over = True
            self._parent.tell(Reached(self._tickets, None))
        elif done.ticket in self._looks:
            self._tell(done.ticket)
        elif time.monotonic() - self._told > SIGN_OF_LIFE:
            self._parent.tell(Reached(done.ticket, None))
            self._told = time.monotonic()
        return True

    def _tell(self, ticket: int) -> None:
        self._parent.tell(Reached(ticket, tree.sha256(self._sequence.params())))

    def close(self) -> None:
        """See `life.Worker`."""
        self._sequence.close()


def apart(job: Job, form: Any = crew.Processes) -> Iterator[Reached]:
    """The same from outside, in a process of its own: what it tells, until it is through.

    Args:
        job: What is to be done.
        form: Of the crew of one.

    Raises:
        RuntimeError: The process died.
    """

    def died(kind: str, story: str) -> None:
        raise RuntimeError(f"the replay failed: {kind}\n{story}")

    role = life.Role(name="worker", workers=1, open=Replaying, job=lambda *_: job, together=False, report_s=1.0)
    with form([role], died) as team:
        while not team.finished("worker"):
            for _, _, _, reached in team.said(crew.LOOK):
                yield reached
