"""Rollouts of pure-JAX environments, inside the compiled program: act, step, remember, ``[T, B]``."""

from __future__ import annotations

from typing import Any, NamedTuple

from etils import epy

from shoal.core import types
from shoal.runtimes.experience import finite

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

    from shoal.formulas import normalise


class Actors(NamedTuple):
    """``B`` streams between two rollouts: all that makes the next step what it is."""

    env: Any  # leaves [B, ...]
    obs: Any  # [B, *obs]
    carry: types.Carry  # leaves [B, ...]
    episode_return: Any  # [B] f32, of the episode under way
    episode_length: Any  # [B] i32


class Ended(NamedTuple):
    """Which steps ended an episode, and what was kept out of them, ``[T, B]``."""

    over: Any  # bool
    episode_return: Any  # f32, meaningful where `over`
    length: Any  # i32
    unfit: types.Array  # [T, B, 2] bool: whether the reward, an observation was not finite (`finite`)


def start(agent: types.Agent, env: types.Env, batch: int, key: types.Key) -> Actors:
    """``batch`` streams at the start of their first episodes."""
    state, obs = jax.vmap(env.init)(jax.random.split(key, batch))
    carry = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (batch, *leaf.shape)), agent.about.carry)
    return Actors(state, finite.start(obs), carry, jnp.zeros(batch), jnp.zeros(batch, jnp.int32))


def act_all(
    agent: types.Agent, policy: types.Policy, carry: types.Carry, obs: types.Obs, keys: types.Key
) -> tuple[types.Action, types.Extras, types.Carry]:
    """One decision in each of ``B`` streams, which are told apart by `types.Policy.stream`.

    Args:
        agent: Whose `act` decides.
        policy: Of the first stream.
        carry: Leaves ``[B, ...]``.
        obs: ``[B, *obs]``.
        keys: ``[B]``, consumed.

    Returns:
        Action, extras and carry of every stream, leaves ``[B, ...]``.
    """

    def act(stream: Any, carry: types.Carry, obs: Any, key: types.Key) -> Any:
        return agent.act(policy._replace(stream=stream), carry, obs, key)

    streams = jax.tree.map(lambda first: first + jnp.arange(obs.shape[0], dtype=jnp.int32), policy.stream)
    return jax.vmap(act)(streams, carry, obs, keys)


def log_prob_all(agent: types.Agent, policy: types.Policy, obs: types.Obs, action: types.Action) -> types.Array:
    """How likely a policy is to choose these actions, ``[B]``; of rules whose network and decision can be parted.

    Args:
        agent: Whose decision it is; without recurrent state.
        policy: Of the first stream.
        obs: ``[B, *obs]``.
        action: ``[B, ...]``.
    """
    acting = agent.about.acting
    assert acting is not None
    network = agent.about.networks[acting.network]

    def one(stream: Any, obs: Any, action: Any) -> Any:
        seen = normalise.apply(policy.normaliser, obs) if policy.normaliser else obs
        outputs, _ = network.apply(policy.params, seen, ())
        return acting.log_prob(policy._replace(stream=stream), outputs, action)

    streams = jax.tree.map(lambda first: first + jnp.arange(obs.shape[0], dtype=jnp.int32), policy.stream)
    return jax.vmap(one)(streams, obs, action)


def collect(
    agent: types.Agent, env: types.Env, policy: types.Policy, actors: Actors, key: types.Key
) -> tuple[Actors, types.Rollout, Ended]:
    """Act ``T = agent.about.rollout_length`` steps in all streams.

    Args:
        agent: Whose `act` decides.
        env: One stream; vmapped here.
        policy: Held fixed over the rollout.
        actors: ``B`` streams.
        key: Consumed.

    Returns:
        The streams after the rollout, the rollout ``[T, B]``, and the episodes that ended in it.
    """
    carry, batch = actors.carry, actors.episode_length.shape[0]
    # All at once: splitting inside the loop costs more.
    keys = jax.random.split(key, (agent.about.rollout_length, 2, batch))
    actors, (transitions, ended) = jax.lax.scan(_step(agent, env, policy), actors, keys)
    return actors, types.Rollout(transitions, carry), ended


def collect_padded(
    agent: types.Agent, env: types.Env, policy: types.Policy, actors: Actors, key: types.Key
) -> tuple[Actors, types.Rollout, Ended]:
    """The same of one stream, which stands still from the end of an episode on: what follows is padding."""
    carry, step = actors.carry, _step(agent, env, policy)

    def until_over(at: tuple[Actors, Any], keys: types.Key) -> Any:
        before, stands = at
        after, (transition, ended) = step(before, keys)
        kept = jax.tree.map(lambda old, new: jnp.where(stands, old, new), before, after)
        nothing = transition._replace(
            reward=jnp.zeros_like(transition.reward),
            discount=jnp.zeros_like(transition.discount),
            truncated=jnp.zeros_like(transition.truncated),
        )
        transition = jax.tree.map(lambda pad, new: jnp.where(stands, pad, new), nothing, transition)
        return (kept, stands | ended.over[0]), (transition, ended, ~stands)

    keys = jax.random.split(key, (agent.about.rollout_length, 2, 1))
    start = actors, jnp.bool_(False)
    (actors, _), (transitions, ended, happened) = jax.lax.scan(until_over, start, keys)
    return actors, types.Rollout(transitions, carry, happened.sum(dtype=jnp.int32)), ended


def _step(agent: types.Agent, env: types.Env, policy: types.Policy) -> Any:
    """One step of all streams, as `jax.lax.scan` wants it."""

    def step(actors: Actors, keys: types.Key) -> tuple[Actors, tuple[types.Transition, Ended]]:
        action, extras, carry = act_all(agent, policy, actors.carry, actors.obs, keys[0])
        state, obs, outcome = jax.vmap(env.step)(actors.env, action, keys[1])
        obs, outcome, unfit = finite.within(actors.obs, obs, outcome)
        over = (outcome.discount == 0) | outcome.truncated
        episode_return = actors.episode_return + outcome.reward
        length = actors.episode_length + 1
        transition = types.Transition(actors.obs, action, *outcome, extras)
        carry = jax.tree.map(
            lambda first, now: jnp.where(over.reshape(-1, *[1] * (now.ndim - 1)), first, now), agent.about.carry, carry
        )
        after = Actors(state, obs, carry, jnp.where(over, 0.0, episode_return), jnp.where(over, 0, length))
        return after, (transition, Ended(over, episode_return, length, unfit))

    return step
