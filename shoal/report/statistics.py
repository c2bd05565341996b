"""Aggregates over seeds: the interquartile mean and its bootstrap interval, for one number and along a curve.

Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(arXiv:2108.13264), section 4.3: the interquartile mean is robust to a stray seed, yet uses more of the data than the
median. The definitions are those of the authors' library, `rliable`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
BOOTSTRAP_FLOATS = 4_000_000  # numbers resampled at once, 32 MB: bounds the memory, not the result


class Curve(NamedTuple):
    """One run's measurements along its training."""

    x: np.ndarray  # [n] environment steps or seconds, strictly ascending
    y: np.ndarray  # [n] finite
    until: float  # the last value counts up to here: the run's end, or infinity when it stopped because it was done


class Band(NamedTuple):
    """Several runs as one curve; NaN where fewer than two runs have a value."""

    x: np.ndarray  # [G]
    middle: np.ndarray  # [G] interquartile mean
    low: np.ndarray  # [G] bounds of the 95 % interval
    high: np.ndarray  # [G]


def _checked(values: Sequence[float] | np.ndarray, least: int) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if not array.ndim or array.shape[0] < least:
        raise ValueError(f"needs at least {least} value{'s' if least > 1 else ''} (seeds), got shape {array.shape}")
    if not np.isfinite(array).all():
        # A NaN sorts last and would be trimmed away: a lost run would look like a good one.
        raise ValueError("the values hold NaN or infinity: leave runs without a measurement out, and say so")
    return array


def _middle(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of what is left after floor(n / 4) values are cut from each end along `axis`."""
    n = values.shape[axis]
    kept = np.arange(n // 4, n - n // 4)
    return np.sort(values, axis=axis).take(kept, axis=axis).mean(axis=axis)


def iqm(values: Sequence[float] | np.ndarray) -> float:
    """The interquartile mean: the mean of the middle half.

    Args:
        values: Scores, one for each seed ``[S]`` or for each seed and task ``[S, M]`` (taken together).

    Returns:
        The mean after floor(n / 4) scores are cut from each end; up to three scores it is their plain mean.

    Raises:
        ValueError: There is no score, or one is not finite.
    """
    return float(_middle(_checked(values, 1).ravel(), axis=0))


def interval(values: Sequence[float] | np.ndarray, reps: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile-bootstrap interval of the interquartile mean, stratified by task.

    Seeds are drawn with replacement within each task, so that every resample keeps the mix of tasks. With fewer than
    about ten seeds the interval is known to be too narrow; it cannot see what no seed showed.

    Args:
        values: Scores ``[S]`` or ``[S, M]`` with ``M`` tasks; at least two seeds.
        reps: Resamples.
        seed: Of the resampling: the same scores give the same interval.

    Returns:
        (lower, upper) bound.

    Raises:
        ValueError: There are fewer than two seeds, or a score is not finite.
    """
    scores = _checked(values, 2)
    scores = scores.reshape(len(scores), -1)  # [S, M]
    drawn = np.random.default_rng(seed).integers(len(scores), size=(reps, *scores.shape))  # [reps, S, M]
    resampled = np.take_along_axis(scores[None], drawn, axis=1).reshape(reps, -1)
    low, high = _percentiles(_middle(resampled, axis=1))
    return float(low), float(high)


def difference(
    ours: Sequence[float] | np.ndarray, theirs: Sequence[float] | np.ndarray, reps: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile-bootstrap interval of how far one interquartile mean lies above another.

    Both sides are resampled on their own: seeds of one have nothing to do with those of the other.

    Args:
        ours: Scores ``[S]``; at least two seeds.
        theirs: Scores ``[R]``; likewise.
        reps: Resamples.
        seed: Of the resampling.

    Returns:
        (lower, upper) bound; above 0 both: ours is better.

    Raises:
        ValueError: There are fewer than two seeds, or a score is not finite.
    """
    random = np.random.default_rng(seed)
    middles = []
    for values in (ours, theirs):
        scores = _checked(values, 2).ravel()
        middles.append(_middle(scores[random.integers(len(scores), size=(reps, len(scores)))], axis=1))
    low, high = _percentiles(middles[0] - middles[1])
    return float(low), float(high)


def _percentiles(estimates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.percentile(estimates, [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=0)
    return low, high


def resample(run: Curve, grid: np.ndarray) -> np.ndarray:
    """One run's values at the points of a common grid.

    Args:
        run: The run.
        grid: ``[G]``, ascending, in the unit of ``run.x``.

    Returns:
        ``[G]``: linear between measurements, the last value from then to ``run.until``, NaN outside.
    """
    if not len(run.x):
        return np.full(len(grid), np.nan)
    values = np.interp(grid, run.x, run.y)
    return np.where((grid < run.x[0]) | (grid > max(run.until, run.x[-1])), np.nan, values)


def curve(runs: Sequence[Curve], grid: np.ndarray, reps: int = 2000, seed: int = 0) -> Band:
    """Several runs as one curve: the interquartile mean at every grid point, with its pointwise interval.

    A whole run is drawn at a time, so neighbouring points are resampled alike and the band is smooth.

    Args:
        runs: One curve for each seed.
        grid: ``[G]``, ascending.
        reps: Bootstrap resamples.
        seed: Of the resampling.

    Returns:
        The band, from the runs that have a value at each point.
    """
    table = np.stack([resample(run, grid) for run in runs])  # [S, G]
    present = np.isfinite(table)
    result = np.full((3, len(grid)), np.nan)
    for who in np.unique(present, axis=1).T:  # the few sets of runs that are present together
        if who.sum() >= 2:
            columns = (present == who[:, None]).all(axis=0)
            result[:, columns] = _columns(table[np.ix_(who, columns)], reps, seed)
    return Band(grid, *result)


def _columns(table: np.ndarray, reps: int, seed: int) -> np.ndarray:
    """Middle, low and high ``[3, G]`` of a full table ``[S, G]``."""
    runs, points = table.shape
    drawn = np.random.default_rng(seed).integers(runs, size=(reps, runs))
    step = max(1, BOOTSTRAP_FLOATS // (reps * runs))
    bounds = [_percentiles(_middle(table[:, at : at + step][drawn], axis=1)) for at in range(0, points, step)]
    low, high = np.concatenate(bounds, axis=1)
    return np.stack([_middle(table, axis=0), low, high])
