"""One shard of a parameter server: what its spawned process does.

It owns a slice of the parameters and of the rule's statistics, and is their only writer. They lie in shared memory: the
death of its process costs the push in hand at most.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from shoal import in_place
from shoal.runtimes import _pool, _shared, _transport

BEAT = 5.0  # seconds between signs of life


class Job(NamedTuple):
    """What a shard is told when it starts; all of it can be pickled."""

    block: _shared.Block
    bells: _transport.Bells
    shard: int
    rule: Any  # named as in `in_place.build`


class Sign(NamedTuple):
    """A sign of life; the last one when all pushes are applied and no more will come."""

    done: bool


def work(link: _pool.Link, job: Job) -> None:
    """A shard's life: apply what comes, in the order of tickets."""
    block, inbox = job.block, _transport.Inbox(job.block, job.bells, job.shard)
    theta, statistics = block["theta"][inbox.part], block["g"][inbox.part]
    rule = in_place.build(job.rule, len(theta))
    busy, clock = block["busy"], time.perf_counter
    inbox.recover()
    link.send(Sign(done=False))
    told = time.monotonic()
    while not link.orphaned():
        if time.monotonic() - told >= BEAT:  # however busy: a push may always be waiting
            told = time.monotonic()
            link.send(Sign(done=False))
        closing = bool(block["closing"][0])  # before looking: whatever was pushed was pushed before this was set
        began = clock()
        push = inbox.take()
        if push is not None:
            with inbox.writing():
                rule.apply(theta, statistics, push.gradient, push.hyper, push.eta)
            busy[job.shard] += clock() - began
            continue
        if closing:
            break
        inbox.wait(0.5)
    link.send(Sign(done=True))
