"""Action distributions of one decision: sample, mode, log_prob, entropy, kl.

A distribution is a NamedTuple of functions on the head's output, so an algorithm receives it as a value. `categorical`
takes logits ``[n]``; `multi_categorical` those of several choices, one after the other; `gaussian` takes ``[2 d]``: the
mean and the raw scale of each dimension; `stretched` is a Gaussian around [-1, 1]^d whose vectors are stretched to the
environment's box.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epy

from shoal.core import types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np


class Distribution(NamedTuple):
    """What an actor-critic needs to know of its policy head."""

    name: str  # as in `types.About.head`
    outputs: Callable[[types.ActionSpec], int]  # how many numbers the head gives
    sample: Callable[[Any, Any], Any]  # (head output, key) -> action
    mode: Callable[[Any], Any]  # head output -> the most probable action
    log_prob: Callable[[Any, Any], Any]  # (head output, action) -> scalar
    entropy: Callable[[Any], Any]  # head output -> scalar, nats
    kl: Callable[[Any, Any], Any]  # (head output p, head output q) -> KL(p || q), nats
    box: Any = None  # `Bounds` of NumPy arrays that vectors are stretched to after they are drawn; None: to none
    sizes: tuple[int, ...] = ()  # `types.ActionSpec.sizes` of several choices; (): it is one, or a vector


def _categorical_log_prob(logits: Any, action: Any) -> Any:
    return jax.nn.log_softmax(logits)[action]


def _categorical_entropy(logits: Any) -> Any:
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_p) * log_p)


def _categorical_kl(p: Any, q: Any) -> Any:
    log_p = jax.nn.log_softmax(p)
    return jnp.sum(jnp.exp(log_p) * (log_p - jax.nn.log_softmax(q)))


CATEGORICAL = Distribution(
    name="categorical",
    outputs=lambda action: action.n,
    sample=lambda logits, key: jax.random.categorical(key, logits).astype(jnp.int32),
    mode=lambda logits: jnp.argmax(logits).astype(jnp.int32),
    log_prob=_categorical_log_prob,
    entropy=_categorical_entropy,
    kl=_categorical_kl,
)

HUGE = 1e30  # of a logit: the choice is never taken. Of a bound: there is none; gymnax writes it as the largest float


def rows(logits: Any, sizes: tuple[int, ...], xp: Any = None) -> Any:
    """Logits of several choices as a table, a row for each; where a choice has fewer than others, those are -1e30.

    Args:
        logits: ``[..., Σ sizes]``.
        sizes: How many there are for each choice.
        xp: `numpy`, or None for `jax.numpy`.

    Returns:
        ``[..., choices, largest size]``.
    """
    xp, before, most = xp or jnp, logits.shape[:-1], max(sizes)
    if len({*sizes}) == 1:
        return logits.reshape(*before, len(sizes), most)
    parts = xp.split(logits, np.cumsum(sizes)[:-1].tolist(), axis=-1)
    none = [(0, 0)] * len(before)
    padded = [xp.pad(part, [*none, (0, most - part.shape[-1])], constant_values=-HUGE) for part in parts]
    return xp.stack(padded, axis=-2)


def multi_categorical(sizes: tuple[int, ...]) -> Distribution:
    """Several choices at once, independent given the observation: logs of probabilities, entropies and kl add up.

    Args:
        sizes: How many there are for each; actions are int32 ``[choices]``, each counted from 0.

    log π(a) = Σ_i log π_i(a_i).

    Source: Huang et al. 2022, "The 37 Implementation Details of Proximal Policy Optimization", on MultiDiscrete.
    """

    def log_prob(logits: Any, action: Any) -> Any:
        return jnp.take_along_axis(jax.nn.log_softmax(rows(logits, sizes)), action[:, None], axis=-1).sum()

    return Distribution(
        name="multi_categorical",
        outputs=lambda action: sum(action.sizes),
        sample=lambda logits, key: jax.random.categorical(key, rows(logits, sizes)).astype(jnp.int32),
        mode=lambda logits: jnp.argmax(rows(logits, sizes), axis=-1).astype(jnp.int32),
        log_prob=log_prob,
        entropy=lambda logits: _categorical_entropy(rows(logits, sizes)),
        kl=lambda p, q: _categorical_kl(rows(p, sizes), rows(q, sizes)),
        sizes=sizes,
    )


MINIMUM_VARIANCE = 1e-4  # guards the division by the variance
LOG_2_PI = math.log(2.0 * math.pi)


def moments(output: Any) -> tuple[Any, Any]:
    """Mean and variance ``[d]`` of a Gaussian head's output ``[2 d]``; variance = softplus(raw) + a minimum.

    Source: Mnih et al. 2016, arXiv:1602.01783, section 9 (variance by softplus); one variance a dimension is ours.
    """
    mean, raw = jnp.split(output, 2, axis=-1)
    return mean, jax.nn.softplus(raw) + MINIMUM_VARIANCE


def _gaussian_sample(output: Any, key: Any) -> Any:
    mean, variance = moments(output)
    return mean + jnp.sqrt(variance) * jax.random.normal(key, mean.shape)


def _gaussian_log_prob(output: Any, action: Any) -> Any:
    mean, variance = moments(output)
    return -0.5 * jnp.sum((action - mean) ** 2 / variance + jnp.log(variance) + LOG_2_PI)


def _gaussian_entropy(output: Any) -> Any:
    _, variance = moments(output)
    return 0.5 * jnp.sum(jnp.log(variance) + LOG_2_PI + 1.0)


def _gaussian_kl(p: Any, q: Any) -> Any:
    (mean_p, var_p), (mean_q, var_q) = moments(p), moments(q)
    return 0.5 * jnp.sum(var_p / var_q + (mean_q - mean_p) ** 2 / var_q - 1.0 + jnp.log(var_q / var_p))


GAUSSIAN = Distribution(
    name="gaussian",
    outputs=lambda action: 2 * math.prod(action.shape),
    sample=_gaussian_sample,
    mode=lambda output: moments(output)[0],
    log_prob=_gaussian_log_prob,
    entropy=_gaussian_entropy,
    kl=_gaussian_kl,
)


def suited(action: types.ActionSpec, *, stretches: bool = True) -> Distribution:
    """The distribution for an action space: categorical for one choice or several, diagonal Gaussian for vectors.

    Args:
        action: The space.
        stretches: Whether vectors are stretched from [-1, 1] to the box, where it has bounds.
    """
    if action.sizes:
        return multi_categorical(action.sizes)
    if action.discrete:
        return CATEGORICAL
    box = reach(action) if stretches else None
    return GAUSSIAN if box is None else stretched(box)


def stretched(box: Bounds) -> Distribution:
    """A Gaussian around [-1, 1]^d, stretched to a box; what it says of probabilities is said of the vector before.

    Args:
        box: NumPy arrays ``[d]``.
    """
    return GAUSSIAN._replace(
        name="stretched",
        sample=lambda output, key: stretch(box, _gaussian_sample(output, key)),
        mode=lambda output: stretch(box, moments(output)[0]),
        log_prob=lambda output, action: _gaussian_log_prob(output, shrink(box, action)),
        box=box,
    )


# ------------------------------------------------------------------------------------------------ action values


def epsilon_greedy(values: Any, epsilon: Any, key: Any) -> Any:
    """The best action, or with probability epsilon any of them.

    Args:
        values: ``[n]`` action values.
        epsilon: In [0, 1].
        key: Consumed.
    """
    n = values.shape[-1]
    bits = jax.random.bits(key, (2,))
    chance = (bits[0] >> 8).astype(jnp.float32) / jnp.float32(1 << 24)
    anything = (bits[1] % jnp.uint32(n)).astype(jnp.int32)
    return jnp.where(chance < epsilon, anything, jnp.argmax(values).astype(jnp.int32))


def epsilon_greedy_log_prob(values: Any, epsilon: Any, action: Any) -> Any:
    """Log [(1 - ε) 1{a is the best} + ε / n]: of `epsilon_greedy`, not of the greedy policy beneath it."""
    best = (action == jnp.argmax(values)).astype(jnp.float32)
    return jnp.log((1.0 - epsilon) * best + epsilon / values.shape[-1])


# ------------------------------------------------------------------------------------------------ squashed Gaussian

LOG_DEVIATION = (-20.0, 2.0)  # bounds of the log standard deviation (haarnoja/sac)


def squashed_moments(output: Any) -> tuple[Any, Any]:
    """Mean and log standard deviation ``[d]`` before the tanh, from a head's output ``[2 d]``."""
    mean, raw = jnp.split(output, 2, axis=-1)
    return mean, jnp.clip(raw, *LOG_DEVIATION)


def squashed_sample(output: Any, noise: Any) -> tuple[Any, Any]:
    """An action in (-1, 1)^d and its log probability; differentiable in the output.

    Args:
        output: ``[2 d]`` of the head.
        noise: ``[d]`` standard normal; given, so that a batch draws all of it at once.

    a = tanh u, u = μ + σ · noise, log π(a) = log N(u) - Σ log(1 - tanh² u), the last term written
    2 (log 2 - u - softplus(-2u)), which does not lose its digits where the tanh is flat.

    Source: Haarnoja et al. 2018, arXiv:1801.01290, appendix C; the last term: TensorFlow Probability, `Tanh`.
    """
    mean, log_deviation = squashed_moments(output)
    u = mean + jnp.exp(log_deviation) * noise
    log_normal = -0.5 * (noise * noise + LOG_2_PI) - log_deviation
    log_slope = 2.0 * (math.log(2.0) - u - jax.nn.softplus(-2.0 * u))
    return jnp.tanh(u), jnp.sum(log_normal - log_slope)


EDGE = 1.0 - 1e-6  # where float32 still tells what was squashed


def squashed_log_prob(output: Any, action: Any) -> Any:
    """Log π(a) of `squashed_sample`, of an action in [-1, 1]^d; at a bound, of the last number inside it.

    Args:
        output: ``[2 d]`` of the head.
        action: ``[d]``.
    """
    mean, log_deviation = squashed_moments(output)
    u = jnp.arctanh(jnp.clip(action, -EDGE, EDGE))
    noise = (u - mean) * jnp.exp(-log_deviation)
    return jnp.sum(-0.5 * (noise * noise + LOG_2_PI) - log_deviation - jnp.log1p(-(jnp.tanh(u) ** 2)))


def squashed_kl(p: Any, q: Any) -> Any:
    """KL(p ‖ q) of two squashed Gaussians by their outputs ``[2 d]``; the tanh can be undone, so it is that before it.

    Σ [½ (σ_p² / σ_q² + (μ_q - μ_p)² / σ_q² - 1) + log(σ_q / σ_p)].
    """
    (mean_p, log_p), (mean_q, log_q) = squashed_moments(p), squashed_moments(q)
    ratio, distance = jnp.exp(2.0 * (log_p - log_q)), (mean_q - mean_p) * jnp.exp(-log_q)
    return jnp.sum(0.5 * (ratio + distance * distance - 1.0) + log_q - log_p)


def clipped_log_prob(action: Any, mean: Any, deviation: Any) -> Any:
    """Of clip(μ + σ · noise, ±1)^d: a density inside, and at a bound the probability of all that is clipped to it.

    Args:
        action: ``[d]`` in [-1, 1].
        mean: ``[d]`` μ in [-1, 1].
        deviation: Scalar σ above 0.
    """
    inside = -0.5 * (((action - mean) / deviation) ** 2 + LOG_2_PI) - jnp.log(deviation)
    beyond = jax.scipy.special.log_ndtr((jnp.sign(action) * mean - 1.0) / deviation)
    return jnp.sum(jnp.where(jnp.abs(action) < 1.0, inside, beyond))


class Bounds(NamedTuple):
    """A box of actions as its middle and half its width, ``[d]`` each."""

    middle: Any
    half: Any


def bounds(action: types.ActionSpec, xp: Any = None) -> Bounds:
    """The box of a bounded action space, as arrays of `xp`: `numpy`, or None for `jax.numpy`."""
    xp = xp or jnp
    low, high = (xp.asarray(bound, xp.float32) for bound in (action.low, action.high))
    return Bounds((low + high) / 2.0, (high - low) / 2.0)


def reach(action: types.ActionSpec) -> Bounds | None:
    """The box that policies of [-1, 1]^d are stretched to, NumPy; None where they act in its units already.

    A dimension that lacks a bound is left as it is; one without room between its bounds is moved there.
    """
    low, high = (np.asarray(bound, np.float64) for bound in (action.low, action.high))
    finite = (low > -HUGE) & (high < HUGE)
    low, high = np.where(finite, low, -1.0), np.where(finite, high, 1.0)
    middle, half = (low + high) / 2.0, np.where(high > low, (high - low) / 2.0, 1.0)
    if not middle.any() and (half == 1.0).all():
        return None
    return Bounds(middle.astype(np.float32), half.astype(np.float32))


def stretch(bounds: Bounds, action: Any) -> Any:
    """From [-1, 1]^d to the box."""
    return bounds.middle + bounds.half * action


def shrink(bounds: Bounds, action: Any) -> Any:
    """From the box to [-1, 1]^d."""
    return (action - bounds.middle) / bounds.half
