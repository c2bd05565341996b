"""Shoal's side of the bench `population`: members in one program, by every way of `members.dispatch`.

`python benchmarks/_population.py THREADS` reads one JSON object a line and answers each with one line: a cell that is
made and for which a way is chosen as the runtime `population` does (the arguments of `make`), or how long a call takes
(the arguments of `measure`). Members are spread over the cores, a device each, as the runtime spreads them; THREADS is
what each device computes with, 0 leaves it to the runtime.
"""

from __future__ import annotations

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

from shoal.core import seeds, types
from shoal.runtimes.members import dispatch, spread

EVER = 10**9  # calls of a run that is long enough for any choosing to pay


class Cell:
    """One population: its programs take turns on the same states."""

    def __init__(self, algorithm: str, width: int, batch: int, members: int, updates: int) -> None:
        """Args: as `make`."""
        self.updates, self.cut = updates, spread.Cut(members, fill=False)
        self._agent = _members.agent(algorithm, width, batch)
        held = _members.states(self._agent, members), _members.samples(algorithm, members, updates, batch)
        self._trees = self.cut.put(held)
        self._keys = self.cut.put(jax.random.split(seeds.key(0, "learn"), members))
        self._programs: dict[str, Any] = {}
        self.compile_s: dict[str, float] = {}

    def ways(self) -> list[dispatch.Way]:
        """All that are worth trying."""
        return dispatch.candidates(self.cut.each)

    def compile(self, way: dispatch.Way) -> float:
        """Make a program; seconds."""
        several = _members.updating(self._agent)

        def one(trees: types.Tree, common: types.Tree, key: types.Key) -> Any:
            state, drawn = trees
            after, told = several(state, drawn, key)
            return (after, drawn), common, told

        every = dispatch.every(one, jax.vmap(one, in_axes=(0, None, 0), out_axes=(0, None, 0)), way)
        every = self.cut.over(every, (True, False, True), (True, False, True))
        began = time.perf_counter()
        program = jax.jit(every, donate_argnums=0).lower(self._trees, (), self._keys).compile()
        self.compile_s[str(way)] = time.perf_counter() - began
        self._programs[str(way)] = program
        return self.compile_s[str(way)]

    def call(self, way: str) -> None:
        """K steps of all members."""
        self._trees, _, told = self._programs[way](self._trees, (), self._keys)
        jax.block_until_ready(told)

    def choose(self) -> tuple[dispatch.Way, float]:
        """As `runtimes.population` does; (the way, seconds)."""
        clock, began = dispatch.Clock(EVER), time.perf_counter()
        for way in self.ways():
            if not clock.worth():
                break
            compiling = self.compile(way)
            clock.take(way, lambda way=way: self.call(str(way)), compiling)  # type: ignore[misc]
        return clock.best.way, time.perf_counter() - began


NOW = SimpleNamespace(cell=None)


def make(
    *, algorithm: str, width: int, batch: int, members: int, updates: int, ways: list[str] | None = None,
    again: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Make a cell, choose, and compile what choosing left out.

    Args:
        algorithm: td3, sac or dqn.
        width: Units of both hidden layers.
        batch: Transitions of each member's gradient step.
        members: N.
        updates: K, gradient steps a call.
        ways: Compile these and choose nothing; None: choose among all.
        again: Choose once more, programs now being in the persistent cache.
    """
    NOW.cell = None
    cell = NOW.cell = Cell(algorithm, width, batch, members, updates)
    found: dict[str, Any] = {"devices": cell.cut.devices}
    if ways is None:
        chosen, seconds = cell.choose()
        found |= {"chosen": str(chosen), "choosing_s": seconds}
        cold = dict(cell.compile_s)
        if again:
            jax.clear_caches()
            found["choosing_warm_s"] = cell.choose()[1]
            cell.compile_s = cold
    for way in cell.ways():
        if str(way) not in cell.compile_s and (ways is None or str(way) in ways):
            cell.compile(way)
            cell.call(str(way))
    for name in cell.compile_s:
        cell.call(name)
    return found | {"compile_s": cell.compile_s}


def measure(*, way: str, seconds: float) -> dict[str, Any]:
    """Milliseconds of one update step of all members, the mean over an even number of them.

    Args:
        way: One of those that `make` told.
        seconds: About how long to measure.
    """
    cell = NOW.cell
    calls, began, busy = 0, time.perf_counter(), time.process_time()
    least = 1 if cell.updates % 2 == 0 else 2
    while calls < least or time.perf_counter() - began < seconds:
        for _ in range(least):
            cell.call(way)
        calls += least
    steps = calls * cell.updates
    took = time.perf_counter() - began, time.process_time() - busy
    return {"ms": 1e3 * took[0] / steps, "cpu_ms": 1e3 * took[1] / steps}


if __name__ == "__main__":
    compilation.share()
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    print(json.dumps({"versions": versions}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps((measure if "way" in request else make)(**request)), flush=True)
