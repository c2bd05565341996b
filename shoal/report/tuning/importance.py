"""How much a setting decides, by rank correlation: of trials that were judged after equal steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FEWEST = 5  # trials
NAME = "rank correlation"


def by_rank(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any] | None:
    """Spearman's correlation of each setting with the score, its size as the importance; not a share of anything.

    It sees what rises or falls, and nothing of a best value in the middle. Of trials that were judged several times the
    first time counts, at which all of them were there.

    Args:
        rows: Of ``trials.json``.
        names: Of the settings.

    Returns:
        How it was found, its size for each setting, and its sign; None with too few trials.
    """
    scored = [row for row in rows if row["rungs"]]
    if len(scored) < FEWEST:
        return None
    scores = _ranks([row["rungs"][0]["score"] for row in scored])
    signed = {name: _correlation(_ranks([number(row["settings"][name]) for row in scored]), scores) for name in names}
    return {"method": NAME, "shares": {name: abs(value) for name, value in signed.items()}, "signed": signed}


def number(value: Any) -> float:
    """A setting as one number; a list whose entries are alike is its entry."""
    return float(value[0] if isinstance(value, list) else value)


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 0 on, ties as their mean."""
    array = np.asarray(values, np.float64)
    _, which, counts = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[which]


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    size = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / size if size else 0.0
