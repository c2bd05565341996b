"""Deep Q-learning from a replay memory: DQN and what became of it, each a setting.

Mnih et al. 2015, "Human-level control through deep reinforcement learning" (replay, target network); van Hasselt et al.
2016, arXiv:1509.06461 (double); Wang et al. 2016, arXiv:1511.06581 (dueling, ``network.dueling``); Schaul et al. 2016,
arXiv:1511.05952 (prioritised replay); Sutton 1988 and Hessel et al. 2018, arXiv:1710.02298 (n-step).
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

    from shoal import distributions, losses, networks, normalise, optimise, replay, tree


CORRECTS = False
ACTIONS = ("discrete",)


@dataclasses.dataclass(frozen=True)
class Config:
    """Deep Q-learning."""

    rollout_length: int = options.number(4, low=1)
    """Steps of each environment between two times of learning."""
    updates: int = options.number(1, low=1)
    """Gradient steps each time."""
    batch: int = options.number(32, low=1)
    """Transitions a gradient step learns from."""
    capacity: int = options.number(100_000, low=1)
    """Environment steps the replay memory holds."""
    replay: Literal["uniform", "prioritised"] = "uniform"
    """How transitions are drawn: all alike, or by their last error."""
    priority_exponent: float = options.number(0.6, low=0.0, high=1.0)
    """Prioritised: how much the error decides (alpha)."""
    priority_correction: float = options.number(0.4, low=0.0, high=1.0)
    """Prioritised: how much of the bias the weights correct (beta)."""
    n_step: int = options.number(1, low=1)
    """Steps of reward before bootstrapping."""
    double: bool = True
    """The online network chooses the action whose target value counts."""
    discount: float = options.number(0.99, low=0.0, high=1.0)
    """Gamma."""
    learning_starts: int = options.number(1_000, low=0)
    """Environment steps before the first gradient step."""
    target_period: int = options.number(500, low=1)
    """Gradient steps between two moves of the target network."""
    tau: float = options.number(1.0, low=0.0, high=1.0)
    """How far the target network moves towards the online one; 1 copies it."""
    epsilon_start: float = options.number(1.0, low=0.0, high=1.0)
    """Probability of a random action at the beginning."""
    epsilon_end: float = options.number(0.05, low=0.0, high=1.0)
    """Probability of a random action at the end."""
    epsilon_steps: int = options.number(10_000, low=1)
    """Environment steps over which it falls, linearly."""
    epsilon_evaluation: float = options.number(0.0, low=0.0, high=1.0)
    """Probability of a random action in evaluation (0.05 on Atari, where a greedy policy may wait for ever)."""
    huber: float = options.number(1.0, low=0.0)
    """Errors beyond this count linearly; 0 squares all of them."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this before learning; logged returns are not."""
    reward_clip: float = options.number(0.0, low=0.0)
    """Scaled rewards are clipped to plus-minus this; 0 turns it off (1 on Atari)."""
    normalise_observations: bool = False
    """Shift and scale observations by their running mean and variance."""


class Hyper(NamedTuple):
    """Numbers that may change during training; f32 scalars."""

    discount: Any
    learning_starts: Any
    target_period: Any
    tau: Any
    epsilon_start: Any
    epsilon_end: Any
    epsilon_steps: Any
    epsilon_evaluation: Any
    huber: Any  # `optimise.LARGEST`: squared
    reward_scale: Any
    reward_clip: Any  # `optimise.LARGEST`: off
    priority_exponent: Any
    priority_correction: Any


class Learner(NamedTuple):
    """What a gradient step changes."""

    params: types.Params
    target: types.Params  # of the target network
    optimiser: Any  # optimise.OptimiserState
    updates: Any  # scalar i32, gradient steps
    moved_at: Any  # scalar i32, `updates` when the target network moved last


class State(NamedTuple):
    """The learner and its memory."""

    params: types.Params
    target: types.Params
    optimiser: Any  # optimise.OptimiserState
    updates: Any  # scalar i32; with several learners those of all, told by the runtime before an update
    moved_at: Any  # scalar i32
    normaliser: Any  # normalise.Statistics, () when off
    memory: Any  # see `replay`
    env_steps: Any  # scalar i32
    hyper: Hyper


class Rule(NamedTuple):
    """What the functions below have in common."""

    config: Config
    network: types.Network
    optimiser: Any  # optimise.Optimiser


def fits(config: Config, network: networks.Config, spec: types.EnvSpec) -> str:
    """See `algorithms`."""
    del config, spec
    return "network.lstm is not for replayed single transitions; set it to 0, or use ppo" if network.lstm else ""


def shareable(config: Config) -> str:
    """See `algorithms`."""
    several = config.updates > 1
    return "dqn makes several gradient steps in an update; set algorithm.updates to 1" if several else ""


def build(config: Config, given: algorithms.Ingredients) -> types.Agent:
    """The rule as pure functions.

    Args:
        config: The rule's numbers.
        given: Environment spec, network shape and optimiser; the corrector is not used.

    Raises:
        Refused: The memory is too small for its environments.
    """
    spec = given.spec
    network = networks.build(given.network, spec.observation, {"q": networks.Head(spec.action.n, 1.0, "values")})
    prioritised = config.replay == "prioritised"
    shape = replay.Plan(config.capacity, config.batch, config.n_step, given.streams, prioritised, config.rollout_length)
    memory = replay.build(shape, spec)
    rule = Rule(config, network, given.optimiser)

    def init(key: types.Key) -> State:
        params = network.init(key)
        statistics = normalise.init(spec.observation.shape) if config.normalise_observations else ()
        target = jax.tree.map(jnp.copy, params)  # two buffers: the state is donated as a whole
        optimiser = given.optimiser.init(params)
        updates, moved_at, steps = (jnp.int32(0) for _ in range(3))
        return State(params, target, optimiser, updates, moved_at, statistics, memory.init(), steps, _hyper(config))

    def snapshot(state: State) -> types.Policy:
        chances = epsilon(state.hyper, state.env_steps), state.hyper.epsilon_evaluation
        return types.Policy(state.params, state.normaliser, jnp.float32(1.0), chances)

    def act(policy: types.Policy, carry: types.Carry, obs: Any, key: types.Key) -> tuple[Any, Any, types.Carry]:
        values = evaluate(rule, policy.params, policy.normaliser, obs)
        training, evaluation = policy.exploration
        chance = jnp.where(policy.explore > 0, training, evaluation)
        return distributions.epsilon_greedy(values, chance, key), (), carry

    def update(state: State, rollout: types.Rollout, key: types.Key) -> tuple[State, types.Metrics]:
        steps, hyper = rollout.transitions, state.hyper
        if config.normalise_observations:
            seen = normalise.update(state.normaliser, steps.obs, spec.observation.shape)
            state = state._replace(normaliser=seen)
        reward = jnp.clip(steps.reward * hyper.reward_scale, -hyper.reward_clip, hyper.reward_clip)
        remembered = memory.add(state.memory, steps._replace(reward=reward))
        env_steps = state.env_steps + steps.reward.size
        practice = replay.Practice(memory, functools.partial(learn, rule, state), config.updates)
        ready = env_steps.astype(jnp.float32) >= hyper.learning_starts
        learner, remembered, metrics = replay.practise(
            practice, Learner(*state[:5]), remembered, ready, hyper.discount,
            replay.Priorities(hyper.priority_exponent, hyper.priority_correction), key,
        )  # fmt: skip
        state = state._replace(**learner._asdict(), memory=remembered, env_steps=env_steps)
        return state, {**metrics, "epsilon": epsilon(hyper, env_steps)}

    def restart(state: State) -> State:
        return state._replace(memory=memory.cut(state.memory))

    return types.Agent(init, snapshot, act, update, (), config.rollout_length, "greedy", network, None, restart)


def epsilon(hyper: Hyper, env_steps: Any) -> Any:
    """The probability of a random action: linear, then constant."""
    done = jnp.minimum(env_steps.astype(jnp.float32) / hyper.epsilon_steps, 1.0)
    return hyper.epsilon_start + done * (hyper.epsilon_end - hyper.epsilon_start)


def evaluate(rule: Rule, params: types.Params, normaliser: Any, obs: Any) -> Any:
    """Action values ``[n]`` of one observation."""
    seen = normalise.apply(normaliser, obs) if normaliser else obs
    return rule.network.apply(params, seen, ())[0]["q"]


def learn(
    rule: Rule, state: State, learner: Learner, drawn: replay.Sample, key: types.Key
) -> tuple[Learner, Any, types.Metrics]:
    """One gradient step on Huber(y - Q(x, a)), y = R + γ^m Q⁻(x', argmax Q(x', ·)).

    The argmax is the online network's (double) or the target network's own.

    Source: van Hasselt et al. 2016, arXiv:1509.06461, equation 4; Mnih et al. 2015, algorithm 1.
    """
    del key
    batched = jax.vmap(functools.partial(evaluate, rule), in_axes=(None, None, 0))
    goal = batched(learner.target, state.normaliser, drawn.next_obs)  # [N, n]
    chooser = batched(learner.params, state.normaliser, drawn.next_obs) if rule.config.double else goal
    best = jnp.argmax(chooser, axis=-1)[:, None]
    target = drawn.reward + drawn.discount * jnp.take_along_axis(goal, best, axis=-1)[:, 0]

    def loss(params: types.Params) -> tuple[Any, Any]:
        values = batched(params, state.normaliser, drawn.obs)
        chosen = jnp.take_along_axis(values, drawn.action[:, None], axis=-1)[:, 0]
        error = jax.lax.stop_gradient(target) - chosen
        return (drawn.weight * losses.huber(error, state.hyper.huber)).mean(), (error, chosen.mean())

    (value, (error, mean)), gradient = jax.value_and_grad(loss, has_aux=True)(learner.params)
    params, optimiser, norm = rule.optimiser.update(gradient, learner.optimiser, learner.params, state.env_steps)
    updates = learner.updates + 1
    moved = tree.lerp(learner.target, params, state.hyper.tau)
    period = state.hyper.target_period.astype(jnp.int32)
    due = updates // period > learner.moved_at // period  # a multiple was passed, by this learner or by others
    target_params = jax.tree.map(lambda new, old: jnp.where(due, new, old), moved, learner.target)
    metrics = {"loss": value, "q": mean, "gradient_norm": norm}
    moved_at = jnp.where(due, updates, learner.moved_at)
    return Learner(params, target_params, optimiser, updates, moved_at), error, metrics


def _hyper(config: Config) -> Hyper:
    values = {name: float(getattr(config, name)) for name in Hyper._fields}
    for name in ("huber", "reward_clip"):
        values[name] = values[name] or optimise.LARGEST
    return Hyper(**{name: jnp.float32(value) for name, value in values.items()})
