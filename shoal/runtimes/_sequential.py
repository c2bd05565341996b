"""One process that does, one ticket after the other, what several workers did at once, or could have done.

Let θ_n be the state after ticket n. Then θ_n = settle(θ_{n-1}, gradient(θ_v, stream of worker w)), where v is what the
worker had read; the stream depends only on the seed, the worker, its incarnation and what it has read before. So the
state follows from the seed and the record. Reading, computing and settling are the workers' own functions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from etils import epy

from shoal import asynchrony, types
from shoal.runtimes import _learner, _pool, _segment, _shared, _state

with epy.lazy_imports():
    from shoal import tree

SIGN_OF_LIFE = 1.0  # seconds between two reports of a replay


class Done(NamedTuple):
    """One ticket that was done."""

    ticket: int  # how many are done now
    flag: int  # what became of the gradient
    finished: list[_segment.Finished]  # episodes that ended in its segment


class Sequence:
    """The state of a run and the streams of its workers, stepped by a record."""

    def __init__(
        self,
        parts: types.Parts,
        start: _learner.Start,
        layout: _shared.Layout,
        first: Mapping[str, np.ndarray],
    ) -> None:
        """Begin.

        Args:
            parts: The agent and its environment.
            start: What learners begin with.
            layout: Of the state.
            first: What of it is not zero.
        """
        self._compiled, self._first = _learner.Compiled(parts, start), first
        self.state = {name: np.zeros(shape, dtype) for name, (shape, dtype) in layout.items()}
        self._learners: dict[int, tuple[int, _learner.Learner]] = {}  # worker -> incarnation, learner
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
                kept[n] = {name: self.state[name].copy() for name in _state.SEEN}
            learner = self._learner(worker, incarnation)
            learner.read(kept[read])
            if last[read] == n:
                del kept[read]
            segment = learner.compute()
            became = _learner.in_turn(learner, self.state, None if judge else flag)
            self.state["tickets"][0] += 1
            yield Done(n + 1, became, segment.finished)

    def params(self) -> types.Params:
        """The parameters now; a copy."""
        return self._compiled.flat.unflatten(self.state["theta"].copy())

    def close(self) -> None:
        """Release the simulators."""
        for _, learner in self._learners.values():
            learner.segments.close()
        self._learners = {}

    def _learner(self, worker: int, incarnation: int) -> _learner.Learner:
        known = self._learners.get(worker)
        if known is None or known[0] != incarnation:
            if known:
                known[1].segments.close()  # it died; what it had not applied is lost here as it was there
            known = incarnation, _learner.Learner(self._compiled, worker, incarnation)
            self._learners[worker] = known
        return known[1]


# ------------------------------------------------------------------------------------------------ in a process


class Job(NamedTuple):
    """What a process needs to do a record; all of it can be pickled."""

    rebuild: Callable[[], types.Parts]
    start: _learner.Start
    layout: _shared.Layout
    first: Mapping[str, np.ndarray]
    record: asynchrony.Record
    looks: list[int]  # tickets after which the parameters are to be told, ascending


class Reached(NamedTuple):
    """How far it is, and what the parameters are where that was asked for."""

    tickets: int
    sha256: str | None


def work(link: _pool.Link, job: Job) -> None:
    """The life of a process that does a record: started as workers are, so that it computes as they did."""
    sequence = Sequence(job.rebuild(), job.start, job.layout, job.first)
    looks, told = set(job.looks), time.monotonic()
    if 0 in looks:
        link.send(Reached(0, tree.sha256(sequence.params())))
    for done in sequence.run(job.record):
        if done.ticket in looks:
            link.send(Reached(done.ticket, tree.sha256(sequence.params())))
        elif time.monotonic() - told > SIGN_OF_LIFE:
            link.send(Reached(done.ticket, None))
            told = time.monotonic()
    sequence.close()
    link.send(Reached(job.record.tickets, None))


def apart(job: Job) -> Iterator[Reached]:
    """The same from outside: what it tells, until it is through.

    Raises:
        RuntimeError: The process died.
    """

    def died(kind: str, story: str) -> None:
        raise RuntimeError(f"the replay failed: {kind}\n{story}")

    pool, stop = _pool.Pool(work, lambda *_: (job,), 1, died), False
    try:
        while not stop:
            for _, _, reached in pool.poll(0.1):
                yield reached
                stop = reached.tickets == job.record.tickets and reached.sha256 is None
                if stop:
                    pool.finish(0)
    finally:
        pool.close(5.0 if stop else 0.0)
