"""Q-learning without a memory: one-step Q, one-step Sarsa and n-step Q from the newest segment, with a target network.

Mnih et al. 2016, "Asynchronous Methods for Deep Reinforcement Learning", arXiv:1602.01783, algorithms 1, S1 and S2: the
value-based half of the asynchronous family. Workers that explore differently stand in for the replay memory of DQN.
n-step targets may be corrected for the policy that acted (Munos et al. 2016, arXiv:1606.02647).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from etils import epy

from shoal import algorithms
from shoal.core import errors, options, types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np

    from shoal import networks
    from shoal.algorithms import _corrected, _hyper
    from shoal.formulas import deciding, distributions, importance, losses, normalise, returns
    from shoal.networks import in_numpy


LEAST = 1e-38  # probability of an action that cannot be, where values are not numbers


@dataclasses.dataclass(frozen=True)
class Config:
    """Q-learning and Sarsa without a memory."""

    target: Literal["one_step", "sarsa", "n_step"] = "one_step"
    """What Q(x, a) is to become: r + gamma max Q of the next state; r + gamma Q of the next state and the action then
    taken; or the longest return the segment has, and max Q where it breaks off."""
    rollout_length: int = options.number(5, low=1)
    """Steps of a segment (t_max, I_AsyncUpdate) before each update."""
    discount: float = options.number(0.99, low=0.0, high=1.0)
    """Gamma."""
    target_period: int = options.number(10_000, low=1)
    """Environment steps of all workers between two copies to the target network (I_target)."""
    epsilon_start: float = options.number(1.0, low=0.0, high=1.0)
    """Probability of a random action at the beginning."""
    epsilon_ends: tuple[float, ...] = options.number((0.1, 0.01, 0.5), low=0.0, high=1.0)
    """Probabilities of a random action at the end; every worker (or stream) draws one of them for the whole run."""
    epsilon_weights: tuple[float, ...] = options.number((0.4, 0.3, 0.3), low=0.0)
    """How likely each of them is to be drawn."""
    epsilon_steps: int = options.number(1_000_000, low=1)
    """Environment steps of all workers over which epsilon falls, linearly."""
    epsilon_evaluation: float = options.number(0.0, low=0.0, high=1.0)
    """Probability of a random action in evaluation (0.05 on Atari, where a greedy policy may wait for ever)."""
    huber: float = options.number(0.0, low=0.0)
    """Errors beyond this count linearly; 0 squares all of them."""
    reduction: Literal["sum", "mean"] = "sum"
    """Sum over the segment's steps (the paper) or mean over steps and environments."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this before learning; logged returns are not."""
    reward_clip: float = options.number(0.0, low=0.0)
    """Scaled rewards are clipped to plus-minus this; 0 turns it off (the paper's Atari runs use 1)."""
    normalise_observations: bool = False
    """Shift and scale observations by their running mean and variance."""
    epsilon_learned: float = options.number(0.0, low=0.0, high=1.0, new=True)
    """With a corrector: probability of a random action of the policy whose values are learned; 0: the greedy one."""
    double: bool = options.later(False)
    """The network being learned chooses the action whose target value counts (one_step, n_step)."""


class Hyper(NamedTuple):
    """Numbers that may change during training; f32 scalars."""

    discount: Any
    epsilon_start: Any
    epsilon_steps: Any
    epsilon_evaluation: Any
    huber: Any  # `optimise.LARGEST`: squared
    reward_scale: Any
    reward_clip: Any  # `optimise.LARGEST`: off


class Pending(NamedTuple):
    """Of each stream, the step whose next action is not known yet (Sarsa); leaves ``[B, ...]``."""

    step: types.Transition  # as it was seen: the last of the segment before
    there: Any  # [B] bool: False before the first segment, and after a resume without the simulators


class State(NamedTuple):
    """The learner."""

    params: types.Params
    target: types.Target  # θ⁻, and how often it is copied
    optimiser: Any  # optimise.OptimiserState
    normaliser: Any  # normalise.Statistics, () when off
    pending: Any  # Pending; () but for Sarsa
    epsilon_end: Any  # [W] f32 of every stream of the run: W = learners · B
    stream: Any  # scalar i32, which of them is this learner's first
    env_steps: Any  # scalar i32
    hyper: Hyper


class Chances(NamedTuple):
    """Probabilities of a random action."""

    training: Any  # [W] f32, of every stream
    evaluation: Any  # f32 scalar


class Rule(NamedTuple):
    """What the functions below have in common."""

    config: Config
    network: types.Network
    streams: int  # B, of one learner
    corrector: types.Corrector | None = None  # of action values; None: targets are not corrected


def fits(config: Config, network: networks.Config, spec: types.EnvSpec) -> str:
    """See `algorithms`."""
    del spec
    ends, weights = config.epsilon_ends, config.epsilon_weights
    if not ends or len(ends) != len(weights) or not 0 < sum(weights) < math.inf:
        return (
            f"algorithm.epsilon_ends={ends} needs as many algorithm.epsilon_weights, with a sum above 0, "
            f"but they are {weights}"
        )
    if config.double and config.target == "sarsa":
        return "algorithm.double changes nothing about Sarsa, whose next action is the one taken; leave it out"
    if network.lstm:
        return "network.lstm has no form here: action values are learned without memory; set it to 0, or use a3c_lstm"
    return ""


def traits(config: Config) -> types.Traits:
    """See `algorithms`."""
    whole = config.target == "n_step"
    return types.Traits(
        actions=("discrete",),
        corrects="q" if whole else "",
        uncorrected="" if whole else f"its {config.target} targets reach over one step; use --algorithm.target n_step",
        tells_mu=True,
        padded=True,
        normalises=config.normalise_observations,
        rollout=config.rollout_length,
        samples=lambda streams: streams * config.rollout_length,
    )


def build(config: Config, given: algorithms.Ingredients) -> types.Agent:
    """The rule as pure functions.

    Args:
        config: The rule's numbers.
        given: Environment spec, network shape, optimiser, how many streams there are, and a corrector of action values;
            by another one, which is `correct/none.py`, targets are not corrected.

    Raises:
        Refused: The policy whose values are learned is set, and nothing is corrected for it; or the double estimate
            is asked for where a corrector has the targets.
    """
    spec = given.spec
    network = networks.build(given.network, spec.observation, {"q": networks.Head(spec.action.n, 1.0, "values")})
    corrector = given.corrector if given.corrector.of == "q" else None
    if config.epsilon_learned and corrector is None:
        raise errors.Refused(
            f"algorithm.epsilon_learned={config.epsilon_learned:g} changes nothing without a corrector; "
            "add e.g. --corrector retrace, or leave it out"
        )
    if config.double and corrector is not None:
        raise errors.Refused(
            "algorithm.double changes nothing with a corrector, whose greedy action is chosen by the network being "
            "learned anyway; leave one of them out"
        )
    rule = Rule(config, network, given.streams, corrector)
    remembers = corrector is not None and corrector.needs_mu

    def init(key: types.Key) -> State:
        network_key, epsilon_key = jax.random.split(key)
        params = network.init(network_key)
        # Two buffers: the state is donated as a whole.
        target = types.Target(jax.tree.map(jnp.copy, params), jnp.float32(config.target_period))
        statistics = normalise.init(normalise.shape(spec.observation)) if config.normalise_observations else ()
        pending = _nothing(spec, given.streams) if config.target == "sarsa" else ()
        ends = draw(config, given.learners * given.streams, epsilon_key)
        return State(
            params=params,
            target=target,
            optimiser=given.optimiser.init(params),
            normaliser=statistics,
            pending=pending,
            epsilon_end=ends,
            stream=jnp.int32(0),
            env_steps=jnp.int32(0),
            hyper=_hyper.scalars(Hyper, config, off=("huber", "reward_clip")),
        )

    def snapshot(state: State) -> types.Policy:
        chances = Chances(epsilon(state, state.env_steps), state.hyper.epsilon_evaluation)
        return types.Policy(state.params, state.normaliser, jnp.float32(1.0), chances, stream=state.stream)

    def act(policy: types.Policy, carry: types.Carry, obs: Any, key: types.Key) -> tuple[Any, Any, types.Carry]:
        action, chosen = decide(policy, {"q": evaluate(rule, policy.params, policy.normaliser, obs)}, key)
        return action, chosen if remembers else (), carry

    def decide(policy: types.Policy, outputs: Mapping[str, Any], key: types.Key) -> tuple[Any, types.Chosen]:
        training, evaluation = policy.exploration
        chance = jnp.where(policy.explore > 0, training[policy.stream], evaluation)
        action = distributions.epsilon_greedy(outputs["q"], chance, key)
        return action, types.Chosen(distributions.epsilon_greedy_log_prob(outputs["q"], chance, action))

    def log_prob(policy: types.Policy, outputs: Mapping[str, Any], action: Any) -> Any:
        training, evaluation = policy.exploration
        chance = jnp.where(policy.explore > 0, training[policy.stream], evaluation)
        return distributions.epsilon_greedy_log_prob(outputs["q"], chance, action)

    def update(state: State, rollout: types.Rollout, key: types.Key) -> tuple[State, types.Metrics]:
        del key
        if config.normalise_observations:
            counts, shape = losses.counted(rollout), normalise.shape(spec.observation)
            seen = normalise.update(state.normaliser, rollout.transitions.obs, shape, counts)
            state = state._replace(normaliser=seen)
        gradient, metrics = jax.grad(functools.partial(loss, rule), has_aux=True)(state.params, state, rollout)
        params, optimiser, norm = given.optimiser.update(gradient, state.optimiser, state.params, state.env_steps)
        env_steps = state.env_steps + losses.happened(rollout)
        target = copied(state.target, params, state.env_steps, env_steps)
        if config.target == "sarsa":
            last = jax.tree.map(lambda leaf: leaf[losses.last(rollout)], rollout.transitions)
            state = state._replace(pending=Pending(last, jnp.ones(given.streams, bool)))
        state = state._replace(params=params, target=target, optimiser=optimiser, env_steps=env_steps)
        return state, {**metrics, "gradient_norm": norm, "epsilon": mine(rule, state, env_steps).mean()}

    def restart(state: State) -> State:  # what is pending is not followed by the next action
        return state._replace(pending=_nothing(spec, given.streams)) if config.target == "sarsa" else state

    small = not config.normalise_observations and in_numpy.fits(network.spec, "q")
    about = types.About(
        rollout_length=config.rollout_length,
        head="greedy",
        networks={"policy": network},
        acting=types.Acting(
            network="policy",
            heads=("q",),
            decide=decide,
            decide_many=decide_many,
            log_prob=log_prob,
            remembered=remembers,
            decider=functools.partial(_decider, remembers) if small else None,
        ),
        hyper=_hyper.leaves(Hyper, Config),
        fields=types.Fields(target="target", stream="stream"),
        streams_matter=config.target == "sarsa",
        restart=restart,
    )
    return types.Agent(init=init, snapshot=snapshot, act=act, update=update, about=about)


def decide_many(
    policy: types.Policy, outputs: Mapping[str, np.ndarray], generator: np.random.Generator
) -> tuple[np.ndarray, types.Chosen]:
    """See `types.Acting`."""
    training, evaluation = policy.exploration
    streams = policy.stream + np.arange(len(outputs["q"]))
    chance = np.take(training, streams, mode="clip") if policy.explore > 0 else evaluation
    drawn = deciding.epsilon_greedy(outputs["q"], chance, generator)
    return drawn.action, types.Chosen(drawn.log_prob)


def draw(config: Config, count: int, key: types.Key) -> Any:
    """The probability of a random action in the end, of each of `count` streams, ``[count]``.

    Source: Mnih et al. 2016, section 5.1: 0.1, 0.01 or 0.5 with probability 0.4, 0.3, 0.3.
    """
    total = sum(config.epsilon_weights)
    below = [sum(config.epsilon_weights[: i + 1]) / total for i in range(len(config.epsilon_weights) - 1)]
    chance = jax.random.uniform(key, (count, 1))
    which = (chance >= jnp.asarray(below, jnp.float32).reshape(1, -1)).sum(axis=1)
    return jnp.asarray(config.epsilon_ends, jnp.float32)[which]


def epsilon(state: State, env_steps: Any) -> Any:
    """The probability of a random action in every stream of the run, ``[W]``: linear, then constant."""
    done = jnp.minimum(env_steps.astype(jnp.float32) / state.hyper.epsilon_steps, 1.0)
    return state.hyper.epsilon_start + done * (state.epsilon_end - state.hyper.epsilon_start)


def mine(rule: Rule, state: State, env_steps: Any) -> Any:
    """The same in the streams of this learner, ``[B]``."""
    return jax.lax.dynamic_slice_in_dim(epsilon(state, env_steps), state.stream, rule.streams)


def copied(target: types.Target, params: types.Params, before: Any, after: Any) -> types.Target:
    """θ⁻ ← θ where the environment steps passed a multiple of the period between two counts."""
    period = target.period.astype(jnp.int32)
    due = after // period > before // period
    return target._replace(params=jax.tree.map(lambda new, old: jnp.where(due, new, old), params, target.params))


def evaluate(rule: Rule, params: types.Params, normaliser: Any, obs: Any) -> Any:
    """Action values ``[n]`` of one observation."""
    seen = normalise.apply(normaliser, obs) if normaliser else obs
    return rule.network.apply(params, seen, ())[0]["q"]


def loss(rule: Rule, params: types.Params, state: State, rollout: types.Rollout) -> tuple[Any, types.Metrics]:
    """½ (y - Q(x, a))², or Huber's, over a segment ``[T, B]``; the target y is a constant, and so is its weight.

    Sarsa's segment begins and ends a step earlier than the others': the last step waits until the action after it is
    known, which is the first of the next segment.
    """
    hyper, steps, following, counts = state.hyper, rollout.transitions, (), losses.counted(rollout)
    there = jnp.ones_like(steps.truncated)
    if rule.config.target == "sarsa":
        following, pending = steps.action, state.pending
        steps = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest[:-1]]), pending.step, steps)
        there = there.at[0].set(pending.there)
    reward = jnp.clip(steps.reward * hyper.reward_scale, -hyper.reward_clip, hyper.reward_clip)
    steps = steps._replace(reward=reward)
    goal = aim(rule, state, steps, following, counts)
    chosen = _of(_over(rule, params, state, steps.obs), steps.action)
    error = jax.lax.stop_gradient(goal.target) - chosen
    each = jnp.where(there, losses.huber(error, hyper.huber), 0.0)
    if rule.corrector is not None and rule.corrector.weighs:
        each, counts = goal.weight * each, losses.accepted(counts, goal.weight)
    metrics = {"loss": losses.mean(each, counts), "q": losses.mean(chosen, counts)}
    return (losses.total(each, counts) if rule.config.reduction == "sum" else metrics["loss"]), {**metrics, **goal.told}


class Goal(NamedTuple):
    """What a gradient step aims at."""

    target: Any  # [T, B]
    weight: Any  # [T, B] of the losses, 0: rejected; () where none is weighed
    told: types.Metrics


def aim(rule: Rule, state: State, steps: types.Transition, following: Any, counts: Any) -> Goal:
    """`targets`, or `corrected` ones."""
    if rule.corrector is None:
        return Goal(targets(rule, state, steps, following), (), {})
    return corrected(rule, rule.corrector, state, steps, counts)


def targets(rule: Rule, state: State, steps: types.Transition, following: Any) -> Any:
    """What Q(x, a) is to become, ``[T, B]``.

    one_step: y = r + γ max_a Q(x', a; θ⁻)
    sarsa:    y = r + γ Q(x', a'; θ⁻), with a' the action taken in x'
    n_step:   y = r + γ y', with max_a Q(x', a; θ⁻) in place of y' where the stream is cut and at the end
    double:   Q(x', argmax_a Q(x', a; θ); θ⁻) in place of every max_a Q(x', a; θ⁻)

    Args:
        rule: The rule.
        state: Its θ⁻, normaliser and γ; for the double estimate also θ, for Sarsa θ and ε.
        steps: ``[T, B]``, rewards scaled and clipped.
        following: Sarsa: ``[T, B]`` the actions taken next; () otherwise.

    Source: Mnih et al. 2016, arXiv:1602.01783, algorithms 1 and S2 and section 4 (Sarsa); van Hasselt et al. 2016,
    arXiv:1509.06461, equation 4 (double).
    """
    discount = state.hyper.discount * steps.discount
    if rule.config.target == "one_step":
        return steps.reward + discount * _best(rule, state, steps.next_obs)
    if rule.config.target == "sarsa":
        return steps.reward + discount * _taken(rule, state, steps, following)
    last, cut = jnp.zeros_like(steps.reward).at[-1].set(_best(rule, state, steps.next_obs[-1])), steps.truncated
    after = jax.lax.cond(jnp.any(cut[:-1]), lambda: _best(rule, state, steps.next_obs), lambda: last)
    longest = functools.partial(returns.lambda_returns, lambda_=jnp.float32(1.0))
    ends = (steps.discount == 0) | cut
    return jax.vmap(longest, in_axes=1, out_axes=1)(steps.reward, discount, ends, after)


def corrected(rule: Rule, corrector: types.Corrector, state: State, steps: types.Transition, counts: Any) -> Goal:
    """What Q(x, a) is to become of n-step experience that another policy may have gathered.

    The policy π that is learned is ε-greedy in Q(x, ·; θ) with ε = `Config.epsilon_learned`; its values are those of
    θ⁻, as in Sarsa.
    """
    chance = jnp.float32(rule.config.epsilon_learned)

    def both(obs: Any) -> _corrected.Values:
        return _corrected.Values(_over(rule, state.params, state, obs), _over(rule, state.target.params, state, obs))

    def only_last() -> Any:  # within the segment the successor is the next step's observation: its values are known
        last = _corrected.expected(both(steps.next_obs[-1]), chance)
        return jnp.concatenate([_corrected.expected(here, chance)[1:], last[None]])

    here = both(steps.obs)
    cut = jnp.any(steps.truncated[:-1])
    following = jax.lax.cond(cut, lambda: _corrected.expected(both(steps.next_obs), chance), only_last)
    discounted = steps._replace(discount=state.hyper.discount * steps.discount)
    seen = _corrected.seen(discounted, here, following, chance, counts)
    correct = functools.partial(corrector.correct, corrector.hyper)
    found = jax.vmap(correct, in_axes=1, out_axes=1)(seen)
    return Goal(found.target, found.weight, importance.told(corrector, seen, found))


def _best(rule: Rule, state: State, obs: Any) -> Any:
    """max_a Q(x, a; θ⁻), or the double estimate: θ⁻'s value of the action that is best by θ."""
    slow = _over(rule, state.target.params, state, obs)
    if not rule.config.double:
        return slow.max(axis=-1)
    return _of(slow, jnp.argmax(_over(rule, state.params, state, obs), axis=-1))


def _taken(rule: Rule, state: State, steps: types.Transition, following: Any) -> Any:
    """Q(x', a'; θ⁻). After a time limit nothing is done in x': there the mean over what ε-greedy would have done."""
    slow = _over(rule, state.target.params, state, steps.next_obs)

    def mean() -> Any:
        chance = mine(rule, state, state.env_steps)[None]
        greedy = _of(slow, jnp.argmax(_over(rule, state.params, state, steps.next_obs), axis=-1))
        return jnp.where(steps.truncated, (1.0 - chance) * greedy + chance * slow.mean(axis=-1), _of(slow, following))

    return jax.lax.cond(jnp.any(steps.truncated), mean, lambda: _of(slow, following))


def _over(rule: Rule, params: types.Params, state: State, obs: Any) -> Any:
    """Action values ``[..., n]`` of observations ``[..., *obs]``."""
    function = functools.partial(evaluate, rule, params, state.normaliser)
    for _ in range(obs.ndim - len(rule.network.spec.observation.shape)):
        function = jax.vmap(function)
    return function(obs)


def _of(values: Any, action: Any) -> Any:
    """The values of actions ``[T, B]``, from those of all, ``[T, B, n]``."""
    return jnp.take_along_axis(values, action[..., None], axis=-1)[..., 0]


def _nothing(spec: types.EnvSpec, streams: int) -> Pending:
    """Nothing is pending in any stream."""
    obs, zeros = jnp.zeros((streams, *spec.observation.shape), spec.observation.dtype), jnp.zeros(streams)
    no = jnp.zeros(streams, bool)
    step = types.Transition(obs, jnp.zeros(streams, jnp.int32), zeros, zeros, no, jnp.copy(obs), ())
    return Pending(jax.tree.map(jnp.copy, step), jnp.copy(no))  # a buffer each: the state is donated as a whole


def _decider(remembers: bool, state: State, generator: Any) -> Any:
    """See `types.Acting`; whether the probability is remembered decides what the extras are."""
    decide = in_numpy.Sampler("greedy", generator).decide
    hyper, env_steps, ends, stream = state.hyper, state.env_steps, state.epsilon_end, state.stream.item()

    def act(values: Any) -> tuple[Any, Any]:  # `epsilon`, in plain numbers
        start, done = hyper.epsilon_start.item(), env_steps.item() / hyper.epsilon_steps.item()
        chance = start + min(done, 1.0) * (ends.item(stream) - start)
        action = decide(values, chance).action
        if not remembers:
            return action, ()
        likely = chance / len(values) + (1.0 - chance if action == values.argmax() else 0.0)
        return action, types.Chosen(math.log(likely or LEAST))

    return act
