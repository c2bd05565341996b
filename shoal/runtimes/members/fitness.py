"""Fitness: whole episodes with every member's own policy, greedy and frozen, none of them of training.

What is measured is the very state that an exchange then copies. All members play in one program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from etils import epy

from shoal.core import types
from shoal.runtimes.experience import rollouts

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


class Stopped(Exception):
    """Somebody asked for the end before a fitness was measured; the members are as they were."""


LONGEST, LONGEST_FREE = 100_000, 10_000  # steps after which an episode counts as it stands; without a time limit


def program(parts: types.Parts, episodes: int) -> Callable:
    """A function that measures members.

    Args:
        parts: The agent and its environment.
        episodes: That each plays, at the same time.

    Returns:
        (learners' states ``[N, ...]``, keys ``[N]``) -> mean returns ``[N]``, NaN where one is not finite.
    """
    agent, env = parts.agent, parts.device_env
    assert env is not None
    limit = LONGEST if parts.spec.time_limit else LONGEST_FREE

    def begin(key: types.Key) -> Any:
        state, obs = jax.vmap(env.init)(jax.random.split(key, episodes))
        carry = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (episodes, *leaf.shape)), agent.about.carry)
        return state, obs, carry, jnp.zeros(episodes), jnp.ones(episodes, bool)

    def step(policy: types.Policy, key: types.Key, at: Any, count: types.Scalar) -> Any:
        state, obs, carry, total, running = at
        act_key, env_key = jax.random.split(jax.random.fold_in(key, count))
        action, _, carry = rollouts.act_all(agent, policy, carry, obs, jax.random.split(act_key, episodes))
        state, obs, outcome = jax.vmap(env.step)(state, action, jax.random.split(env_key, episodes))
        total = total + jnp.where(running, outcome.reward, 0.0)
        return state, obs, carry, total, running & ~(outcome.truncated | (outcome.discount == 0))

    def measure(states: types.State, keys: types.Key) -> tuple[types.Array]:
        policy = jax.vmap(lambda state: agent.snapshot(state)._replace(explore=jnp.float32(0.0)))(states)
        first, keys = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)

        def once(at: tuple[Any, Any]) -> tuple[Any, Any]:
            return jax.vmap(step, in_axes=(0, 0, 0, None))(policy, keys, *at), at[1] + 1

        def going(at: tuple[Any, Any]) -> types.Scalar:
            return at[0][4].any() & (at[1] < limit)

        played, _ = jax.lax.while_loop(going, once, (jax.vmap(begin)(first), jnp.uint32(0)))
        mean = played[3].mean(axis=1)
        return (jnp.where(jnp.isfinite(mean), mean, jnp.nan),)

    return measure


def distance(agent: types.Agent, states: types.State) -> types.Scalar:
    """The smallest Euclidean distance between two members' policies, f32 scalar.

    Differences are squared, not a Gram matrix taken apart: where two are alike the distance is 0 and never negative.

    Args:
        agent: Their rule.
        states: Leaves ``[N, ...]``, N at least 2.
    """
    name = agent.about.fields.policy
    params = states.params[name] if name else states.params
    members = len(jax.tree.leaves(params)[0])

    def nearest(at: types.Scalar) -> types.Scalar:
        square = sum(jnp.square(leaf - leaf[at]).reshape(members, -1).sum(axis=1) for leaf in jax.tree.leaves(params))
        return jnp.where(jnp.arange(members) == at, jnp.inf, square).min()

    return jnp.sqrt(jax.lax.map(nearest, jnp.arange(members)).min())
