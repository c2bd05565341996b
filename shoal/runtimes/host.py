"""Host: Python simulators stepped in lock-step, the policy and the update compiled; synchronous, repeatable.

B environments act on one batched decision a step; after T steps one update. Simulators run in this process, or in
worker processes where a step is slow enough to pay for the messages; the bits are the same either way.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any, NamedTuple

from etils import epy

from shoal import optimise, options, prng, seeds, types

with epy.lazy_imports():
    import jax
    import numpy as np

    from shoal.runtimes import _rollout, _vector


@dataclasses.dataclass(frozen=True)
class Config:
    """Vectorised Python simulators."""

    environments: int = options.number(8, low=1)
    """Environments stepped in lock-step (B)."""
    processes: int = options.number(-1, low=-1, high=1024)
    """Worker processes that step them; 0 steps here, -1 measures which is faster.
    Simulators with threads of their own (EnvPool) step here unless processes are asked for."""


CAPTURES = False
EXACT_RESUME = False  # simulators cannot be saved: episodes begin anew
REPORT_EVERY = 0.1  # seconds


def check(config: Config, experiment: Any, opened: Any) -> None:
    """Every environment has a host side; nothing to refuse."""
    del config, experiment, opened


def streams(config: Config) -> int:
    """Environments that one learner learns from at a time."""
    return config.environments


def build(config: Config) -> types.Runtime:
    """The runtime."""
    return Host(config)


class Host:
    """The loop on the host."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def like(self, parts: types.Parts, seed: int) -> types.Tree:
        """See `types.Runtime`."""
        return jax.eval_shape(parts.agent.init, seeds.key(seed, "init")), _counters(0, 0, 0)

    def policy(self, parts: types.Parts, seed: int, saved: types.Tree) -> types.Policy:
        """See `types.Runtime`."""
        del seed
        return parts.agent.snapshot(saved[0])

    def run(
        self,
        parts: types.Parts,
        seed: int,
        steps: int,
        goal: types.Goal | None,
        observe: types.Observer,
        saved: types.Tree | None,
    ) -> types.Result:
        """See `types.Runtime`."""
        del goal  # the observer sees every update and decides
        loop = _Loop(self._config, parts, seed, observe)
        try:
            loop.begin(saved)
            return loop.run(steps)
        finally:
            loop.close()


def _counters(updates: int, env_steps: int, life: int) -> dict[str, np.int64]:
    return {"updates": np.int64(updates), "env_steps": np.int64(env_steps), "life": np.int64(life)}


class _Times(NamedTuple):
    environment: float = 0.0
    inference: float = 0.0
    learning: float = 0.0


class _Loop:
    """One run."""

    def __init__(self, config: Config, parts: types.Parts, seed: int, observe: types.Observer) -> None:
        self._config, self._parts, self._seed, self._observe = config, parts, seed, observe
        self._began = time.monotonic()
        agent = parts.agent
        self._act = jax.jit(_batched(agent))
        self._update = jax.jit(_counted(agent), donate_argnums=0)
        self._learning = np.array([seeds.derive(seed, "update", i) for i in range(2)] + [0], np.uint32)
        self._snapshot = jax.jit(agent.snapshot)
        self._times = {"environment": 0.0, "inference": 0.0, "learning": 0.0}
        self._vector: Any = None
        self._metrics: Any = {}

    def begin(self, saved: types.Tree | None) -> None:
        """A new learner, or the saved one with fresh episodes."""
        agent, count = self._parts.agent, self._config.environments
        if saved is None:
            self._state = jax.jit(agent.init)(seeds.key(self._seed, "init"))
            self._updates = self._env_steps = self._life = 0
        else:
            state, counters = saved
            self._state = jax.device_put(state)
            if agent.restart:  # the simulators could not be saved: every stream breaks off here
                self._state = jax.jit(agent.restart, donate_argnums=0)(self._state)
            self._updates, self._env_steps = int(counters["updates"]), int(counters["env_steps"])
            self._life = int(counters["life"]) + 1
        processes, make_vector = self._config.processes, self._parts.make_vector
        if processes < 0 and make_vector is None:
            processes = _vector.processes_that_pay(self._parts, count, self._seed)
        self._processes = max(0, min(processes, count))
        fault = self._observe.fault
        if make_vector is not None and not self._processes:
            self._vector = _vector.Whole(make_vector, self._seed, count, self._life)
        elif self._processes:
            self._vector = _vector.Pooled(self._parts, self._seed, count, self._life, self._processes, fault)
        else:
            first = _vector.first_incarnation(self._life)
            self._vector = _vector.Serial(self._parts.make_host, self._seed, range(count), first, fault)
        self._skipped = int(optimise.skipped(self._state))  # before this life
        self._obs = self._vector.reset()
        self._carry = _spread(agent.carry, count)
        self._returns, self._lengths = np.zeros(count), np.zeros(count, int)

    def run(self, steps: int) -> types.Result:
        """Rollout, update, report, until it is enough."""
        started, startup, told = time.monotonic(), None, 0.0
        episodes: list[types.Episode] = []
        going = True
        while going and self._env_steps < steps:
            rollout, ended = self._collect()
            episodes += ended
            before = time.perf_counter()
            self._learning[2] = self._updates
            self._state, self._metrics = self._update(self._state, rollout, self._learning.copy())
            jax.block_until_ready(self._metrics)
            self._times["learning"] += time.perf_counter() - before
            self._updates += 1
            if startup is None:  # the first update compiled everything: training is counted from here
                startup, started = time.monotonic() - self._began, time.monotonic()
                self._times = dict.fromkeys(self._times, 0.0)
            if ended or time.monotonic() - told >= REPORT_EVERY:
                told = time.monotonic()
                going = self._observe(self._progress(episodes, started))
                episodes = []
        final = self._progress(episodes, started)
        return types.Result(jax.device_get(self._snapshot(self._state)), final, startup or 0.0)

    def _collect(self) -> tuple[types.Rollout, list[types.Episode]]:
        agent, clock = self._parts.agent, time.perf_counter
        policy, carry = self._snapshot(self._state), self._carry
        key = _raw(self._seed, self._life, self._updates)
        steps, ended = [], []
        for t in range(agent.rollout_length):
            a = clock()
            key[2] = t
            action, extras, after = self._act(policy, self._carry, self._obs, key)
            action = np.asarray(action)
            b = clock()
            batch = self._vector.step(action)
            self._times["inference"] += b - a
            self._times["environment"] += clock() - b
            reward, discount, truncated, next_obs = batch.outcome
            steps.append(types.Transition(self._obs, action, reward, discount, truncated, next_obs, extras))
            self._env_steps += len(action)
            over = batch.outcome.truncated | (batch.outcome.discount == 0)
            ended += self._account(batch.outcome.reward, over)
            self._obs = batch.obs
            self._carry = _restart(agent.carry, after, over) if agent.carry else ()
        if len(steps) == 1:
            transitions = jax.tree.map(lambda leaf: np.asarray(leaf)[None], steps[0])
        else:
            transitions = jax.tree.map(lambda *leaves: np.stack(leaves), *steps)
        return types.Rollout(transitions, carry), ended

    def _account(self, reward: np.ndarray, over: np.ndarray) -> list[types.Episode]:
        self._returns += reward
        self._lengths += 1
        ended = [
            types.Episode(self._env_steps, float(self._returns[i]), int(self._lengths[i]), 0)
            for i in np.flatnonzero(over)
        ]
        self._returns[over], self._lengths[over] = 0.0, 0
        return ended

    def _progress(self, episodes: list[types.Episode], started: float) -> types.Progress:
        return types.Progress(
            env_steps=self._env_steps,
            updates=self._updates,
            train_s=time.monotonic() - started,
            episodes=episodes,
            metrics={name: float(value) for name, value in self._metrics.items()},
            split=dict(self._times),
            workers={"of": self._processes, "up": self._vector.pool.up, "pids": self._vector.pool.pids}
            if self._processes
            else {},
            faults={
                "restarts": self._vector.restarts,
                "non_finite": int(optimise.skipped(self._state)) - self._skipped,
            },
            save=lambda: (jax.device_get(self._state), _counters(self._updates, self._env_steps, self._life)),
        )

    def close(self) -> None:
        """Release the simulators."""
        if self._vector:
            self._vector.close()


def _raw(seed: int, life: int, update: int) -> np.ndarray:
    """The words of one rollout's stream of keys (`prng.counted`)."""
    return np.array([*(seeds.derive(seed, "act", life, update, i) for i in range(2)), 0], np.uint32)


def _counted(agent: types.Agent) -> Any:
    """`Agent.update` with plain words for a key: they enter a compiled call by its fast path."""

    def update(state: Any, rollout: types.Rollout, words: Any) -> Any:
        return agent.update(state, rollout, prng.counted(words))

    return update


def _batched(agent: types.Agent) -> Any:
    def act(policy: types.Policy, carry: types.Carry, obs: Any, words: Any) -> Any:
        keys = jax.random.split(prng.counted(words), obs.shape[0])
        return _rollout.act_all(agent, policy, carry, obs, keys)

    return act


def _spread(carry: types.Carry, count: int) -> types.Carry:
    return jax.tree.map(lambda leaf: np.broadcast_to(np.asarray(leaf), (count, *leaf.shape)).copy(), carry)


def _restart(first: types.Carry, carry: types.Carry, over: np.ndarray) -> types.Carry:
    """The recurrent state of streams that ended begins anew."""
    return jax.tree.map(lambda start, now: np.where(over.reshape(-1, *[1] * (now.ndim - 1)), start, now), first, carry)
