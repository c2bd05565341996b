"""TD3: a deterministic policy, two critics of which the lower counts, smoothed targets, a policy that learns less.

Fujimoto et al. 2018, "Addressing Function Approximation Error in Actor-Critic Methods", arXiv:1802.09477. With one
critic, no smoothing and a policy delay of 1 it is DDPG (Lillicrap et al. 2016, arXiv:1509.02971).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

from etils import epy

from shoal import algorithms, options, types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

    from shoal import distributions, losses, networks, normalise, optimise, replay, tree


CORRECTS = False
ACTIONS = ("continuous",)


@dataclasses.dataclass(frozen=True)
class Config:
    """TD3."""

    rollout_length: int = options.number(1, low=1)
    """Steps of each environment between two times of learning."""
    updates: int = options.number(1, low=1)
    """Gradient steps each time."""
    batch: int = options.number(256, low=1)
    """Transitions a gradient step learns from."""
    capacity: int = options.number(1_000_000, low=1)
    """Environment steps the replay memory holds."""
    n_step: int = options.number(1, low=1)
    """Steps of reward before bootstrapping."""
    critics: int = options.number(2, low=1)
    """Critics; the lowest of their targets counts."""
    discount: float = options.number(0.99, low=0.0, high=1.0)
    """Gamma."""
    learning_starts: int = options.number(10_000, low=0)
    """Environment steps of random actions before the first gradient step."""
    tau: float = options.number(0.005, low=0.0, high=1.0)
    """How far the target networks move at each update of the policy."""
    policy_delay: int = options.number(2, low=1)
    """Updates of the critics for one of the policy."""
    noise: float = options.number(0.1, low=0.0)
    """Standard deviation of the exploration noise; actions span -1 to 1."""
    target_noise: float = options.number(0.2, low=0.0)
    """Standard deviation of the noise on target actions."""
    target_noise_clip: float = options.number(0.5, low=0.0)
    """Bound of that noise."""
    critic_rate: float = options.number(1.0, low=0.0)
    """The critics' step size as a multiple of the optimiser's."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this before learning; logged returns are not."""
    normalise_observations: bool = False
    """Shift and scale observations by their running mean and variance."""


class Hyper(NamedTuple):
    """Numbers that may change during training; f32 scalars."""

    discount: Any
    learning_starts: Any
    tau: Any
    policy_delay: Any
    noise: Any
    target_noise: Any
    target_noise_clip: Any
    reward_scale: Any


class Learner(NamedTuple):
    """What a gradient step changes."""

    params: types.Params  # {"policy": ..., "critics": (...)}
    target: types.Params  # the same for the target networks
    optimiser: Any  # of the policy, optimise.OptimiserState
    critic_optimiser: Any
    updates: Any  # scalar i32, gradient steps of the critics


class State(NamedTuple):
    """The learner and its memory."""

    params: types.Params
    target: types.Params
    optimiser: Any
    critic_optimiser: Any
    updates: Any
    normaliser: Any  # normalise.Statistics, () when off
    memory: Any  # see `replay`
    env_steps: Any  # scalar i32
    hyper: Hyper


class Rule(NamedTuple):
    """What the functions below have in common."""

    config: Config
    policy: types.Network
    critic: types.Network
    optimiser: Any  # optimise.Optimiser
    bounds: Any  # distributions.Bounds of the actions


def fits(config: Config, network: networks.Config, spec: types.EnvSpec) -> str:
    """See `algorithms`."""
    del config
    return networks.unfit_for_critics(network, spec)


def shareable(config: Config) -> str:
    """See `algorithms`."""
    del config
    return "td3 has several optimisers, and a runtime takes one gradient from each update"


def build(config: Config, given: algorithms.Ingredients) -> types.Agent:
    """The rule as pure functions.

    Args:
        config: The rule's numbers.
        given: Environment spec, network shape and optimiser; the corrector is not used.

    Raises:
        Refused: The memory is too small for its environments.
    """
    spec = given.spec
    policy = networks.build(given.network, spec.observation, {"policy": networks.Head(spec.action.shape[0], 0.01)})
    critic = networks.critic(given.network, spec)
    shape = replay.Plan(config.capacity, config.batch, config.n_step, given.streams, False, config.rollout_length)
    memory = replay.build(shape, spec)
    rule = Rule(config, policy, critic, given.optimiser, distributions.bounds(spec.action))

    def init(key: types.Key) -> State:
        policy_key, *keys = jax.random.split(key, 1 + config.critics)
        params = {"policy": policy.init(policy_key), "critics": tuple(map(critic.init, keys))}
        target = jax.tree.map(jnp.copy, params)
        statistics = normalise.init(spec.observation.shape) if config.normalise_observations else ()
        optimiser = given.optimiser.init(params["policy"])
        critics = optimise.faster(given.optimiser.init(params["critics"]), config.critic_rate)
        zero = jnp.int32(0)
        return State(params, target, optimiser, critics, zero, statistics, memory.init(), jnp.int32(0), _hyper(config))

    def snapshot(state: State) -> types.Policy:
        hyper = state.hyper
        exploration = (hyper.noise, (state.env_steps.astype(jnp.float32) < hyper.learning_starts).astype(jnp.float32))
        return types.Policy(state.params["policy"], state.normaliser, jnp.float32(1.0), exploration)

    def act(given: types.Policy, carry: types.Carry, obs: Any, key: types.Key) -> tuple[Any, Any, types.Carry]:
        noise_key, random_key = jax.random.split(key)
        action = choose(rule, given.params, given.normaliser, obs)
        noise, random = given.exploration
        explored = action + given.explore * noise * jax.random.normal(noise_key, action.shape)
        anything = jax.random.uniform(random_key, action.shape, minval=-1.0)
        chosen = jnp.where(given.explore * random > 0, anything, jnp.clip(explored, -1.0, 1.0))
        return distributions.stretch(rule.bounds, chosen), (), carry

    def update(state: State, rollout: types.Rollout, key: types.Key) -> tuple[State, types.Metrics]:
        steps, hyper = rollout.transitions, state.hyper
        if config.normalise_observations:
            seen = normalise.update(state.normaliser, steps.obs, spec.observation.shape)
            state = state._replace(normaliser=seen)
        remembered = memory.add(state.memory, steps._replace(reward=steps.reward * hyper.reward_scale))
        env_steps = state.env_steps + steps.reward.size
        practice = replay.Practice(memory, functools.partial(learn, rule, state), config.updates)
        ready = env_steps.astype(jnp.float32) >= hyper.learning_starts
        learner, remembered, metrics = replay.practise(
            practice, Learner(*state[:5]), remembered, ready, hyper.discount, (), key
        )
        return state._replace(**learner._asdict(), memory=remembered, env_steps=env_steps), metrics

    def restart(state: State) -> State:
        return state._replace(memory=memory.cut(state.memory))

    return types.Agent(init, snapshot, act, update, (), config.rollout_length, "deterministic", policy, None, restart)


def choose(rule: Rule, params: types.Params, normaliser: Any, obs: Any) -> Any:
    """The policy's action in [-1, 1]^d."""
    seen = normalise.apply(normaliser, obs) if normaliser else obs
    return jnp.tanh(rule.policy.apply(params, seen, ())[0]["policy"])


def value(rule: Rule, params: types.Params, normaliser: Any, obs: Any, action: Any) -> Any:
    """One critic's Q of an action in [-1, 1]^d, a scalar."""
    seen = normalise.apply(normaliser, obs) if normaliser else obs
    return rule.critic.apply(params, jnp.concatenate([seen, action]), ())[0]["q"][0]


def learn(
    rule: Rule, state: State, learner: Learner, drawn: replay.Sample, key: types.Key
) -> tuple[Learner, Any, types.Metrics]:
    """One gradient step of the critics, and every so often one of the policy.

    y = R + γ^m min_i Q⁻_i(x', π⁻(x') + clip(N(0, σ), ±c));  critics descend Σ_i ½ (y - Q_i(x, a))²;
    the policy climbs Q_1(x, π(x)), and only then do the targets move.

    Source: Fujimoto et al. 2018, arXiv:1802.09477, algorithm 1.
    """
    hyper, seen = state.hyper, state.normaliser
    act = jax.vmap(functools.partial(choose, rule), in_axes=(None, None, 0))
    judge = jax.vmap(functools.partial(value, rule), in_axes=(None, None, 0, 0))
    action = distributions.shrink(rule.bounds, drawn.action)
    following = act(learner.target["policy"], seen, drawn.next_obs)
    # Behind a barrier: the compiler would put the generator into every loop that reads the noise.
    noise = hyper.target_noise * jax.lax.optimization_barrier(jax.random.normal(key, following.shape))
    noise = jnp.clip(noise, -hyper.target_noise_clip, hyper.target_noise_clip)
    following = jnp.clip(following + noise, -1.0, 1.0)
    lowest = functools.reduce(
        jnp.minimum, [judge(critic, seen, drawn.next_obs, following) for critic in learner.target["critics"]]
    )
    target = drawn.reward + drawn.discount * lowest

    def critic_loss(critics: Any) -> tuple[Any, Any]:
        values = [judge(critic, seen, drawn.obs, action) for critic in critics]
        return sum((drawn.weight * losses.squared_error(q, target)).mean() for q in values), values[0]

    (loss, q), gradient = jax.value_and_grad(critic_loss, has_aux=True)(learner.params["critics"])
    critics, critic_optimiser, norm = rule.optimiser.update(
        gradient, learner.critic_optimiser, learner.params["critics"], state.env_steps
    )

    def policy_loss(policy: types.Params) -> Any:
        return -judge(critics[0], seen, drawn.obs, act(policy, seen, drawn.obs)).mean()

    def improve(policy: types.Params, optimiser: Any, target: types.Params) -> Any:
        gradient = jax.grad(policy_loss)(policy)
        policy, optimiser, _ = rule.optimiser.update(gradient, optimiser, policy, state.env_steps)
        return policy, optimiser, tree.lerp(target, {"policy": policy, "critics": critics}, hyper.tau)

    updates = learner.updates + 1
    due = updates % hyper.policy_delay.astype(jnp.int32) == 0
    now = learner.params["policy"], learner.optimiser, learner.target
    policy, optimiser, target_params = jax.lax.cond(due, improve, lambda *same: same, *now)
    params = {"policy": policy, "critics": critics}
    metrics = {"loss": loss, "q": q.mean(), "gradient_norm": norm}
    return Learner(params, target_params, optimiser, critic_optimiser, updates), target - q, metrics


def _hyper(config: Config) -> Hyper:
    return Hyper(*(jnp.float32(getattr(config, name)) for name in Hyper._fields))
