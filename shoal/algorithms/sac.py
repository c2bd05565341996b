"""SAC: soft actor-critic with a temperature that is learned.

Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications", arXiv:1812.05905 (two critics, automatic
temperature); the first form: arXiv:1801.01290.
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
    """SAC."""

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
    learning_starts: int = options.number(5_000, low=0)
    """Environment steps of random actions before the first gradient step."""
    tau: float = options.number(0.005, low=0.0, high=1.0)
    """How far the target networks move at each update."""
    temperature: float = options.number(1.0, low=1e-8)
    """Alpha at the beginning: what a nat of entropy is worth in reward."""
    learn_temperature: bool = True
    """Adapt alpha so that the entropy meets its target."""
    entropy_target: float = -1.0
    """Entropy aimed at, nats for each dimension of the action (the paper: -1)."""
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
    entropy_target: Any
    learn_temperature: Any  # 1, or 0: alpha stays
    reward_scale: Any


class Learner(NamedTuple):
    """What a gradient step changes."""

    params: types.Params  # {"policy": ..., "critics": (...), "log_alpha": scalar}
    target: types.Params  # the critics' target networks, a tuple
    optimiser: Any  # of the policy, optimise.OptimiserState
    critic_optimiser: Any
    alpha_optimiser: Any
    updates: Any  # scalar i32, gradient steps


class State(NamedTuple):
    """The learner and its memory."""

    params: types.Params
    target: types.Params
    optimiser: Any
    critic_optimiser: Any
    alpha_optimiser: Any
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
    return "sac has several optimisers, and a runtime takes one gradient from each update"


def build(config: Config, given: algorithms.Ingredients) -> types.Agent:
    """The rule as pure functions.

    Args:
        config: The rule's numbers.
        given: Environment spec, network shape and optimiser; the corrector is not used.

    Raises:
        Refused: The memory is too small for its environments.
    """
    spec = given.spec
    size = 2 * spec.action.shape[0]
    policy = networks.build(given.network, spec.observation, {"policy": networks.Head(size, 0.01)})
    critic = networks.critic(given.network, spec)
    shape = replay.Plan(config.capacity, config.batch, config.n_step, given.streams, False, config.rollout_length)
    memory = replay.build(shape, spec)
    rule = Rule(config, policy, critic, given.optimiser, distributions.bounds(spec.action))

    def init(key: types.Key) -> State:
        policy_key, *keys = jax.random.split(key, 1 + config.critics)
        critics = tuple(map(critic.init, keys))
        log_alpha = jnp.log(jnp.float32(config.temperature))
        params = {"policy": policy.init(policy_key), "critics": critics, "log_alpha": log_alpha}
        statistics = normalise.init(spec.observation.shape) if config.normalise_observations else ()
        return State(
            params=params,
            target=jax.tree.map(jnp.copy, critics),  # two buffers: the state is donated as a whole
            optimiser=given.optimiser.init(params["policy"]),
            critic_optimiser=optimise.faster(given.optimiser.init(critics), config.critic_rate),
            alpha_optimiser=given.optimiser.init(log_alpha),
            updates=jnp.int32(0),
            normaliser=statistics,
            memory=memory.init(),
            env_steps=jnp.int32(0),
            hyper=_hyper(config),
        )

    def snapshot(state: State) -> types.Policy:
        random = (state.env_steps.astype(jnp.float32) < state.hyper.learning_starts).astype(jnp.float32)
        return types.Policy(state.params["policy"], state.normaliser, jnp.float32(1.0), random)

    def act(given: types.Policy, carry: types.Carry, obs: Any, key: types.Key) -> tuple[Any, Any, types.Carry]:
        sample_key, random_key = jax.random.split(key)
        output = head(rule, given.params, given.normaliser, obs)
        sampled = distributions.squashed_sample(output, jax.random.normal(sample_key, spec.action.shape))[0]
        greedy = jnp.tanh(distributions.squashed_moments(output)[0])
        anything = jax.random.uniform(random_key, greedy.shape, minval=-1.0)
        sampled = jnp.where(given.exploration > 0, anything, sampled)
        return distributions.stretch(rule.bounds, jnp.where(given.explore > 0, sampled, greedy)), (), carry

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
            practice, Learner(*state[:6]), remembered, ready, hyper.discount, (), key
        )
        return state._replace(**learner._asdict(), memory=remembered, env_steps=env_steps), metrics

    def restart(state: State) -> State:
        return state._replace(memory=memory.cut(state.memory))

    return types.Agent(init, snapshot, act, update, (), config.rollout_length, "squashed", policy, None, restart)


def head(rule: Rule, params: types.Params, normaliser: Any, obs: Any) -> Any:
    """The policy head's output ``[2 d]`` for one observation."""
    seen = normalise.apply(normaliser, obs) if normaliser else obs
    return rule.policy.apply(params, seen, ())[0]["policy"]


def value(rule: Rule, params: types.Params, normaliser: Any, obs: Any, action: Any) -> Any:
    """One critic's Q of an action in [-1, 1]^d, a scalar."""
    seen = normalise.apply(normaliser, obs) if normaliser else obs
    return rule.critic.apply(params, jnp.concatenate([seen, action]), ())[0]["q"][0]


def size(rule: Rule) -> int:
    """Dimensions of an action."""
    return rule.bounds.half.shape[0]


def sample(rule: Rule, params: types.Params, normaliser: Any, obs: Any, key: types.Key) -> tuple[Any, Any]:
    """Actions ``[N, d]`` in (-1, 1) and their log probabilities ``[N]``, differentiable in the parameters."""
    outputs = jax.vmap(functools.partial(head, rule), in_axes=(None, None, 0))(params, normaliser, obs)
    # Behind a barrier: the compiler would put the generator into every loop that reads the noise.
    noise = jax.lax.optimization_barrier(jax.random.normal(key, (len(outputs), size(rule))))
    return jax.vmap(distributions.squashed_sample)(outputs, noise)


def learn(
    rule: Rule, state: State, learner: Learner, drawn: replay.Sample, key: types.Key
) -> tuple[Learner, Any, types.Metrics]:
    """One gradient step of the critics, the policy and the temperature.

    y = R + γ^m (min_i Q⁻_i(x', a') - α log π(a'|x')), a' ~ π(x');  critics descend Σ_i ½ (y - Q_i(x, a))²;
    the policy descends α log π(ã|x) - min_i Q_i(x, ã), ã ~ π(x);  log α descends -log α (log π(ã|x) + H̄).

    Source: Haarnoja et al. 2018, arXiv:1812.05905, equations 5, 9 and 18 (log α in place of α, as in its code).
    """
    hyper, seen = state.hyper, state.normaliser
    next_key, policy_key = jax.random.split(key)
    judge = jax.vmap(functools.partial(value, rule), in_axes=(None, None, 0, 0))
    now = learner.params
    alpha = jnp.exp(now["log_alpha"])
    following, log_prob = sample(rule, now["policy"], seen, drawn.next_obs, next_key)
    lowest = functools.reduce(jnp.minimum, [judge(q, seen, drawn.next_obs, following) for q in learner.target])
    target = drawn.reward + drawn.discount * (lowest - alpha * log_prob)
    action = distributions.shrink(rule.bounds, drawn.action)

    def critic_loss(critics: Any) -> tuple[Any, Any]:
        values = [judge(critic, seen, drawn.obs, action) for critic in critics]
        return sum((drawn.weight * losses.squared_error(q, target)).mean() for q in values), values[0]

    def policy_loss(policy: types.Params, critics: Any) -> tuple[Any, Any]:
        chosen, log_prob = sample(rule, policy, seen, drawn.obs, policy_key)
        lowest = functools.reduce(jnp.minimum, [judge(q, seen, drawn.obs, chosen) for q in critics])
        return (alpha * log_prob - lowest).mean(), -log_prob.mean()

    def step(gradient: Any, optimiser: Any, params: Any) -> Any:
        return rule.optimiser.update(gradient, optimiser, params, state.env_steps)

    (loss, q), gradient = jax.value_and_grad(critic_loss, has_aux=True)(now["critics"])
    critics, critic_optimiser, norm = step(gradient, learner.critic_optimiser, now["critics"])
    (policy_value, entropy), gradient = jax.value_and_grad(policy_loss, has_aux=True)(now["policy"], critics)
    policy, optimiser, _ = step(gradient, learner.optimiser, now["policy"])
    surplus = entropy - hyper.entropy_target * action.shape[-1]
    log_alpha, alpha_optimiser, _ = step(hyper.learn_temperature * surplus, learner.alpha_optimiser, now["log_alpha"])
    params = {"policy": policy, "critics": critics, "log_alpha": log_alpha}
    target_params = tree.lerp(learner.target, critics, hyper.tau)
    metrics = {
        "loss": loss, "policy_loss": policy_value, "q": q.mean(), "entropy": entropy, "temperature": alpha,
        "gradient_norm": norm,
    }  # fmt: skip
    learner = Learner(params, target_params, optimiser, critic_optimiser, alpha_optimiser, learner.updates + 1)
    return learner, target - q, metrics


def _hyper(config: Config) -> Hyper:
    return Hyper(*(jnp.float32(getattr(config, name)) for name in Hyper._fields))
