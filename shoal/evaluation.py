"""Evaluation: whole episodes with a frozen, greedy policy; many in parallel, each stream's first ones counted.

Every stream contributes the same number of episodes, so short episodes are not over-represented.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from etils import epy

from shoal import seeds, types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

PARALLEL = 16  # streams at once
LONGEST = 100_000  # steps after which an episode is given up and counted as it stands


class Evaluation(NamedTuple):
    """Returns and lengths of the episodes played."""

    returns: list[float]
    lengths: list[int]

    def summary(self) -> dict[str, float | int | None]:
        """The keys of ``summary.json``."""
        finite = bool(np.isfinite(self.returns).all())  # a simulator may pay NaN: that is not a measurement
        return {
            "eval_return_mean": float(np.mean(self.returns)) if finite else None,
            "eval_return_std": float(np.std(self.returns)) if finite else None,
            "eval_episodes": len(self.returns),
        }


class Stopped(Exception):
    """Somebody asked for the end before the last episode was over."""


def evaluate(
    parts: types.Parts,
    policy: types.Policy,
    episodes: int,
    seed: int,
    *,
    greedy: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Play episodes.

    Args:
        parts: The agent and the environment.
        policy: What acts; frozen, its normaliser too.
        episodes: How many, at least 1.
        seed: Of the evaluation; episodes are never those of training.
        greedy: Take the most probable action instead of sampling.
        stop: Asked at every step of a simulator, and between compiled games; True ends the evaluation.

    Raises:
        Stopped: `stop` said so.
    """
    policy = policy._replace(explore=np.float32(0.0 if greedy else 1.0))
    play = _on_device if parts.device_env else functools.partial(_on_host, stop)
    found: list[tuple[float, int]] = []
    while len(found) < episodes:
        if stop():
            raise Stopped
        streams = min(PARALLEL, episodes - len(found))
        found += play(parts, policy, streams, seeds.derive(seed, "evaluation", len(found)))
    return Evaluation([value for value, _ in found], [length for _, length in found])


def _carry(agent: types.Agent, streams: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (streams, *leaf.shape)), agent.carry)


def _on_host(
    stop: Callable[[], bool], parts: types.Parts, policy: types.Policy, streams: int, seed: int
) -> list[tuple[float, int]]:
    act = jax.jit(jax.vmap(parts.agent.act, in_axes=(None, 0, 0, 0)))
    make = parts.make_eval or parts.make_host  # e.g. whole games, where a lost life ends an episode of training
    envs = [make() for _ in range(streams)]
    try:
        obs = np.stack([env.reset(seeds.derive(seed, "environment", i)) for i, env in enumerate(envs)])
        carry = _carry(parts.agent, streams)
        returns, lengths, running = np.zeros(streams), np.zeros(streams, int), np.ones(streams, bool)
        key = seeds.key(seed, "action")
        while running.any() and lengths.max() < LONGEST:
            if stop():
                raise Stopped
            keys = jax.random.split(jax.random.fold_in(key, int(lengths.max())), streams)
            action, _, carry = act(policy, carry, obs, keys)
            for i in np.flatnonzero(running):
                obs[i], outcome = envs[i].step(np.asarray(action)[i])
                returns[i] += outcome.reward
                lengths[i] += 1
                running[i] = not (outcome.truncated or outcome.discount == 0)
    finally:
        for env in envs:
            env.close()
    return list(zip(returns.tolist(), lengths.tolist(), strict=True))


def _on_device(parts: types.Parts, policy: types.Policy, streams: int, seed: int) -> list[tuple[float, int]]:
    env, agent = parts.device_env, parts.agent
    assert env is not None

    def step(policy: types.Policy, at: Any) -> Any:
        state, obs, carry, total, length, running, key = at
        key, act_key, env_key = jax.random.split(key, 3)
        act = jax.vmap(agent.act, in_axes=(None, 0, 0, 0))
        action, _, carry = act(policy, carry, obs, jax.random.split(act_key, streams))
        state, obs, outcome = jax.vmap(env.step)(state, action, jax.random.split(env_key, streams))
        total = total + jnp.where(running, outcome.reward, 0.0)
        length = length + running
        running = running & ~(outcome.truncated | (outcome.discount == 0))
        return state, obs, carry, total, length, running, key

    def going(at: Any) -> Any:
        return at[5].any() & (at[4].max() < LONGEST)

    def play(policy: types.Policy, key: Any) -> Any:
        first, key = jax.random.split(key)
        state, obs = jax.vmap(env.init)(jax.random.split(first, streams))
        zeros = jnp.zeros(streams), jnp.zeros(streams, jnp.int32), jnp.ones(streams, bool)
        at = (state, obs, _carry(agent, streams), *zeros, key)
        return jax.lax.while_loop(going, functools.partial(step, policy), at)[3:5]

    # The policy is an argument, not a constant of the program: one compilation serves every policy.
    returns, lengths = jax.device_get(jax.jit(play)(policy, seeds.key(seed)))
    return list(zip(returns.tolist(), lengths.tolist(), strict=True))
