"""What a bundle of a parameter server keeps from being pushed: gradients of losses far from the usual.

Staleness, the other guard of Gorila, is judged where tickets are given out (`transport.Client.push`).
"""

from __future__ import annotations

import math

import numpy as np

DECAY = 0.99  # of the running mean and deviation
ALWAYS = 100  # losses that are never dropped


class Outliers:
    """Tells losses that lie several deviations above their running mean.

    Until `ALWAYS` losses were seen, mean and variance are plain averages; then they forget with `DECAY`. An outlier
    enters them as the bound it passed: one alone moves them little, a lasting change of level moves them in the end, so
    that no learner is shut out for ever.

    Source: Nair et al. 2015, arXiv:1507.04296 (a learner drops gradients whose absolute loss is several deviations
    above its running mean); the numbers and the treatment of outliers in the mean are ours.
    """

    def __init__(self, sigma: float) -> None:
        """Args: `sigma`, deviations above the mean; 0 lets everything pass."""
        self._sigma = sigma
        self._count, self._mean, self._variance = 0, 0.0, 0.0

    def drops(self, loss: float) -> bool:
        """Whether a gradient of this loss is to be dropped; the loss counts towards the statistics."""
        size = abs(loss)
        bound = self._mean + self._sigma * math.sqrt(self._variance)
        found = self._sigma > 0 and self._count >= ALWAYS and self._variance > 0 and size > bound
        seen = bound if found else size
        self._count += 1
        weight = max(1.0 / self._count, 1.0 - DECAY)
        ahead = seen - self._mean
        self._mean += weight * ahead
        self._variance = (1.0 - weight) * (self._variance + weight * ahead * ahead)
        return found

    def save(self) -> np.ndarray:
        """``[3]`` f64: count, mean, variance."""
        return np.array([self._count, self._mean, self._variance])

    def restore(self, saved: np.ndarray) -> None:
        """Go on from what `save` gave."""
        self._count, self._mean, self._variance = int(saved[0]), float(saved[1]), float(saved[2])
