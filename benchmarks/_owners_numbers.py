"""Numbers from courses of training across owners: areas, steps to a score, and differences between paired seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

RANDOM = {"CartPole": 22.0, "Acrobot": -500.0, "MountainCar": -200.0}  # return of random actions
SOLVED = {"CartPole": 475.0, "Acrobot": -100.0, "MountainCar": -110.0}  # Gymnasium's
RESAMPLES = 10_000
LAST = 3  # evaluations that make a return at the end, or one on the way that counts as reached


def kind(env: str) -> str:
    """What stands in `RANDOM` and `SOLVED`."""
    return next(name for name in RANDOM if name in env)


def scaled(returns: np.ndarray, env: str) -> np.ndarray:
    """Returns on a scale from random actions (0) to solved (1)."""
    low, high = RANDOM[kind(env)], SOLVED[kind(env)]
    return (np.asarray(returns, float) - low) / (high - low)


def area(steps: Sequence[float], returns: np.ndarray, env: str) -> np.ndarray:
    """Mean height of scaled curves ``[..., E]`` over the steps, by the trapezoid rule: ``[...]``."""
    x = np.asarray(steps, float)
    return np.trapezoid(scaled(returns, env), x, axis=-1) / (x[-1] - x[0])


def smoothed(steps: Sequence[float], returns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of three evaluations on end, at the last of them: one alone is of a few episodes, and may be luck."""
    if len(steps) < LAST:
        return np.asarray(steps, float), np.asarray(returns, float)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(returns, float), LAST, axis=-1)
    return np.asarray(steps, float)[LAST - 1 :], windows.mean(axis=-1)


def reached(steps: Sequence[float], returns: np.ndarray, bar: float) -> np.ndarray:
    """Steps at which curves ``[..., E]`` first reach a bar, between evaluations on a straight line; inf: never."""
    flat = np.asarray(returns, float).reshape(-1, len(steps))
    found = np.full(len(flat), math.inf)
    for at, curve in enumerate(flat):
        above = np.flatnonzero(curve >= bar)
        if not len(above):
            continue
        one = int(above[0])
        found[at] = steps[one]
        if one:
            share = (bar - curve[one - 1]) / (curve[one] - curve[one - 1])
            found[at] = steps[one - 1] + share * (steps[one] - steps[one - 1])
    return found.reshape(np.shape(returns)[:-1])


def median(values: Sequence[float]) -> float | None:
    """The median of steps to a score; None: it is never."""
    found = float(np.median(np.asarray(values, float))) if len(values) else math.inf
    return found if math.isfinite(found) else None


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Mean of ours over mean of theirs, with the 95 % interval over paired seeds, and the difference likewise.

    Seeds are resampled in pairs: what a seed has in common on both sides does not widen the interval.
    """
    blank = dict.fromkeys(("ratio", "low", "high", "difference", "difference_low", "difference_high"))
    a, b = np.asarray(ours, float), np.asarray(theirs, float)
    if len(a) != len(b) or not len(a) or not np.isfinite([*a, *b]).all():
        return blank
    drawn = np.random.default_rng(0).integers(len(a), size=(RESAMPLES, len(a)))
    above, below = a[drawn].mean(axis=1), b[drawn].mean(axis=1)
    found: dict[str, Any] = {"difference": float((a - b).mean())}
    divides = bool((below > 0).all())  # of what never left the bottom there is no ratio
    if divides:
        found["ratio"] = float(a.mean() / b.mean())
    if len(a) > 1:
        both = (("", above / below),) if divides else ()
        for name, values in (*both, ("difference_", above - below)):
            low, high = np.percentile(values, [2.5, 97.5])
            found |= {f"{name}low": float(low), f"{name}high": float(high)}
    return blank | found


def told(course: Any, env: str, scored: Sequence[int] | None = None) -> dict[str, Any]:
    """An arm's course as plain data.

    Args:
        course: `_owners_study.Course`.
        env: Its set.
        scored: Parties that count, by their numbers; None: all.
    """
    returns = course.returns if scored is None else course.returns[:, list(scored)]
    mean = returns.mean(axis=1)  # [S, E]
    last = final(returns)  # [S, N]
    messages = course.bytes.sum() if course.rounds.any() else 0
    return {
        "steps": course.steps.tolist(),
        "curve": _rounded(mean.mean(axis=0), 2),
        "curves": [_rounded(one, 1) for one in mean],
        "worst_curve": _rounded(returns.min(axis=1).mean(axis=0), 2),
        "area": _rounded(area(course.steps, mean, env), 5),
        "area_by_party": _rounded(area(course.steps, returns, env).mean(axis=0), 5),
        "final": _rounded(last.mean(axis=1), 3),
        "worst": _rounded(last.min(axis=1), 3),
        "final_by_party": [_rounded(row, 2) for row in last],
        "solved_parties": (last >= SOLVED[kind(env)]).sum(axis=1).tolist(),
        "steps_to_solved": [
            None if math.isinf(one) else round(one)
            for one in reached(*smoothed(course.steps, mean), SOLVED[kind(env)]).tolist()
        ],
        "simulated_s": _rounded(course.simulated_s, 1),
        "seconds_to_solved": [
            None if math.isinf(one) else round(one, 1)
            for one in reached(*smoothed(course.simulated_s, mean), SOLVED[kind(env)]).tolist()
        ],
        "params": list(course.params),
        "rounds": int(course.rounds.max(initial=0)),
        "bytes_per_round": float(messages / course.rounds.sum()) if course.rounds.any() else 0.0,
        "staleness": course.lags.sum(axis=0).tolist(),
        "seconds": round(course.seconds, 1),
        "compile_s": round(course.compile_s, 1),
    }


def final(returns: np.ndarray) -> np.ndarray:
    """Return at the end: the mean of the last three evaluations, ``[S, N]``; one alone is of a few episodes."""
    return returns[..., -LAST:].mean(axis=-1)


def _rounded(values: np.ndarray, digits: int) -> list[float]:
    return [round(float(one), digits) for one in np.asarray(values)]


def against(ours: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None, key: str = "area") -> dict[str, Any]:
    """`ratio` of two arms, of the seeds that both have; nothing where one is missing."""
    if not ours or not theirs:
        return ratio([], [])
    return ratio(ours[key], theirs[key])


def gap(
    ours: Mapping[str, Any] | None, alone: Mapping[str, Any] | None, pooled: Mapping[str, Any] | None
) -> float | None:
    """(collaborative - independent) / (pooled - independent) of the mean areas; None where pooled is not above."""
    if not (ours and alone and pooled):
        return None
    low, high = np.mean(alone["area"]), np.mean(pooled["area"])
    return float((np.mean(ours["area"]) - low) / (high - low)) if high > low else None


def not_below(
    ours: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None, env: str, key: str, share: float = 0.05
) -> dict[str, Any]:
    """Whether a return at the end is not below another by more than a share of the range from random to solved."""
    found = against(ours, theirs, key)
    bound = -share * (SOLVED[kind(env)] - RANDOM[kind(env)])
    low = found["difference_low"]
    return {
        "difference": found["difference"], "low": low, "high": found["difference_high"], "bound": bound,
        "not_below": None if low is None else bool(low > bound),
    }  # fmt: skip
