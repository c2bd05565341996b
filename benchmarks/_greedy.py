"""The score of a policy on CartPole-v1: 100 greedy episodes in the compiled task, always from the same states."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

EPISODES, LONGEST = 100, 500  # LONGEST: steps of an episode


@functools.cache
def judge(preset: str) -> Callable[[Any], float]:
    """Parameters -> the mean return, for a preset whose policy does without memory."""
    import jax
    import jax.numpy as jnp

    from shoal import experiment
    from shoal.core import seeds
    from shoal.experiment import presets

    parts = experiment.build(presets.resolve(presets.Request(preset, "gymnax:CartPole-v1"))[0]).parts
    agent, env = parts.agent, parts.device_env
    assert env is not None
    frozen = agent.snapshot(agent.init(seeds.key(0)))._replace(explore=jnp.float32(0.0))
    act = jax.vmap(lambda params, obs, key: agent.act(frozen._replace(params=params), (), obs, key)[0], (None, 0, 0))

    def play(params: Any) -> Any:
        keys = jax.random.split(seeds.key(0, "evaluation"), EPISODES)  # the greedy policy and the task draw nothing

        def step(at: Any, _: Any) -> Any:
            state, obs, going, total = at
            state, obs, outcome = jax.vmap(env.step)(state, act(params, obs, keys), keys)
            total = total + jnp.where(going, outcome.reward, 0.0)
            return (state, obs, going & (outcome.discount > 0) & ~outcome.truncated, total), None

        start = (*jax.vmap(env.init)(keys), jnp.ones(EPISODES, bool), jnp.zeros(EPISODES))
        return jax.lax.scan(step, start, length=LONGEST)[0][3].mean()

    compiled = jax.jit(play)
    return lambda params: float(compiled(params))
