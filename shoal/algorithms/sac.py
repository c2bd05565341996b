"""SAC: soft actor-critic with a temperature that is learned.

Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications", arXiv:1812.05905 (two critics, automatic
temperature); the first form: arXiv:1801.01290.
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
    tau: float = options.number(0.005, low=0.0, high=1.0, scale="log")
    """How far the target networks move at each update."""
    temperature: float = options.number(1.0, low=1e-8, scale="log")
    """Alpha at the beginning: what a nat of entropy is worth in reward."""
    learn_temperature: bool = True
    """Adapt alpha so that the entropy meets its target."""
    entropy_target: float = -1.0
    """Entropy aimed at, nats for each dimension of the action (the paper: -1)."""
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
    entropy_target: Any
    learn_temperature: Any  # 1, or 0: alpha stays
    reward_scale: Any


class State(NamedTuple):
    """The learner and its memory."""

    params: types.Params  # {"policy": ..., "critics": (...), "log_alpha": scalar}
    target: types.Params  # the critics' target networks, a tuple
    optimiser: Any  # of the policy, optimise.OptimiserState
    critic_optimiser: Any
    alpha_optimiser: Any
    updates: Any  # scalar i32, gradient steps
    normaliser: Any  # normalise.Statistics, () when off
    memory: Any  # see `_memory`; () while the memory is somebody else's
    env_steps: Any  # scalar i32
    hyper: Hyper


def fits(config: Config, network: networks.Config, spec: types.EnvSpec) -> str:
    """See `algorithms`."""
    return _critics.fits(config, network, spec)


def traits(config: Config) -> types.Traits:
    """See `algorithms`."""
    return _critics.traits(config, "sac has several optimisers, and a runtime takes one gradient from each update")


def build(config: Config, given: algorithms.Ingredients) -> types.Agent:
    """The rule as pure functions.

    Args:
        config: The rule's numbers.
        given: Environment spec, network shape and optimiser; the corrector is not used.

    Raises:
        Refused: The memory is too small for its environments.
    """
    spec = given.spec
    rule = _critics.build(config, given, 2 * spec.action.shape[0])
    practice = _critics.practice(rule, given.streams, learn)
    memory = _memory.build(practice.plan, spec)
    practice = practice._replace(memory=memory)
    box = distributions.bounds(spec.action, np)

    def init(key: types.Key) -> State:
        policy_key, *keys = jax.random.split(key, 1 + config.critics)
        critics = tuple(map(rule.critic.init, keys))
        log_alpha = jnp.log(jnp.float32(config.temperature))
        params = {"policy": rule.policy.init(policy_key), "critics": critics, "log_alpha": log_alpha}
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
            hyper=_hyper.scalars(Hyper, config),
        )

    def snapshot(state: State) -> types.Policy:
        random = (state.env_steps.astype(jnp.float32) < state.hyper.learning_starts).astype(jnp.float32)
        return types.Policy(state.params["policy"], state.normaliser, jnp.float32(1.0), random)

    def act(given: types.Policy, carry: types.Carry, obs: Any, key: types.Key) -> tuple[Any, Any, types.Carry]:
        return decide(given, {"policy": _critics.head(rule, given.params, given.normaliser, obs)}, key)[0], (), carry

    def decide(given: types.Policy, outputs: Mapping[str, Any], key: types.Key) -> tuple[Any, types.Chosen]:
        sample_key, random_key = jax.random.split(key)
        output = outputs["policy"]
        noise = jax.random.normal(sample_key, spec.action.shape)
        sampled, log_prob = distributions.squashed_sample(output, noise)
        greedy = jnp.tanh(distributions.squashed_moments(output)[0])
        anything = jax.random.uniform(random_key, greedy.shape, minval=-1.0)
        sampled = jnp.where(given.exploration > 0, anything, sampled)
        log_prob = jnp.where(given.exploration > 0, -math.log(2.0) * greedy.shape[0], log_prob)
        action = distributions.stretch(rule.bounds, jnp.where(given.explore > 0, sampled, greedy))
        return action, types.Chosen(jnp.where(given.explore > 0, log_prob, 0.0))

    def log_prob(given: types.Policy, outputs: Mapping[str, Any], action: Any) -> Any:
        drawn = distributions.squashed_log_prob(outputs["policy"], distributions.shrink(rule.bounds, action))
        drawn = jnp.where(given.exploration > 0, -math.log(2.0) * action.shape[0], drawn)
        return jnp.where(given.explore > 0, drawn, 0.0)

    def decide_many(
        given: types.Policy, outputs: Mapping[str, np.ndarray], generator: np.random.Generator
    ) -> tuple[np.ndarray, types.Chosen]:
        drawn = deciding.squashed(outputs["policy"], given.explore, given.exploration, generator)
        return distributions.stretch(box, drawn.action), types.Chosen(drawn.log_prob)

    fields = types.Fields(
        own_target="target", updates="updates", memory="memory", policy="policy",
        critics=("critics", "critic_optimiser"),
        optimisers=("optimiser", "critic_optimiser", "alpha_optimiser"),
    )  # fmt: skip
    about = types.About(
        rollout_length=config.rollout_length,
        head="squashed",
        networks={"policy": rule.policy, "critic": rule.critic},
        acting=types.Acting(
            network="policy",
            heads=("policy",),
            decide=decide,
            decide_many=decide_many,
            log_prob=log_prob,
            kl=distributions.squashed_kl,
        ),
        practice=practice,
        hyper=_hyper.leaves(Hyper, Config, fields),
        fields=fields,
        streams_matter=True,
        restart=_memory.restart(memory),
    )
    return types.Agent(init=init, snapshot=snapshot, act=act, update=_memory.update(practice, memory), about=about)


def sample(rule: _critics.Rule, params: types.Params, normaliser: Any, obs: Any, key: types.Key) -> tuple[Any, Any]:
    """Actions ``[N, d]`` in (-1, 1) and their log probabilities ``[N]``, differentiable in the parameters."""
    outputs = jax.vmap(functools.partial(_critics.head, rule), in_axes=(None, None, 0))(params, normaliser, obs)
    # Behind a barrier: the compiler would put the generator into every loop that reads the noise.
    noise = jax.lax.optimization_barrier(jax.random.normal(key, (len(outputs), rule.bounds.half.shape[0])))
    return jax.vmap(distributions.squashed_sample)(outputs, noise)


def learn(rule: _critics.Rule, state: State, drawn: _memory.Sample, key: types.Key) -> tuple[State, Any, types.Metrics]:
    """One gradient step of the critics, the policy and the temperature.

    y = R + γ^m (min_i Q⁻_i(x', a') - α log π(a'|x')), a' ~ π(x');  critics descend Σ_i ½ (y - Q_i(x, a))²;
    the policy descends α log π(ã|x) - min_i Q_i(x, ã), ã ~ π(x);  log α descends -log α (log π(ã|x) + H̄).

    Source: Haarnoja et al. 2018, arXiv:1812.05905, equations 5, 9 and 18 (log α in place of α, as in its code).
    """
    hyper, seen, now = state.hyper, state.normaliser, state.params
    next_key, policy_key = jax.random.split(key)
    alpha = jnp.exp(now["log_alpha"])
    following, log_prob = sample(rule, now["policy"], seen, drawn.next_obs, next_key)
    lowest = _critics.lowest(rule, state.target, seen, drawn.next_obs, following)
    target = drawn.reward + drawn.discount * (lowest - alpha * log_prob)
    judged = _critics.descend(rule, state, drawn, target)

    def policy_loss(policy: types.Params) -> tuple[Any, Any]:
        chosen, log_prob = sample(rule, policy, seen, drawn.obs, policy_key)
        lowest = _critics.lowest(rule, judged.critics, seen, drawn.obs, chosen)
        return (alpha * log_prob - lowest).mean(), -log_prob.mean()

    (policy_value, entropy), gradient = jax.value_and_grad(policy_loss, has_aux=True)(now["policy"])
    policy, optimiser, _ = _critics.apply(rule, state, gradient, state.optimiser, now["policy"])
    surplus = hyper.learn_temperature * (entropy - hyper.entropy_target * drawn.action.shape[-1])
    log_alpha, alpha_optimiser, _ = _critics.apply(rule, state, surplus, state.alpha_optimiser, now["log_alpha"])
    metrics = {
        "loss": judged.loss, "policy_loss": policy_value, "q": judged.q.mean(), "entropy": entropy,
        "temperature": alpha, "gradient_norm": judged.norm,
    }  # fmt: skip
    state = state._replace(
        params={"policy": policy, "critics": judged.critics, "log_alpha": log_alpha},
        target=tree.lerp(state.target, judged.critics, hyper.tau),
        optimiser=optimiser,
        critic_optimiser=judged.optimiser,
        alpha_optimiser=alpha_optimiser,
        updates=state.updates + 1,
    )
    return state, target - judged.q, metrics
