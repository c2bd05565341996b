"""One shard of a parameter server: it owns a slice of the parameters and of the rule's statistics.

It is their only writer. They lie in shared memory: the death of its process costs the push in hand at most.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from shoal.formulas import in_place
from shoal.runtimes.crew import life, sharing
from shoal.runtimes.parameter_server import transport

BEAT = 5.0  # seconds between signs of life


class Job(NamedTuple):
    """What a shard is told when it starts; all of it can be pickled."""

    block: sharing.Block
    bells: transport.Bells
    shard: int
    rule: Any  # named as in `in_place.build`


class Shard(life.Worker):
    """Applies what comes, in the order of tickets."""

    def __init__(self, job: Job, parent: life.Parent) -> None:
        """Begin where an earlier one ended."""
        self._parent, self._shard, self._busy = parent, job.shard, job.block["busy"]
        self._inbox = transport.Inbox(job.block, job.bells, job.shard)
        self._theta, self._statistics = job.block["theta"][self._inbox.part], job.block["g"][self._inbox.part]
        self._rule = in_place.build(job.rule, len(self._theta))
        self._done = False
        self._inbox.recover()

    @property
    def over(self) -> bool:
        """All pushes are applied and no more will come."""
        return self._done

    def turn(self) -> bool:
        """Apply one push; False: there is none."""
        closing = self._parent.stopped  # before looking: whatever was pushed was pushed before this was set
        began = time.perf_counter()
        push = self._inbox.take()
        if push is None:
            self._done = closing
            return closing
        with self._inbox.writing():
            self._rule.apply(self._theta, self._statistics, push.gradient, push.hyper, push.eta)
        self._busy[self._shard] += time.perf_counter() - began
        return True

    def wait(self) -> None:
        """Sleep until something may have come."""
        self._inbox.wait(0.5)
