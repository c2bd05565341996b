"""When a training reached a score, for the peers' scripts."""

import numpy as np


def reached(returns, ended, until, window=100):
    """When the mean return of the last episodes first reached a score.

    Args:
        returns: `[T, B]` the return of the episode that ended at each step.
        ended: `[T, B]` whether one did.
        until: The score.
        window: Episodes in the mean.

    Returns:
        (environment steps until then, None if it never did; the best mean there was, None with too few episodes).
    """
    at = np.flatnonzero(np.asarray(ended))  # in the order of time
    series = np.asarray(returns, np.float64).ravel()[at]
    if len(series) < window:
        return None, None
    sums = np.concatenate([[0.0], np.cumsum(series)])
    means = (sums[window:] - sums[:-window]) / window
    good = np.flatnonzero(means >= until)
    environments = np.shape(ended)[1]
    # The whole step of all environments counts, as it does in our own runs.
    steps = int(at[good[0] + window - 1] // environments + 1) * environments if len(good) else None
    return steps, float(means.max())
