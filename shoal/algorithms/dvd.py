"""DvD: several policies, one pair of critics, and a reward for behaving differently: the volume that they span.

Parker-Holder et al. 2020, "Effective Diversity in Population Based Reinforcement Learning", arXiv:2002.00632; the
critics shared by all policies and updated once for all of them as in Flajolet et al. 2022, arXiv:2206.08888. The
determinant stays finite, and has a gradient, also where policies come to coincide (see `diversity`).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

from etils import epy

from shoal import algorithms
from shoal.core import options, types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

    from shoal import networks
    from shoal.algorithms import _critics, _hyper, _memory, _playing, _several
    from shoal.core import tree
    from shoal.formulas import distributions, diversity, normalise, optimise


@dataclasses.dataclass(frozen=True)
class Config:
    """DvD: diverse policies with shared critics."""

    policies: int = options.number(5, low=2)
    """Policies (K); stream b acts with policy b mod K, and moves on by the number of streams after each episode."""
    rollout_length: int = options.number(1, low=1)
    """Steps of each environment between two times of learning."""
    updates: int = options.number(1, low=1)
    """Gradient steps each time."""
    batch: int = options.number(256, low=1)
    """Transitions that each policy learns from in a gradient step; the critics learn from those of all."""
    capacity: int = options.number(1_000_000, low=1)
    """Environment steps the replay memory holds; it is shared."""
    n_step: int = options.number(1, low=1)
    """Steps of reward before bootstrapping."""
    critics: int = options.number(2, low=1)
    """Critics, shared by all policies; the lowest of their targets counts."""
    discount: float = options.number(0.99, low=0.0, high=1.0)
    """Gamma."""
    learning_starts: int = options.number(25_000, low=0)
    """Environment steps of random actions before the first gradient step."""
    tau: float = options.number(0.005, low=0.0, high=1.0, scale="log")
    """How far the target networks move at each update of the policies."""
    policy_delay: int = options.number(2, low=1)
    """Updates of the critics for one of the policies."""
    noise: float = options.number(0.1, low=0.0)
    """Standard deviation of the exploration noise; actions span -1 to 1."""
    target_noise: float = options.number(0.2, low=0.0)
    """Standard deviation of the noise on target actions."""
    target_noise_clip: float = options.number(0.5, low=0.0)
    """Bound of that noise."""
    critic_rate: float = options.number(1.0, low=0.0, scale="log")
    """The critics' step size as a multiple of the optimiser's."""
    diversity: float = options.number(1.0, low=0.0, scale="log")
    """What the weights of the schedule are multiplied by; 0 turns diversity off."""
    weights: tuple[float, ...] = options.number((0.0, 0.3, 0.5, 0.2), low=0.0)
    """Weights of diversity in the policies' loss, one after the other."""
    weights_from: tuple[float, ...] = options.number((0.0, 1 / 60, 0.1, 7 / 30), low=0.0, high=1.0)
    """When each of them begins, as a share of the horizon; the first at 0."""
    horizon: int = options.number(3_000_000, low=1)
    """Environment steps that the schedule of weights is laid out for."""
    length: float = options.number(0.1, low=1e-6, scale="log")
    """Length scale of the kernel, in units of the squared distance; 1 goes with scaling sum."""
    jitter: float = options.number(1e-4, low=1e-6, scale="log")
    """Added to the kernel's diagonal: the determinant of policies that coincide stays above 0."""
    scaling: str = "mean"
    """mean: squared distances are per component of the actions; sum: over all of them, as the reference has it."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this before learning; logged returns are not."""
    normalise_observations: bool = False
    """Shift and scale observations by their running mean and variance."""


SCALINGS = ("mean", "sum")


class Hyper(NamedTuple):
    """Numbers that may change during training; f32 scalars."""

    discount: Any
    learning_starts: Any
    tau: Any
    policy_delay: Any
    noise: Any
    target_noise: Any
    target_noise_clip: Any
    diversity: Any
    horizon: Any
    length: Any
    jitter: Any
    reward_scale: Any


class Told(NamedTuple):
    """Of the policies' latest update; f32 scalars."""

    min_distance: Any
    log_det: Any


class State(NamedTuple):
    """The learner and its memory."""

    params: types.Params  # {"policy": [K, ...], "critics": (...)}
    target: types.Params  # the same for the target networks
    optimiser: Any  # of the policies, statistics [K, ...]
    critic_optimiser: Any
    updates: Any  # scalar i32, gradient steps of the critics
    normaliser: Any  # normalise.Statistics, () when off
    memory: Any  # see `_memory`; () while the memory is somebody else's
    env_steps: Any  # scalar i32
    hyper: Hyper
    playing: Any  # _playing.Playing
    record: Any  # _playing.Record
    told: Told


def fits(config: Config, network: networks.Config, spec: types.EnvSpec) -> str:
    """See `algorithms`."""
    if config.scaling not in SCALINGS:
        return f"algorithm.scaling={config.scaling}, but it is one of {', '.join(SCALINGS)}"
    starts = config.weights_from
    if len(config.weights) != len(starts) or not starts or starts[0] != 0 or list(starts) != sorted(starts):
        return (
            f"algorithm.weights has {len(config.weights)} values and algorithm.weights_from {len(starts)}; give as "
            "many of either, the shares from 0 upwards"
        )
    return _critics.fits(config, network, spec)


def traits(config: Config) -> types.Traits:
    """See `algorithms`."""
    made = _critics.traits(config, "dvd has several optimisers, and a runtime takes one gradient from each update")
    return made._replace(samples=lambda _: config.policies**2 * config.batch)


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
    practice = practice._replace(
        plan=practice.plan._replace(batch=config.policies * config.batch),
        prepare=functools.partial(prepare, rule, given.streams),
    )
    memory = _memory.build(practice.plan, spec)

    def init(key: types.Key) -> State:
        policy_key, *keys = jax.random.split(key, 1 + config.critics)
        params = {
            "policy": _several.init(rule, config.policies, policy_key),
            "critics": tuple(map(rule.critic.init, keys)),
        }
        return State(
            params=params,
            target=jax.tree.map(jnp.copy, params),
            optimiser=_several.starting(given.optimiser, params["policy"]),
            critic_optimiser=optimise.faster(given.optimiser.init(params["critics"]), config.critic_rate),
            updates=jnp.int32(0),
            normaliser=normalise.init(spec.observation.shape) if config.normalise_observations else (),
            memory=memory.init(),
            env_steps=jnp.int32(0),
            hyper=_hyper.scalars(Hyper, config),
            playing=_playing.playing(given.streams, config.policies),
            record=_playing.Record(jnp.zeros(config.policies), jnp.zeros(config.policies, jnp.int32)),
            told=Told(jnp.float32(0.0), jnp.float32(0.0)),
        )

    def snapshot(state: State) -> types.Policy:
        random = (state.env_steps.astype(jnp.float32) < state.hyper.learning_starts).astype(jnp.float32)
        exploring = _several.Exploring(state.params["policy"], state.playing.policy, state.hyper.noise, random)
        one = _several.member(state.params["policy"], _playing.best(state.record))
        return types.Policy(one, state.normaliser, jnp.float32(1.0), exploring, stream=jnp.int32(0))

    def act(given: types.Policy, carry: types.Carry, obs: Any, key: types.Key) -> tuple[Any, Any, types.Carry]:
        noise_key, random_key = jax.random.split(key)
        mean = _several.choose(rule, _several.acting(given), given.normaliser, obs)
        deviation = given.explore * given.exploration.noise
        explored = jnp.clip(mean + deviation * jax.random.normal(noise_key, mean.shape), -1.0, 1.0)
        anything = jax.random.uniform(random_key, mean.shape, minval=-1.0)
        chosen = jnp.where(given.explore * given.exploration.random > 0, anything, explored)
        return distributions.stretch(rule.bounds, chosen), (), carry

    fields = types.Fields(
        own_target="target", updates="updates", memory="memory", policy=None,
        optimisers=("optimiser", "critic_optimiser"),
    )  # fmt: skip
    about = types.About(
        rollout_length=config.rollout_length,
        head="deterministic",
        networks={"policy": rule.policy, "critic": rule.critic},
        practice=practice,
        hyper=_hyper.leaves(Hyper, Config, fields),
        fields=fields,
        streams_matter=True,
        restart=_several.restart(memory),
    )
    return types.Agent(init=init, snapshot=snapshot, act=act, update=_memory.update(practice, memory), about=about)


def prepare(rule: _critics.Rule, streams: int, state: State, rollout: types.Rollout) -> tuple[State, types.Transition]:
    """See `types.Practice.prepare`; besides, who played what, and who plays next."""
    count = rule.config.policies
    playing, ended = _playing.follow(state.playing, rollout.transitions)
    moved = jnp.where(ended.over.any(axis=0), (playing.policy + streams) % count, playing.policy)
    after = _playing.hand_over(playing, moved, ended.over[-1])
    record = _playing.recorded(state.record, playing.policy, ended)
    return _critics.prepare(rule, state._replace(playing=after, record=record), rollout)


def weight(config: Config, hyper: Hyper, env_steps: Any) -> Any:
    """w, what diversity counts in the policies' loss at this time."""
    starts = jnp.round(jnp.asarray(config.weights_from, jnp.float32) * hyper.horizon)
    passed = env_steps.astype(jnp.float32) >= starts
    return hyper.diversity * jnp.asarray(config.weights, jnp.float32)[passed.sum() - 1]


def gradient(rule: _critics.Rule, state: State, critics: Any, policies: Any, obs: Any, w: Any) -> tuple[Any, Told]:
    """Of Σ_k -mean Q_1(x, π_k(x)) - w log det(K + εI) by the policies; the second part no longer than w the first.

    Args:
        rule: The rule.
        state: The learner's.
        critics: As they are after their step.
        policies: ``[K, ...]``.
        obs: ``[K·N, *obs]``, each policy's own rows and, for diversity, all rows of everybody.
        w: Of `weight`.
    """
    count, seen = rule.config.policies, state.normaliser

    def uniform(policies: Any) -> tuple[Any, Told]:
        behaviour = _several.everywhere(rule, policies, seen, obs)
        squares = diversity.distances(behaviour)
        # Per component: else the kernel of 17 actions at 1280 observations is the unit matrix once policies differ.
        factor = float(behaviour.shape[1] * behaviour.shape[2]) if rule.config.scaling == "sum" else 1.0
        log_det = diversity.log_det(factor * squares, state.hyper.length, state.hyper.jitter)
        return -w * log_det, Told(diversity.min_distance(squares), log_det)

    own = functools.partial(_several.policy_loss, rule, critics, seen)
    climbing = jax.grad(own)(policies, _several.blocks(obs, count))
    parting, told = jax.grad(uniform, has_aux=True)(policies)
    scale = jnp.minimum(1.0, w * _norm(climbing) / jnp.maximum(_norm(parting), 1e-12))
    return jax.tree.map(lambda one, other: one + scale * other, climbing, parting), told


def _norm(gradient: Any) -> Any:
    return jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(gradient)))


def learn(rule: _critics.Rule, state: State, drawn: _memory.Sample, key: types.Key) -> tuple[State, Any, types.Metrics]:
    """One gradient step of the critics, and every so often one of all policies.

    y = R + γ^m min_i Q⁻_i(x', π⁻_k(x') + clip(N(0, σ), ±c)) with k the policy of the row's block;
    critics descend Σ_i ½ (y - Q_i(x, a))² over all rows;  policies: `gradient`; only then do the targets move.
    """
    hyper = state.hyper
    wanted = _several.target(rule, state, state.target, drawn, key)
    judged = _several.descend(rule, state, drawn, wanted)
    arrived = state.env_steps - rule.arrive
    w = weight(rule.config, hyper, arrived)

    def improve(policies: Any, optimiser: Any, target: Any, before: Told) -> Any:
        slope, told = gradient(rule, state, judged.critics, policies, drawn.obs, w)
        policies, optimiser = _several.climb(rule.optimiser, slope, optimiser, policies, arrived)
        slow = tree.lerp(target, {"policy": policies, "critics": judged.critics}, hyper.tau)
        told = jax.tree.map(lambda new, old: jnp.where(jnp.isfinite(new), new, old), told, before)
        return policies, optimiser, slow, told

    updates = state.updates + 1
    due = updates % hyper.policy_delay.astype(jnp.int32) == 0
    now = state.params["policy"], state.optimiser, state.target, state.told
    policies, optimiser, slow, told = jax.lax.cond(due, improve, lambda *same: same, *now)
    state = state._replace(
        params={"policy": policies, "critics": judged.critics},
        target=slow,
        optimiser=optimiser,
        critic_optimiser=judged.optimiser,
        updates=updates,
        told=told,
    )
    metrics = {
        "loss": judged.loss,
        "q": judged.q.mean(),
        "gradient_norm": judged.norm,
        "min_distance": told.min_distance,
        "log_det": told.log_det,
        "diversity_weight": w,
        "best_policy": _playing.best(state.record).astype(jnp.float32),
    }
    return state, wanted - judged.q, metrics
