"""CEM-RL: policies drawn from a distribution that moves towards the best, half of them trained as TD3's in between.

Pourchot & Sigaud 2019, "CEM-RL: Combining evolutionary and gradient-based methods for policy search",
arXiv:1810.01222; the critics step once for all trained policies, their loss averaged over them, as in Flajolet et al.
2022, arXiv:2206.08888. The policy that is evaluated and exported is the distribution's mean.
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
    from shoal.formulas import distributions, diversity, evolution, normalise, optimise


@dataclasses.dataclass(frozen=True)
class Config:
    """CEM-RL: evolution and TD3 with shared critics."""

    policies: int = options.number(10, low=2)
    """Policies of an iteration (K), half of them mirror images of the others; an even number."""
    trained: int = options.number(5, low=0)
    """Of them, those that gradients improve before they are tried; never both of a mirrored pair."""
    elites: int = options.number(5, low=1)
    """The best, towards which the distribution moves."""
    rollout_length: int = options.number(1, low=1)
    """Steps of each environment between two looks at which episodes ended; policies change only then."""
    batch: int = options.number(256, low=1)
    """Transitions that each policy learns from in a gradient step; the critics learn from those of all."""
    capacity: int = options.number(1_000_000, low=1)
    """Environment steps the replay memory holds; it is shared."""
    n_step: int = options.number(1, low=1)
    """Steps of reward before bootstrapping."""
    critics: int = options.number(2, low=1)
    """Critics, shared by all policies; the lowest of their targets counts."""
    gradient_steps: float = options.number(1.0, low=0.0, high=1.0)
    """Gradient steps of an iteration for each environment step of the one before."""
    discount: float = options.number(0.99, low=0.0, high=1.0)
    """Gamma."""
    learning_starts: int = options.number(1_000, low=0)
    """Environment steps before the first gradient step."""
    tau: float = options.number(0.005, low=0.0, high=1.0, scale="log")
    """How far the target networks move at each gradient step."""
    target_noise: float = options.number(0.2, low=0.0)
    """Standard deviation of the noise on target actions."""
    target_noise_clip: float = options.number(0.5, low=0.0)
    """Bound of that noise."""
    critic_rate: float = options.number(1.0, low=0.0, scale="log")
    """The critics' step size as a multiple of the optimiser's."""
    initial_variance: float = options.number(1e-2, low=0.0, scale="log")
    """Of every parameter of a policy at the start; its root is the standard deviation."""
    initial_noise: float = options.number(1e-2, low=0.0, scale="log")
    """Added to the variance at the start."""
    noise_floor: float = options.number(1e-5, low=0.0, scale="log")
    """Added to the variance in the end."""
    noise_decay: float = options.number(0.95, low=0.0, high=1.0)
    """How much of the distance between the two is left after each iteration."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this before learning; returns, also those that decide who is best, are not."""
    normalise_observations: bool = False
    """Shift and scale observations by their running mean and variance."""


class Hyper(NamedTuple):
    """Numbers that may change during training; f32 scalars."""

    gradient_steps: Any
    discount: Any
    learning_starts: Any
    tau: Any
    target_noise: Any
    target_noise_clip: Any
    noise_floor: Any
    noise_decay: Any
    reward_scale: Any


class Told(NamedTuple):
    """Of the latest iteration; f32 scalars."""

    loss: Any
    q: Any
    gradient_norm: Any
    fitness_mean: Any
    fitness_best: Any
    deviation: Any
    min_distance: Any
    iterations: Any


class State(NamedTuple):
    """The learner and its memory."""

    params: types.Params  # {"critics": (...)}: what gradients alone change
    target: types.Params  # the same for the target networks
    optimiser: Any  # of the policies that are trained, statistics [trained, ...]; fresh in every iteration
    critic_optimiser: Any
    updates: Any  # scalar i32, gradient steps
    normaliser: Any  # normalise.Statistics, () when off
    memory: Any  # see `_memory`
    env_steps: Any  # scalar i32
    hyper: Hyper
    search: Any  # evolution.Search
    policies: Any  # [K, ...] of this iteration
    playing: Any  # _playing.Playing
    trial: Any  # _playing.Trial
    told: Told


class Pupils(NamedTuple):
    """Policies while they are trained."""

    policies: Any  # [trained, ...]
    target: Any  # [trained, ...]


def fits(config: Config, network: networks.Config, spec: types.EnvSpec) -> str:
    """See `algorithms`."""
    half = config.policies // 2
    if config.policies % 2:
        return f"algorithm.policies={config.policies}, but they come in mirrored pairs; give an even number"
    if config.trained > half:
        return f"algorithm.trained={config.trained}, but of {config.policies} policies at most {half} are trained"
    if config.elites > config.policies:
        return f"algorithm.elites={config.elites}, but there are {config.policies} policies"
    return _critics.fits(config, network, spec)


def traits(config: Config) -> types.Traits:
    """See `algorithms`."""
    return types.Traits(
        actions=("continuous",),
        unshareable="cem_rl has several optimisers, and a runtime takes one gradient from each update",
        capacity=config.capacity,
        normalises=config.normalise_observations,
        rollout=config.rollout_length,
        samples=lambda _: max(1, config.trained) * config.batch,
        gradients=config.rollout_length,
    )


class Parts(NamedTuple):
    """What the functions of the rule have in common."""

    rule: _critics.Rule
    memory: types.Replay
    shape: tree.Flattener  # of one policy
    streams: int  # B


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
    plan = _memory.Plan(
        capacity=config.capacity, batch=max(1, config.trained) * config.batch, n_step=config.n_step,
        streams=given.streams, prioritised=False, rollout_length=config.rollout_length,
    )  # fmt: skip
    like = jax.eval_shape(rule.policy.init, jax.random.key(0))
    parts = Parts(rule, _memory.build(plan, spec), tree.flattener(like), given.streams)

    def init(key: types.Key) -> State:
        mean_key, first_key, *keys = jax.random.split(key, 2 + config.critics)
        mean = parts.shape.flatten(rule.policy.init(mean_key))
        variance = jnp.full(parts.shape.size, config.initial_variance, jnp.float32)
        search = evolution.Search(mean, variance, jnp.float32(config.initial_noise))
        policies = sample(parts, search, first_key)
        critics = {"critics": tuple(map(rule.critic.init, keys))}
        return State(
            params=critics,
            target=jax.tree.map(jnp.copy, critics),
            optimiser=_several.starting(given.optimiser, _first(policies, config.trained)),
            critic_optimiser=optimise.faster(given.optimiser.init(critics["critics"]), config.critic_rate),
            updates=jnp.int32(0),
            normaliser=normalise.init(spec.observation.shape) if config.normalise_observations else (),
            memory=parts.memory.init(),
            env_steps=jnp.int32(0),
            hyper=_hyper.scalars(Hyper, config),
            search=search,
            policies=policies,
            playing=_playing.playing(given.streams, config.policies),
            trial=_playing.trial(parts.streams, config.policies),
            told=Told(*[jnp.float32(0.0)] * len(Told._fields)),
        )

    def snapshot(state: State) -> types.Policy:
        exploring = _several.Exploring(state.policies, state.playing.policy, jnp.float32(0.0), jnp.float32(0.0))
        mean = parts.shape.unflatten(state.search.mean)
        return types.Policy(mean, state.normaliser, jnp.float32(1.0), exploring, stream=jnp.int32(0))

    def act(given: types.Policy, carry: types.Carry, obs: Any, key: types.Key) -> tuple[Any, Any, types.Carry]:
        del key  # a policy is tried without noise: it is the parameters that differ
        chosen = _several.choose(rule, _several.acting(given), given.normaliser, obs)
        return distributions.stretch(rule.bounds, chosen), (), carry

    fields = types.Fields(
        own_target="target", updates="updates", memory="memory", policy=None,
        optimisers=("optimiser", "critic_optimiser"),
    )  # fmt: skip
    about = types.About(
        rollout_length=config.rollout_length,
        head="deterministic",
        networks={"policy": rule.policy, "critic": rule.critic},
        hyper=_hyper.leaves(Hyper, Config, fields),
        fields=fields,
        streams_matter=True,
        restart=_several.restart(parts.memory),
    )
    return types.Agent(init=init, snapshot=snapshot, act=act, update=functools.partial(update, parts), about=about)


# ------------------------------------------------------------------------------------------------ the distribution


def sample(parts: Parts, search: evolution.Search, key: types.Key) -> Any:
    """The policies of an iteration ``[K, ...]``."""
    vectors = evolution.mirrored(search, parts.rule.config.policies // 2, key)
    return jax.vmap(parts.shape.unflatten)(vectors)


# ------------------------------------------------------------------------------------------------ an iteration


def update(parts: Parts, state: State, rollout: types.Rollout, key: types.Key) -> tuple[State, types.Metrics]:
    """Remember the rollout; when every policy has played its episode, a new iteration begins.

    What streams do while they wait for the slowest is remembered, and counts as steps, but not as fitness.
    """
    config = parts.rule.config
    playing, ended = _playing.follow(state.playing, rollout.transitions)
    trial, last = _playing.tried(state.trial, playing, ended), ended.over[-1]
    trial, playing = _playing.next_in_line(trial, playing, last, config.policies)
    memory = state.memory
    bare, steps = _critics.prepare(parts.rule, state._replace(memory=(), playing=playing, trial=trial), rollout)
    memory = parts.memory.add(memory, steps)
    # The memory never passes through the conditional: a branch that hands on a large array copies it.
    over = trial.done.all() & (trial.begun >= config.policies)
    seen = rollout.transitions.obs.reshape(-1, *rollout.transitions.obs.shape[2:])
    iterate = functools.partial(iteration, parts, memory, seen, last, key)
    bare = jax.lax.cond(over, iterate, lambda same: same, bare)
    return bare._replace(memory=memory), bare.told._asdict()


def iteration(parts: Parts, memory: Any, seen: Any, last: Any, key: types.Key, state: State) -> State:
    """The distribution moves, policies are drawn from it, and the first of them are trained.

    Args:
        parts: Of the rule.
        memory: What was remembered; only read.
        seen: ``[N, *obs]`` newest observations, at which policies are compared.
        last: ``[B]``, which streams begin an episode now.
        key: Consumed.
        state: The learner's, without its memory.
    """
    config = parts.rule.config
    fitness = _playing.fitness_of(state.trial)
    vectors = jax.vmap(parts.shape.flatten)(state.policies)
    known, hyper = jnp.where(_playing.known(fitness), fitness, -jnp.inf), state.hyper
    search = evolution.improved(state.search, vectors, known, config.elites, hyper.noise_decay, hyper.noise_floor)
    sample_key, train_key = jax.random.split(key)
    behaviour = _several.everywhere(parts.rule, state.policies, state.normaliser, seen)
    told = state.told._replace(
        fitness_mean=_mean_known(fitness),
        fitness_best=jnp.where(_playing.known(fitness).any(), fitness.max(), state.told.fitness_best),
        deviation=jnp.sqrt(search.variance).mean(),
        min_distance=diversity.min_distance(diversity.distances(behaviour)),
        iterations=state.told.iterations + 1.0,
    )
    told = jax.tree.map(lambda new, old: jnp.where(jnp.isfinite(new), new, old), told, state.told)
    steps = state.trial.env_steps
    ready = _critics.learns(state) & parts.memory.filled(memory)
    count = jnp.where(ready, jnp.floor(state.hyper.gradient_steps * steps.astype(jnp.float32)), 0.0).astype(jnp.int32)
    playing = _playing.playing(parts.streams, config.policies).policy
    state = state._replace(
        search=search,
        policies=sample(parts, search, sample_key),
        playing=_playing.hand_over(state.playing, playing, last)._replace(whole=last),
        trial=_playing.trial(parts.streams, config.policies),
        told=told,
    )
    return trained(parts, memory, state, count, train_key) if config.trained else state


def _mean_known(fitness: Any) -> Any:
    known = _playing.known(fitness)
    return jnp.where(known, fitness, 0.0).sum() / jnp.maximum(known.sum(), 1)


# ------------------------------------------------------------------------------------------------ training


def trained(parts: Parts, memory: Any, state: State, count: Any, key: types.Key) -> State:
    """The first policies after so many gradient steps, with targets and optimisers that begin anew."""
    rule, amount = parts.rule, parts.rule.config.trained
    pupils = _first(state.policies, amount)
    fresh = _several.starting(rule.optimiser, pupils)
    state = state._replace(optimiser=state.optimiser._replace(rule=fresh.rule))

    def once(i: Any, now: tuple[State, Pupils]) -> tuple[State, Pupils]:
        draw_key, learn_key = jax.random.split(jax.random.fold_in(key, i))
        drawn = parts.memory.sample(memory, now[0].hyper.discount, (), draw_key)
        return learn(rule, *now, drawn, learn_key)

    state, pupils = jax.lax.fori_loop(0, count, once, (state, Pupils(pupils, pupils)))
    policies = jax.tree.map(lambda all_, new: all_.at[:amount].set(new), state.policies, pupils.policies)
    return state._replace(policies=policies)


def learn(
    rule: _critics.Rule, state: State, pupils: Pupils, drawn: _memory.Sample, key: types.Key
) -> tuple[State, Pupils]:
    """One gradient step of the critics, and one of every trained policy, as TD3 with a delay of 1.

    y = R + γ^m min_i Q⁻_i(x', π⁻_k(x') + clip(N(0, σ), ±c)) with k the policy of the row's block;
    critics descend Σ_i ½ (y - Q_i(x, a))² over all rows;  π_k climbs Q_1(x, π_k(x));  all targets move.
    """
    hyper = state.hyper
    slow = {"policy": pupils.target, "critics": state.target["critics"]}
    wanted = _several.target(rule, state, slow, drawn, key)
    judged = _several.descend(rule, state, drawn, wanted)
    loss = functools.partial(_several.policy_loss, rule, judged.critics, state.normaliser)
    gradient = jax.grad(loss)(pupils.policies, _several.blocks(drawn.obs, rule.config.trained))
    arrived = state.env_steps - rule.arrive
    policies, optimiser = _several.climb(rule.optimiser, gradient, state.optimiser, pupils.policies, arrived)
    slow = tree.lerp(slow, {"policy": policies, "critics": judged.critics}, hyper.tau)
    told = {"loss": judged.loss, "q": judged.q.mean(), "gradient_norm": judged.norm}
    told = {name: jnp.where(jnp.isfinite(new), new, 0.0) for name, new in told.items()}
    state = state._replace(
        params={"critics": judged.critics},
        target={"critics": slow["critics"]},
        optimiser=optimiser,
        critic_optimiser=judged.optimiser,
        updates=state.updates + 1,
        told=state.told._replace(**told),
    )
    return state, Pupils(policies, slow["policy"])


def _first(policies: Any, count: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[:count], policies)
