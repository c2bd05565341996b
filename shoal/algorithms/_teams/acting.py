"""How the actor of a team decides: hidden units first, then the output."""

from __future__ import annotations

from typing import Any

from etils import epy

from shoal.algorithms._teams import records, units
from shoal.core import types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


def act(
    rule: records.Rule, policy: types.Policy, carry: types.Carry, obs: Any, key: types.Key
) -> tuple[Any, records.Remembered, types.Carry]:
    """Sample the hidden units, then the output; greedily, every unit gives its mean."""
    kind, seen, sizes = rule.kinds["actor"], records.seen(rule, policy.normaliser, obs), rule.sizes["actor"]
    of_units, of_output, of_chance = jax.random.split(key, 3)
    noise, live = jax.random.normal(of_units, (sum(sizes),)), policy.explore > 0
    exploring = jnp.ones(1)
    if rule.config.exploring:
        exploring = jax.random.bernoulli(of_chance, policy.exploration.chance, (sum(sizes) + 1,)).astype(jnp.float32)
        noise = noise * exploring[:-1]
    parts = units.split(jnp.where(live, noise, 0.0), sizes)
    hidden = units.sample(kind, policy.params, seen, policy.exploration.deviation, parts)
    pot = units.potential(policy.params[kind.names[-1]], hidden[-1])
    action = draw(rule, policy, pot, of_output, live & (exploring[-1] > 0))
    return action, records.Remembered(jnp.concatenate(hidden), exploring), carry


def draw(rule: records.Rule, policy: types.Policy, pot: Any, key: types.Key, live: Any) -> Any:
    """The action: a choice, or a vector in the environment's units; the most probable one unless `live`."""
    if rule.choices:
        scores = units.logits(rule.kinds["actor"], jnp.float32(1.0), pot)
        return jnp.where(live, jax.random.categorical(key, scores), jnp.argmax(scores)).astype(jnp.int32)
    return pot + jnp.where(live, policy.exploration.spread * jax.random.normal(key, pot.shape), 0.0)


def folded(rule: records.Rule, state: records.State) -> types.Params:
    """The actor with its temperature, or the range of actions, folded into the output layer."""
    params, name = state.params["actor"], rule.kinds["actor"].names[-1]
    if rule.choices:
        last = jax.tree.map(lambda leaf: leaf / state.hyper.temperature, params[name])
    else:
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        last = {"kernel": kernel * rule.scale, "bias": bias * rule.scale + rule.offset}
    return {**params, name: last}


def exploration(rule: records.Rule, state: records.State) -> records.Exploration:
    """The noise in force."""
    variance = state.layers["actor"].variance
    noisy = rule.config.learning != "backprop_det"
    deviation = jnp.sqrt(variance[:-1]) if noisy else jnp.zeros_like(variance[:-1])
    spread = jnp.sqrt(variance[-1:]) * (1.0 if rule.choices else rule.scale)
    return records.Exploration(deviation, spread, state.hyper.explore, variance, state.hyper.speed_decay)
