"""A setting as an axis: where its values lie between 0 and 1, and which are written beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shoal.report import svg, words
from shoal.report.tuning import importance


class Axis(NamedTuple):
    """One setting, or the score."""

    name: str
    places: np.ndarray  # [trials] in [0, 1]; NaN where there is none
    marks: tuple[tuple[float, str], ...]  # (place, text)


def settings(rows: Sequence[Mapping[str, Any]], priors: Mapping[str, str]) -> list[Axis]:
    """An axis for each setting that was searched.

    Args:
        rows: Of ``trials.json``.
        priors: Setting -> its prior as it is typed: ``log_uniform(0.0001,0.1)``.
    """
    return [_axis(name, prior, [importance.number(row["settings"][name]) for row in rows]) for name, prior in
        priors.items()]  # fmt: skip


def score(values: Sequence[float]) -> Axis:
    """The axis of scores."""
    low, high = svg.extent(np.asarray(values))
    marks = tuple((float((at - low) / (high - low)), words.short(float(at))) for at in svg.ticks(low, high, 5))
    return Axis("score", (np.asarray(values) - low) / (high - low), marks)


def place(name: str, prior: str, value: float) -> float:
    """Where one value lies; outside of [0, 1] where the prior cannot give it."""
    return float(_axis(name, prior, [value]).places[0])


def _axis(name: str, prior: str, values: Sequence[float]) -> Axis:
    kind, _, inner = prior.rstrip(")").partition("(")
    numbers = [float(one) for one in inner.split(",")]
    if kind == "choice":
        order = sorted(numbers)
        spots = [(at + 0.5) / len(order) for at in range(len(order))]
        where = [spots[order.index(value)] if value in order else math.nan for value in values]
        return Axis(name, np.array(where), tuple(zip(spots, map(words.short, order), strict=True)))
    low, high = min(numbers), max(numbers)
    if kind == "log_uniform":
        a, b = math.log10(low), math.log10(high)
        decades = [10.0**power for power in range(math.ceil(a - 1e-9), math.floor(b + 1e-9) + 1)]
        marks = _marks(low, high, decades, lambda value: (math.log10(value) - a) / (b - a or 1.0))
        return Axis(name, (np.log10(np.maximum(values, 1e-300)) - a) / (b - a or 1.0), marks)
    span = high - low or 1.0
    marks = _marks(
        low, high, svg.ticks(low, high, 3).tolist() if high > low else [], lambda value: (value - low) / span
    )
    return Axis(name, (np.asarray(values, float) - low) / span, marks)


def _marks(low: float, high: float, between: Sequence[float], where: Any) -> tuple[tuple[float, str], ...]:
    """Both ends and what stands between them, where there is room."""
    found = [(0.0, words.short(low)), (1.0, words.short(high))]
    inner = [(float(where(value)), words.short(value)) for value in between]
    kept = [one for one in inner if 0.14 < one[0] < 0.86]
    return (found[0], *kept, found[1])
