"""TD3: a deterministic policy, two critics of which the lower counts, smoothed targets, a policy that learns less.

Fujimoto et al. 2018, "Addressing Function Approximation Error in Actor-Critic Methods", arXiv:1802.09477. With one
critic, no smoothing and a policy delay of 1 it is DDPG (Lillicrap et al. 2016, arXiv:1509.02971).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epy

from shoal import algorithms
from shoal.core import options, types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np

    from shoal import networks
    from shoal.algorithms import _critics, _hyper, _memory
    from shoal.core import tree
    from shoal.formulas import deciding, distributions, normalise, optimise


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
    tau: float = options.number(0.005, low=0.0, high=1.0, scale="log")
    """How far the target networks move at each update of the policy."""
    policy_delay: int = options.number(2, low=1)
    """Updates of the critics for one of the policy."""
    noise: float = options.number(0.1, low=0.0)
    """Standard deviation of the exploration noise; actions span -1 to 1."""
    target_noise: float = options.number(0.2, low=0.0)
    """Standard deviation of the noise on target actions."""
    target_noise_clip: float = options.number(0.5, low=0.0)
    """Bound of that noise."""
    critic_rate: float = options.number(1.0, low=0.0, scale="log")
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


class State(NamedTuple):
    """The learner and its memory."""

    params: types.Params  # {"policy": ..., "critics": (...)}
    target: types.Params  # the same for the target networks
    optimiser: Any  # of the policy, optimise.OptimiserState
    critic_optimiser: Any
    updates: Any  # scalar i32, gradient steps of the critics
    normaliser: Any  # normalise.Statistics, () when off
    memory: Any  # see `_memory`; () while the memory is somebody else's
    env_steps: Any  # scalar i32
    hyper: Hyper


def fits(config: Config, network: networks.Config, spec: types.EnvSpec) -> str:
    """See `algorithms`."""
    return _critics.fits(config, network, spec)


def traits(config: Config) -> types.Traits:
    """See `algorithms`."""
    return _critics.traits(config, "td3 has several optimisers, and a runtime takes one gradient from each update")


def build(config: Config, given: algorithms.Ingredients) -> types.Agent:
    """The rule as pure functions.

    Args:
        config: The rule's numbers.
        given: Environment spec, network shape and optimiser; the corrector is not used.

    Raises:
        Refused: The memory is too small for its environments.
    """
    spec = given.spec
    rule = _critics.build(config, given, spec.action.shape[0])
    practice = _critics.practice(rule, given.streams, learn)
    memory = _memory.build(practice.plan, spec)
    practice = practice._replace(memory=memory)
    box = distributions.bounds(spec.action, np)

    def init(key: types.Key) -> State:
        policy_key, *keys = jax.random.split(key, 1 + config.critics)
        params = {"policy": rule.policy.init(policy_key), "critics": tuple(map(rule.critic.init, keys))}
        target = jax.tree.map(jnp.copy, params)
        statistics = normalise.init(spec.observation.shape) if config.normalise_observations else ()
        optimiser = given.optimiser.init(params["policy"])
        critics = optimise.faster(given.optimiser.init(params["critics"]), config.critic_rate)
        return State(
            params=params,
            target=target,
            optimiser=optimiser,
            critic_optimiser=critics,
            updates=jnp.int32(0),
            normaliser=statistics,
            memory=memory.init(),
            env_steps=jnp.int32(0),
            hyper=_hyper.scalars(Hyper, config),
        )

    def snapshot(state: State) -> types.Policy:
        hyper = state.hyper
        exploration = (hyper.noise, (state.env_steps.astype(jnp.float32) < hyper.learning_starts).astype(jnp.float32))
        return types.Policy(state.params["policy"], state.normaliser, jnp.float32(1.0), exploration)

    def act(given: types.Policy, carry: types.Carry, obs: Any, key: types.Key) -> tuple[Any, Any, types.Carry]:
        return decide(given, {"policy": _critics.head(rule, given.params, given.normaliser, obs)}, key)[0], (), carry

    def decide(given: types.Policy, outputs: Mapping[str, Any], key: types.Key) -> tuple[Any, types.Chosen]:
        noise_key, random_key = jax.random.split(key)
        mean = jnp.tanh(outputs["policy"])
        noise, random = given.exploration
        deviation, uniform = given.explore * noise, given.explore * random > 0
        explored = mean + deviation * jax.random.normal(noise_key, mean.shape)
        anything = jax.random.uniform(random_key, mean.shape, minval=-1.0)
        chosen = jnp.where(uniform, anything, jnp.clip(explored, -1.0, 1.0))
        return distributions.stretch(rule.bounds, chosen), types.Chosen(likely(given, mean, chosen))

    def likely(given: types.Policy, mean: Any, chosen: Any) -> Any:
        noise, random = given.exploration
        deviation, uniform = given.explore * noise, given.explore * random > 0
        log_prob = distributions.clipped_log_prob(chosen, mean, jnp.where(deviation > 0, deviation, 1.0))
        log_prob = jnp.where(deviation > 0, log_prob, 0.0)
        return jnp.where(uniform, -math.log(2.0) * mean.shape[0], log_prob)

    def log_prob(given: types.Policy, outputs: Mapping[str, Any], action: Any) -> Any:
        return likely(given, jnp.tanh(outputs["policy"]), distributions.shrink(rule.bounds, action))

    def decide_many(
        given: types.Policy, outputs: Mapping[str, np.ndarray], generator: np.random.Generator
    ) -> tuple[np.ndarray, types.Chosen]:
        noise, random = given.exploration
        mean = np.tanh(outputs["policy"])
        drawn = deciding.noisy(mean, given.explore * noise, given.explore * random, generator)
        return distributions.stretch(box, drawn.action), types.Chosen(drawn.log_prob)

    fields = types.Fields(
        own_target="target", updates="updates", memory="memory", policy="policy",
        critics=("critics", "critic_optimiser"),
        optimisers=("optimiser", "critic_optimiser"),
    )  # fmt: skip
    about = types.About(
        rollout_length=config.rollout_length,
        head="deterministic",
        networks={"policy": rule.policy, "critic": rule.critic},
        acting=types.Acting(
            network="policy", heads=("policy",), decide=decide, decide_many=decide_many, log_prob=log_prob
        ),
        practice=practice,
        hyper=_hyper.leaves(Hyper, Config, fields),
        fields=fields,
        streams_matter=True,
        restart=_memory.restart(memory),
    )
    return types.Agent(init=init, snapshot=snapshot, act=act, update=_memory.update(practice, memory), about=about)


def choose(rule: _critics.Rule, params: types.Params, normaliser: Any, obs: Any) -> Any:
    """The policy's action in [-1, 1]^d."""
    return jnp.tanh(_critics.head(rule, params, normaliser, obs))


def learn(rule: _critics.Rule, state: State, drawn: _memory.Sample, key: types.Key) -> tuple[State, Any, types.Metrics]:
    """One gradient step of the critics, and every so often one of the policy.

    y = R + γ^m min_i Q⁻_i(x', π⁻(x') + clip(N(0, σ), ±c));  critics descend Σ_i ½ (y - Q_i(x, a))²;
    the policy climbs Q_1(x, π(x)), and only then do the targets move.

    Source: Fujimoto et al. 2018, arXiv:1802.09477, algorithm 1.
    """
    hyper, seen = state.hyper, state.normaliser
    act = jax.vmap(functools.partial(choose, rule), in_axes=(None, None, 0))
    following = act(state.target["policy"], seen, drawn.next_obs)
    # Behind a barrier: the compiler would put the generator into every loop that reads the noise.
    noise = hyper.target_noise * jax.lax.optimization_barrier(jax.random.normal(key, following.shape))
    noise = jnp.clip(noise, -hyper.target_noise_clip, hyper.target_noise_clip)
    following = jnp.clip(following + noise, -1.0, 1.0)
    lowest = _critics.lowest(rule, state.target["critics"], seen, drawn.next_obs, following)
    target = drawn.reward + drawn.discount * lowest
    judged = _critics.descend(rule, state, drawn, target)

    def policy_loss(policy: types.Params) -> Any:
        chosen = act(policy, seen, drawn.obs)
        return -_critics.values(rule, judged.critics[:1], seen, drawn.obs, chosen)[0].mean()

    def improve(policy: types.Params, optimiser: Any, target: types.Params) -> Any:
        gradient = jax.grad(policy_loss)(policy)
        policy, optimiser, _ = _critics.apply(rule, state, gradient, optimiser, policy)
        return policy, optimiser, tree.lerp(target, {"policy": policy, "critics": judged.critics}, hyper.tau)

    updates = state.updates + 1
    due = updates % hyper.policy_delay.astype(jnp.int32) == 0
    now = state.params["policy"], state.optimiser, state.target
    policy, optimiser, slow = jax.lax.cond(due, improve, lambda *same: same, *now)
    metrics = {"loss": judged.loss, "q": judged.q.mean(), "gradient_norm": judged.norm}
    state = state._replace(
        params={"policy": policy, "critics": judged.critics},
        target=slow,
        optimiser=optimiser,
        critic_optimiser=judged.optimiser,
        updates=updates,
    )
    return state, target - judged.q, metrics
