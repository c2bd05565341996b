"""PPO: several passes over each batch of experience, held near the policy that gathered it.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms", arXiv:1707.06347; details as in Huang et al. 2022, "The
37 Implementation Details of Proximal Policy Optimization". Advantages come from the corrector: λ of
``correct/none.py`` is that of generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

from etils import epy

from shoal import algorithms, errors, options, types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

    from shoal import distributions, losses, networks, normalise, optimise, prng


CORRECTS = True
ACTIONS = ("discrete", "continuous")


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
    entropy_cost: float = options.number(0.01, low=0.0)
    """Weight of the policy's entropy."""
    value_cost: float = options.number(0.5, low=0.0)
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
    """What acting leaves for the update."""

    log_prob: Any  # scalar f32, of the behaviour policy
    value: Any  # scalar f32


class Lesson(NamedTuple):
    """What a gradient step learns from, a row for each decision; leaves ``[N, ...]``, of a recurrent one ``[T, n]``."""

    steps: types.Transition
    carry: types.Carry  # recurrent state before the first step, () where there is none
    advantage: Any
    target: Any


class Rule(NamedTuple):
    """What the functions below have in common."""

    config: Config
    network: types.Network
    head: Any  # distributions.Distribution of the policy
    corrector: types.Corrector
    optimiser: Any  # optimise.Optimiser


def fits(config: Config, network: networks.Config, spec: types.EnvSpec) -> str:
    """See `algorithms`."""
    del config, network, spec
    return ""


def shareable(config: Config) -> str:
    """See `algorithms`."""
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
    head = distributions.suited(spec.action)
    kind = "dense" if spec.action.discrete else "gaussian"
    heads = {"policy": networks.Head(head.outputs(spec.action), 0.01, kind), "value": networks.Head(1, 1.0)}
    network = networks.build(given.network, spec.observation, heads)
    rule = Rule(config, network, head, given.corrector, given.optimiser)
    _check_shares(config, given.streams, bool(network.carry))

    def init(key: types.Key) -> State:
        params = network.init(key)
        statistics = normalise.init(spec.observation.shape) if config.normalise_observations else ()
        paid = normalise.init_returns(given.streams) if config.normalise_returns else ()
        return State(params, given.optimiser.init(params), statistics, paid, jnp.int32(0), _hyper(config))

    def snapshot(state: State) -> types.Policy:
        moments = state.returns.moments if config.normalise_returns else ()
        return types.Policy(state.params, state.normaliser, jnp.float32(1.0), returns=moments)

    def act(policy: types.Policy, carry: types.Carry, obs: Any, key: types.Key) -> tuple[Any, Remembered, types.Carry]:
        output, value, carry = evaluate(rule, policy.params, policy.normaliser, obs, carry)
        action = jnp.where(policy.explore > 0, head.sample(output, key), head.mode(output))
        return action, Remembered(head.log_prob(output, action), value), carry

    def update(state: State, rollout: types.Rollout, key: types.Key) -> tuple[State, types.Metrics]:
        steps = rollout.transitions
        state, reward = scale(rule, state, steps)
        lesson = prepare(rule, state, rollout, reward)
        state, metrics = study(rule, state, lesson, key)
        if config.normalise_observations:  # after learning: the ratios above are to the policy as it acted
            seen = normalise.update(state.normaliser, steps.obs, spec.observation.shape)
            state = state._replace(normaliser=seen)
        return state._replace(env_steps=state.env_steps + steps.reward.size), metrics

    def restart(state: State) -> State:
        if not config.normalise_returns:
            return state
        return state._replace(returns=state.returns._replace(running=jnp.zeros(given.streams)))

    length = config.rollout_length
    return types.Agent(init, snapshot, act, update, network.carry, length, head.name, network, None, restart)


def evaluate(
    rule: Rule, params: types.Params, normaliser: Any, obs: Any, carry: types.Carry
) -> tuple[Any, Any, types.Carry]:
    """Policy head output, value, and recurrent state after one observation."""
    seen = normalise.apply(normaliser, obs) if normaliser else obs
    outputs, carry = rule.network.apply(params, seen, carry)
    return outputs["policy"], outputs["value"][0], carry


def scale(rule: Rule, state: State, steps: types.Transition) -> tuple[State, Any]:
    """Rewards ``[T, B]`` as they are learned from, and the statistics they are divided by."""
    hyper, reward = state.hyper, steps.reward
    if rule.config.normalise_returns:
        over = (steps.discount == 0) | steps.truncated
        state = state._replace(returns=normalise.update_returns(state.returns, reward, over, hyper.discount))
        reward = reward / normalise.deviation(state.returns)
    return state, jnp.clip(reward * hyper.reward_scale, -hyper.reward_clip, hyper.reward_clip)


def along(rule: Rule, params: types.Params, normaliser: Any, stream: types.Transition, carry: types.Carry) -> Any:
    """Head outputs, values, and the recurrent state after each step of one stream ``[T]``."""

    def step(carry: types.Carry, at: types.Transition) -> Any:
        output, value, carry = evaluate(rule, params, normaliser, at.obs, carry)
        over = (at.discount == 0) | at.truncated
        following = jax.tree.map(lambda first, now: jnp.where(over, first, now), rule.network.carry, carry)
        return following, (output, value, carry)

    return jax.lax.scan(step, carry, stream)[1]


def prepare(rule: Rule, state: State, rollout: types.Rollout, reward: Any) -> Lesson:
    """Advantages and targets ``[T, B]`` of a rollout, by the corrector, with values of the policy that acted."""
    steps, value = rollout.transitions, rollout.transitions.extras.value
    after: types.Carry = ()
    if rule.network.carry:
        every = jax.vmap(functools.partial(along, rule, state.params, state.normaliser), in_axes=(1, 0), out_axes=1)
        after = every(steps, rollout.carry)[2]

    def successor(obs: Any, carry: types.Carry) -> Any:
        return evaluate(rule, state.params, state.normaliser, obs, carry)[1]

    def only_last() -> Any:  # within the rollout the successor is the next step's observation: its value is known
        last = jax.vmap(successor)(steps.next_obs[-1], jax.tree.map(lambda leaf: leaf[-1], after))
        return jnp.concatenate([value[1:], last[None]])

    def every_one() -> Any:
        return jax.vmap(jax.vmap(successor))(steps.next_obs, after)

    next_value = jax.lax.cond(jnp.any(steps.truncated[:-1]), every_one, only_last)
    corrected = jax.vmap(rule.corrector, in_axes=1, out_axes=1)(
        jnp.zeros_like(value),  # on-policy: the parameters are still those that acted
        reward,
        state.hyper.discount * steps.discount,
        (steps.discount == 0) | steps.truncated,
        value,
        next_value,
    )
    return Lesson(steps._replace(next_obs=()), rollout.carry, corrected.advantage, corrected.target)


def study(rule: Rule, state: State, lesson: Lesson, key: types.Key) -> tuple[State, types.Metrics]:
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


def loss(rule: Rule, state: State, params: types.Params, lesson: Lesson) -> tuple[Any, types.Metrics]:
    """Clipped policy gradient + value_cost ½ (G - V)² - entropy_cost H; Schulman et al. 2017, equation 9."""
    hyper, steps, head = state.hyper, lesson.steps, rule.head
    if rule.network.carry:
        every = jax.vmap(functools.partial(along, rule, params, state.normaliser), in_axes=(1, 0), out_axes=1)
        output, value, _ = every(steps, lesson.carry)  # [T, n]
        log_prob = jax.vmap(jax.vmap(head.log_prob))(output, steps.action)
        entropy = jax.vmap(jax.vmap(head.entropy))(output)
    else:
        output, value, _ = jax.vmap(lambda obs: evaluate(rule, params, state.normaliser, obs, ()))(steps.obs)
        log_prob, entropy = jax.vmap(head.log_prob)(output, steps.action), jax.vmap(head.entropy)(output)
    advantage = lesson.advantage
    if rule.config.normalise_advantages:
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    log_rho = log_prob - steps.extras.log_prob
    actor = losses.clipped_policy_gradient(log_rho, advantage, hyper.clip).mean()
    critic = losses.clipped_squared_error(value, steps.extras.value, lesson.target, hyper.value_clip).mean()
    total = actor + hyper.value_cost * critic - hyper.entropy_cost * entropy.mean()
    metrics = {
        "loss": total,
        "policy_loss": actor,
        "value_loss": critic,
        "entropy": entropy.mean(),
        "value": value.mean(),
        "kl": (jnp.expm1(log_rho) - log_rho).mean(),  # of the policies before and now: Schulman 2020, estimator k3
        "clipped": (jnp.abs(jnp.expm1(log_rho)) > hyper.clip).astype(jnp.float32).mean(),
    }
    return total, metrics


def _check_shares(config: Config, streams: int, recurrent: bool) -> None:
    rows, what = (streams, "environments") if recurrent else (streams * config.rollout_length, "decisions")
    if rows % config.minibatches:
        raise errors.Refused(
            f"algorithm.minibatches={config.minibatches} does not divide the {rows} {what} of an update; "
            "change it, algorithm.rollout_length or runtime.environments"
        )


def _hyper(config: Config) -> Hyper:
    values = {name: float(getattr(config, name)) for name in Hyper._fields}
    for name in ("value_clip", "reward_clip"):
        values[name] = values[name] or optimise.LARGEST
    return Hyper(**{name: jnp.float32(value) for name, value in values.items()})
