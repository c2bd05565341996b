"""Several simulators stepped as one in this process; in worker processes, where a step is slow enough, by `pools`.

Each environment has its own seed, so the bits do not depend on where it is stepped. A simulator that raises, or whose
process dies, is replaced by a fresh one with a seed not used before; the step it owed becomes a truncation.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from shoal.core import errors, seeds, types
from shoal.runtimes.crew import beside, closing, threads

PAYS = 150e-6  # seconds a step of all environments must take before processes are worth their messages
PROBE = 100  # steps timed to find out
FAILURES = 5  # of one environment without a good step between them: a crash loop


def unseen(stage: types.Stage) -> bool:
    """Nobody looks on."""
    del stage
    return True


class Serial:
    """All in this process.

    Args:
        environment: Opens one simulator after the other.
        seed: The run's.
        places: Which environments these are, by number.
        incarnation: Number of the first incarnation of each; keeps seeds apart from all that were used before.
        on_fault: Told ``(kind, traceback)``.
        look: Told how many are open.
    """

    def __init__(
        self,
        environment: types.Opener,
        seed: int,
        places: range,
        incarnation: int,
        on_fault: Callable[[str, str], None],
        look: beside.Look = unseen,
    ) -> None:
        self._environment, self._seed, self._places, self._on_fault = environment, seed, places, on_fault
        self._look = look
        self._incarnations = [incarnation] * len(places)
        self._failures = [0] * len(places)
        self._envs: list[Any] = [None] * len(places)  # types.HostEnv; None until it is made, and after a failure
        self.restarts = 0

    def _begin(self, i: int) -> np.ndarray:
        """The first observation; a simulator that cannot be made or reset is replaced like one that cannot step."""
        while True:
            place = ("environment", self._places[i], "incarnation", self._incarnations[i])
            try:
                self._envs[i] = self._envs[i] or self._environment.host()
                return self._envs[i].reset(seeds.derive(self._seed, *place))
            except Exception:  # noqa: BLE001  see `step`
                self._lost(i, traceback.format_exc())

    def reset(self) -> np.ndarray:
        """See `types.HostVector`.

        Raises:
            NotBegun: `look` said that the run is to end.
        """
        first, count = [], len(self._envs)
        doing = f"opening {count} simulator{'s' * (count > 1)}"
        for i in range(count):
            beside.asked(self._look, types.Stage(doing, i, count))
            first.append(self._begin(i))
        self._obs = np.stack(first)
        return self._obs.copy()

    def anew(self, seed: int) -> np.ndarray:
        """Begin every episode anew, as a run of another seed; the first observations."""
        self._seed, count = seed, len(self._envs)
        self._incarnations, self._failures = [0] * count, [0] * count
        self._obs = np.stack([self._begin(i) for i in range(count)])
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
        closing.every(env.close for env in self._envs if env is not None)


class Whole:
    """Environments that their own library steps as one (see `types.Opener.vector`); what it raises ends the run.

    Args:
        environment: Opens them.
        seed: The run's.
        count: Environments.
        life: Of the run; keeps its seed apart from those of the lives before a resume.
    """

    restarts = 0  # one simulator cannot be replaced without the others

    def __init__(self, environment: types.Opener, seed: int, count: int, life: int) -> None:
        vector = environment.vector(seeds.derive(seed, "environment", "vector", life), count)
        self.reset, self.step, self.close = vector.reset, vector.step, vector.close


def first_incarnation(life: int, process: int = 0) -> int:
    """Where the environments' incarnations begin: apart for each life of a run and each process that fills a place."""
    return life * 1_000_000_000 + process * 1_000_000


def processes_that_pay(
    parts: types.Parts, count: int, seed: int, on_fault: Callable[[str, str], None], look: beside.Look = unseen
) -> int:
    """How many worker processes are worth their messages: 0 where stepping here is faster.

    Args:
        parts: Whose simulator is timed, on a stream of its own.
        count: Environments.
        seed: The run's.
        on_fault: Told ``(kind, traceback)`` if it cannot be closed.
        look: Told how far it is.

    Raises:
        NotBegun: `look` said that the run is to end.
    """
    cores = threads.cores()
    if cores == 1 or count == 1:
        return 0
    generator = np.random.default_rng(seeds.derive(seed, "probe"))
    env = parts.environment.host()
    try:
        env.reset(seeds.derive(seed, "probe", "environment"))
        began = looked = time.perf_counter()
        for step in range(PROBE):
            env.step(_anything(parts.spec.action, generator))
            if (now := time.perf_counter()) - looked >= beside.LOOK:
                looked = now
                beside.asked(look, types.Stage("timing the simulator", step, PROBE))
    except errors.NotBegun:
        raise
    except Exception:  # noqa: BLE001  it will be reported where it matters
        return 0
    finally:
        closing.told(env.close, on_fault)
    seconds = (time.perf_counter() - began) / PROBE * count
    return min(cores, count) if seconds > PAYS * min(cores, count) else 0


def _anything(spec: types.ActionSpec, generator: np.random.Generator) -> types.Action:
    """A random action."""
    if spec.sizes:
        return generator.integers(spec.sizes)
    return int(generator.integers(spec.n)) if spec.discrete else generator.standard_normal(spec.shape, "f4")
