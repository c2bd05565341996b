"""Features of an observation for linear rules, in NumPy and in JAX from the same lines.

Functions take any leading axes and the array library, so learning on the host (NumPy, float64) and acting under `jit`
(JAX, float32) see the same features. Observations are scaled by the ranges given; beyond them they are clipped.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

LARGEST = 1_000_000  # features; a grid over many numbers grows with their power


class Features(NamedTuple):
    """Features of one observation; the same for every action, whose weights stand apart."""

    size: int  # F
    vector: Callable[[Any, Any], Any]  # (obs [..., d], array library) -> [..., F]
    active: Callable[[Any, Any], Any] | None = None  # of binary ones, the indices of those that are 1: -> [..., m]


def raw(numbers: int) -> Features:
    """The observation itself; of a one-hot observation, a table.

    Args:
        numbers: In an observation, d.
    """
    return Features(numbers, lambda obs, xp: xp.asarray(obs))


def polynomial(low: Sequence[float], high: Sequence[float], degree: int) -> Features:
    """All products of up to `degree` numbers of the observation, each scaled to [-1, 1]; 1 among them.

    Args:
        low: Smallest value of each number [d].
        high: Largest value of each number [d].
        degree: Of the highest product.
    """
    start, span = np.asarray(low, np.float64), np.subtract(high, low)
    d = len(start)
    chosen = [which for n in range(degree + 1) for which in itertools.combinations_with_replacement(range(d), n)]

    def vector(obs: Any, xp: Any) -> Any:
        unit = _unit(obs, start, span, xp) * 2.0 - 1.0
        ones = xp.ones_like(unit[..., 0])
        columns = []
        for which in chosen:
            product = ones
            for i in which:
                product = product * unit[..., i]
            columns.append(product)
        return xp.stack(columns, -1)

    return Features(len(chosen), vector)


def tiles(low: Sequence[float], high: Sequence[float], tilings: int, across: int) -> Features:
    """Tile coding: several grids over the range, each shifted by a fraction of a tile; one tile of each is active.

    Grid t is shifted along number i by ((2 i + 1) t mod m) / m of a tile, m the number of grids: the odd displacement
    that spreads tiles evenly. A shifted grid has one more tile along each number, so every tile has an index of its
    own and nothing is hashed.

    Args:
        low: Smallest value of each number [d].
        high: Largest value of each number [d].
        tilings: Grids, m.
        across: Tiles along each number.

    Source: Sutton & Barto 2018, section 9.5.4; displacements after Parks & Militzer 1991.
    """
    start, span = np.asarray(low, np.float64), np.subtract(high, low)
    d, side = len(start), across + 1
    offsets = (np.outer(np.arange(tilings), 2 * np.arange(d) + 1) % tilings) / tilings  # [m, d]
    strides = side ** np.arange(d)
    first = np.arange(tilings) * side**d  # of each grid
    size = tilings * side**d

    def active(obs: Any, xp: Any) -> Any:
        unit = _unit(obs, start, span, xp)
        place = xp.floor(unit[..., None, :] * across + offsets).astype(np.int32)  # [..., m, d]
        return (place * strides).sum(-1) + first

    def vector(obs: Any, xp: Any) -> Any:
        return (active(obs, xp)[..., None] == np.arange(size)).any(-2).astype(obs.dtype)

    return Features(size, vector, active)


def _unit(obs: Any, start: np.ndarray, span: np.ndarray, xp: Any) -> Any:
    """Observations scaled to [0, 1]."""
    return xp.clip((obs - start) / span, 0.0, 1.0)


def refusal(seen: Any, low: Sequence[float], high: Sequence[float], *, needed: bool) -> str:
    """Why observations cannot be scaled by such ranges; "" if they can.

    Args:
        seen: The environment's `types.ObservationSpec`.
        low: As set.
        high: As set.
        needed: Whether these features need ranges.
    """
    if seen.image:
        return "its features are of a vector of numbers, but the observation is an image"
    numbers = seen.shape[0]
    if not needed:
        return ""
    if not len(low) == len(high) == numbers:
        return (
            f"its features need the range of each of the {numbers} numbers observed; give {numbers} values to each of "
            f"--algorithm.low and --algorithm.high (given: {len(low)} and {len(high)})"
        )
    if not all(math.isfinite(b - a) for a, b in zip(low, high, strict=True)):
        return "each of --algorithm.low and --algorithm.high must be finite, and so must be the ranges between them"
    if not all(a < b for a, b in zip(low, high, strict=True)):
        return "each of --algorithm.low must be below its number of --algorithm.high"
    return ""
