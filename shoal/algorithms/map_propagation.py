"""MAP propagation: a network as a team of units, each of which learns by reinforcement; and its nearest relations.

Chung 2021, "MAP Propagation Algorithm: Faster Learning with a Team of Reinforcement Learning Agents", arXiv:2010.07893
(NeurIPS 2021); final settings and order of steps as in stephen-chung-mh/map_prop. The formulas of the units are in
`stochastic_units`. REINFORCE teams are N = 0; back-propagation runs in the same loop for comparison.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

from etils import epy

from shoal import algorithms, errors, options, types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np

    from shoal import networks, normalise, optimise, relaxation
    from shoal import stochastic_units as units


CORRECTS = False
ACTIONS = ("discrete", "continuous")


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
    temperature: float = options.number(2.0, low=1e-6)
    """Divides the potentials of a softmax output."""
    guard: float = options.number(1e-3, low=0.0)
    """|A - mean| of the critic's gate is held above this many deviations of its output; 0 lets it reach 0."""
    actor_variance: tuple[float, ...] = options.number((0.03, 0.1, 0.1), low=0.0)
    """Variances of the actor's layers: one for each, or three: first, those between, output."""
    critic_variance: tuple[float, ...] = options.number((0.03, 0.1, 0.1), low=0.0)
    """Likewise of the critic's."""
    actor_rates: tuple[float, ...] = options.number((1e-2, 1e-5, 1e-6), low=0.0)
    """Learning rates of the actor's layers at the start; times optimiser.learning_rate."""
    critic_rates: tuple[float, ...] = options.number((2e-2, 2e-5, 2e-6), low=0.0)
    """Likewise of the critic's."""
    actor_rates_end: tuple[float, ...] = options.number((), low=0.0)
    """Rates after `end_t` environment steps, and from then on; empty: the rates never change."""
    critic_rates_end: tuple[float, ...] = options.number((), low=0.0)
    """Likewise of the critic's."""
    end_t: int = options.number(50_000, low=1)
    """Environment steps over which the rates move, linearly."""
    reward_clip: float = options.number(0.0, low=0.0)
    """Rewards are held within plus-minus this before learning; 0 turns it off. Logged returns are not clipped."""
    speed_decay: float = options.number(0.7, low=0.0, high=1.0)
    """Decay of the running speed of a unit (beta); asynchronous only."""
    speed_weight: float = options.number(1e3, low=0.0)
    """How much a moving unit's learning is held back (alpha); asynchronous only."""
    speed_floor: float = options.number(1e-5, low=1e-12)
    """Added to the weighted square of the speed (epsilon); asynchronous only."""
    normalise_observations: bool = False
    """Shift and scale observations by their running mean and variance."""


class Hyper(NamedTuple):
    """Numbers that may change during training; f32 scalars."""

    discount: Any
    trace: Any
    temperature: Any
    guard: Any
    explore: Any
    end_t: Any  # environment steps
    reward_clip: Any  # `optimise.LARGEST`: off
    speed_decay: Any
    speed_weight: Any
    speed_floor: Any


class Layers(NamedTuple):
    """Such numbers of a network's layers, ``[L]`` f32."""

    variance: Any
    rate: Any  # at the start
    rate_end: Any  # after `Hyper.end_t`


class State(NamedTuple):
    """The learner."""

    params: dict[str, types.Params]  # "actor", and "critic" where there is one
    optimiser: Any  # optimise.OptimiserState
    normaliser: Any  # normalise.Statistics, () when off
    traces: Any  # like the parameters, leaves [B, ...]; () where lambda is 0
    pending: Any  # Ahead or Behind: what the next update must know of the last
    env_steps: Any  # scalar i32, environment steps learned from
    hyper: Hyper
    layers: dict[str, Layers]  # by network


class Guess(NamedTuple):
    """The critic's draw at one observation."""

    hidden: tuple[Any, ...]  # L - 1 arrays [units]
    output: Any  # [1] A
    value: Any  # scalar, the mean of A given these hidden values


class Course(NamedTuple):
    """The same of a critic that never stops: where its units are after the ticks with a free output."""

    flow: Any  # relaxation.Flow
    value: Any  # scalar


class Ahead(NamedTuple):
    """Clean variant: the critic's draw at the observation to be acted on next."""

    guess: Any  # Guess, or Course of asynchronous units, leaves [B, ...]; () without a critic
    fresh: Any  # [B] bool, an episode begins: draw anew


class Behind(NamedTuple):
    """Paper variant: the last transition, from which nothing has been learned yet; one stream."""

    reward: Any  # f32
    ended: Any  # bool, either way
    truncated: Any  # bool
    ended_before: Any  # bool, of the iteration before
    value: Any  # f32
    iterations: Any  # i32, those at the end of episodes included


class Remembered(NamedTuple):
    """What acting leaves for the update."""

    hidden: Any  # [units of all hidden layers]; asynchronous: the outputs drawn, [N' x outputs]
    exploring: Any  # [the same + 1] f32, 1 where a unit explored, the output last; [1] where all do


class Exploration(NamedTuple):
    """What acting as in training needs besides the weights."""

    deviation: Any  # [L - 1] of the hidden layers
    spread: Any  # [d] deviation of a Gaussian output in the environment's units; [1] of a softmax, unused
    chance: Any  # scalar, that a unit explores
    variance: Any  # [L], for relaxation
    speed_decay: Any  # scalar, likewise


class Rule(NamedTuple):
    """What the functions below have in common."""

    config: Config
    kinds: dict[str, Any]  # units.Kind by network
    sizes: dict[str, tuple[int, ...]]  # units of the hidden layers, by network
    scale: Any  # [d] from the output's units to the environment's; None for choices
    offset: Any  # [d] likewise
    bounds: Any  # (low, high) [d] each; None for choices
    choices: int  # 0 for vectors
    optimiser: Any  # optimise.Optimiser
    shape: tuple[int, ...]  # of an observation


UNROLL = 4  # steps of the MAP phase written out in the loop's body
FLOOR = 30.0  # of softmax arguments in the author's code
CORRECTED = 1000  # the author's Adam drops its correction from this step on


def fits(config: Config, network: networks.Config, spec: types.EnvSpec) -> str:
    """See `algorithms`."""
    if spec.observation.image:
        return f"its units see vectors, and {spec.id} gives images; use ppo or dqn"
    if network.lstm or network.dueling:
        return "its layers are dense: set network.lstm to 0 and leave network.dueling out"
    if not network.hidden:
        return "a team needs hidden units; give network.hidden at least one layer"
    depth = len(network.hidden) + 1
    for name in (f"{which}_{what}" for which in ("actor", "critic") for what in ("variance", "rates", "rates_end")):
        given = len(getattr(config, name))
        if given not in (depth, 3) and not (given == 0 and name.endswith("_end")):
            return f"algorithm.{name} has {given} values for {depth} layers; give {depth}, or 3 (first, between, output)"
    if config.targets and (config.critic_rule != "none" or spec.action.discrete or spec.action.shape != (1,)):
        return "algorithm.targets asks for one number as the action and algorithm.critic_rule none; see task:Regression"
    if config.targets and config.learning == "map" and not config.steps:
        return "a target is learned from after a MAP phase; set algorithm.steps above 0, or leave algorithm.targets out"
    if config.exploring and (config.learning != "map" or config.steps or config.asynchronous):
        return "algorithm.exploring is a way of REINFORCE teams; set algorithm.learning to map and algorithm.steps to 0"
    if config.critic_rule == "map" and not config.steps:
        return "a critic that learns by MAP needs algorithm.steps above 0; set algorithm.critic_rule to backprop"
    return _unfit_asynchronous(config)


def _unfit_asynchronous(config: Config) -> str:
    if config.variant == "paper" and (config.rollout_length > 1 or config.critic_rule == "none"):
        return "the paper variant learns after every step from a critic; set algorithm.rollout_length to 1"
    if not config.asynchronous:
        return ""
    if config.variant == "paper":
        return "the paper variant is synchronous; leave algorithm.variant or algorithm.asynchronous out"
    if config.rollout_length > 1 or config.learning != "map" or config.critic_rule not in ("map", "none"):
        return "asynchronous units learn locally and at once: algorithm.rollout_length 1, learning and critic_rule map"
    return ""


def shareable(config: Config) -> str:
    """See `algorithms`."""
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

    def init(key: types.Key) -> State:
        keys = jax.random.split(key)
        params = {"actor": policy.init(keys[0])}
        if config.critic_rule != "none":
            params["critic"] = value.init(keys[1])
        layers = {which: _layers(config, which, len(rule.kinds[which].names)) for which in params}
        traces = jax.tree.map(lambda leaf: jnp.zeros((streams, *leaf.shape)), params) if config.trace else ()
        statistics = normalise.init(spec.observation.shape) if config.normalise_observations else ()
        hyper = _hyper(config)
        start = rates(rule, layers, jnp.float32(0.0))
        state = State(params, given.optimiser.init(params, start), statistics, traces, (), jnp.int32(0), hyper, layers)
        return state._replace(pending=_pending(rule, state, streams))

    def snapshot(state: State) -> types.Policy:
        return types.Policy(
            _folded(rule, state), state.normaliser, jnp.float32(1.0), _exploration(rule, state)
        )

    def update(state: State, rollout: types.Rollout, key: types.Key) -> tuple[State, types.Metrics]:
        steps = rollout.transitions
        step = {"clean": clean, "paper": paper}[config.variant]
        if config.asynchronous:
            state, metrics = relaxed(rule, state, jax.tree.map(lambda leaf: leaf[0], steps), rollout.carry, key)
        elif config.rollout_length == 1:
            state, metrics = step(rule, state, jax.tree.map(lambda leaf: leaf[0], steps), key)
        else:
            keys = jax.random.split(key, config.rollout_length)
            state, metrics = jax.lax.scan(lambda at, each: step(rule, at, *each), state, (steps, keys))
            metrics = jax.tree.map(jnp.mean, metrics)
        if config.normalise_observations:  # after learning: what was learned from is what was acted on
            seen = normalise.update(state.normaliser, steps.obs, spec.observation.shape)
            state = state._replace(normaliser=seen)
        return state, metrics

    def restart(state: State) -> State:
        return state._replace(pending=_pending(rule, state, streams))

    carry = relaxation.still(rule.sizes["actor"], outputs, spec.action.discrete) if config.asynchronous else ()
    act = functools.partial(_act_relaxed if config.asynchronous else _act, rule)
    head = "categorical" if spec.action.discrete else "linear"
    return types.Agent(init, snapshot, act, update, carry, config.rollout_length, head, policy, None, restart)


# ------------------------------------------------------------------------------------------------ acting


def _act(
    rule: Rule, policy: types.Policy, carry: types.Carry, obs: Any, key: types.Key
) -> tuple[Any, Remembered, types.Carry]:
    """Sample the hidden units, then the output; greedily, every unit gives its mean."""
    kind, seen, sizes = rule.kinds["actor"], _seen(policy.normaliser, obs), rule.sizes["actor"]
    of_units, of_output, of_chance = jax.random.split(key, 3) if rule.config.exploring else (*jax.random.split(key), None)
    noise, live = jax.random.normal(of_units, (sum(sizes),)), policy.explore > 0
    exploring = jnp.ones(1)
    if rule.config.exploring:
        exploring = jax.random.bernoulli(of_chance, policy.exploration.chance, (sum(sizes) + 1,)).astype(jnp.float32)
        noise = noise * exploring[:-1]
    parts = units.split(jnp.where(live, noise, 0.0), sizes)
    hidden = units.sample(kind, policy.params, seen, policy.exploration.deviation, parts)
    pot = units.potential(policy.params[kind.names[-1]], hidden[-1])
    action = _draw(rule, policy, pot, of_output, live & (exploring[-1] > 0))
    return action, Remembered(jnp.concatenate(hidden), exploring), carry


def _draw(rule: Rule, policy: types.Policy, pot: Any, key: types.Key, live: Any) -> Any:
    """The action: a choice, or a vector in the environment's units; the most probable one unless `live`."""
    if rule.choices:
        scores = units.logits(rule.kinds["actor"], jnp.float32(1.0), pot)
        return jnp.where(live, jax.random.categorical(key, scores), jnp.argmax(scores)).astype(jnp.int32)
    return pot + jnp.where(live, policy.exploration.spread * jax.random.normal(key, pot.shape), 0.0)


def _folded(rule: Rule, state: State) -> types.Params:
    """The actor with its temperature, or the range of actions, folded into the output layer."""
    params, name = state.params["actor"], rule.kinds["actor"].names[-1]
    if rule.choices:
        last = jax.tree.map(lambda leaf: leaf / state.hyper.temperature, params[name])
    else:
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        last = {"kernel": kernel * rule.scale, "bias": bias * rule.scale + rule.offset}
    return {**params, name: last}


def _exploration(rule: Rule, state: State) -> Exploration:
    variance = state.layers["actor"].variance
    noisy = rule.config.learning != "backprop_det"
    deviation = jnp.sqrt(variance[:-1]) if noisy else jnp.zeros_like(variance[:-1])
    spread = jnp.sqrt(variance[-1:]) * (1.0 if rule.choices else rule.scale)
    return Exploration(deviation, spread, state.hyper.explore, variance, state.hyper.speed_decay)


def _seen(normaliser: Any, obs: Any) -> Any:
    return normalise.apply(normaliser, obs) if normaliser else obs


# ------------------------------------------------------------------------------------------------ learning


class Moment(NamedTuple):
    """One decision of one stream, actor and critic."""

    obs: Any  # [features]
    hidden: tuple[Any, ...]  # the actor's, L - 1 arrays
    output: Any  # the actor's, [outputs] one-hot or value
    exploring: Any  # Remembered.exploring
    guess: Any  # Guess of the critic, () without one
    target: Any  # scalar, of a supervised task; else 0


class Lesson(NamedTuple):
    """What one decision adds to the traces, and what is told of it."""

    increments: dict[str, types.Params]  # by network
    left: Any  # scalar, target - mean after the MAP phase, of a supervised task
    told: types.Metrics


def guess(rule: Rule, state: State, obs: Any, noise: Any) -> Guess:
    """The critic's draw.

    Args:
        rule: The rule.
        state: Weights and variances.
        obs: ``[features]``.
        noise: ``[hidden units + 1]`` standard normal.
    """
    kind, params, law = rule.kinds["critic"], state.params["critic"], _law(state, "critic")
    deviation = jnp.sqrt(law.variance)
    quiet = rule.config.critic_rule == "backprop" and rule.config.learning != "backprop_sto"
    parts = units.split(jnp.zeros_like(noise[:-1]) if quiet else noise[:-1], rule.sizes["critic"])
    hidden = units.sample(kind, params, obs, deviation, parts)
    mean = units.potential(params[kind.names[-1]], hidden[-1])
    return Guess(hidden, mean + deviation[-1] * noise[-1:], mean[0])


def lesson(rule: Rule, state: State, moment: Moment, stale: dict[str, Any]) -> Lesson:
    """The MAP phase and the increments of both networks at one decision.

    Args:
        rule: The rule.
        state: Weights, variances and the rest of the learner.
        moment: What was sampled.
        stale: By network, the sweep that the first step of the MAP phase starts from; empty: new ones.
    """
    config, laws = rule.config, {which: _law(state, which) for which in state.params}
    values = {"actor": (moment.hidden, moment.output)}
    if moment.guess:
        values["critic"] = moment.guess.hidden, moment.guess.output
    problems = {
        which: units.Problem(
            rule.kinds[which], laws[which], state.params[which], moment.obs, *values[which], stale.get(which)
        )
        for which in state.params
    }
    local = [
        which
        for which, by in (("actor", config.learning), ("critic", config.critic_rule))
        if which in problems and by == "map"
    ]
    settled = dict(zip(local, units.settle([problems[w] for w in local], config.steps, UNROLL), strict=True))
    error, hidden, told = {}, {}, {"guard": jnp.zeros(()), "actor_move": jnp.zeros(()), "critic_move": jnp.zeros(())}
    left = jnp.zeros(())
    for which, problem in problems.items():
        if which in settled:
            end = settled[which]
            error[which], hidden[which] = end.error, end.hidden
            told[f"{which}_move"] = end.move
            if which == "critic" or config.targets:
                error[which], fired = _gated(rule, state, which, problem, end)
                told["guard"] = fired
            if config.targets:
                left = moment.target - end.activity.mean[-1][0]
        else:
            error[which], mean = _unsettled(rule, which, problem)
            hidden[which] = problem.hidden
            left = moment.target - mean[0]
    if config.exploring:
        flags = units.split(moment.exploring, (*rule.sizes["actor"], 1))
        error["actor"] = tuple(e * flag for e, flag in zip(error["actor"], flags, strict=True))
    increments = {
        which: units.increments(rule.kinds[which], moment.obs, hidden[which], error[which]) for which in state.params
    }
    return Lesson(increments, left, told)


def _gated(rule: Rule, state: State, which: str, problem: Any, end: Any) -> tuple[tuple[Any, ...], Any]:
    """The errors of a network that predicts a number; the paper's earlier text multiplies by A - mean (equation 17)."""
    if rule.config.gate == "product":
        mean = units.sweep(problem.kind, problem.law, problem.params, problem.obs, problem.hidden).mean[-1]
        return tuple(e * (problem.output - mean) for e in end.error), jnp.zeros(())
    law = _law(state, which)
    return units.gate(law, problem.output, end.activity.mean[-1], end.error, state.hyper.guard)


def _unsettled(rule: Rule, which: str, problem: Any) -> tuple[tuple[Any, ...], Any]:
    """Errors of a network that does not learn by MAP, and the mean of its output."""
    kind, law, params = problem.kind, problem.law, problem.params
    activity = units.sweep(kind, law, params, problem.obs, problem.hidden)
    own, mean = units.errors(kind, law, activity, problem.hidden, problem.output), activity.mean[-1]
    if which == "actor" and not rule.config.targets:
        return units.backpropagate(kind, params, activity, own[-1]), mean
    if which == "actor" or rule.config.critic_rule == "backprop":  # the gradient of the mean
        return units.backpropagate(kind, params, activity, jnp.ones_like(problem.output)), mean
    # REINFORCE with the output as its reward, and the value of quiet units as a baseline that no draw changes.
    silent = [jnp.zeros_like(h) for h in problem.hidden]
    calm = units.sample(kind, params, problem.obs, law.variance, silent)
    baseline = units.potential(params[kind.names[-1]], calm[-1])
    return tuple(e * (problem.output - baseline) for e in own), mean


def clean(rule: Rule, state: State, step: types.Transition, key: types.Key) -> tuple[State, types.Metrics]:
    """Learn from one step ``[B]``: traces of this decision, then δ = r + γ Ā(next_obs) - Ā, then one step of Adam."""
    config, hyper, pending = rule.config, state.hyper, state.pending
    obs, next_obs = (_seen(state.normaliser, seen) for seen in (step.obs, step.next_obs))
    over = (step.discount == 0) | step.truncated
    reward = jnp.clip(step.reward, -hyper.reward_clip, hyper.reward_clip)
    now: Any = ()
    after: Any = ()
    delta, value = reward, jnp.zeros_like(reward)
    if config.critic_rule != "none":
        noise = jax.random.normal(key, (2, obs.shape[0], sum(rule.sizes["critic"]) + 1))
        draw = jax.vmap(functools.partial(guess, rule, state))
        now, after = _where(pending.fresh, draw(obs, noise[0]), pending.guess), draw(next_obs, noise[1])
        value = now.value
        delta = reward + hyper.discount * step.discount * after.value - value
    moment = _moment(rule, step, obs, now)
    learned = jax.vmap(lambda one: lesson(rule, state, one, {}))(moment)
    if config.targets:
        delta = learned.left
    state, gradient = eligible(state, learned.increments, pending.fresh, delta)
    ask = optimise.Step(rates(rule, state.layers, state.env_steps / hyper.end_t))
    state, norm = apply(rule, state, gradient, ask)
    state = state._replace(pending=Ahead(after, over), env_steps=state.env_steps + reward.size)
    return state, _told(rule, learned.told, step, delta, value, norm)


def paper(rule: Rule, state: State, step: types.Transition, key: types.Key) -> tuple[State, types.Metrics]:
    """The author's loop: learn from the transition before, then the traces of this decision; one stream ``[1]``.

    After an end the loop runs once more on the final observation; the action of that iteration only resets.
    """
    keys = jax.random.split(key, 3)
    over = (step.discount == 0) | step.truncated
    moment = _moment(rule, step, _seen(state.normaliser, step.obs), ())
    one = jax.tree.map(lambda leaf: leaf[0], moment)
    state, told = iterate(rule, state, one, keys[0])
    last = Behind(step.reward[0], over[0], step.truncated[0], *state.pending[3:])
    state = state._replace(pending=last, env_steps=state.env_steps + 1)

    def dummy(state: State) -> State:
        obs = _seen(state.normaliser, step.next_obs[0])
        policy = types.Policy(_folded(rule, state), (), jnp.float32(1.0), _exploration(rule, state))
        action, extras, _ = _act(rule, policy, (), obs, keys[1])
        drawn = step._replace(action=action[None], extras=jax.tree.map(lambda leaf: leaf[None], extras))
        again = jax.tree.map(lambda leaf: leaf[0], _moment(rule, drawn, obs[None], ()))
        after, _ = iterate(rule, state, again, keys[2])
        quiet = Behind(jnp.zeros_like(step.reward[0]), jnp.bool_(False), jnp.bool_(False), *after.pending[3:])
        return after._replace(pending=quiet)

    state = jax.lax.cond(over[0], dummy, lambda state: state, state)
    return state, _told(rule, told["lesson"], step, told["delta"], told["value"], told["norm"])


def iterate(rule: Rule, state: State, moment: Moment, key: types.Key) -> tuple[State, Any]:
    """Steps 2 to 6 of the author's loop, and what step 7 keeps."""
    hyper, last = state.hyper, state.pending
    drawn = guess(rule, state, moment.obs, jax.random.normal(key, (sum(rule.sizes["critic"]) + 1,)))
    moment = moment._replace(guess=drawn)
    reward = jnp.clip(last.reward, -hyper.reward_clip, hyper.reward_clip)
    delta = reward + hyper.discount * drawn.value * (~last.ended) - last.value
    delta = jnp.where(last.ended_before | last.truncated, jnp.zeros_like(delta), delta)
    gradient = jax.tree.map(lambda trace: -delta * trace[0], state.traces)
    asked = optimise.Step(
        rates(rule, state.layers, last.iterations / hyper.end_t), last.iterations < CORRECTED
    )  # the first learning is at iteration 1, so that iterations counts the steps of Adam
    first = last.iterations == 0
    learned, norm = apply(rule, state, gradient, asked)
    stale = {
        which: units.sweep(rule.kinds[which], _law(state, which), state.params[which], moment.obs, hidden)
        for which, hidden in (("actor", moment.hidden), ("critic", drawn.hidden))
    }
    state = jax.tree.map(lambda old, new: jnp.where(first, old, new), state, learned)
    found = lesson(rule, state, moment, stale)
    added = jax.tree.map(lambda leaf: leaf[None], found.increments)
    state, _ = eligible(state, added, last.ended_before[None], jnp.zeros((1,)))
    kept = last._replace(ended_before=last.ended, value=drawn.value, iterations=last.iterations + 1)
    told = {name: value[None] for name, value in found.told.items()}
    return state._replace(pending=kept), {"lesson": told, "delta": delta[None], "value": drawn.value[None], "norm": norm}


def relaxed(
    rule: Rule, state: State, step: types.Transition, carry: types.Carry, key: types.Key
) -> tuple[State, types.Metrics]:
    """`clean` for units that never stop: the ticks of acting once more, now with their traces; then the same δ.

    The critic's ticks with a held output are at this observation, those with a free one at the next.
    """
    hyper, pending = state.hyper, state.pending
    obs, next_obs = (_seen(state.normaliser, seen) for seen in (step.obs, step.next_obs))
    reward = jnp.clip(step.reward, -hyper.reward_clip, hyper.reward_clip)
    z = state.traces or jax.tree.map(lambda leaf: jnp.zeros((reward.size, *leaf.shape)), state.params)
    z = jax.tree.map(lambda leaf: jnp.where(pending.fresh.reshape(-1, *[1] * (leaf.ndim - 1)), 0.0, leaf), z)
    delta, value, traces, course = reward, jnp.zeros_like(reward), {}, ()
    traces["actor"] = jax.vmap(functools.partial(_retrace, rule, state))(z["actor"], obs, step.extras.hidden, carry)
    if rule.config.critic_rule != "none":
        noise = jax.random.normal(key, (reward.size, 2, rule.config.free_steps, 1))
        going = jax.vmap(functools.partial(_course, rule, state))
        traces["critic"], course, value = going(z["critic"], pending.guess, pending.fresh, obs, next_obs, noise)
        delta = reward + hyper.discount * step.discount * course.value - value
    gradient = jax.tree.map(lambda leaf: jnp.tensordot(delta, leaf, 1) / -delta.size, traces)
    state, norm = apply(rule, state, gradient, optimise.Step(rates(rule, state.layers, state.env_steps / hyper.end_t)))
    over, still = (step.discount == 0) | step.truncated, jnp.zeros_like(reward)
    state = state._replace(
        traces=traces if state.traces else (),
        pending=Ahead(course, over),
        env_steps=state.env_steps + reward.size,
    )
    return state, _told(rule, {"guard": still, "actor_move": still, "critic_move": still}, step, delta, value, norm)


def _retrace(rule: Rule, state: State, z: Any, obs: Any, drawn: Any, flow: Any) -> Any:
    """The actor's traces over the ticks of one decision, from the outputs it drew."""
    kind, steps = rule.kinds["actor"], rule.config.steps
    outputs = drawn.reshape(rule.config.free_steps, -1)
    outputs = jnp.concatenate([outputs, jnp.broadcast_to(outputs[-1], (steps, *outputs.shape[1:]))])
    body = relaxation.Body(kind, _law(state, "actor"), state.params["actor"], obs)
    heard = relaxation.relax(body, flow, outputs, lambda _mean, _before, given: given, _clock(state))[2]
    return relaxation.traced(kind, z, heard, state.hyper.discount * state.hyper.trace)


def _course(
    rule: Rule, state: State, z: Any, course: Course, fresh: Any, obs: Any, next_obs: Any, noise: Any
) -> tuple[Any, Course, Any]:
    """The critic's traces from one observation to the next, where it is then, and its value of the first."""
    kind, law, params = rule.kinds["critic"], _law(state, "critic"), state.params["critic"]
    fade, spread = state.hyper.discount * state.hyper.trace, jnp.sqrt(law.variance[-1])

    def gate(output: Any, mean: Any, error: Any) -> Any:
        if rule.config.gate == "product":
            return tuple(e * (output - mean) for e in error)
        return units.gate(law, output, mean, error, state.hyper.guard)[0]

    def ticks(z: Any, flow: Any, obs: Any, outputs: Any, choose: Any) -> tuple[Any, Course]:
        body = relaxation.Body(kind, law, params, obs)
        flow, _, heard = relaxation.relax(body, flow, outputs, choose, _clock(state), gate)
        value = units.potential(params[kind.names[-1]], flow.hidden[-1])[0]
        return relaxation.traced(kind, z, heard, fade), Course(flow, value)

    def free(mean: Any, before: Any, noise: Any) -> Any:
        del before
        return mean + spread * noise

    begun = ticks(z, jax.tree.map(jnp.zeros_like, course.flow), obs, noise[0], free)
    z, now = jax.tree.map(lambda new, old: jnp.where(fresh, new, old), begun, (z, course))
    z, held = ticks(z, now.flow, obs, jnp.zeros((rule.config.steps, 1)), lambda _mean, before, _given: before)
    z, after = ticks(z, held.flow, next_obs, noise[1], free)
    return z, after, now.value


def _act_relaxed(
    rule: Rule, policy: types.Policy, carry: types.Carry, obs: Any, key: types.Key
) -> tuple[Any, Remembered, types.Carry]:
    """N' ticks with a free output, then N with the last one held; greedily, one sweep of means."""
    kind, seen, config, more = rule.kinds["actor"], _seen(policy.normaliser, obs), rule.config, policy.exploration
    law = units.Law(more.variance, jnp.ones(()))  # the temperature is in the weights
    params = policy.params if rule.choices else _unfolded(rule, policy.params)
    outputs = rule.choices or rule.scale.size
    draw = jax.random.gumbel if rule.choices else jax.random.normal
    noise = draw(key, (config.free_steps, outputs))
    held = jnp.zeros((config.steps, outputs))
    free = jnp.arange(config.free_steps + config.steps) < config.free_steps

    def choose(mean: Any, before: Any, given: tuple[Any, Any]) -> Any:
        noise, live = given
        if rule.choices:
            drawn = jax.nn.one_hot(jnp.argmax(jnp.log(mean) + noise), outputs, dtype=mean.dtype)
        else:
            drawn = mean + jnp.sqrt(law.variance[-1]) * noise
        return jnp.where(live, drawn, before)

    body = relaxation.Body(kind, law, params, seen)
    clock = relaxation.Clock(more.speed_decay, jnp.zeros(()), jnp.ones(()))  # speeds are kept; nothing is learned
    flow, drawn, _ = relaxation.relax(body, carry, (jnp.concatenate([noise, held]), free), choose, clock)
    quiet = units.split(jnp.zeros(sum(rule.sizes["actor"])), rule.sizes["actor"])
    calm = units.sample(kind, params, seen, more.deviation, quiet)
    mean = units.potential(params[kind.names[-1]], calm[-1])
    live = policy.explore > 0
    if rule.choices:
        action = jnp.where(live, jnp.argmax(flow.output), jnp.argmax(mean)).astype(jnp.int32)
    else:
        action = jnp.where(live, flow.output, mean) * rule.scale + rule.offset
    return action, Remembered(drawn[: config.free_steps].reshape(-1), jnp.ones(1)), flow


def _unfolded(rule: Rule, params: types.Params) -> types.Params:
    """The output layer in its own units again."""
    name = rule.kinds["actor"].names[-1]
    kernel, bias = params[name]["kernel"], params[name]["bias"]
    return {**params, name: {"kernel": kernel / rule.scale, "bias": (bias - rule.offset) / rule.scale}}


def _clock(state: State) -> Any:
    return relaxation.Clock(state.hyper.speed_decay, state.hyper.speed_weight, state.hyper.speed_floor)


def eligible(state: State, added: Any, fresh: Any, delta: Any) -> tuple[State, Any]:
    """Traces z ← γλ z + e, from 0 where an episode begins, and the gradient -mean δ z over the streams.

    Args:
        state: The learner.
        added: Increments, leaves ``[B, ...]``.
        fresh: ``[B]`` bool.
        delta: ``[B]``.
    """
    fade = state.hyper.discount * state.hyper.trace

    def trace(z: Any, new: Any) -> Any:
        return jnp.where(fresh.reshape(-1, *[1] * (z.ndim - 1)), 0.0, fade * z) + new

    traces = jax.tree.map(trace, state.traces, added) if state.traces else added
    gradient = jax.tree.map(lambda z: jnp.tensordot(delta, z, 1) / -delta.size, traces)
    return state._replace(traces=traces if state.traces else ()), gradient


def apply(rule: Rule, state: State, gradient: Any, ask: Any) -> tuple[State, Any]:
    """One step of the optimiser; the gradient's norm."""
    params, optimiser, norm = rule.optimiser.update(gradient, state.optimiser, state.params, state.env_steps, ask)
    return state._replace(params=params, optimiser=optimiser), norm


def rates(rule: Rule, layers: dict[str, Layers], progress: Any) -> Any:
    """The rate of every layer, a scalar for each parameter: linear in `progress` from 0 to 1, then constant."""
    at = jnp.clip(progress, 0.0, 1.0)
    found = {}
    for which, each in layers.items():
        rate = each.rate + at * (each.rate_end - each.rate)
        found[which] = {name: {"kernel": rate[i], "bias": rate[i]} for i, name in enumerate(rule.kinds[which].names)}
    return found


def _moment(rule: Rule, step: types.Transition, obs: Any, guess: Any) -> Moment:
    """A step ``[B]`` as its decisions."""
    hidden = units.split(step.extras.hidden, rule.sizes["actor"])
    if rule.choices:
        output = jax.nn.one_hot(step.action, rule.choices, dtype=obs.dtype)
    else:
        output = (step.action - rule.offset) / rule.scale
    target = step.next_obs[:, 0] if rule.config.targets else jnp.zeros_like(step.reward)
    return Moment(obs, hidden, output, step.extras.exploring, guess, target)


def _told(rule: Rule, told: Any, step: types.Transition, delta: Any, value: Any, norm: Any) -> types.Metrics:
    clipped = jnp.zeros(())
    if rule.bounds is not None:
        low, high = rule.bounds
        clipped = ((step.action < low) | (step.action > high)).astype(jnp.float32).mean()
    return {
        "td_error": jnp.abs(delta).mean(),
        "value": value.mean(),
        "guard_rate": told["guard"].mean(),
        "actor_move": told["actor_move"].mean(),
        "critic_move": told["critic_move"].mean(),
        "clipped": clipped,
        "gradient_norm": norm,
    }


# ------------------------------------------------------------------------------------------------ making


def _rule(config: Config, given: algorithms.Ingredients, policy: Any, value: Any) -> Rule:
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
        if np.all(np.abs([low, high]) < networks.HUGE):
            # σ_L² of the paper's settings is tuned to the whole width, not to half of it.
            scale, offset = high - low, -low if config.variant == "paper" else (low + high) / 2
        else:
            scale, offset = np.ones_like(low), np.zeros_like(low)
        largest = float(np.finfo(np.float32).max)
        bounds = tuple(np.clip(bound, -largest, largest).astype(np.float32) for bound in (low, high))
        scale, offset = scale.astype(np.float32), offset.astype(np.float32)
    choices = action.n if action.discrete else 0
    return Rule(config, kinds, sizes, scale, offset, bounds, choices, given.optimiser, given.spec.observation.shape)


def _pending(rule: Rule, state: State, streams: int) -> Any:
    """What is pending when every stream begins an episode."""
    if rule.config.variant == "paper":
        no = jnp.bool_(False)
        return Behind(jnp.float32(0.0), no, no, no, jnp.float32(0.0), jnp.int32(0))
    fresh = jnp.ones(streams, bool)
    if rule.config.critic_rule == "none":
        return Ahead((), fresh)
    if rule.config.asynchronous:
        still = Course(relaxation.still(rule.sizes["critic"], 1), jnp.zeros(()))
        return Ahead(_spread(still, streams), fresh)
    hidden = tuple(jnp.zeros((streams, size)) for size in rule.sizes["critic"])
    return Ahead(Guess(hidden, jnp.zeros((streams, 1)), jnp.zeros(streams)), fresh)


def _spread(tree: Any, streams: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (streams, *leaf.shape)), tree)


def _where(flag: Any, one: Any, other: Any) -> Any:
    """Leaf by leaf and stream by stream, ``[B, ...]``."""
    return jax.tree.map(lambda a, b: jnp.where(flag.reshape(-1, *[1] * (a.ndim - 1)), a, b), one, other)


def _law(state: State, which: str) -> Any:
    return units.Law(state.layers[which].variance, state.hyper.temperature)


def _layers(config: Config, which: str, depth: int) -> Layers:
    """The numbers of each layer; three stand for the first, those between, and the output."""

    def each(name: str) -> Any:
        given = getattr(config, f"{which}_{name}")
        if len(given) != depth:
            given = (given[0], *[given[1]] * (depth - 2), given[-1])
        return jnp.asarray(given, jnp.float32)

    return Layers(each("variance"), each("rates"), each("rates_end" if getattr(config, f"{which}_rates_end") else "rates"))


def _hyper(config: Config) -> Hyper:
    values = {name: float(getattr(config, name)) for name in Hyper._fields}
    values["reward_clip"] = values["reward_clip"] or optimise.LARGEST
    return Hyper(**{name: jnp.float32(value) for name, value in values.items()})
