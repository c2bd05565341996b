"""Several simulators stepped as one: in this process, or in worker processes when a step is slow enough.

Each environment has its own seed, so the bits do not depend on where it is stepped. A simulator that raises, or whose
process dies, is replaced by a fresh one with a seed not used before; the step it owed becomes a truncation.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from shoal import errors, seeds, types
from shoal.runtimes import _pool

PAYS = 150e-6  # seconds a step of all environments must take before processes are worth their messages
PROBE = 100  # steps timed to find out
FAILURES = 5  # of one environment without a good step between them: a crash loop


class Serial:
    """All in this process.

    Args:
        make: Opens one simulator.
        seed: The run's.
        places: Which environments these are, by number.
        incarnation: Number of the first incarnation of each; keeps seeds apart from all that were used before.
        on_fault: Told ``(kind, traceback)``.
    """

    def __init__(
        self,
        make: Callable[[], types.HostEnv],
        seed: int,
        places: range,
        incarnation: int,
        on_fault: Callable[[str, str], None],
    ) -> None:
        self._make, self._seed, self._places, self._on_fault = make, seed, places, on_fault
        self._incarnations = [incarnation] * len(places)
        self._failures = [0] * len(places)
        self._envs: list[Any] = [None] * len(places)  # types.HostEnv; None until it is made, and after a failure
        self.restarts = 0

    def _begin(self, i: int) -> np.ndarray:
        """The first observation; a simulator that cannot be made or reset is replaced like one that cannot step."""
        while True:
            place = ("environment", self._places[i], "incarnation", self._incarnations[i])
            try:
                self._envs[i] = self._envs[i] or self._make()
                return self._envs[i].reset(seeds.derive(self._seed, *place))
            except Exception:  # noqa: BLE001  see `step`
                self._lost(i, traceback.format_exc())

    def reset(self) -> np.ndarray:
        """See `types.HostVector`."""
        self._obs = np.stack([self._begin(i) for i in range(len(self._envs))])
        return self._obs.copy()

    def step(self, actions: np.ndarray) -> types.Batch:
        """See `types.HostVector`."""
        count = len(self._envs)
        reward, discount = np.zeros(count, np.float32), np.ones(count, np.float32)
        truncated, successor = np.zeros(count, bool), np.empty_like(self._obs)
        for i, env in enumerate(self._envs):
            try:
                following, outcome = env.step(actions[i])
            except Exception:  # noqa: BLE001  whatever a simulator raises, the run goes on without it
                self._lost(i, traceback.format_exc())
                successor[i], truncated[i] = self._obs[i], True
                self._obs[i] = self._begin(i)
                continue
            self._failures[i] = 0
            reward[i], discount[i], truncated[i], successor[i] = outcome
            self._obs[i] = following
        return types.Batch(self._obs.copy(), types.Outcome(reward, discount, truncated, successor))

    def _lost(self, i: int, story: str) -> None:
        """Let go of a simulator that failed; `_begin` makes another."""
        self._failures[i] += 1
        if self._failures[i] >= FAILURES:
            raise errors.GaveUp(
                f"environment {self._places[i]} failed {FAILURES} times without a good step; the last time:\n{story}"
            )
        self._on_fault(f"environment {self._places[i]} failed; replacing it", story)
        time.sleep(0.1 * 2 ** (self._failures[i] - 1))
        self.restarts += 1
        self._incarnations[i] += 1
        env, self._envs[i] = self._envs[i], None
        if env is not None:
            with contextlib.suppress(Exception):  # it is broken already
                env.close()

    def close(self) -> None:
        """See `types.HostVector`."""
        for env in filter(None, self._envs):
            env.close()


class Fault(NamedTuple):
    """An environment failed inside a worker and was replaced there."""

    kind: str
    traceback: str


class Hopeless(NamedTuple):
    """An environment failed so often that the run is to end; a new process would not help."""

    story: str


def serve(link: _pool.Link, rebuild: Callable[[], types.Parts], seed: int, places: range, incarnation: int) -> None:
    """A worker's life: step its share of the environments whenever told."""
    vector = Serial(rebuild().make_host, seed, places, incarnation, lambda *fault: link.send(Fault(*fault)))
    try:
        link.send(vector.reset())
        while (actions := link.receive()) is not None:
            link.send(vector.step(actions))
    except errors.GaveUp as error:
        link.send(Hopeless(str(error)))
        link.receive()
    vector.close()


class Pooled:
    """A share in each of several processes (see `Serial` for the arguments)."""

    def __init__(
        self,
        parts: types.Parts,
        seed: int,
        count: int,
        life: int,
        processes: int,
        on_fault: Callable[[str, str], None],
    ) -> None:
        bounds = np.linspace(0, count, processes + 1).astype(int).tolist()
        self._shares = [range(a, b) for a, b in itertools.pairwise(bounds)]
        self._on_fault = on_fault
        self.restarts = 0

        def arguments(worker: int, incarnation: int) -> tuple[Any, ...]:
            return parts.rebuild, seed, self._shares[worker], first_incarnation(life, incarnation)

        self.pool = _pool.Pool(serve, arguments, processes, self._died)
        self._obs = np.zeros((count, *parts.spec.observation.shape), parts.spec.observation.dtype)

    def _died(self, kind: str, story: str) -> None:
        self.restarts += 1
        self._on_fault(kind, story)

    def _gather(self, owed: dict[int, int]) -> dict[int, Any]:
        """One answer from every worker; a new incarnation answers with its first observations instead."""
        got: dict[int, Any] = {}
        while len(got) < len(owed):
            for worker, incarnation, message in self.pool.poll(1.0):
                if isinstance(message, Fault):
                    self.restarts += 1
                    self._on_fault(*message)
                elif isinstance(message, Hopeless):
                    raise errors.GaveUp(message.story)
                elif isinstance(message, np.ndarray) or incarnation == owed[worker]:
                    got[worker] = message
        return got

    def reset(self) -> np.ndarray:
        """See `types.HostVector`."""
        for worker, first in self._gather(dict.fromkeys(range(len(self._shares)), 0)).items():
            self._obs[self._shares[worker].start : self._shares[worker].stop] = first
        return self._obs.copy()

    def step(self, actions: np.ndarray) -> types.Batch:
        """See `types.HostVector`."""
        count = len(self._obs)
        reward, discount = np.zeros(count, np.float32), np.ones(count, np.float32)
        truncated, successor = np.zeros(count, bool), self._obs.copy()
        owed = {}
        for worker, share in enumerate(self._shares):
            owed[worker] = self.pool.incarnation(worker)
            self.pool.send(worker, actions[share.start : share.stop])
        for worker, answer in self._gather(owed).items():
            at = slice(self._shares[worker].start, self._shares[worker].stop)
            if isinstance(answer, np.ndarray):  # died and begun anew: what it owed is lost
                truncated[at] = True
                self._obs[at] = answer
            else:
                self.pool.progressed(worker)
                reward[at], discount[at], truncated[at], successor[at] = answer.outcome
                self._obs[at] = answer.obs
        return types.Batch(self._obs.copy(), types.Outcome(reward, discount, truncated, successor))

    def close(self) -> None:
        """See `types.HostVector`."""
        for worker in range(len(self._shares)):
            self.pool.finish(worker)
            self.pool.send(worker, None)
        self.pool.close(2.0)


class Whole:
    """Environments that their own library steps as one (see `types.Parts.make_vector`); what it raises ends the run.

    Args:
        make: Opens them, from a seed and their number.
        seed: The run's.
        count: Environments.
        life: Of the run; keeps its seed apart from those of the lives before a resume.
    """

    restarts = 0  # one simulator cannot be replaced without the others

    def __init__(self, make: Callable[[int, int], types.HostVector], seed: int, count: int, life: int) -> None:
        vector = make(seeds.derive(seed, "environment", "vector", life), count)
        self.reset, self.step, self.close = vector.reset, vector.step, vector.close


def first_incarnation(life: int, process: int = 0) -> int:
    """Where the environments' incarnations begin: apart for each life of a run and each process that fills a place."""
    return life * 1_000_000_000 + process * 1_000_000


def processes_that_pay(parts: types.Parts, count: int, seed: int) -> int:
    """How many worker processes are worth their messages: 0 where stepping here is faster.

    Args:
        parts: Whose simulator is timed, on a stream of its own.
        count: Environments.
        seed: The run's.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores == 1 or count == 1:
        return 0
    generator = np.random.default_rng(seeds.derive(seed, "probe"))
    action = parts.spec.action
    env = parts.make_host()
    try:
        env.reset(seeds.derive(seed, "probe", "environment"))
        began = time.perf_counter()
        for _ in range(PROBE):
            shape = action.shape
            env.step(int(generator.integers(action.n)) if action.discrete else generator.standard_normal(shape, "f4"))
    except Exception:  # noqa: BLE001  it will be reported where it matters
        return 0
    finally:
        env.close()
    seconds = (time.perf_counter() - began) / PROBE * count
    return min(cores, count) if seconds > PAYS * min(cores, count) else 0
