"""PPO: several passes over each batch of experience, held near the policy that gathered it.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms", arXiv:1707.06347; details as in Huang et al. 2022, "The
37 Implementation Details of Proximal Policy Optimization". Advantages come from the corrector: λ of
``correct/none.py`` is that of generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438). Where the
corrector looks at the policy that acted, it corrects between that one and the learner's before the update, and the clip
is held between the learner's before and after (Hilton et al. 2022, arXiv:2110.00641: the proximal policy).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epy

from shoal import algorithms
from shoal.core import errors, options, types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np

    from shoal import networks
    from shoal.algorithms import _hyper, _values
    from shoal.core import prng
    from shoal.formulas import distributions, importance, losses, normalise


@dataclasses.dataclass(frozen=True)
class Config:
    """PPO."""

    rollout_length: int = options.number(128, low=1)
    """Steps of each environment between two updates."""
    epochs: int = options.number(4, low=1)
    """Passes over the experience in an update."""
    minibatches: int = options.number(4, low=1)
    """Gradient steps in a pass; each takes an equal share of the experience."""
    discount: float = options.number(0.99, low=0.0, high=1.0)
    """Gamma."""
    clip: float = options.number(0.2, low=0.0)
    """How far the probability of an action may move before it no longer pays (epsilon)."""
    value_clip: float = options.number(0.0, low=0.0)
    """How far a value may move in an update; 0 lets it go."""
    entropy_cost: float = options.number(0.01, low=0.0, scale="log")
    """Weight of the policy's entropy."""
    value_cost: float = options.number(0.5, low=0.0, scale="log")
    """Weight of ½ (return - value)²."""
    normalise_advantages: bool = True
    """Shift and scale the advantages of a minibatch to mean 0 and deviation 1."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this before learning; logged returns are not."""
    reward_clip: float = options.number(0.0, low=0.0)
    """Scaled rewards are clipped to plus-minus this; 0 turns it off (1 on Atari)."""
    normalise_observations: bool = False
    """Shift and scale observations by their running mean and variance."""
    normalise_returns: bool = False
    """Divide rewards by the running deviation of the discounted return."""


class Hyper(NamedTuple):
    """Numbers that may change during training; f32 scalars."""

    discount: Any
    clip: Any
    value_clip: Any  # `optimise.LARGEST`: off
    entropy_cost: Any
    value_cost: Any
    reward_scale: Any
    reward_clip: Any  # `optimise.LARGEST`: off


class State(NamedTuple):
    """The learner."""

    params: types.Params
    optimiser: Any  # optimise.OptimiserState
    normaliser: Any  # normalise.Statistics, () when off
    returns: Any  # normalise.Returns, () when off
    env_steps: Any  # scalar i32, environment steps learned from
    hyper: Hyper


class Remembered(NamedTuple):
    """What acting leaves for the update; in a `Lesson` that of the policy which the clips hold on to (`prepare`)."""

    log_prob: Any  # scalar f32, of the behaviour policy
    value: Any  # scalar f32


class Lesson(NamedTuple):
    """What a gradient step learns from, a row for each decision; leaves ``[N, ...]``, of a recurrent one ``[T, n]``."""

    steps: types.Transition
    carry: types.Carry  # recurrent state before the first step, () where there is none
    advantage: Any
    target: Any
    weight: Any  # of its losses; see `types.Corrected`


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
        unshareable=_unshareable(config),
        normalises=config.normalise_observations,
        rollout=config.rollout_length,
        samples=lambda streams: streams * config.rollout_length // config.minibatches,
        gradients=config.epochs * config.minibatches,
    )


def _unshareable(config: Config) -> str:
    if config.epochs * config.minibatches > 1:
        return "ppo makes several gradient steps in an update; set algorithm.epochs and algorithm.minibatches to 1"
    if config.normalise_returns:
        return "the statistics of returns are not shared; set algorithm.normalise_returns to false"
    return ""


def build(config: Config, given: algorithms.Ingredients) -> types.Agent:
    """The rule as pure functions.

    Args:
        config: The rule's numbers.
        given: Environment spec, network shape, optimiser and corrector.

    Raises:
        Refused: The experience of an update cannot be cut into equal minibatches.
    """
    spec = given.spec
    head = distributions.suited(spec.action, stretches=given.stretches)
    kind = "dense" if spec.action.discrete else "gaussian"
    heads = {"policy": networks.Head(head.outputs(spec.action), 0.01, kind), "value": networks.Head(1, 1.0)}
    network = networks.build(given.network, spec.observation, heads)
    rule = _values.Rule(config=config, network=network, head=head, corrector=given.corrector, optimiser=given.optimiser)
    _check_shares(config, given.streams, bool(network.carry))

    def init(key: types.Key) -> State:
        params = network.init(key)
        statistics = normalise.init(normalise.shape(spec.observation)) if config.normalise_observations else ()
        paid = normalise.init_returns(given.streams) if config.normalise_returns else ()
        return State(
            params=params,
            optimiser=given.optimiser.init(params),
            normaliser=statistics,
            returns=paid,
            env_steps=jnp.int32(0),
            hyper=_hyper.scalars(Hyper, config, off=("value_clip", "reward_clip")),
        )

    def snapshot(state: State) -> types.Policy:
        moments = state.returns.moments if config.normalise_returns else ()
        return types.Policy(state.params, state.normaliser, jnp.float32(1.0), returns=moments)

    def act(policy: types.Policy, carry: types.Carry, obs: Any, key: types.Key) -> tuple[Any, Remembered, types.Carry]:
        output, value, carry = _values.evaluate(rule, policy.params, policy.normaliser, obs, carry)
        return *decide(policy, {"policy": output, "value": value[None]}, key), carry

    def decide(policy: types.Policy, outputs: Mapping[str, Any], key: types.Key) -> tuple[Any, Remembered]:
        action, log_prob = _values.decide(rule, policy, outputs["policy"], key)
        return action, Remembered(log_prob, outputs["value"][0])

    def decide_many(
        policy: types.Policy, outputs: Mapping[str, np.ndarray], generator: np.random.Generator
    ) -> tuple[np.ndarray, Remembered]:
        drawn = _values.decide_many(rule, policy, outputs, generator)
        return drawn.action, Remembered(drawn.log_prob, outputs["value"][:, 0])

    def update(state: State, rollout: types.Rollout, key: types.Key) -> tuple[State, types.Metrics]:
        steps = rollout.transitions
        state, reward = scale(rule, state, steps)
        lesson, told = prepare(rule, state, rollout, reward)
        state, metrics = study(rule, state, lesson, key)
        if config.normalise_observations:  # after learning: the ratios above are to the policy as it acted
            seen = normalise.update(state.normaliser, steps.obs, normalise.shape(spec.observation))
            state = state._replace(normaliser=seen)
        return state._replace(env_steps=state.env_steps + steps.reward.size), {**metrics, **told}

    def restart(state: State) -> State:
        if not config.normalise_returns:
            return state
        return state._replace(returns=state.returns._replace(running=jnp.zeros(given.streams)))

    about = types.About(
        rollout_length=config.rollout_length,
        head=head.name,
        networks={"policy": network},
        carry=network.carry,
        acting=types.Acting(
            network="policy",
            heads=("policy", "value"),
            decide=decide,
            decide_many=decide_many,
            log_prob=lambda policy, outputs, action: _values.log_prob(rule, policy, outputs["policy"], action),
            kl=rule.head.kl,
            remembered=True,
        ),
        hyper=_hyper.leaves(Hyper, Config),
        streams_matter=config.normalise_returns,
        restart=restart,
    )
    return types.Agent(init=init, snapshot=snapshot, act=act, update=update, about=about)


def scale(rule: _values.Rule, state: State, steps: types.Transition) -> tuple[State, Any]:
    """Rewards ``[T, B]`` as they are learned from, and the statistics they are divided by."""
    hyper, reward = state.hyper, steps.reward
    if rule.config.normalise_returns:
        over = (steps.discount == 0) | steps.truncated
        state = state._replace(returns=normalise.update_returns(state.returns, reward, over, hyper.discount))
        reward = reward / normalise.deviation(state.returns)
    return state, jnp.clip(reward * hyper.reward_scale, -hyper.reward_clip, hyper.reward_clip)


def prepare(rule: _values.Rule, state: State, rollout: types.Rollout, reward: Any) -> tuple[Lesson, types.Metrics]:
    """Advantages and targets ``[T, B]`` of a rollout, by the corrector.

    What is remembered for the clips is what the policy that acted thought of it. A corrector that needs μ makes that
    the learner's own, with its parameters before the update: they need not be those that acted.
    """
    steps, after = rollout.transitions, ()
    before, needs_mu = steps.extras, rule.corrector.needs_mu
    if rule.network.carry or needs_mu:
        output, value, after = _values.along_all(rule, state.params, state.normaliser, steps, rollout.carry)
        if needs_mu:
            before = Remembered(jax.vmap(jax.vmap(rule.head.log_prob))(output, steps.action), value)
    seen = types.Steps(
        log_pi=before.log_prob,
        log_mu=steps.extras.log_prob,
        reward=reward,
        discount=state.hyper.discount * steps.discount,
        cut=_values.over(steps),
        value=before.value,
        next_value=_values.bootstrap(rule, state.params, state.normaliser, steps, before.value, after),
    )
    corrected = _values.correct(rule, seen)
    lesson = Lesson(
        steps=steps._replace(next_obs=(), extras=before),
        carry=rollout.carry,
        advantage=corrected.advantage,
        target=corrected.target,
        weight=corrected.weight if rule.corrector.weighs else (),
    )
    return lesson, importance.told(rule.corrector, seen, corrected)


def study(rule: _values.Rule, state: State, lesson: Lesson, key: types.Key) -> tuple[State, types.Metrics]:
    """Epochs of minibatches; a recurrent network learns from whole streams, others from single decisions."""
    config, recurrent = rule.config, bool(rule.network.carry)
    T, B = lesson.advantage.shape
    rows, axis = (B, 1) if recurrent else (T * B, 0)
    if not recurrent:
        lesson = jax.tree.map(lambda leaf: leaf.reshape(T * B, *leaf.shape[2:]), lesson)

    def pick(chosen: Any) -> Lesson:
        carry = jax.tree.map(lambda leaf: leaf[chosen], lesson.carry)
        rest = jax.tree.map(lambda leaf: jnp.take(leaf, chosen, axis=axis), lesson._replace(carry=()))
        return rest._replace(carry=carry)

    def minibatch(at: tuple[Any, Any], chosen: Any) -> tuple[tuple[Any, Any], types.Metrics]:
        params, optimiser = at
        gradient, metrics = jax.grad(functools.partial(loss, rule, state), has_aux=True)(params, pick(chosen))
        params, optimiser, norm = rule.optimiser.update(gradient, optimiser, params, state.env_steps)
        return (params, optimiser), {**metrics, "gradient_norm": norm}

    orders = jax.vmap(lambda key: prng.permutation(key, rows))(jax.random.split(key, config.epochs))
    chosen = orders.reshape(config.epochs * config.minibatches, rows // config.minibatches)
    (params, optimiser), metrics = jax.lax.scan(minibatch, (state.params, state.optimiser), chosen)
    return state._replace(params=params, optimiser=optimiser), jax.tree.map(jnp.mean, metrics)


def loss(rule: _values.Rule, state: State, params: types.Params, lesson: Lesson) -> tuple[Any, types.Metrics]:
    """Clipped policy gradient + value_cost ½ (G - V)² - entropy_cost H; Schulman et al. 2017, equation 9."""
    hyper, steps, head = state.hyper, lesson.steps, rule.head
    if rule.network.carry:
        output, value, _ = _values.along_all(rule, params, state.normaliser, steps, lesson.carry)  # [T, n]
        log_prob = jax.vmap(jax.vmap(head.log_prob))(output, steps.action)
        entropy = jax.vmap(jax.vmap(head.entropy))(output)
    else:
        output, value, _ = jax.vmap(lambda obs: _values.evaluate(rule, params, state.normaliser, obs, ()))(steps.obs)
        log_prob, entropy = jax.vmap(head.log_prob)(output, steps.action), jax.vmap(head.entropy)(output)
    counts = _values.accepted(rule, (), lesson.weight)
    mean = functools.partial(losses.mean, counts=counts)
    advantage = normalised(lesson.advantage, counts) if rule.config.normalise_advantages else lesson.advantage
    log_rho = log_prob - steps.extras.log_prob
    terms = (
        losses.clipped_policy_gradient(log_rho, advantage, hyper.clip),
        losses.clipped_squared_error(value, steps.extras.value, lesson.target, hyper.value_clip),
        entropy,
    )
    actor, critic, spread = (mean(_values.weighed(rule, each, lesson.weight)) for each in terms)
    total = actor + hyper.value_cost * critic - hyper.entropy_cost * spread
    metrics = {
        "loss": total,
        "policy_loss": actor,
        "value_loss": critic,
        "entropy": mean(entropy),
        "value": mean(value),
        "kl": mean(jnp.expm1(log_rho) - log_rho),  # of the policies before and now: Schulman 2020, estimator k3
        "clipped": mean((jnp.abs(jnp.expm1(log_rho)) > hyper.clip).astype(jnp.float32)),
    }
    return total, metrics


def normalised(advantage: Any, counts: Any) -> Any:
    """Advantages of a minibatch shifted and scaled to mean 0 and deviation 1, over those that count."""
    if isinstance(counts, tuple):
        return (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    middle = losses.mean(advantage, counts)
    deviation = jnp.sqrt(losses.mean((advantage - middle) ** 2, counts))
    return (advantage - middle) / (deviation + 1e-8)


def _check_shares(config: Config, streams: int, recurrent: bool) -> None:
    rows, what = (streams, "environments") if recurrent else (streams * config.rollout_length, "decisions")
    if rows % config.minibatches:
        raise errors.Refused(
            f"algorithm.minibatches={config.minibatches} does not divide the {rows} {what} of an update; "
            "change it, algorithm.rollout_length or runtime.environments"
        )
