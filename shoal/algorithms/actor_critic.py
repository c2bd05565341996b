"""Advantage actor-critic: the learning rule of A3C and A2C.

Mnih et al. 2016, "Asynchronous Methods for Deep Reinforcement Learning", arXiv:1602.01783, algorithm S3. A3C and A2C
differ only in the runtime and in the settings (sum or mean over the segment, epsilon, clip): see `experiment/tuned/`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from etils import epy

from shoal import algorithms
from shoal.core import options, types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np

    from shoal import networks
    from shoal.algorithms import _hyper, _values
    from shoal.formulas import distributions, importance, losses, normalise
    from shoal.networks import in_numpy


@dataclasses.dataclass(frozen=True)
class Config:
    """Actor-critic."""

    rollout_length: int = options.number(5, low=1)
    """Steps of a segment (t_max) before each update."""
    discount: float = options.number(0.99, low=0.0, high=1.0)
    """Gamma."""
    entropy_cost: float = options.number(0.01, low=0.0, scale="log")
    """Weight of the policy's entropy (beta); higher explores more."""
    value_cost: float = options.number(0.5, low=0.0, scale="log")
    """Weight of ½ (return - value)²."""
    reduction: Literal["sum", "mean"] = "sum"
    """Sum over the segment's steps (A3C) or mean over steps and environments (A2C)."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this before learning; logged returns are not."""
    reward_clip: float = options.number(0.0, low=0.0)
    """Scaled rewards are clipped to plus-minus this; 0 turns it off (the paper's Atari runs use 1)."""
    normalise_advantages: bool = False
    """Shift and scale the advantages of an update to mean 0 and deviation 1. With value_cost 0 and a rollout of one
    episode that is REINFORCE whose returns are whitened, the baseline without a critic."""
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


def fits(config: Config, network: networks.Config, spec: types.EnvSpec) -> str:
    """See `algorithms`."""
    del config, network, spec
    return ""


def traits(config: Config) -> types.Traits:
    """See `algorithms`."""
    return types.Traits(
        actions=("discrete", "multi_discrete", "continuous"),
        corrects="v",
        tells_mu=True,
        padded=True,
        normalises=config.normalise_observations,
        rollout=config.rollout_length,
        samples=lambda streams: streams * config.rollout_length,
    )


def build(config: Config, given: algorithms.Ingredients) -> types.Agent:
    """The rule as pure functions.

    Args:
        config: The rule's numbers.
        given: Environment spec, network shape, optimiser and corrector.
    """
    head = distributions.suited(given.spec.action, stretches=given.stretches)
    heads = {
        "policy": networks.Head(head.outputs(given.spec.action), 0.01),
        "value": networks.Head(1, 1.0),
    }
    network = networks.build(given.network, given.spec.observation, heads)
    shape = normalise.shape(given.spec.observation)
    rule = _values.Rule(config=config, network=network, head=head, corrector=given.corrector, optimiser=given.optimiser)

    def init(key: types.Key) -> State:
        params = network.init(key)
        statistics = normalise.init(shape) if config.normalise_observations else ()
        return State(
            params=params,
            optimiser=given.optimiser.init(params),
            normaliser=statistics,
            env_steps=jnp.int32(0),
            hyper=_hyper.scalars(Hyper, config, off=("reward_clip",)),
        )

    def snapshot(state: State) -> types.Policy:
        return types.Policy(state.params, state.normaliser, jnp.float32(1.0))

    def act(policy: types.Policy, carry: types.Carry, obs: Any, key: types.Key) -> tuple[Any, Remembered, types.Carry]:
        output, _, carry = _values.evaluate(rule, policy.params, policy.normaliser, obs, carry)
        return *decide(policy, {"policy": output}, key), carry

    def decide(policy: types.Policy, outputs: Mapping[str, Any], key: types.Key) -> tuple[Any, Remembered]:
        action, log_prob = _values.decide(rule, policy, outputs["policy"], key)
        return action, Remembered(log_prob)

    def decide_many(
        policy: types.Policy, outputs: Mapping[str, np.ndarray], generator: np.random.Generator
    ) -> tuple[np.ndarray, Remembered]:
        drawn = _values.decide_many(rule, policy, outputs, generator)
        return drawn.action, Remembered(drawn.log_prob)

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

    small = not network.carry and not config.normalise_observations and in_numpy.fits(network.spec)
    about = types.About(
        rollout_length=config.rollout_length,
        head=head.name,
        networks={"policy": network},
        carry=network.carry,
        acting=types.Acting(
            network="policy",
            heads=("policy",),
            decide=decide,
            decide_many=decide_many,
            log_prob=lambda policy, outputs, action: _values.log_prob(rule, policy, outputs["policy"], action),
            kl=rule.head.kl,
            remembered=True,
            decider=functools.partial(_decider, rule) if small else None,
        ),
        hyper=_hyper.leaves(Hyper, Config),
    )
    return types.Agent(init=init, snapshot=snapshot, act=act, update=update, about=about)


def loss(rule: _values.Rule, params: types.Params, state: State, rollout: types.Rollout) -> tuple[Any, types.Metrics]:
    """Policy gradient + value_cost ½ (G - V)² - entropy_cost H over a rollout ``[T, B]``; Mnih et al. 2016, S3."""
    steps, hyper, counts = rollout.transitions, state.hyper, losses.counted(rollout)
    output, value, after = _values.along_all(rule, params, state.normaliser, steps, rollout.carry)  # [T, B]
    next_value = _values.bootstrap(rule, params, state.normaliser, steps, value, after)
    log_prob = jax.vmap(jax.vmap(rule.head.log_prob))(output, steps.action)
    entropy = jax.vmap(jax.vmap(rule.head.entropy))(output)
    seen = types.Steps(
        log_pi=jax.lax.stop_gradient(log_prob),
        log_mu=steps.extras.log_prob,
        reward=jnp.clip(steps.reward * hyper.reward_scale, -hyper.reward_clip, hyper.reward_clip),
        discount=hyper.discount * steps.discount,
        cut=_values.over(steps),
        value=jax.lax.stop_gradient(value),
        next_value=next_value,
        counts=counts,
    )
    corrected = _values.correct(rule, seen)
    advantage = whitened(corrected.advantage, counts) if rule.config.normalise_advantages else corrected.advantage
    actor = losses.policy_gradient(log_prob, advantage)
    critic = losses.squared_error(value, corrected.target)
    each = actor + hyper.value_cost * critic - hyper.entropy_cost * entropy
    each, counts = _values.weighed(rule, each, corrected.weight), _values.accepted(rule, counts, corrected.weight)
    told = {"loss": each, "policy_loss": actor, "value_loss": critic, "entropy": entropy, "value": value}
    metrics = {name: losses.mean(values, counts) for name, values in told.items()}
    total = losses.total(each, counts) if rule.config.reduction == "sum" else metrics["loss"]
    return total, {**metrics, **importance.told(rule.corrector, seen, corrected)}


def whitened(advantage: Any, counts: Any) -> Any:
    """Advantages ``[T, B]`` of mean 0 and deviation 1 over the steps that count."""
    centred = advantage - losses.mean(advantage, counts)
    return centred / (jnp.sqrt(losses.mean(jnp.square(centred), counts)) + 1e-5)


def _decider(rule: _values.Rule, state: State, generator: Any) -> Any:
    """See `types.Acting`."""
    del state
    decide, box = in_numpy.Sampler(rule.head.name, generator, rule.head.sizes).decide, rule.head.box

    def act(output: Any) -> tuple[Any, Remembered]:
        action, log_prob = decide(output)
        return action if box is None else distributions.stretch(box, action), Remembered(log_prob)

    return act
