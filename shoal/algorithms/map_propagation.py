"""MAP propagation: a network as a team of units, each of which learns by reinforcement; and its nearest relations.

Chung 2021, "MAP Propagation Algorithm: Faster Learning with a Team of Reinforcement Learning Agents", arXiv:2010.07893
(NeurIPS 2021); final settings and order of steps as in stephen-chung-mh/map_prop. The formulas of the units are in
`_teams.units`. REINFORCE teams are N = 0; back-propagation runs in the same loop for comparison.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

from etils import epy

from shoal import algorithms
from shoal.core import errors, options, types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np

    from shoal import networks
    from shoal.algorithms import _hyper
    from shoal.algorithms._teams import acting, author, ceaseless, learning, records, relaxation, units
    from shoal.formulas import distributions, normalise, optimise
    from shoal.networks import scaling


FLOOR = 30.0  # softmax arguments of the author's code are no further than this below the largest


@dataclasses.dataclass(frozen=True)
class Config:
    """MAP propagation."""

    rollout_length: int = options.number(1, low=1)
    """Steps of each environment between two updates; above 1 the actor's weights are up to so many steps old."""
    variant: Literal["clean", "paper"] = "clean"
    """clean: truthful ends of episodes; paper: the control flow of the author's code, to the letter."""
    learning: Literal["map", "backprop_det", "backprop_sto"] = "map"
    """How the actor learns: locally, or by back-propagation without or with noise in its hidden units."""
    critic_rule: Literal["map", "backprop", "reinforce", "none"] = "map"
    """How the critic learns; none: the reward itself is broadcast (tasks of one step)."""
    steps: int = options.number(20, low=0)
    """Steps of the MAP phase (N); 0: a team of REINFORCE units."""
    asynchronous: bool = False
    """No phases: units relax all the time, while the output is drawn again and again, then held."""
    free_steps: int = options.number(20, low=1)
    """Ticks with a free output before each action (N'); asynchronous only."""
    gate: Literal["quotient", "product"] = "quotient"
    """What multiplies the critic's increments: 1 / (A - mean) after the MAP phase, or A - mean before it."""
    targets: bool = False
    """Learn towards the first feature of the successor instead of from the reward (supervised tasks of one step)."""
    exploring: bool = False
    """Each hidden unit, and the output, explores with a probability, and only those that do learn."""
    explore: float = options.number(0.5, low=0.0, high=1.0)
    """That probability (p)."""
    discount: float = options.number(0.98, low=0.0, high=1.0)
    """Gamma."""
    trace: float = options.number(0.95, low=0.0, high=1.0)
    """Decay of the eligibility traces (lambda); 0 keeps none."""
    temperature: float = options.number(2.0, low=1e-6, scale="log")
    """Divides the potentials of a softmax output."""
    guard: float = options.number(1e-3, low=0.0, scale="log")
    """|A - mean| of the critic's gate is held above this many deviations of its output; 0 lets it reach 0."""
    actor_variance: tuple[float, ...] = options.number((0.03, 0.1, 0.1), low=0.0)
    """Variances of the actor's layers: one for each, or three: first, those between, output."""
    critic_variance: tuple[float, ...] = options.number((0.03, 0.1, 0.1), low=0.0)
    """Likewise of the critic's."""
    actor_rates: tuple[float, ...] = options.number((1e-2, 1e-5, 1e-6), low=0.0)
    """Learning rates of the actor's layers at the start; times optimiser.learning_rate."""
    critic_rates: tuple[float, ...] = options.number((2e-2, 2e-5, 2e-6), low=0.0)
    """Likewise of the critic's."""
    actor_rates_end: tuple[float, ...] = options.number((1e-3, 1e-6, 1e-8), low=0.0)
    """Rates after `end_t` environment steps, and from then on; empty: the rates never change."""
    critic_rates_end: tuple[float, ...] = options.number((2e-3, 2e-6, 2e-7), low=0.0)
    """Likewise of the critic's."""
    end_t: int = options.number(50_000, low=1)
    """Environment steps over which the rates move, linearly."""
    reward_clip: float = options.number(0.0, low=0.0)
    """Rewards are held within plus-minus this before learning; 0 turns it off. Logged returns are not clipped."""
    speed_decay: float = options.number(0.7, low=0.0, high=1.0)
    """Decay of the running speed of a unit (beta); asynchronous only."""
    speed_weight: float = options.number(1e3, low=0.0, scale="log")
    """How much a moving unit's learning is held back (alpha); asynchronous only."""
    speed_floor: float = options.number(1e-5, low=1e-12, scale="log")
    """Added to the weighted square of the speed (epsilon); asynchronous only."""
    normalise_observations: bool = False
    """Shift and scale observations by their running mean and variance."""


def fits(config: Config, network: networks.Config, spec: types.EnvSpec) -> str:
    """See `algorithms`."""
    scalar = not spec.action.discrete and spec.action.shape == (1,)
    if config.targets and not (scalar and config.critic_rule == "none"):
        return "algorithm.targets asks for one number as the action and algorithm.critic_rule none: task:Regression-8"
    return _unfit_network(config, network, spec) or _unfit_variant(config) or _unfit_rules(config)


def _unfit_network(config: Config, network: networks.Config, spec: types.EnvSpec) -> str:
    if spec.observation.image:
        return f"its units see vectors, and {spec.id} gives images; use ppo or dqn"
    if network.lstm or network.dueling or not network.hidden:
        return "a team is of dense layers, one of them hidden: network.hidden, and neither network.lstm nor .dueling"
    if network.form not in ("none", "A") or network.critic_form not in ("same", "none", "A", "local"):
        return "a team is one row of as many layers as network.hidden says; set network.form to none or A"
    depth = len(network.hidden) + 1
    for name in (f"{which}_{what}" for which in ("actor", "critic") for what in ("variance", "rates", "rates_end")):
        given = len(getattr(config, name))
        if given not in (depth, 3) and not (given == 0 and name.endswith("_end")):
            return f"algorithm.{name} has {given} values; give {depth}, one a layer, or 3 (first, between, output)"
    return ""


def _unfit_variant(config: Config) -> str:
    if config.variant == "paper" and (config.rollout_length > 1 or config.critic_rule == "none" or not config.trace):
        return "the paper variant learns after every step, from traces and a critic; set algorithm.rollout_length to 1"
    if config.variant == "paper" and config.asynchronous:
        return "the paper variant is synchronous; leave algorithm.variant or algorithm.asynchronous out"
    local = config.learning == "map" and config.critic_rule in ("map", "none") and config.steps > 0
    if config.asynchronous and not (local and config.rollout_length == 1 and not config.targets):
        return "asynchronous units learn locally, at once and from rewards: algorithm.rollout_length 1, learning map"
    return ""


def _unfit_rules(config: Config) -> str:
    team = config.learning == "map" and not config.steps
    if team and config.targets:
        return "a target is learned from after a MAP phase; set algorithm.steps above 0, or leave algorithm.targets out"
    if config.exploring and not team:
        return "algorithm.exploring is a way of REINFORCE teams; set algorithm.learning to map and algorithm.steps to 0"
    if config.critic_rule == "map" and not config.steps:
        return "a critic that learns by MAP needs algorithm.steps above 0; set algorithm.critic_rule to backprop"
    return ""


def traits(config: Config) -> types.Traits:
    """See `algorithms`."""
    return types.Traits(
        actions=("discrete", "continuous"),
        unshareable=_unshareable(config),
        normalises=config.normalise_observations,
        rollout=config.rollout_length,
        samples=lambda streams: streams * config.rollout_length,
        gradients=config.rollout_length * (2 if config.variant == "paper" else 1),  # one more where an episode ends
    )


def _unshareable(config: Config) -> str:
    if config.rollout_length > 1:
        return "map_propagation makes a step after every observation; set algorithm.rollout_length to 1"
    if config.variant == "paper":
        return "the paper variant makes two steps at the end of an episode; set algorithm.variant to clean"
    return ""


def build(config: Config, given: algorithms.Ingredients) -> types.Agent:
    """The rule as pure functions.

    Args:
        config: The rule's numbers.
        given: Environment spec, network shape and optimiser; the corrector is not used.

    Raises:
        Refused: The paper variant with more than one environment.
    """
    spec, streams = given.spec, given.streams
    if config.variant == "paper" and streams > 1:
        raise errors.Refused(
            f"algorithm.variant=paper follows one environment, but there are {streams}; set runtime.environments to 1"
        )
    outputs = spec.action.n if spec.action.discrete else spec.action.shape[0]
    policy = networks.build(given.network, spec.observation, {"policy": networks.Head(outputs, 1.0)})
    value = networks.build(given.network, spec.observation, {"value": networks.Head(1, 1.0)})
    rule = _rule(config, given, policy.spec, value.spec)

    def init(key: types.Key) -> records.State:
        keys = jax.random.split(key)
        params = {"actor": policy.init(keys[0])}
        if config.critic_rule != "none":
            params["critic"] = value.init(keys[1])
        layers = {which: _layers(config, which, len(rule.kinds[which].names)) for which in params}
        traces = jax.tree.map(lambda leaf: jnp.zeros((streams, *leaf.shape)), params) if config.trace else ()
        statistics = normalise.init(normalise.shape(spec.observation)) if config.normalise_observations else ()
        hyper = _hyper.scalars(records.Hyper, config, off=("reward_clip",))
        start = learning.rates(rule, layers, jnp.float32(0.0))
        state = records.State(
            params, given.optimiser.init(params, start), statistics, traces, (), jnp.int32(0), hyper, layers
        )
        return state._replace(pending=_pending(rule, streams))

    def snapshot(state: records.State) -> types.Policy:
        return types.Policy(
            acting.folded(rule, state), state.normaliser, jnp.float32(1.0), acting.exploration(rule, state)
        )

    def update(state: records.State, rollout: types.Rollout, key: types.Key) -> tuple[records.State, types.Metrics]:
        steps = rollout.transitions
        step = {"clean": clean, "paper": author.learn}[config.variant]
        if config.asynchronous:
            state, metrics = ceaseless.learn(rule, state, jax.tree.map(lambda leaf: leaf[0], steps), rollout.carry, key)
        elif config.rollout_length == 1:
            state, metrics = step(rule, state, jax.tree.map(lambda leaf: leaf[0], steps), key)
        else:
            keys = jax.random.split(key, config.rollout_length)
            state, metrics = jax.lax.scan(lambda at, each: step(rule, at, *each), state, (steps, keys))
            metrics = jax.tree.map(jnp.mean, metrics)
        if config.normalise_observations:  # after learning: what was learned from is what was acted on
            seen = normalise.update(state.normaliser, steps.obs, normalise.shape(spec.observation))
            state = state._replace(normaliser=seen)
        return state, metrics

    def restart(state: records.State) -> records.State:
        if config.variant == "paper":  # what was left of the old episode is neither learned from nor remembered
            broken = state.pending._replace(ended_before=jnp.bool_(True), ended=jnp.bool_(False))
            return state._replace(pending=broken)
        return state._replace(pending=_pending(rule, streams))

    carry = relaxation.still(rule.sizes["actor"], outputs, spec.action.discrete) if config.asynchronous else ()
    act = functools.partial((ceaseless if config.asynchronous else acting).act, rule)
    head = "categorical" if spec.action.discrete else "linear"
    about = types.About(
        rollout_length=config.rollout_length,
        head=head,
        networks={"policy": policy, "critic": value},
        carry=carry,
        hyper=_hyper.leaves(records.Hyper, Config),
        fields=types.Fields(policy=None),  # folded (`acting.folded`)
        streams_matter=True,
        restart=restart,
    )
    return types.Agent(init=init, snapshot=snapshot, act=act, update=update, about=about)


def clean(
    rule: records.Rule, state: records.State, step: types.Transition, key: types.Key
) -> tuple[records.State, types.Metrics]:
    """Learn from one step ``[B]``: traces of this decision, then δ = r + γ Ā(next_obs) - Ā, then one step of Adam."""
    config, hyper, pending = rule.config, state.hyper, state.pending
    obs, next_obs = (records.seen(rule, state.normaliser, seen) for seen in (step.obs, step.next_obs))
    over = (step.discount == 0) | step.truncated
    reward = jnp.clip(step.reward, -hyper.reward_clip, hyper.reward_clip)
    now: Any = ()
    after: Any = ()
    delta, value = reward, jnp.zeros_like(reward)
    if config.critic_rule != "none":
        noise = jax.random.normal(key, (2, obs.shape[0], sum(rule.sizes["critic"]) + 1))
        draw = jax.vmap(functools.partial(learning.guess, rule, state))
        now, after = records.where(pending.fresh, draw(obs, noise[0]), pending.guess), draw(next_obs, noise[1])
        value = now.value
        delta = reward + hyper.discount * step.discount * after.value - value
    moment = learning.moments(rule, step, obs, now)
    learned = jax.vmap(lambda one: learning.lesson(rule, state, one, {}))(moment)
    if config.targets:
        delta = learned.left
    state, gradient = learning.eligible(state, learned.increments, pending.fresh, delta)
    ask = optimise.Step(learning.rates(rule, state.layers, state.env_steps / hyper.end_t))
    state, norm = learning.apply(rule, state, gradient, ask)
    state = state._replace(pending=records.Ahead(after, over), env_steps=state.env_steps + reward.size)
    return state, learning.told(rule, learned.told, step, delta, value, norm)


def _rule(config: Config, given: algorithms.Ingredients, policy: Any, value: Any) -> records.Rule:
    action, activation = given.spec.action, given.network.activation
    floor = FLOOR if config.variant == "paper" else None
    kinds = {
        "actor": units.Kind(units.layers(policy, "policy"), activation, action.discrete, floor),
        "critic": units.Kind(units.layers(value, "value"), activation, False),
    }
    sizes = dict.fromkeys(kinds, given.network.hidden)
    scale = offset = bounds = None
    if not action.discrete:
        low, high = (np.asarray(bound, np.float64) for bound in (action.low, action.high))
        if np.all(np.abs([low, high]) < distributions.HUGE):
            # σ_L² of the paper's settings is tuned to the whole width, not to half of it.
            scale, offset = high - low, -low if config.variant == "paper" else (low + high) / 2
            scale = np.where(scale > 0, scale, 1.0)  # where there is no room the environment clips
        else:
            scale, offset = np.ones_like(low), np.zeros_like(low)
        largest = float(np.finfo(np.float32).max)
        bounds = tuple(np.clip(bound, -largest, largest).astype(np.float32) for bound in (low, high))
        scale, offset = scale.astype(np.float32), offset.astype(np.float32)
    choices = action.n if action.discrete else 0
    return records.Rule(
        config, kinds, sizes, scale, offset, bounds, choices, given.optimiser, given.spec.observation.shape,
        scaling.layer(given.spec.observation),
    )  # fmt: skip


def _pending(rule: records.Rule, streams: int) -> Any:
    """What is pending when every stream begins an episode."""
    if rule.config.variant == "paper":
        no = jnp.bool_(False)
        return records.Behind(jnp.float32(0.0), no, no, no, jnp.float32(0.0), jnp.int32(0))
    fresh = jnp.ones(streams, bool)
    if rule.config.critic_rule == "none":
        return records.Ahead((), fresh)
    if rule.config.asynchronous:
        still = records.Course(relaxation.still(rule.sizes["critic"], 1), jnp.zeros(()))
        return records.Ahead(records.spread(still, streams), fresh)
    hidden = tuple(jnp.zeros((streams, size)) for size in rule.sizes["critic"])
    return records.Ahead(records.Guess(hidden, jnp.zeros((streams, 1)), jnp.zeros(streams)), fresh)


def _layers(config: Config, which: str, depth: int) -> records.Layers:
    """The numbers of each layer; three stand for the first, those between, and the output."""

    def each(name: str) -> Any:
        given = getattr(config, f"{which}_{name}")
        if len(given) != depth:
            given = (given[0], *[given[1]] * (depth - 2), given[-1])
        return jnp.asarray(given, jnp.float32)

    moving = bool(getattr(config, f"{which}_rates_end"))
    return records.Layers(each("variance"), each("rates"), each("rates_end" if moving else "rates"))
