"""Deep Q-learning from a replay memory: DQN and what became of it, each a setting.

Mnih et al. 2015, "Human-level control through deep reinforcement learning" (replay, target network); van Hasselt et al.
2016, arXiv:1509.06461 (double); Wang et al. 2016, arXiv:1511.06581 (dueling, ``network.dueling``); Schaul et al. 2016,
arXiv:1511.05952 (prioritised replay); Sutton 1988 and Hessel et al. 2018, arXiv:1710.02298 (n-step).
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
    from shoal.algorithms import _hyper, _memory
    from shoal.core import tree
    from shoal.formulas import deciding, distributions, losses, normalise


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
    tau: float = options.number(1.0, low=0.0, high=1.0, scale="log")
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


class State(NamedTuple):
    """The learner and its memory."""

    params: types.Params
    target: types.Params  # of the target network
    optimiser: Any  # optimise.OptimiserState
    updates: Any  # scalar i32, gradient steps; with several learners those of all, told by the runtime before an update
    moved_at: Any  # scalar i32, `updates` when the target network moved last
    normaliser: Any  # normalise.Statistics, () when off
    memory: Any  # see `_memory`; () while the memory is somebody else's
    env_steps: Any  # scalar i32
    hyper: Hyper


class Rule(NamedTuple):
    """What the functions below have in common."""

    config: Config
    network: types.Network
    optimiser: Any  # optimise.Optimiser
    arrive: int  # environment steps in a rollout


def fits(config: Config, network: networks.Config, spec: types.EnvSpec) -> str:
    """See `algorithms`."""
    del config, spec
    return "network.lstm is not for replayed single transitions; set it to 0, or use ppo" if network.lstm else ""


def traits(config: Config) -> types.Traits:
    """See `algorithms`."""
    several = config.updates > 1
    return types.Traits(
        actions=("discrete",),
        unshareable="dqn makes several gradient steps in an update; set algorithm.updates to 1" if several else "",
        capacity=config.capacity,
        normalises=config.normalise_observations,
        rollout=config.rollout_length,
        samples=lambda _: config.batch,
        gradients=config.updates,
    )


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
    plan = _memory.Plan(
        capacity=config.capacity,
        batch=config.batch,
        n_step=config.n_step,
        streams=given.streams,
        prioritised=config.replay == "prioritised",
        rollout_length=config.rollout_length,
    )
    memory = _memory.build(plan, spec)
    rule = Rule(config=config, network=network, optimiser=given.optimiser, arrive=config.rollout_length * given.streams)
    practice = types.Practice(
        plan=plan,
        prepare=functools.partial(prepare, rule),
        ready=ready,
        drawing=drawing,
        learn=functools.partial(learn, rule),
        updates=config.updates,
        memory=memory,
    )
    study = _memory.update(practice, memory)

    def init(key: types.Key) -> State:
        params = network.init(key)
        statistics = normalise.init(normalise.shape(spec.observation)) if config.normalise_observations else ()
        return State(
            params=params,
            target=jax.tree.map(jnp.copy, params),  # two buffers: the state is donated as a whole
            optimiser=given.optimiser.init(params),
            updates=jnp.int32(0),
            moved_at=jnp.int32(0),
            normaliser=statistics,
            memory=memory.init(),
            env_steps=jnp.int32(0),
            hyper=_hyper.scalars(Hyper, config, off=("huber", "reward_clip")),
        )

    def snapshot(state: State) -> types.Policy:
        chances = epsilon(state.hyper, state.env_steps), state.hyper.epsilon_evaluation
        return types.Policy(state.params, state.normaliser, jnp.float32(1.0), chances)

    def act(policy: types.Policy, carry: types.Carry, obs: Any, key: types.Key) -> tuple[Any, Any, types.Carry]:
        return decide(policy, {"q": evaluate(rule, policy.params, policy.normaliser, obs)}, key)[0], (), carry

    def decide(policy: types.Policy, outputs: Mapping[str, Any], key: types.Key) -> tuple[Any, types.Chosen]:
        training, evaluation = policy.exploration
        chance = jnp.where(policy.explore > 0, training, evaluation)
        action = distributions.epsilon_greedy(outputs["q"], chance, key)
        return action, types.Chosen(distributions.epsilon_greedy_log_prob(outputs["q"], chance, action))

    def log_prob(policy: types.Policy, outputs: Mapping[str, Any], action: Any) -> Any:
        training, evaluation = policy.exploration
        chance = jnp.where(policy.explore > 0, training, evaluation)
        return distributions.epsilon_greedy_log_prob(outputs["q"], chance, action)

    def update(state: State, rollout: types.Rollout, key: types.Key) -> tuple[State, types.Metrics]:
        state, metrics = study(state, rollout, key)
        return state, {**metrics, "epsilon": epsilon(state.hyper, state.env_steps)}

    about = types.About(
        rollout_length=config.rollout_length,
        head="greedy",
        networks={"policy": network},
        acting=types.Acting(network="policy", heads=("q",), decide=decide, decide_many=decide_many, log_prob=log_prob),
        practice=practice,
        hyper=_hyper.leaves(Hyper, Config),
        fields=types.Fields(own_target="target", updates="updates", memory="memory"),
        streams_matter=True,
        restart=_memory.restart(memory),
    )
    return types.Agent(init=init, snapshot=snapshot, act=act, update=update, about=about)


def decide_many(
    policy: types.Policy, outputs: Mapping[str, np.ndarray], generator: np.random.Generator
) -> tuple[np.ndarray, types.Chosen]:
    """See `types.Acting`."""
    training, evaluation = policy.exploration
    drawn = deciding.epsilon_greedy(outputs["q"], training if policy.explore > 0 else evaluation, generator)
    return drawn.action, types.Chosen(drawn.log_prob)


def epsilon(hyper: Hyper, env_steps: Any) -> Any:
    """The probability of a random action: linear, then constant."""
    done = jnp.minimum(env_steps.astype(jnp.float32) / hyper.epsilon_steps, 1.0)
    return hyper.epsilon_start + done * (hyper.epsilon_end - hyper.epsilon_start)


def evaluate(rule: Rule, params: types.Params, normaliser: Any, obs: Any) -> Any:
    """Action values ``[n]`` of one observation."""
    seen = normalise.apply(normaliser, obs) if normaliser else obs
    return rule.network.apply(params, seen, ())[0]["q"]


def prepare(rule: Rule, state: State, rollout: types.Rollout) -> tuple[State, types.Transition]:
    """See `types.Practice`: statistics of observations, and rewards as they are learned from."""
    steps, hyper = rollout.transitions, state.hyper
    if rule.config.normalise_observations:
        seen = normalise.update(state.normaliser, steps.obs, normalise.shape(rule.network.spec.observation))
        state = state._replace(normaliser=seen)
    reward = jnp.clip(steps.reward * hyper.reward_scale, -hyper.reward_clip, hyper.reward_clip)
    return state._replace(env_steps=state.env_steps + rule.arrive), steps._replace(reward=reward)


def ready(state: State) -> Any:
    """See `types.Practice`."""
    return state.env_steps.astype(jnp.float32) >= state.hyper.learning_starts


def drawing(state: State) -> tuple[Any, _memory.Priorities]:
    """See `types.Practice`."""
    hyper = state.hyper
    return hyper.discount, _memory.Priorities(exponent=hyper.priority_exponent, correction=hyper.priority_correction)


def learn(rule: Rule, state: State, drawn: _memory.Sample, key: types.Key) -> tuple[State, Any, types.Metrics]:
    """One gradient step on Huber(y - Q(x, a)), y = R + γ^m Q⁻(x', argmax Q(x', ·)).

    The argmax is the online network's (double) or the target network's own.

    Source: van Hasselt et al. 2016, arXiv:1509.06461, equation 4; Mnih et al. 2015, algorithm 1.
    """
    del key
    batched = jax.vmap(functools.partial(evaluate, rule), in_axes=(None, None, 0))
    goal = batched(state.target, state.normaliser, drawn.next_obs)  # [N, n]
    chooser = batched(state.params, state.normaliser, drawn.next_obs) if rule.config.double else goal
    best = jnp.argmax(chooser, axis=-1)[:, None]
    target = drawn.reward + drawn.discount * jnp.take_along_axis(goal, best, axis=-1)[:, 0]

    def loss(params: types.Params) -> tuple[Any, Any]:
        values = batched(params, state.normaliser, drawn.obs)
        chosen = jnp.take_along_axis(values, drawn.action[:, None], axis=-1)[:, 0]
        error = jax.lax.stop_gradient(target) - chosen
        return (drawn.weight * losses.huber(error, state.hyper.huber)).mean(), (error, chosen.mean())

    (value, (error, mean)), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    before = state.env_steps - rule.arrive  # rates are taken at the steps before a rollout, as every rule does
    params, optimiser, norm = rule.optimiser.update(gradient, state.optimiser, state.params, before)
    state = moved(state._replace(params=params, optimiser=optimiser, updates=state.updates + 1))
    return state, error, {"loss": value, "q": mean, "gradient_norm": norm}


def moved(state: State) -> State:
    """θ⁻ ← θ⁻ + τ (θ - θ⁻) where a multiple of the period was passed, by this learner or by others."""
    period = state.hyper.target_period.astype(jnp.int32)
    due = state.updates // period > state.moved_at // period
    target = tree.sometimes(tree.lerp, due, state.target, state.params, state.hyper.tau)
    return state._replace(target=target, moved_at=jnp.where(due, state.updates, state.moved_at))
