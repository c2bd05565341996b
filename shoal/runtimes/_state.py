"""The state that workers share and applies change, as named arrays; and the functions that read and change it.

The arrays are those of a `_shared.Block` in a run, and plain ones in a replay.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from shoal import asynchrony, normalise
from shoal.runtimes import _shared

SEEN = ("theta", "target", "normaliser", "steps", "updates")  # what a worker reads before a segment


class Sizes(NamedTuple):
    """What is shared, as far as the learner decides it."""

    params: int  # numbers
    observed: int = 0  # numbers in an observation that is normalised; 0 where none is
    apart: bool = False  # whether every worker has optimiser statistics of its own
    target: bool = False  # whether there is a target network


def layout(sizes: Sizes, workers: int) -> _shared.Layout:
    """All that an apply changes: what learning depends on, and what a checkpoint holds.

    Every slot of a ``[workers]`` array has a single writer, so no count is ever lost.
    """
    size, observed = sizes.params, sizes.observed
    return {
        "theta": ((size,), "f4"),  # parameters
        "g": ((workers, size) if sizes.apart else (size,), "f4"),  # the optimiser's statistics: mean squares, momentum
        "target": ((size if sizes.target else 0,), "f4"),  # parameters of the target network
        "copies": ((1,), "i8"),  # multiples of the target's period at which it was copied, or skipped as too late
        "normaliser": ((1 + 2 * observed if observed else 0,), "f8"),  # count, mean, m2
        "steps": ((workers,), "i8"),  # environment steps; the global counter T is their sum
        "updates": ((workers,), "i8"),  # applies; the version of theta is their sum
        "lag_sum": ((workers,), "i8"),  # versions that passed between a worker's read and its apply
        "lag_max": ((workers,), "i8"),
        "lags": ((workers, asynchrony.BINS), "i8"),  # applies by `asynchrony.place`
        "stale": ((workers,), "i8"),  # gradients dropped
        "non_finite": ((workers,), "i8"),
        "tickets": ((1,), "i8"),  # of a replayable run
    }


def normaliser(arrays: Any, like: Any) -> Any:
    """The shared statistics of observations as `normalise.Statistics` shaped as `like`; () where `like` is."""
    if not like:
        return ()
    count, moments = arrays["normaliser"][0], arrays["normaliser"][1:].astype(np.float32)
    mean, m2 = moments.reshape(2, *np.shape(like.mean))
    return normalise.Statistics(np.float32(count), mean, m2)


def absorb(arrays: Any, observations: np.ndarray) -> None:
    """Add observations ``[..., *obs]`` to the shared statistics; exact, if only one process does so at a time."""
    shared = arrays["normaliser"]
    shape = (len(shared) // 2,)
    seen = observations.reshape(-1, *shape).astype(np.float64)
    if not np.isfinite(seen).all():  # as `normalise.update`
        return
    new = normalise.Statistics(float(len(seen)), seen.mean(axis=0), ((seen - seen.mean(axis=0)) ** 2).sum(axis=0))
    old = normalise.Statistics(shared[0], *shared[1:].reshape(2, *shape))
    merged = normalise.merge(old, new)
    shared[0], shared[1:] = merged.count, np.concatenate([merged.mean, merged.m2])


def copy_when_due(arrays: Any, period: int) -> None:
    """θ⁻ ← θ by whichever worker first finds that the steps of all have passed a multiple of the period.

    The multiples copied at are counted for all, so none is missed however the workers' counts interleave; two that
    find the same one at once copy the same parameters twice.
    """
    passed = int(arrays["steps"].sum()) // period
    if passed > arrays["copies"][0]:
        arrays["target"][:] = arrays["theta"]
        arrays["copies"][0] = passed
