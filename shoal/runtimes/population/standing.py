"""How a population stands between two exchanges: on the host, in NumPy, and saved with the loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from shoal.core import types
from shoal.runtimes.members import dispatch, loop

WAYS = 6  # dispatches that are timed at most


class Standing(NamedTuple):
    """What decides what comes next; arrays ``[N]`` and scalars."""

    fitness: types.Array  # f32 [N], measured last; 0 where `measured` is false: checkpoints hold no NaN
    measured: types.Array  # bool [N]; false also of a member that took over from another since
    measured_at: types.Scalar  # i64, updates of a member then
    exchanges: types.Scalar  # i64
    strikes: types.Array  # i64 [N], its failures since the last interval that it got through
    failed: types.Array  # bool [N], whether it failed in this interval
    lapses: types.Scalar  # i64, failures in this interval
    block: types.Scalar  # i64, of `dispatch.Way`; -1: not chosen yet
    timed: types.Array  # f64 [WAYS, 3]: block, seconds of a call and of compiling of each way that was timed; or -1
    spread: types.Scalar  # f64, smallest distance between two policies when measured; -1: not yet


class Saved(NamedTuple):
    """The checkpoint tree."""

    loop: loop.Loop
    standing: Standing


def fresh(members: int) -> Standing:
    """Before the first update."""
    return Standing(
        fitness=np.zeros(members, np.float32), measured=np.zeros(members, bool), measured_at=np.int64(-1),
        exchanges=np.int64(0), strikes=np.zeros(members, np.int64), failed=np.zeros(members, bool),
        lapses=np.int64(0), block=np.int64(-1), timed=np.full((WAYS, 3), -1.0), spread=np.float64(-1.0),
    )  # fmt: skip


def known(standing: Standing) -> types.Array:
    """Fitness ``[N]``, NaN where there is none."""
    return np.where(standing.measured, standing.fitness, np.float32(np.nan)).astype(np.float32)


def best(standing: Standing) -> int:
    """The member with the highest fitness; of equals the first, and member 0 before anything was measured."""
    return int(np.argmax(np.where(standing.measured, standing.fitness, -np.inf)))


def take(standing: Standing, fitness: types.Array, update: int, spread: float) -> Standing:
    """After a measurement."""
    measured = np.isfinite(fitness)
    kept = np.where(measured, fitness, 0.0).astype(np.float32)
    return standing._replace(fitness=kept, measured=measured, measured_at=np.int64(update), spread=np.float64(spread))


def exchanged(standing: Standing, replaced: types.Array) -> Standing:
    """After an exchange: a new interval, and those that were replaced (bool ``[N]``) have no fitness of their own."""
    return standing._replace(
        measured=standing.measured & ~replaced,
        exchanges=standing.exchanges + 1,
        strikes=np.where(standing.failed, standing.strikes, 0),
        failed=np.zeros_like(standing.failed),
        lapses=np.int64(0),
    )


def lapsed(standing: Standing, mask: types.Array) -> Standing:
    """After failures (bool ``[N]``)."""
    return standing._replace(
        measured=standing.measured & ~mask,
        strikes=standing.strikes + mask,
        failed=standing.failed | mask,
        lapses=standing.lapses + mask.sum(),
    )


def chosen(standing: Standing, way: dispatch.Way, timed: Sequence[dispatch.Timed]) -> Standing:
    """After the way was chosen."""
    rows = np.full((WAYS, 3), -1.0)
    for at, one in enumerate(timed[:WAYS]):
        rows[at] = one.way.block, one.seconds, one.compiling
    return standing._replace(block=np.int64(way.block), timed=rows)


def times(standing: Standing, members: int) -> list[dispatch.Timed]:
    """The ways that were timed."""
    return [
        dispatch.Timed(dispatch.of(int(block), members), float(seconds), float(compiling))
        for block, seconds, compiling in standing.timed
        if seconds >= 0
    ]
