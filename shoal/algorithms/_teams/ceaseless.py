"""Asynchronous teams in the loop of acting and learning; the ticks are in `relaxation`.

Acting lets the units run; the update runs the same ticks again, from the outputs that were drawn, now with traces.
Source: Chung 2021, arXiv:2010.07893, asynchronous MAP propagation (earlier version of the text).
"""

from __future__ import annotations

import functools
from typing import Any

from etils import epy

from shoal.algorithms._teams import learning, records, relaxation, units
from shoal.core import types
from shoal.formulas import optimise

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


def learn(
    rule: records.Rule, state: records.State, step: types.Transition, carry: types.Carry, key: types.Key
) -> tuple[records.State, types.Metrics]:
    """`clean` for units that never stop: the ticks of acting once more, now with their traces; then the same δ.

    The critic's ticks with a held output are at this observation, those with a free one at the next.
    """
    hyper, pending = state.hyper, state.pending
    obs, next_obs = (records.seen(rule, state.normaliser, seen) for seen in (step.obs, step.next_obs))
    reward = jnp.clip(step.reward, -hyper.reward_clip, hyper.reward_clip)
    z = state.traces or jax.tree.map(lambda leaf: jnp.zeros((reward.size, *leaf.shape)), state.params)
    z = jax.tree.map(lambda leaf: jnp.where(pending.fresh.reshape(-1, *[1] * (leaf.ndim - 1)), 0.0, leaf), z)
    delta, value, traces = reward, jnp.zeros_like(reward), {}
    course: Any = ()
    traces["actor"] = jax.vmap(functools.partial(_retrace, rule, state))(z["actor"], obs, step.extras.hidden, carry)
    if rule.config.critic_rule != "none":
        noise = jax.random.normal(key, (reward.size, 2, rule.config.free_steps, 1))
        going = jax.vmap(functools.partial(_course, rule, state))
        traces["critic"], course, value = going(z["critic"], pending.guess, pending.fresh, obs, next_obs, noise)
        delta = reward + hyper.discount * step.discount * course.value - value
    gradient = jax.tree.map(lambda leaf: jnp.tensordot(delta, leaf, 1) / -delta.size, traces)
    state, norm = learning.apply(
        rule, state, gradient, optimise.Step(learning.rates(rule, state.layers, state.env_steps / hyper.end_t))
    )
    over, still = (step.discount == 0) | step.truncated, jnp.zeros_like(reward)
    state = state._replace(
        traces=traces if state.traces else (),
        pending=records.Ahead(course, over),
        env_steps=state.env_steps + reward.size,
    )
    return state, learning.told(
        rule, {"guard": still, "actor_move": still, "critic_move": still}, step, delta, value, norm
    )


def _retrace(rule: records.Rule, state: records.State, z: Any, obs: Any, drawn: Any, flow: Any) -> Any:
    """The actor's traces over the ticks of one decision, from the outputs it drew."""
    kind, steps = rule.kinds["actor"], rule.config.steps
    outputs = drawn.reshape(rule.config.free_steps, -1)
    outputs = jnp.concatenate([outputs, jnp.broadcast_to(outputs[-1], (steps, *outputs.shape[1:]))])
    body = relaxation.Body(kind, records.law(state, "actor"), state.params["actor"], obs)
    heard = relaxation.relax(body, flow, outputs, lambda _mean, _before, given: given, _clock(state))[2]
    return relaxation.traced(kind, z, heard, state.hyper.discount * state.hyper.trace)


def _course(
    rule: records.Rule,
    state: records.State,
    z: Any,
    course: records.Course,
    fresh: Any,
    obs: Any,
    next_obs: Any,
    noise: Any,
) -> tuple[Any, records.Course, Any]:
    """The critic's traces from one observation to the next, where it is then, and its value of the first."""
    kind, law, params = rule.kinds["critic"], records.law(state, "critic"), state.params["critic"]
    fade, spread = state.hyper.discount * state.hyper.trace, jnp.sqrt(law.variance[-1])

    def gate(output: Any, mean: Any, error: Any) -> Any:
        if rule.config.gate == "product":
            return tuple(e * (output - mean) for e in error)
        return units.gate(law, output, mean, error, state.hyper.guard)[0]

    def ticks(z: Any, flow: Any, obs: Any, outputs: Any, choose: Any) -> tuple[Any, records.Course]:
        body = relaxation.Body(kind, law, params, obs)
        flow, _, heard = relaxation.relax(body, flow, outputs, choose, _clock(state), gate)
        value = units.potential(params[kind.names[-1]], flow.hidden[-1])[0]
        return relaxation.traced(kind, z, heard, fade), records.Course(flow, value)

    def free(mean: Any, before: Any, noise: Any) -> Any:
        del before
        return mean + spread * noise

    begun = ticks(z, jax.tree.map(jnp.zeros_like, course.flow), obs, noise[0], free)
    z, now = jax.tree.map(lambda new, old: jnp.where(fresh, new, old), begun, (z, course))
    z, held = ticks(z, now.flow, obs, jnp.zeros((rule.config.steps, 1)), lambda _mean, before, _given: before)
    z, after = ticks(z, held.flow, next_obs, noise[1], free)
    return z, after, now.value


def act(
    rule: records.Rule, policy: types.Policy, carry: types.Carry, obs: Any, key: types.Key
) -> tuple[Any, records.Remembered, types.Carry]:
    """N' ticks with a free output, then N with the last one held; greedily, one sweep of means."""
    kind, seen, config, more = (
        rule.kinds["actor"],
        records.seen(rule, policy.normaliser, obs),
        rule.config,
        policy.exploration,
    )
    law = units.Law(more.variance, jnp.ones(()))  # the temperature is in the weights
    params = policy.params if rule.choices else _unfolded(rule, policy.params)
    outputs = rule.choices or rule.scale.size
    draw = jax.random.gumbel if rule.choices else jax.random.normal
    noise = draw(key, (config.free_steps, outputs))
    held = jnp.zeros((config.steps, outputs))
    free = jnp.arange(config.free_steps + config.steps) < config.free_steps

    def choose(mean: Any, before: Any, given: tuple[Any, Any]) -> Any:
        noise, live = given
        if rule.choices:
            drawn = jax.nn.one_hot(jnp.argmax(jnp.log(mean) + noise), outputs, dtype=mean.dtype)
        else:
            drawn = mean + jnp.sqrt(law.variance[-1]) * noise
        return jnp.where(live, drawn, before)

    body = relaxation.Body(kind, law, params, seen)
    clock = relaxation.Clock(more.speed_decay, jnp.zeros(()), jnp.ones(()))  # speeds are kept; nothing is learned
    flow, drawn, _ = relaxation.relax(body, carry, (jnp.concatenate([noise, held]), free), choose, clock)
    quiet = units.split(jnp.zeros(sum(rule.sizes["actor"])), rule.sizes["actor"])
    calm = units.sample(kind, params, seen, more.deviation, quiet)
    mean = units.potential(params[kind.names[-1]], calm[-1])
    live = policy.explore > 0
    if rule.choices:
        action = jnp.where(live, jnp.argmax(flow.output), jnp.argmax(mean)).astype(jnp.int32)
    else:
        action = jnp.where(live, flow.output, mean) * rule.scale + rule.offset
    return action, records.Remembered(drawn[: config.free_steps].reshape(-1), jnp.ones(1)), flow


def _unfolded(rule: records.Rule, params: types.Params) -> types.Params:
    """The output layer in its own units again."""
    name = rule.kinds["actor"].names[-1]
    kernel, bias = params[name]["kernel"], params[name]["bias"]
    return {**params, name: {"kernel": kernel / rule.scale, "bias": (bias - rule.offset) / rule.scale}}


def _clock(state: records.State) -> Any:
    return relaxation.Clock(state.hyper.speed_decay, state.hyper.speed_weight, state.hyper.speed_floor)
