"""How old gradients were when they were applied: the account that workers keep of it in shared arrays."""

from __future__ import annotations

from typing import Any

from shoal.monitor import asynchrony
from shoal.runtimes.crew import sharing


def layout(workers: int) -> sharing.Layout:
    """The shared arrays; lags are in versions, every slot has a single writer."""
    return {
        "updates": ((workers,), "i8"),  # applies; the version of the parameters is their sum
        "lag_sum": ((workers,), "i8"),  # versions that passed between a worker's read and its apply
        "lag_max": ((workers,), "i8"),
        "lags": ((workers, asynchrony.BINS), "i8"),  # applies by `asynchrony.place`
    }


def note(arrays: Any, worker: int, lag: int) -> None:
    """One more apply of a worker, of a gradient so many versions old."""
    arrays["updates"][worker] += 1
    arrays["lag_sum"][worker] += lag
    arrays["lag_max"][worker] = max(lag, arrays["lag_max"][worker])
    arrays["lags"][worker, asynchrony.place(max(lag, 0))] += 1


def told(arrays: Any) -> dict[str, Any]:
    """What a summary says of them: for `types.Progress.workers`."""
    updates = int(arrays["updates"].sum())
    return {
        "env_steps": arrays["steps"].tolist(),
        "updates": arrays["updates"].tolist(),
        "lag_mean": float(arrays["lag_sum"].sum()) / updates if updates else None,
        "lag_max": int(arrays["lag_max"].max()),
        "lag_histogram": asynchrony.histogram(arrays["lags"].sum(axis=0).tolist()),
    }
