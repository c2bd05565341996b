"""Statistics of observations that several workers keep together, in the shared array ``normaliser``."""

from __future__ import annotations

from typing import Any

import numpy as np

from shoal.formulas import normalise


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
