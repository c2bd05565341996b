"""Advantage actor-critic: the learning rule of A3C and A2C.

Mnih et al. 2016, "Asynchronous Methods for Deep Reinforcement Learning", arXiv:1602.01783, algorithm S3. A3C and A2C
differ only in the runtime and in the settings (sum or mean over the segment, epsilon, clip): see `presets.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

from etils import epy

from shoal import algorithms, options, types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

    from shoal import distributions, losses, networks, normalise, optimise, small_policy


CORRECTS = True
ACTIONS = ("discrete", "continuous")
PADDED = True


@dataclasses.dataclass(frozen=True)
class Config:
    """Actor-critic."""

    rollout_length: int = options.number(5, low=1)
    """Steps of a segment (t_max) before each update."""
    discount: float = options.number(0.99, low=0.0, high=1.0)
    """Gamma."""
    entropy_cost: float = options.number(0.01, low=0.0)
    """Weight of the policy's entropy (beta); higher explores more."""
    value_cost: float = options.number(0.5, low=0.0)
    """Weight of ½ (return - value)²."""
    reduction: Literal["sum", "mean"] = "sum"
    """Sum over the segment's steps (A3C) or mean over steps and environments (A2C)."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this before learning; logged returns are not."""
    reward_clip: float = options.number(0.0, low=0.0)
    """Scaled rewards are clipped to plus-minus this; 0 turns it off (the paper's Atari runs use 1)."""
    normalise_observations: bool = False
    """Shift and scale observations by their running mean and variance."""


class Hyper(NamedTuple):
    """Numbers that may change during training; f32 scalars."""

    discount: Any
    entropy_cost: Any
    value_cost: Any
    reward_scale: Any
    reward_clip: Any  # `optimise.LARGEST`: off


class State(NamedTuple):
    """The learner."""

    params: types.Params
    optimiser: Any  # optimise.OptimiserState
    normaliser: Any  # normalise.Statistics, () when off
    env_steps: Any  # scalar i32, environment steps learned from
    hyper: Hyper


class Remembered(NamedTuple):
    """What acting leaves for the update."""

    log_prob: Any  # scalar f32, of the behaviour policy


class Rule(NamedTuple):
    """What the functions below have in common."""

    config: Config
    network: types.Network
    head: Any  # distributions.Distribution of the policy
    corrector: types.Corrector


def fits(config: Config, network: networks.Config, spec: types.EnvSpec) -> str:
    """See `algorithms`."""
    del config, network, spec
    return ""


def shareable(config: Config) -> str:
    """See `algorithms`."""
    del config
    return ""


def build(config: Config, given: algorithms.Ingredients) -> types.Agent:
    """The rule as pure functions.

    Args:
        config: The rule's numbers.
        given: Environment spec, network shape, optimiser and corrector.
    """
    head = distributions.suited(given.spec.action)
    heads = {
        "policy": networks.Head(head.outputs(given.spec.action), 0.01),
        "value": networks.Head(1, 1.0),
    }
    network = networks.build(given.network, given.spec.observation, heads)
    shape = given.spec.observation.shape
    rule = Rule(config, network, head, given.corrector)

    def init(key: types.Key) -> State:
        params = network.init(key)
        statistics = normalise.init(shape) if config.normalise_observations else ()
        return State(params, given.optimiser.init(params), statistics, jnp.int32(0), _hyper(config))

    def snapshot(state: State) -> types.Policy:
        return types.Policy(state.params, state.normaliser, jnp.float32(1.0))

    def act(policy: types.Policy, carry: types.Carry, obs: Any, key: types.Key) -> tuple[Any, Remembered, types.Carry]:
        output, _, carry = evaluate(rule, policy.params, policy.normaliser, obs, carry)
        action = jnp.where(policy.explore > 0, head.sample(output, key), head.mode(output))
        return action, Remembered(head.log_prob(output, action)), carry

    def update(state: State, rollout: types.Rollout, key: types.Key) -> tuple[State, types.Metrics]:
        del key
        if config.normalise_observations:
            seen = normalise.update(state.normaliser, rollout.transitions.obs, shape, losses.counted(rollout))
            state = state._replace(normaliser=seen)
        gradient, metrics = jax.grad(functools.partial(loss, rule), has_aux=True)(state.params, state, rollout)
        params, optimiser, norm = given.optimiser.update(gradient, state.optimiser, state.params, state.env_steps)
        env_steps = state.env_steps + losses.happened(rollout)
        state = state._replace(params=params, optimiser=optimiser, env_steps=env_steps)
        return state, {**metrics, "gradient_norm": norm}

    small = not network.carry and not config.normalise_observations and small_policy.fits(network.spec)
    small_act = _small_act(rule) if small else None
    return types.Agent(init, snapshot, act, update, network.carry, config.rollout_length, head.name, network, small_act)


def evaluate(
    rule: Rule, params: types.Params, normaliser: Any, obs: Any, carry: types.Carry
) -> tuple[Any, Any, types.Carry]:
    """Policy head output, value, and recurrent state after one observation."""
    seen = normalise.apply(normaliser, obs) if normaliser else obs
    outputs, carry = rule.network.apply(params, seen, carry)
    return outputs["policy"], outputs["value"][0], carry


def along(
    rule: Rule, params: types.Params, normaliser: Any, stream: types.Transition, carry: types.Carry
) -> tuple[Any, Any, types.Carry]:
    """Head outputs, values, and the recurrent state after each step of one stream ``[T]``."""
    start = rule.network.carry
    if not start:  # no memory: all steps at once
        output, value, _ = jax.vmap(lambda obs: evaluate(rule, params, normaliser, obs, ()))(stream.obs)
        return output, value, ()

    def step(carry: types.Carry, at: types.Transition) -> Any:
        output, value, carry = evaluate(rule, params, normaliser, at.obs, carry)
        over = (at.discount == 0) | at.truncated
        following = jax.tree.map(lambda first, now: jnp.where(over, first, now), start, carry)
        return following, (output, value, carry)

    return jax.lax.scan(step, carry, stream)[1]


def bootstrap(
    rule: Rule, params: types.Params, normaliser: Any, steps: types.Transition, value: Any, after: types.Carry
) -> Any:
    """V of every step's true successor, ``[T, B]``; the recurrent state is read, never advanced."""
    params, value, after = jax.lax.stop_gradient((params, value, after))

    def successor(obs: Any, carry: types.Carry) -> Any:
        return evaluate(rule, params, normaliser, obs, carry)[1]

    def only_last() -> Any:  # within the segment the successor is the next step's observation: its value is known
        last = jax.vmap(successor)(steps.next_obs[-1], jax.tree.map(lambda leaf: leaf[-1], after))
        return jnp.concatenate([value[1:], last[None]])

    def every() -> Any:
        return jax.vmap(jax.vmap(successor))(steps.next_obs, after)

    return jax.lax.cond(jnp.any(steps.truncated[:-1]), every, only_last)


def loss(rule: Rule, params: types.Params, state: State, rollout: types.Rollout) -> tuple[Any, types.Metrics]:
    """Policy gradient + value_cost ½ (G - V)² - entropy_cost H over a rollout ``[T, B]``; Mnih et al. 2016, S3."""
    steps, hyper = rollout.transitions, state.hyper
    per_stream = jax.vmap(functools.partial(along, rule, params, state.normaliser), in_axes=(1, 0), out_axes=1)
    output, value, after = per_stream(steps, rollout.carry)  # [T, B]
    next_value = bootstrap(rule, params, state.normaliser, steps, value, after)
    log_prob = jax.vmap(jax.vmap(rule.head.log_prob))(output, steps.action)
    entropy = jax.vmap(jax.vmap(rule.head.entropy))(output)
    corrected = jax.vmap(rule.corrector, in_axes=1, out_axes=1)(
        jax.lax.stop_gradient(log_prob - steps.extras.log_prob),
        jnp.clip(steps.reward * hyper.reward_scale, -hyper.reward_clip, hyper.reward_clip),
        hyper.discount * steps.discount,
        (steps.discount == 0) | steps.truncated,
        jax.lax.stop_gradient(value),
        next_value,
    )
    actor = losses.policy_gradient(log_prob, corrected.advantage)
    critic = losses.squared_error(value, corrected.target)
    each, counts = actor + hyper.value_cost * critic - hyper.entropy_cost * entropy, losses.counted(rollout)
    told = {"loss": each, "policy_loss": actor, "value_loss": critic, "entropy": entropy, "value": value}
    metrics = {name: losses.mean(values, counts) for name, values in told.items()}
    return (losses.total(each, counts) if rule.config.reduction == "sum" else metrics["loss"]), metrics


def _small_act(rule: Rule) -> types.SmallAct:
    def make(state: State, generator: Any) -> Any:
        forward = small_policy.forward(rule.network.spec, state.params)
        decide = small_policy.Sampler(rule.head.name, generator).decide

        def act(obs: Any) -> tuple[Any, Remembered]:
            action, log_prob = decide(forward(obs))
            return action, Remembered(log_prob)

        return act

    return make


def _hyper(config: Config) -> Hyper:
    return Hyper(
        jnp.float32(config.discount),
        jnp.float32(config.entropy_cost),
        jnp.float32(config.value_cost),
        jnp.float32(config.reward_scale),
        jnp.float32(config.reward_clip or optimise.LARGEST),
    )
