"""Which way of computing an axis of parties is the fastest here: tried on a copy, and thrown away."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from etils import epy

from shoal.core import types
from shoal.runtimes.crew import beside
from shoal.runtimes.members import dispatch

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

    from shoal.runtimes.federated import compiled, together


def fastest(
    made: compiled.Programs, homes: together.Homes, keys: types.Key, rounds: int, look: beside.Look
) -> tuple[dispatch.Way, Callable]:
    """The way, and its program of a call in which all are at work.

    Args:
        made: Makes programs.
        homes: Of the parties; left alone.
        keys: ``[N]``, of learning.
        rounds: That the run will make; where it is short, the first way is taken.
        look: Told how far it is; it may say that the run is to end.
    """
    several, asked = dispatch.candidates(made.shape.parties), made.asked()
    asked.active[:] = asked.force[:] = True
    clock, programs = dispatch.Clock(rounds), {}
    for number, way in enumerate(several):
        if not clock.worth():
            break
        stage = types.Stage("choosing how to compute parties", number, len(several))
        began = time.monotonic()
        programs[way] = program = beside.done(functools.partial(made.work, way, whole=True), stage, look)
        if len(several) == 1:
            return way, program
        compiling_s, held = time.monotonic() - began, [jax.tree.map(jnp.copy, homes)]

        def again(calls: int, program: Any = program, held: list[Any] = held) -> None:
            for _ in range(calls):
                held[0], told = program(held[0], keys, asked)
            jax.block_until_ready(told)

        beside.done(functools.partial(clock.take, way, again, rounds, compiling_s), stage, look)
    way = clock.best.way
    return way, programs[way]
