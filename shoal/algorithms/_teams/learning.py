"""What a team learns from one decision: the MAP phase, increments of traces, one step of the optimiser.

Source: Chung 2021, arXiv:2010.07893; order and settings as in stephen-chung-mh/map_prop.
"""

from __future__ import annotations

from typing import Any

from etils import epy

from shoal.algorithms._teams import records, units
from shoal.core import types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

UNROLL = 4  # steps of the MAP phase written out in the loop's body


def guess(rule: records.Rule, state: records.State, obs: Any, noise: Any) -> records.Guess:
    """The critic's draw.

    Args:
        rule: The rule.
        state: Weights and variances.
        obs: ``[features]``.
        noise: ``[hidden units + 1]`` standard normal.
    """
    kind, params, law = rule.kinds["critic"], state.params["critic"], records.law(state, "critic")
    deviation = jnp.sqrt(law.variance)
    quiet = rule.config.critic_rule == "backprop" and rule.config.learning != "backprop_sto"
    parts = units.split(jnp.zeros_like(noise[:-1]) if quiet else noise[:-1], rule.sizes["critic"])
    hidden = units.sample(kind, params, obs, deviation, parts)
    mean = units.potential(params[kind.names[-1]], hidden[-1])
    return records.Guess(hidden, mean + deviation[-1] * noise[-1:], mean[0])


def lesson(rule: records.Rule, state: records.State, moment: records.Moment, stale: dict[str, Any]) -> records.Lesson:
    """The MAP phase and the increments of both networks at one decision.

    Args:
        rule: The rule.
        state: Weights, variances and the rest of the learner.
        moment: What was sampled.
        stale: By network, the sweep that the first step of the MAP phase starts from; empty: new ones.
    """
    config, laws = rule.config, {which: records.law(state, which) for which in state.params}
    values = {"actor": (moment.hidden, moment.output)}
    if moment.guess:
        values["critic"] = moment.guess.hidden, moment.guess.output
    problems = {
        which: units.Problem(
            rule.kinds[which], laws[which], state.params[which], moment.obs, *values[which], stale.get(which)
        )
        for which in state.params
    }
    local = [
        which
        for which, by in (("actor", config.learning), ("critic", config.critic_rule))
        if which in problems and by == "map"
    ]
    settled = dict(zip(local, units.settle([problems[w] for w in local], config.steps, UNROLL), strict=True))
    error, hidden, told = {}, {}, {"guard": jnp.zeros(()), "actor_move": jnp.zeros(()), "critic_move": jnp.zeros(())}
    left = jnp.zeros(())
    for which, problem in problems.items():
        if which in settled:
            end = settled[which]
            error[which], hidden[which] = end.error, end.hidden
            told[f"{which}_move"] = end.move
            if which == "critic" or config.targets:
                error[which], fired = _gated(rule, state, which, problem, end)
                told["guard"] = fired
            if config.targets:
                left = moment.target - end.activity.mean[-1][0]
        else:
            error[which], mean = _unsettled(rule, which, problem)
            hidden[which] = problem.hidden
            left = moment.target - mean[0]
    if config.exploring:
        flags = units.split(moment.exploring, (*rule.sizes["actor"], 1))
        error["actor"] = tuple(e * flag for e, flag in zip(error["actor"], flags, strict=True))
    increments = {
        which: units.increments(rule.kinds[which], moment.obs, hidden[which], error[which]) for which in state.params
    }
    return records.Lesson(increments, left, told)


def _gated(rule: records.Rule, state: records.State, which: str, problem: Any, end: Any) -> tuple[tuple[Any, ...], Any]:
    """The errors of a network that predicts a number; the paper's earlier text multiplies by A - mean (equation 17)."""
    if rule.config.gate == "product":
        mean = units.sweep(problem.kind, problem.law, problem.params, problem.obs, problem.hidden).mean[-1]
        return tuple(e * (problem.output - mean) for e in end.error), jnp.zeros(())
    law = records.law(state, which)
    return units.gate(law, problem.output, end.activity.mean[-1], end.error, state.hyper.guard)


def _unsettled(rule: records.Rule, which: str, problem: Any) -> tuple[tuple[Any, ...], Any]:
    """Errors of a network that does not learn by MAP, and the mean of its output."""
    kind, law, params = problem.kind, problem.law, problem.params
    activity = units.sweep(kind, law, params, problem.obs, problem.hidden)
    own, mean = units.errors(kind, law, activity, problem.hidden, problem.output), activity.mean[-1]
    if which == "actor" and not rule.config.targets:
        return units.backpropagate(kind, params, activity, own[-1]), mean
    if which == "actor" or rule.config.critic_rule == "backprop":  # the gradient of the mean
        return units.backpropagate(kind, params, activity, jnp.ones_like(problem.output)), mean
    # REINFORCE with the output as its reward, and the value of quiet units as a baseline that no draw changes.
    silent = [jnp.zeros_like(h) for h in problem.hidden]
    calm = units.sample(kind, params, problem.obs, law.variance, silent)
    baseline = units.potential(params[kind.names[-1]], calm[-1])
    return tuple(e * (problem.output - baseline) for e in own), mean


def eligible(state: records.State, added: Any, fresh: Any, delta: Any) -> tuple[records.State, Any]:
    """Traces z ← γλ z + e, from 0 where an episode begins, and the gradient -mean δ z over the streams.

    Args:
        state: The learner.
        added: Increments, leaves ``[B, ...]``.
        fresh: ``[B]`` bool.
        delta: ``[B]``.
    """
    fade = state.hyper.discount * state.hyper.trace

    def trace(z: Any, new: Any) -> Any:
        return jnp.where(fresh.reshape(-1, *[1] * (z.ndim - 1)), 0.0, fade * z) + new

    traces = jax.tree.map(trace, state.traces, added) if state.traces else added
    share = delta / -delta.size
    # A sum of products, not a product of matrices: of one stream, XLA joins it with the lines above.
    gradient = jax.tree.map(lambda z: jnp.sum(share.reshape(-1, *[1] * (z.ndim - 1)) * z, axis=0), traces)
    return state._replace(traces=traces if state.traces else ()), gradient


def apply(rule: records.Rule, state: records.State, gradient: Any, ask: Any) -> tuple[records.State, Any]:
    """One step of the optimiser; the gradient's norm."""
    params, optimiser, norm = rule.optimiser.update(gradient, state.optimiser, state.params, state.env_steps, ask)
    return state._replace(params=params, optimiser=optimiser), norm


def rates(rule: records.Rule, layers: dict[str, records.Layers], progress: Any) -> Any:
    """The rate of every layer, a scalar for each parameter: linear in `progress` from 0 to 1, then constant."""
    at = jnp.clip(progress, 0.0, 1.0)
    found = {}
    for which, each in layers.items():
        rate = each.rate + at * (each.rate_end - each.rate)
        found[which] = {name: {"kernel": rate[i], "bias": rate[i]} for i, name in enumerate(rule.kinds[which].names)}
    return found


def moments(rule: records.Rule, step: types.Transition, obs: Any, guess: Any) -> records.Moment:
    """A step ``[B]`` as its decisions."""
    hidden = units.split(step.extras.hidden, rule.sizes["actor"])
    if rule.choices:
        output = jax.nn.one_hot(step.action, rule.choices, dtype=obs.dtype)
    else:
        output = (step.action - rule.offset) / rule.scale
    target = step.next_obs[:, 0] if rule.config.targets else jnp.zeros_like(step.reward)
    return records.Moment(obs, hidden, output, step.extras.exploring, guess, target)


def told(rule: records.Rule, found: Any, step: types.Transition, delta: Any, value: Any, norm: Any) -> types.Metrics:
    """The metrics of an update, scalars.

    Args:
        rule: The rule.
        found: `Lesson.told`, leaves ``[B]``.
        step: ``[B]``.
        delta: ``[B]`` TD errors.
        value: ``[B]`` the critic's.
        norm: Of the gradient.
    """
    clipped = jnp.zeros(())
    if rule.bounds is not None:
        low, high = rule.bounds
        clipped = ((step.action < low) | (step.action > high)).astype(jnp.float32).mean()
    return {
        "reward": step.reward.mean(),
        "td_error": jnp.abs(delta).mean(),
        "value": value.mean(),
        "guard_rate": found["guard"].mean(),
        "actor_move": found["actor_move"].mean(),
        "critic_move": found["critic_move"].mean(),
        "clipped": clipped,
        "gradient_norm": norm,
    }
