"""Jobs that parties have on hand, in simulated time: who has one, what it says, when its reply arrives.

When a reply arrives is drawn from the run's seed and the pace of its party, so a run whose parties answer in any order
is the same every time. All of it is arrays, which a checkpoint holds: a run goes on in the middle of any job.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from shoal.core import seeds

IDLE, ASKED, DONE, LOST = 0, 1, 2, 3  # has no job; has one; its reply is on the way; it is not, and will not be
SPREAD = 0.5  # a job takes its pace times something in 1 ± this; 1 where all have one pace and wait for each other


class Desk(NamedTuple):
    """Arrays; written over in place."""

    status: np.ndarray  # i64 [N]
    job: np.ndarray  # i64 [N], its number
    arrives: np.ndarray  # f64 [N], when its reply does
    down: np.ndarray  # u8 [N, bytes_down], what it says
    up: np.ndarray  # u8 [N, bytes_up], the reply
    counts: np.ndarray  # i64 [2]: jobs so far, replies lost so far
    clock: np.ndarray  # f64 [1], simulated seconds
    env_steps: np.ndarray  # i64 [N], of each party


def fresh(parties: int, down: int, up: int) -> Desk:
    """Before the first job.

    Args:
        parties: N.
        down: Bytes of what comes down.
        up: Bytes of a reply.
    """
    return Desk(
        status=np.zeros(parties, np.int64), job=np.zeros(parties, np.int64), arrives=np.zeros(parties),
        down=np.zeros((parties, down), np.uint8), up=np.zeros((parties, up), np.uint8),
        counts=np.zeros(2, np.int64), clock=np.zeros(1), env_steps=np.zeros(parties, np.int64),
    )  # fmt: skip


def given(desk: Desk, party: int, body: bytes, takes: float) -> int:
    """A party is given a job.

    Args:
        desk: Changed.
        party: Which; it has none.
        body: What comes down.
        takes: Simulated seconds until the reply arrives.

    Returns:
        The job's number.
    """
    desk.counts[0] += 1
    desk.status[party], desk.job[party] = ASKED, desk.counts[0]
    desk.arrives[party] = desk.clock[0] + takes
    desk.down[party] = np.frombuffer(body, np.uint8)
    return int(desk.counts[0])


def takes(paces: Sequence[float], seed: int, party: int, job: int, *, apart: bool) -> float:
    """Simulated seconds that a job takes.

    Args:
        paces: Of the parties, 1 where none is named.
        seed: Of the run.
        party: Whose.
        job: Its number.
        apart: Whether replies come one by one; else those of one pace come together.
    """
    pace = paces[party] if party < len(paces) else 1.0
    drawn = seeds.derive(seed, "arrival", party, job) / 2**32
    return pace * (1.0 + SPREAD * (2.0 * drawn - 1.0)) if apart else pace


def next_to_arrive(desk: Desk, within: float) -> list[int]:
    """Those whose replies arrive next, at once, by their numbers; the clock goes on to then.

    Args:
        desk: Its clock is changed.
        within: Simulated seconds; where no reply arrives so soon, the clock goes on by them and there is nobody.
    """
    busy = np.flatnonzero(desk.status != IDLE)
    first = desk.arrives[busy].min() if len(busy) else np.inf
    if first > desk.clock[0] + within:
        desk.clock[0] += within
        return []
    desk.clock[0] = max(desk.clock[0], first)
    return [int(at) for at in busy if desk.arrives[at] == first]
