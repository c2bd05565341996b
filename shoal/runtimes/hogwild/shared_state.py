"""The state that workers share and applies change, as named arrays; and the functions that read and change it.

The arrays are those of a `sharing.Block` in a run, and plain ones in a replay.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from shoal.runtimes.crew import lags, sharing

SEEN = ("theta", "target", "normaliser", "steps", "updates")  # what a worker reads before a segment


class Sizes(NamedTuple):
    """What is shared, as far as the learner decides it."""

    params: int  # numbers
    observed: int = 0  # numbers in an observation that is normalised; 0 where none is
    apart: bool = False  # whether every worker has optimiser statistics of its own
    target: bool = False  # whether there is a target network
    statistics: int = 0  # numbers that the optimiser keeps; 0: one a parameter


def layout(sizes: Sizes, workers: int) -> sharing.Layout:
    """All that an apply changes: what learning depends on, and what a checkpoint holds.

    Every slot of a ``[workers]`` array has a single writer, so no count is ever lost.
    """
    size, observed = sizes.params, sizes.observed
    kept = sizes.statistics or size
    return {
        "theta": ((size,), "f4"),  # parameters
        "g": ((workers, kept) if sizes.apart else (kept,), "f4"),
        # the optimiser's statistics: mean squares, momentum (`in_place`)
        "target": ((size if sizes.target else 0,), "f4"),  # parameters of the target network
        "copies": ((1,), "i8"),  # multiples of the target's period at which it was copied, or skipped as too late
        "normaliser": ((1 + 2 * observed if observed else 0,), "f8"),  # count, mean, m2
        "steps": ((workers,), "i8"),  # environment steps; the global counter T is their sum
        **lags.layout(workers),
        "stale": ((workers,), "i8"),  # gradients dropped
        "non_finite": ((workers,), "i8"),
        "tickets": ((1,), "i8"),  # of a replayable run
    }


def copy_when_due(arrays: Any, period: int) -> None:
    """θ⁻ ← θ by whichever worker first finds that the steps of all have passed a multiple of the period.

    The multiples copied at are counted for all, so none is missed however the workers' counts interleave; two that
    find the same one at once copy the same parameters twice.
    """
    passed = sharing.total(arrays["steps"]) // period
    if passed > arrays["copies"][0]:
        arrays["target"][:] = arrays["theta"]
        arrays["copies"][0] = passed
