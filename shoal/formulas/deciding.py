"""Many decisions at once in NumPy, for engines other than XLA: what `distributions` says of one decision, of ``B``.

Outputs of a head are ``[B, n]``, actions ``[B, ...]``, log probabilities ``[B]`` f32 of the policy that really acts:
where only one action is possible (greedily) it is 0, the logarithm of 1.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_right
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from etils import epy

from shoal.formulas import distributions

with epy.lazy_imports():
    from scipy import special


FEW = 32  # numbers in all; a decision among so few is quicker in Python's floats than in a dozen calls of NumPy


class Drawn(NamedTuple):
    """Actions and how likely they were."""

    action: np.ndarray  # [B] or [B, choices] i32, or [B, d] f32
    log_prob: np.ndarray  # [B] f32


def suited(head: str, sizes: tuple[int, ...] = ()) -> Any:
    """The function of a `distributions.Distribution`, by its name; who draws stretches what is `stretched`.

    Args:
        head: The name.
        sizes: Of several choices (`distributions.Distribution.sizes`).
    """
    several = functools.partial(multi_categorical, sizes)
    kinds = {
        "categorical": categorical, "multi_categorical": several, "gaussian": gaussian, "stretched": gaussian
    }  # fmt: skip
    return kinds[head]


def categorical(logits: np.ndarray, explore: Any, generator: np.random.Generator) -> Drawn:
    """Choices by their logits, or the most probable ones.

    Args:
        logits: ``[B, n]``.
        explore: Whether to draw; else the most probable choice.
        generator: One number is drawn for each decision.
    """
    if logits.size <= FEW:
        return _few_categorical(logits.tolist(), explore > 0, generator)
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    if not explore > 0:
        best = shifted.argmax(axis=-1)
        return Drawn(best.astype(np.int32), np.zeros(len(best), np.float32))
    sums = np.exp(shifted).cumsum(axis=-1)
    left = generator.random(len(sums))[:, None] * sums[:, -1:]
    action = np.minimum((left >= sums).sum(axis=-1), sums.shape[-1] - 1)
    log_prob = _of(shifted, action) - np.log(sums[:, -1])
    return Drawn(action.astype(np.int32), log_prob.astype(np.float32))


def multi_categorical(
    sizes: tuple[int, ...], logits: np.ndarray, explore: Any, generator: np.random.Generator
) -> Drawn:
    """Several choices at once by their logits, or the most probable of each; `distributions.multi_categorical`.

    Args:
        sizes: How many there are for each.
        logits: ``[B, Σ sizes]``.
        explore: Whether to draw.
        generator: One number is drawn for each choice of each decision.
    """
    table = distributions.rows(np.asarray(logits, np.float64), sizes, np)  # [B, choices, n]
    action, log_prob = categorical(table.reshape(-1, table.shape[-1]), explore, generator)
    return Drawn(action.reshape(-1, len(sizes)), log_prob.reshape(-1, len(sizes)).sum(axis=-1))


def gaussian(output: np.ndarray, explore: Any, generator: np.random.Generator) -> Drawn:
    """Vectors from a diagonal Gaussian, or its mean; `distributions.moments`.

    Args:
        output: ``[B, 2 d]``.
        explore: Whether to draw.
        generator: d numbers are drawn for each decision.
    """
    mean, raw = np.split(np.asarray(output, np.float64), 2, axis=-1)
    if not explore > 0:
        return Drawn(mean.astype(np.float32), np.zeros(len(mean), np.float32))
    variance = np.logaddexp(raw, 0.0) + distributions.MINIMUM_VARIANCE
    noise = generator.standard_normal(mean.shape)
    log_prob = -0.5 * (noise * noise + np.log(variance) + distributions.LOG_2_PI).sum(axis=-1)
    return Drawn((mean + np.sqrt(variance) * noise).astype(np.float32), log_prob.astype(np.float32))


def epsilon_greedy(values: np.ndarray, epsilon: Any, generator: np.random.Generator) -> Drawn:
    """The best action, or with probability epsilon any of them; the probability is that of both together.

    Args:
        values: ``[B, n]``.
        epsilon: Scalar or ``[B]``.
        generator: Two numbers are drawn for each decision.
    """
    values = np.asarray(values)
    count, n = values.shape
    if values.size <= FEW:
        return _few_epsilon_greedy(values, epsilon, generator)
    best, epsilon = values.argmax(axis=-1), np.broadcast_to(np.asarray(epsilon, np.float64), count)
    anything = generator.integers(n, size=count)
    action = np.where(generator.random(count) < epsilon, anything, best)
    chance = epsilon / n + np.where(action == best, 1.0 - epsilon, 0.0)
    return Drawn(action.astype(np.int32), np.log(chance).astype(np.float32))


def squashed(output: np.ndarray, explore: Any, uniform: Any, generator: np.random.Generator) -> Drawn:
    """Vectors in (-1, 1)^d from a squashed Gaussian; `distributions.squashed_sample`.

    Args:
        output: ``[B, 2 d]``.
        explore: Whether to draw; else the tanh of the mean.
        uniform: Whether to draw from the whole box instead, all alike.
        generator: d numbers are drawn for each decision.
    """
    mean, raw = np.split(np.asarray(output, np.float64), 2, axis=-1)
    if not explore > 0:
        return Drawn(np.tanh(mean).astype(np.float32), np.zeros(len(mean), np.float32))
    if uniform > 0:
        return _anything(mean.shape, generator)
    log_deviation = np.clip(raw, *distributions.LOG_DEVIATION)
    noise = generator.standard_normal(mean.shape)
    u = mean + np.exp(log_deviation) * noise
    log_normal = -0.5 * (noise * noise + distributions.LOG_2_PI) - log_deviation
    log_slope = 2.0 * (math.log(2.0) - u - np.logaddexp(-2.0 * u, 0.0))
    return Drawn(np.tanh(u).astype(np.float32), (log_normal - log_slope).sum(axis=-1).astype(np.float32))


def noisy(mean: np.ndarray, deviation: Any, uniform: Any, generator: np.random.Generator) -> Drawn:
    """Vectors in [-1, 1]^d: a mean, and noise that is clipped to the box; `distributions.clipped_log_prob`.

    Args:
        mean: ``[B, d]`` in [-1, 1].
        deviation: Scalar, of the noise; 0: none.
        uniform: Whether to draw from the whole box instead, all alike.
        generator: d numbers are drawn for each decision.
    """
    mean = np.asarray(mean, np.float64)
    if uniform > 0:
        return _anything(mean.shape, generator)
    if not deviation > 0:
        return Drawn(mean.astype(np.float32), np.zeros(len(mean), np.float32))
    noise = generator.standard_normal(mean.shape)
    action = np.clip(mean + deviation * noise, -1.0, 1.0)
    inside = -0.5 * (noise * noise + distributions.LOG_2_PI) - np.log(deviation)
    beyond = special.log_ndtr((np.sign(action) * mean - 1.0) / deviation)  # of the bound on that side
    each = np.where(np.abs(action) < 1.0, inside, beyond)
    return Drawn(action.astype(np.float32), each.sum(axis=-1).astype(np.float32))


def _few_categorical(rows: list[list[float]], explore: bool, generator: np.random.Generator) -> Drawn:
    """`categorical` of a few numbers: the same random numbers, the same sums in the same order."""
    if not explore:
        return Drawn(np.array([row.index(max(row)) for row in rows], np.int32), np.zeros(len(rows), np.float32))
    action, log_prob = [], []
    for row, chance in zip(rows, generator.random(len(rows)).tolist(), strict=True):
        top, last = max(row), len(row) - 1
        sums = list(accumulate([math.exp(score - top) for score in row]))
        chosen = min(bisect_right(sums, chance * sums[-1]), last)
        action.append(chosen)
        log_prob.append(row[chosen] - top - math.log(sums[-1]))
    return Drawn(np.array(action, np.int32), np.array(log_prob, np.float32))


def _few_epsilon_greedy(values: np.ndarray, epsilon: Any, generator: np.random.Generator) -> Drawn:
    """`epsilon_greedy` of a few numbers: the same random numbers."""
    count, n = len(values), values.shape[1]
    anything, chances = generator.integers(n, size=count).tolist(), generator.random(count).tolist()
    each = np.asarray(epsilon, np.float64)
    rates = each.tolist() if each.ndim else [each.item()] * count
    action, log_prob = [], []
    for row, rate, other, chance in zip(values.tolist(), rates, anything, chances, strict=True):
        best = row.index(max(row))
        chosen = other if chance < rate else best
        likely = rate / n + (1.0 - rate if chosen == best else 0.0)
        action.append(chosen)
        log_prob.append(math.log(likely) if likely > 0.0 else -math.inf)
    return Drawn(np.array(action, np.int32), np.array(log_prob, np.float32))


def _anything(shape: tuple[int, ...], generator: np.random.Generator) -> Drawn:
    """Uniform in [-1, 1]^d."""
    action = generator.uniform(-1.0, 1.0, shape).astype(np.float32)
    return Drawn(action, np.full(shape[0], -shape[-1] * math.log(2.0), np.float32))


def _of(rows: np.ndarray, column: np.ndarray) -> np.ndarray:
    return np.take_along_axis(rows, column[:, None], axis=-1)[:, 0]
