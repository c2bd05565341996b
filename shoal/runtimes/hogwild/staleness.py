"""How old gradients are when they are applied, how old they may be, and whether applies met in memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

IDLE = -1  # instead of the version read: no segment is under way
SAMPLE = 16  # parameters watched for a second writer, at most


class Policy(NamedTuple):
    """What to do about old gradients."""

    limit: int  # versions between read and apply; 0: no limit
    waits: bool  # others wait, so that none grows older; False: older ones are dropped

    def drops(self, lag: int) -> bool:
        """Whether a gradient is too old to be applied."""
        return 0 < self.limit < lag and not self.waits

    def lets_in(self, reading: np.ndarray, version: int, worker: int) -> bool:
        """Whether a worker may apply now without making any other gradient under way too old.

        The others are served oldest first: the i-th of them (from 0) could be applied at version + 1 + i, so nobody
        is let in who would leave one of them too late. The oldest itself is always let in if the limit is at least
        workers - 1, so some worker always goes on.

        Args:
            reading: ``[workers]`` i8, the version each segment under way began with, or `IDLE`.
            version: Applies so far.
            worker: Who asks.
        """
        if not (self.limit and self.waits):
            return True
        others = np.delete(reading, worker)
        others = np.sort(others[others != IDLE])
        return bool((version + 1 + np.arange(len(others)) - others <= self.limit).all())


class Watch:
    """Counts, during the applies of one worker, what other workers wrote at the same time.

    * ``overlapped``: applies during which another apply was under way, by the slots that every worker sets to an odd
      number when it begins and to an even one when it ends. Only in these can anything have been lost.
    * ``contended``: of the parameters watched at each apply (`watched`), those that were not what this worker alone
      would have left, so that another wrote them meanwhile. Of two such writes one may be lost, or neither; so the
      share of parameters contended is an upper bound on the share of element updates lost.
    """

    def __init__(self, shared: Any, worker: int) -> None:
        self._shared, self._worker, self._slots = shared, worker, shared["applying"]
        self._every = -(-len(shared["theta"]) // SAMPLE)
        self._sample = shared["theta"][:: self._every]  # a view
        self._before, self._after = np.empty_like(self._sample), np.empty_like(self._sample)
        self._others: list[int] = []
        self._alone = len(self._slots) == 1

    def begin(self) -> None:
        """Just before the apply."""
        if not self._alone:
            self._slots[self._worker] += 1
            self._others = self._slots.tolist()
            self._before[:] = self._sample

    def end(self, step: np.ndarray) -> None:
        """Just after it; `step` ``[size]`` is what was subtracted."""
        if self._alone:
            return
        worker, before = self._worker, self._others
        self._after[:] = self._sample
        now = self._slots.tolist()
        self._slots[worker] += 1
        now[worker] = before[worker] = 0
        if now != before or any(slot & 1 for slot in now):
            self._shared["overlapped"][worker] += 1
            alone = self._before - step[:: self._every]
            self._shared["contended"][worker] += np.count_nonzero(self._after != alone)


def watched(size: int) -> int:
    """Parameters that are watched, of so many."""
    return -(-size // -(-size // SAMPLE))
