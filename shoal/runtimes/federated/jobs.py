"""Who was asked for what, who has answered, and which updates wait for the next step."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from shoal.core import types


class Job(NamedTuple):
    """What a party was asked for and has not answered."""

    round: int  # asynchronously counted for each party: no answer to an older job of the same version can count
    base: int  # version of the global part that it was given
    since: float  # seconds of the server's clock; nan: given in another life


class Jobs:
    """Of all parties; one job of each at most is open, and one update of each at most waits."""

    def __init__(self, parties: int) -> None:
        self.open: dict[int, Job] = {}
        self.asked: set[int] = set()  # who had a job of this round
        self.waiting: dict[int, tuple[int, np.ndarray]] = {}  # (version it was computed from, update) by party
        self.skipped = 0  # how many said this round that there is nothing
        self.given = np.zeros(parties, np.int64)  # number of the last job that each was given
        self.answered = np.zeros(parties, np.int64)  # and that each answered

    @property
    def busy(self) -> Collection[int]:
        """Who works, or waits for the next step."""
        return self.open.keys() | self.waiting.keys()

    def give(self, party: int, job: Job) -> None:
        """A party has a job from now on."""
        self.given[party] = job.round
        self.open[party] = job
        self.asked.add(party)

    def answer(self, party: int) -> None:
        """It has answered, whatever it said: nothing else from it counts for this job."""
        self.answered[party] = self.open.pop(party).round

    def forget(self) -> None:
        """All jobs that are open are lost, and will be given anew."""
        self.asked -= self.open.keys()
        self.open.clear()

    def seen(self, now: float) -> None:
        """Jobs of another life begin with this one's clock."""
        if any(math.isnan(job.since) for job in self.open.values()):
            self.open = {i: job._replace(since=now) if math.isnan(job.since) else job for i, job in self.open.items()}

    def next(self) -> None:
        """A step was taken, or given up."""
        self.waiting, self.skipped, self.asked = {}, 0, set()

    def kept(self, size: int, dtype: str) -> types.Tree:
        """What a checkpoint holds.

        Args:
            size: Of an update.
            dtype: Of an update.
        """
        parties = len(self.given)
        jobs, held = np.full((parties, 2), -1, np.int64), np.full(parties, -1, np.int64)
        updates = np.zeros((parties, size), dtype)
        for party, job in self.open.items():
            jobs[party] = job.round, job.base
        for party, (base, update) in self.waiting.items():
            held[party], updates[party] = base, update
        return {
            "open": jobs,
            "asked": np.isin(np.arange(parties), sorted(self.asked)),
            "held": held,
            "updates": updates,
            "skipped": np.array(self.skipped, np.int64),
            "given": self.given.copy(),
            "answered": self.answered.copy(),
        }

    def resume(self, kept: types.Tree) -> None:
        """Go on from `kept` of another life."""
        arrays = {name: np.array(array) for name, array in kept.items()}
        given = enumerate(arrays["open"].tolist())
        self.open = {i: Job(round, base, math.nan) for i, (round, base) in given if round >= 0}
        self.asked = set(np.flatnonzero(arrays["asked"]).tolist())
        held = enumerate(arrays["held"].tolist())
        self.waiting = {i: (base, arrays["updates"][i]) for i, base in held if base >= 0}
        self.skipped = int(arrays["skipped"])
        self.given, self.answered = arrays["given"], arrays["answered"]
