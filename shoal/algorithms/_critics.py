"""What the rules with critics of continuous actions share: their networks, their memory, the critics' gradient step.

Actions are in [-1, 1]^d here; the memory holds them as the environment takes them (`distributions.shrink`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epy

from shoal import algorithms
from shoal.core import types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

    from shoal import networks
    from shoal.algorithms import _memory
    from shoal.formulas import distributions, losses, normalise


class Rule(NamedTuple):
    """What the functions of such a rule have in common."""

    config: Any  # the rule's own
    policy: types.Network
    critic: types.Network
    optimiser: Any  # optimise.Optimiser
    bounds: Any  # distributions.Bounds of the actions
    arrive: int  # environment steps in a rollout


class Lesson(NamedTuple):
    """What a gradient step of the critics leaves."""

    critics: Any  # their parameters, a tuple
    optimiser: Any  # theirs
    loss: Any  # scalar
    q: Any  # [N] of the first critic, before the step
    norm: Any  # of the gradient


def fits(config: Any, network: networks.Config, spec: types.EnvSpec) -> str:
    """See `algorithms`."""
    del config
    return networks.unfit_for_critics(network, spec)


def traits(config: Any, unshareable: str) -> types.Traits:
    """See `algorithms`; `unshareable` as in `types.Traits`."""
    return types.Traits(
        actions=("continuous",),
        unshareable=unshareable,
        capacity=config.capacity,
        normalises=config.normalise_observations,
        rollout=config.rollout_length,
        samples=lambda _: config.batch,
        gradients=config.updates,
    )


def build(config: Any, given: algorithms.Ingredients, outputs: int) -> Rule:
    """The networks of a rule.

    Args:
        config: The rule's settings.
        given: Environment spec, network shape and optimiser.
        outputs: Numbers that the policy's head gives.
    """
    spec = given.spec
    return Rule(
        config=config,
        policy=networks.build(given.network, spec.observation, {"policy": networks.Head(outputs, 0.01)}),
        critic=networks.critic(given.network, spec),
        optimiser=given.optimiser,
        bounds=distributions.bounds(spec.action),
        arrive=config.rollout_length * given.streams,
    )


def practice(
    rule: Rule, streams: int, learn: Callable[[Rule, Any, Any, types.Key], tuple[Any, Any, types.Metrics]]
) -> types.Practice:
    """How a rule learns from its memory.

    Args:
        rule: The rule.
        streams: B.
        learn: Its gradient step: (rule, state, sample, key) -> (state, errors, metrics).
    """
    config = rule.config
    plan = _memory.Plan(
        capacity=config.capacity,
        batch=config.batch,
        n_step=config.n_step,
        streams=streams,
        prioritised=False,
        rollout_length=config.rollout_length,
    )
    return types.Practice(
        plan=plan,
        prepare=functools.partial(prepare, rule),
        ready=learns,
        drawing=lambda state: (state.hyper.discount, ()),
        learn=functools.partial(learn, rule),
        updates=config.updates,
    )


def prepare(rule: Rule, state: Any, rollout: types.Rollout) -> tuple[Any, types.Transition]:
    """See `types.Practice.prepare`."""
    steps = rollout.transitions
    if rule.config.normalise_observations:
        seen = normalise.update(state.normaliser, steps.obs, rule.policy.spec.observation.shape)
        state = state._replace(normaliser=seen)
    reward = steps.reward * state.hyper.reward_scale
    return state._replace(env_steps=state.env_steps + rule.arrive), steps._replace(reward=reward)


def learns(state: Any) -> Any:
    """Whether the time of random actions is over; see `types.Practice.ready`."""
    return state.env_steps.astype(jnp.float32) >= state.hyper.learning_starts


def head(rule: Rule, params: types.Params, normaliser: Any, obs: Any) -> Any:
    """The policy head's output for one observation."""
    seen = normalise.apply(normaliser, obs) if normaliser else obs
    return rule.policy.apply(params, seen, ())[0]["policy"]


def value(rule: Rule, params: types.Params, normaliser: Any, obs: Any, action: Any) -> Any:
    """One critic's Q of an action, a scalar."""
    seen = normalise.apply(normaliser, obs) if normaliser else obs
    return rule.critic.apply(params, jnp.concatenate([seen, action]), ())[0]["q"][0]


def values(rule: Rule, critics: Any, normaliser: Any, obs: Any, action: Any) -> list[Any]:
    """Of every critic, Q ``[N]`` of actions ``[N, d]`` at observations ``[N, *obs]``."""
    judge = jax.vmap(functools.partial(value, rule), in_axes=(None, None, 0, 0))
    return [judge(critic, normaliser, obs, action) for critic in critics]


def lowest(rule: Rule, critics: Any, normaliser: Any, obs: Any, action: Any) -> Any:
    """The lowest of them, ``[N]``."""
    return functools.reduce(jnp.minimum, values(rule, critics, normaliser, obs, action))


def descend(rule: Rule, state: Any, drawn: _memory.Sample, target: Any) -> Lesson:
    """The critics' gradient step on Σ_i ½ (y - Q_i(x, a))².

    Args:
        rule: The rule.
        state: Its ``params["critics"]`` and ``critic_optimiser``.
        drawn: N transitions.
        target: ``[N]`` y, a constant.
    """
    action = distributions.shrink(rule.bounds, drawn.action)

    def loss(critics: Any) -> tuple[Any, Any]:
        found = values(rule, critics, state.normaliser, drawn.obs, action)
        return sum((drawn.weight * losses.squared_error(q, target)).mean() for q in found), found[0]

    now = state.params["critics"]
    (value, q), gradient = jax.value_and_grad(loss, has_aux=True)(now)
    critics, optimiser, norm = apply(rule, state, gradient, state.critic_optimiser, now)
    return Lesson(critics=critics, optimiser=optimiser, loss=value, q=q, norm=norm)


def apply(rule: Rule, state: Any, gradient: Any, optimiser: Any, params: types.Params) -> tuple[Any, Any, Any]:
    """(params, optimiser, norm) after a gradient; rates are taken at the steps before a rollout, as every rule does."""
    return rule.optimiser.update(gradient, optimiser, params, state.env_steps - rule.arrive)
