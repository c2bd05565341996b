"""Shoal's side of the bench `population`: members in one program, by every way of `members.dispatch`.

`python benchmarks/_population.py THREADS` reads one JSON object a line and answers each with one line: a cell that is
made and for which a way is chosen as the runtime `population` does (the arguments of `make`), or how long a call takes
(the arguments of `measure`). Members are spread over the cores, a device each, as the runtime spreads them; THREADS is
what each device computes with, 0 leaves it to the runtime.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import sys
import time
from types import SimpleNamespace
from typing import Any

from shoal.core import compilation
from shoal.runtimes.crew import threads

if __name__ == "__main__":  # as a run of the command line, before JAX is imported
    compilation.settle_calls()
    threads.spread(threads.cores())
    if int(sys.argv[1]):
        os.environ["NPROC"] = sys.argv[1]

import _members
import jax
import numpy as np

from shoal.core import seeds, types
from shoal.runtimes.members import dispatch, spread

EVER = 10**9  # updates of a run that is long enough for any choosing to pay
MOST = 50  # updates of a call of such a run


class Cell:
    """One population: its programs take turns on the same states."""

    def __init__(self, algorithm: str, width: int, batch: int, members: int) -> None:
        """Args: as `make`."""
        self.cut = spread.Cut(members, fill=False)
        self._agent = _members.agent(algorithm, width, batch)
        drawn = _members.samples(algorithm, members, _members.BATCHES, batch)
        self._trees = self.cut.put((_members.states(self._agent, members), drawn))
        self._keys = self.cut.put(jax.random.split(seeds.key(0, "learn"), members))
        self._programs: dict[str, Any] = {}
        self.compile_s: dict[str, float] = {}

    def ways(self) -> list[dispatch.Way]:
        """All that are worth trying."""
        return dispatch.candidates(self.cut.each)

    def compile(self, way: dispatch.Way) -> float:
        """Make a program of calls of any length; seconds."""
        several = _members.updating(self._agent)

        def one(trees: types.Tree, common: types.Tree, key: types.Key, steps: types.Scalar) -> Any:
            state, drawn = trees
            after, told = several(state, drawn, key, steps)
            return (after, drawn), common, told

        every = dispatch.every(one, jax.vmap(one, in_axes=(0, None, 0, None), out_axes=(0, None, 0)), way)
        every = self.cut.over(every, (True, False, True, False), (True, False, True))
        began = time.perf_counter()
        program = jax.jit(every, donate_argnums=0).lower(self._trees, (), self._keys, np.int32(1)).compile()
        self.compile_s[str(way)] = time.perf_counter() - began
        self._programs[str(way)] = program
        return self.compile_s[str(way)]

    def call(self, way: str, steps: int) -> None:
        """Steps of all members, and wait for them."""
        self._trees, _, told = self._programs[way](self._trees, (), self._keys, np.int32(steps))
        jax.block_until_ready(told)

    def choose(self) -> tuple[dispatch.Way, float]:
        """As `runtimes.population` does; (the way, seconds)."""
        clock, began = dispatch.Clock(EVER), time.perf_counter()
        for way in self.ways():
            if not clock.worth():
                break
            compiling = self.compile(way)
            clock.take(way, functools.partial(self.call, str(way)), MOST, compiling)
        return clock.best.way, time.perf_counter() - began


NOW = SimpleNamespace(cell=None)


def make(*, algorithm: str, width: int, batch: int, members: int, again: bool = False) -> dict[str, Any]:
    """Make a cell, choose, and compile what choosing left out.

    Args:
        algorithm: td3, sac or dqn.
        width: Units of both hidden layers.
        batch: Transitions of each member's gradient step.
        members: N.
        again: Choose once more, programs now being in the persistent cache.
    """
    NOW.cell = None
    cell = NOW.cell = Cell(algorithm, width, batch, members)
    chosen, seconds = cell.choose()
    found: dict[str, Any] = {"devices": cell.cut.devices, "chosen": str(chosen), "choosing_s": seconds}
    if again:
        cold = cell.compile_s
        jax.clear_caches()
        cell.compile_s = {}
        found["choosing_warm_s"] = cell.choose()[1]
        cell.compile_s = cell.compile_s | cold
    for way in cell.ways():
        if str(way) not in cell.compile_s:
            cell.compile(way)
            cell.call(str(way), 1)
    return found | {"compile_s": cell.compile_s}


def measure(*, way: str, updates: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of one update step of all members, the mean over an even number of them.

    Args:
        way: One of those that `make` told.
        updates: K, steps a call.
        seconds: About how long to measure.
    """
    least = 1 if updates % 2 == 0 else 2
    calls, began, busy = 0, time.perf_counter(), time.process_time()
    while calls < least or time.perf_counter() - began < seconds:
        for _ in range(least):
            NOW.cell.call(way, updates)
        calls += least
    took = time.perf_counter() - began, time.process_time() - busy
    return {name: 1e3 * spent / (calls * updates) for name, spent in zip(("ms", "cpu_ms"), took, strict=True)}


if __name__ == "__main__":
    compilation.share()
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    print(json.dumps({"versions": versions}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps((measure if "way" in request else make)(**request)), flush=True)
