"""Action distributions of one decision: sample, mode, log_prob, entropy, kl.

A distribution is a NamedTuple of functions on the head's output, so an algorithm receives it as a value. `categorical`
takes logits ``[n]``; `gaussian` takes ``[2 d]``: the mean and the raw scale of each dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epy

from shoal import types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


class Distribution(NamedTuple):
    """What an actor-critic needs to know of its policy head."""

    name: str  # as in `types.Agent.head`
    outputs: Callable[[types.ActionSpec], int]  # how many numbers the head gives
    sample: Callable[[Any, Any], Any]  # (head output, key) -> action
    mode: Callable[[Any], Any]  # head output -> the most probable action
    log_prob: Callable[[Any, Any], Any]  # (head output, action) -> scalar
    entropy: Callable[[Any], Any]  # head output -> scalar, nats
    kl: Callable[[Any, Any], Any]  # (head output p, head output q) -> KL(p || q), nats


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


def suited(action: types.ActionSpec) -> Distribution:
    """The distribution for an action space: categorical for choices, diagonal Gaussian for vectors."""
    return CATEGORICAL if action.discrete else GAUSSIAN


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


class Bounds(NamedTuple):
    """A box of actions as its middle and half its width, ``[d]`` each."""

    middle: Any
    half: Any


def bounds(action: types.ActionSpec) -> Bounds:
    """The box of a bounded action space."""
    low, high = (jnp.asarray(bound, jnp.float32) for bound in (action.low, action.high))
    return Bounds((low + high) / 2.0, (high - low) / 2.0)


def stretch(bounds: Bounds, action: Any) -> Any:
    """From [-1, 1]^d to the box."""
    return bounds.middle + bounds.half * action


def shrink(bounds: Bounds, action: Any) -> Any:
    """From the box to [-1, 1]^d."""
    return (action - bounds.middle) / bounds.half
