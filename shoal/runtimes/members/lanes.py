"""One seed under the host runtime: its simulators, its counters, the episodes that ended, and who is told of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epy

from shoal.core import seeds, types
from shoal.formulas import optimise
from shoal.runtimes.crew import beside, closing, spawning
from shoal.runtimes.experience import finite, pools, vectors

with epy.lazy_imports():
    import jax

REPORT_EVERY = 0.1  # seconds


def counters(updates: int, env_steps: int, life: int) -> dict[str, np.int64]:
    """What is saved beside the learner."""
    return {"updates": np.int64(updates), "env_steps": np.int64(env_steps), "life": np.int64(life)}


def looking(place: types.Place) -> beside.Look:
    """Tells who looks on at one seed of what is done before its first step."""
    assert place.observe is not None
    kept = place.saved[1] if place.saved is not None else counters(0, 0, 0)
    return beside.first(place.observe, int(kept["env_steps"]), int(kept["updates"]))


class Lane:
    """One seed."""

    def __init__(self, parts: types.Parts, place: types.Place) -> None:
        """A new learner, or the saved one with fresh episodes.

        Args:
            parts: The agent and its environment.
            place: The seed, who looks on, and where it goes on; `observe` is not None.
        """
        assert place.observe is not None
        self._parts, self._place = parts, place
        self.observe = place.observe
        self.going = True
        agent = parts.agent
        if place.saved is None:
            self.state: Any = jax.jit(agent.init)(seeds.key(place.seed, "init"))
            self.updates = self.env_steps = self._life = 0
        else:
            state, kept = place.saved
            self.state = jax.device_put(state)
            if agent.about.restart:  # the simulators could not be saved: every stream breaks off here
                self.state = jax.jit(agent.about.restart, donate_argnums=0)(self.state)
            self.updates, self.env_steps = int(kept["updates"]), int(kept["env_steps"])
            self._life = int(kept["life"]) + 1
        self._skipped = int(optimise.skipped(self.state))  # before this life
        self._learning = [seeds.derive(place.seed, "update", i) for i in range(2)]
        self._episodes: list[types.Episode] = []
        self._told = 0.0
        self._vector: Any = None

    def begin(self, streams: int, processes: int, look: beside.Look, *, alone: bool) -> None:
        """Make the simulators.

        Args:
            streams: Environments (B).
            processes: Workers that step them; -1: as many as pay, none beside other seeds.
            look: Told how far it is.
            alone: There are no other seeds.

        Raises:
            NotBegun: `look` said that the run is to end; `close` releases those that were made.
        """
        parts, seed, life = self._parts, self._place.seed, self._life
        if spawning.hindrance() or parts.environment.elsewhere:
            processes = max(0, processes)  # told before the run began
        if processes < 0 and not parts.environment.steps_many and alone:
            processes = vectors.processes_that_pay(parts, streams, seed, self.observe.fault, look)
        self._processes = max(0, min(processes, streams))
        fault = self.observe.fault
        if parts.environment.steps_many and not self._processes:
            self._vector = vectors.Whole(parts.environment, seed, streams, life)
        elif self._processes:
            self._vector = pools.Pooled(parts, seed, streams, life, self._processes, fault, look)
        else:
            first = vectors.first_incarnation(life)
            self._vector = vectors.Serial(parts.environment, seed, range(streams), first, fault, look)
        self._finite = finite.Streams()
        self.obs = self._finite.first(self._vector.reset())
        self.outcome: types.Outcome | None = None  # the last, of every stream
        self._returns, self._lengths = np.zeros(streams), np.zeros(streams, int)

    def acting(self) -> np.ndarray:
        """The words of the next rollout's stream of keys (`prng.counted`)."""
        place = ("act", self._life, self.updates)
        return np.array([*(seeds.derive(self._place.seed, *place, i) for i in range(2)), 0], np.uint32)

    def learning(self) -> np.ndarray:
        """The words of the next update's key."""
        return np.array([*self._learning, self.updates], np.uint32)

    def step(self, action: np.ndarray) -> types.Outcome:
        """Step every stream ``[B]``."""
        batch = self._finite.step(self.obs, self._vector.step(action))
        self.obs, self.outcome = batch.obs, batch.outcome
        self.env_steps += len(action)
        self._returns += batch.outcome.reward
        self._lengths += 1
        over = batch.outcome.truncated | (batch.outcome.discount == 0)
        if over.any():
            self._episodes += [
                types.Episode(self.env_steps, float(self._returns[i]), int(self._lengths[i]), 0)
                for i in np.flatnonzero(over)
            ]
            self._returns[over], self._lengths[over] = 0.0, 0
        return batch.outcome

    def due(self) -> bool:
        """Whether there is something to tell, or it is time to."""
        if not self._episodes and time.monotonic() - self._told < REPORT_EVERY:
            return False
        self._told = time.monotonic()
        return True

    def progress(
        self,
        train_s: float,
        metrics: Mapping[str, Any],
        split: Mapping[str, float],
        skipped: int,
        state: Callable[[], Any],
        policy: Callable[[], types.Policy],
    ) -> types.Progress:
        """What the observer sees; the episodes in it are told once.

        Args:
            train_s: Seconds of training so far.
            metrics: Of the last update.
            split: Where the time went.
            skipped: Updates dropped so far, for they were not finite.
            state: Fetches the learner.
            policy: Fetches what of it acts.
        """
        episodes, self._episodes = self._episodes, []
        workers = {}
        if self._processes:
            workers = self._vector.about()
        return types.Progress(
            env_steps=self.env_steps,
            updates=self.updates,
            train_s=train_s,
            episodes=episodes,
            metrics={name: float(value) for name, value in metrics.items()},
            split=dict(split),
            workers=workers,
            faults={
                "restarts": self._vector.restarts,
                "non_finite": skipped - self._skipped,
                **finite.faults(self._finite.rewards, self._finite.observations),
            },
            save=lambda: (state(), counters(self.updates, self.env_steps, self._life)),
            policy=policy,
        )

    def end(self, policy: types.Policy, final: types.Progress, startup: float) -> None:
        """Hand the result over; the simulators are released."""
        self.going = False
        self._place.ended(types.Result(policy, final, startup))
        self.close()

    def close(self) -> None:
        """Release the simulators."""
        vector, self._vector = self._vector, None
        if vector:
            closing.told(vector.close, self.observe.fault)
