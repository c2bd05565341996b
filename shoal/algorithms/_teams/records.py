"""The records of a team: what its rule is made of, what a learner keeps, what passes between acting and learning."""

from __future__ import annotations

from typing import Any, NamedTuple

from etils import epy

from shoal.algorithms._teams import units
from shoal.core import types
from shoal.formulas import normalise
from shoal.networks import scaling

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


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

    config: Any  # the algorithm's own
    kinds: dict[str, Any]  # units.Kind by network
    sizes: dict[str, tuple[int, ...]]  # units of the hidden layers, by network
    scale: Any  # [d] from the output's units to the environment's; None for choices
    offset: Any  # [d] likewise
    bounds: Any  # (low, high) [d] each; None for choices
    choices: int  # 0 for vectors
    optimiser: Any  # optimise.Optimiser
    shape: tuple[int, ...]  # of an observation
    bytes: types.Layer | None = None  # how observations are scaled, where they are bytes


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


def law(state: State, which: str) -> Any:
    """`units.Law` of a network."""
    return units.Law(state.layers[which].variance, state.hyper.temperature)


def seen(rule: Rule, normaliser: Any, obs: Any) -> Any:
    """Observations ``[..., features]`` as units take them: normalised if there are statistics, bytes in [0, 1]."""
    if normaliser:
        return normalise.apply(normaliser, obs)
    return scaling.apply(rule.bytes, obs) if rule.bytes else obs


def where(flag: Any, one: Any, other: Any) -> Any:
    """Leaf by leaf and stream by stream, ``[B, ...]``."""
    return jax.tree.map(lambda a, b: jnp.where(flag.reshape(-1, *[1] * (a.ndim - 1)), a, b), one, other)


def spread(tree: Any, streams: int) -> Any:
    """The same for every stream, leaves ``[B, ...]``."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (streams, *leaf.shape)), tree)
