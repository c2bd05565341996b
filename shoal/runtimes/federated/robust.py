"""One update of n: plain and robust rules on flat updates ``U [n, d]``, rows by the party's number.

At most f of the n may be hostile, and say anything that is finite. Sums are taken in float64 and in the order of the
rows, so the same updates give the same bits, and no finite float32 makes an infinity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from shoal.core import errors

BLOCK = 8192  # columns that are sorted at once: n rows of them stay in the cache


class Rule(NamedTuple):
    """One of `RULES`."""

    combine: Callable[[np.ndarray, int], np.ndarray]  # (U [n, d] f32, f) -> [d] f32
    each: int  # n must be at least each * f + more
    more: int
    withstands: bool = True  # hostile parties


def mean(updates: np.ndarray, hostile: int = 0) -> np.ndarray:
    """The mean, all parties alike (McMahan et al. 2017, arXiv:1602.05629, with equal weights)."""
    del hostile
    return _mean(updates).astype(np.float32)


def norm_bound(updates: np.ndarray, hostile: int = 0) -> np.ndarray:
    """The mean of updates that were scaled down to their median norm (Sun et al. 2019, arXiv:1911.07963)."""
    del hostile
    lengths = norms(updates)
    return _mean(bounded(updates, lengths, float(np.median(lengths)))).astype(np.float32)


def median(updates: np.ndarray, hostile: int = 0) -> np.ndarray:
    """The median of each coordinate (Yin et al. 2018, arXiv:1803.01498)."""
    del hostile
    n = len(updates)
    return _middle(updates, (n - 1) // 2)


def trimmed_mean(updates: np.ndarray, hostile: int) -> np.ndarray:
    """The mean of each coordinate without its f largest and f smallest (Yin et al. 2018, arXiv:1803.01498)."""
    return _middle(updates, hostile)


def krum(updates: np.ndarray, hostile: int) -> np.ndarray:
    """The update that lies closest to its n - f - 2 nearest others (Blanchard et al. 2017, arXiv:1703.02757)."""
    return updates[_by_score(updates, hostile)[0]].astype(np.float32)


def multi_krum(updates: np.ndarray, hostile: int) -> np.ndarray:
    """The mean of the n - f updates of the best scores of `krum`, summed by the party's number."""
    kept = np.sort(_by_score(updates, hostile)[: len(updates) - hostile])
    return _mean(updates[kept]).astype(np.float32)


def nearest_mixing(updates: np.ndarray, hostile: int) -> np.ndarray:
    """Every update replaced by the mean of its n - f nearest, itself included; then `trimmed_mean`.

    Source: Allouah et al. 2023, "Fixing by Mixing", arXiv:2302.01772, algorithm 1 (NNM).
    """
    n = len(updates)
    near = np.argsort(distances(updates), axis=1, kind="stable")[:, : n - hostile]
    weights = np.zeros((n, n))
    np.put_along_axis(weights, near, 1.0 / (n - hostile), axis=1)
    return _middle(updates, hostile, weights)


RULES: dict[str, Rule] = {
    "mean": Rule(mean, 0, 1, withstands=False),
    "norm_bound": Rule(norm_bound, 2, 1),
    "median": Rule(median, 2, 1),
    "trimmed_mean": Rule(trimmed_mean, 2, 1),
    "krum": Rule(krum, 2, 3),
    "multi_krum": Rule(multi_krum, 2, 3),
    "nearest_mixing": Rule(nearest_mixing, 2, 1),
}
DEFAULT = "nearest_mixing"  # where hostile parties are allowed for


def needs(rule: str, hostile: int) -> int:
    """The number of updates that a rule needs to withstand so many hostile ones."""
    chosen = RULES[rule]
    return chosen.each * hostile + chosen.more


def chosen(rule: str, hostile: int) -> str:
    """The rule that is meant: "auto" is `DEFAULT` where hostile parties are allowed for, else the mean."""
    return (DEFAULT if hostile else "mean") if rule == "auto" else rule


def check(rule: str, hostile: int, parties: int, by: str = "parties") -> None:
    """Refuse a rule that cannot do what is asked of it.

    Args:
        rule: A name of `RULES`.
        hostile: Parties that may be hostile.
        parties: Updates that it will see at least.
        by: The setting of the runtime that says so.

    Raises:
        Refused: There is no such rule, it withstands nobody, or it needs more parties.
    """
    if rule not in RULES:
        raise errors.unknown("value of runtime.aggregator", rule, [*RULES, "auto"])
    if hostile and not RULES[rule].withstands:
        raise errors.Refused(
            f"runtime.aggregator={rule} withstands no hostile party, and runtime.hostile={hostile}; give "
            f"{DEFAULT} (or auto), or runtime.hostile=0"
        )
    if parties < needs(rule, hostile):
        most = max((parties - RULES[rule].more) // max(RULES[rule].each, 1), 0)
        raise errors.Refused(
            f"runtime.aggregator={rule} with runtime.hostile={hostile} needs {needs(rule, hostile)} updates in every "
            f"round, and may see {parties}; give runtime.{by}={needs(rule, hostile)} or more, or runtime.hostile={most}"
        )


def norms(updates: np.ndarray) -> np.ndarray:
    """Euclidean norms of rows ``[n, d]`` -> ``[n]``, in float64."""
    squares = np.zeros(len(updates))
    for block in _blocks(updates):
        squares += np.einsum("ij,ij->i", block, block)
    return np.sqrt(squares)


def bounded(updates: np.ndarray, lengths: np.ndarray, bound: float) -> np.ndarray:
    """Updates scaled down to a norm: u min(1, B / ‖u‖); rows within it stay as they are.

    Args:
        updates: ``[n, d]``.
        lengths: Their norms, ``[n]``.
        bound: B.
    """
    over = np.flatnonzero(lengths > bound)
    if not over.size:
        return updates
    updates = updates.copy()
    for row in over:
        updates[row] = (updates[row].astype(np.float64) * (bound / lengths[row])).astype(np.float32)
    return updates


def distances(updates: np.ndarray) -> np.ndarray:
    """Squared distances of all pairs of rows, ``[n, n]`` f64."""
    products = np.zeros((len(updates), len(updates)))
    for block in _blocks(updates):
        products += block @ block.T
    squares = np.diag(products)
    apart = np.maximum(squares[:, None] + squares[None, :] - 2.0 * products, 0.0)
    np.fill_diagonal(apart, 0.0)
    return apart


def _blocks(updates: np.ndarray) -> Iterator[np.ndarray]:
    """Some columns at a time, in float64: what is computed with them stays in the cache."""
    for at in range(0, updates.shape[1], BLOCK):
        yield updates[:, at : at + BLOCK].astype(np.float64)


def _mean(updates: np.ndarray) -> np.ndarray:
    total = np.zeros(updates.shape[1])
    for row in updates:
        total += row
    return total / len(updates)


def _by_score(updates: np.ndarray, hostile: int) -> np.ndarray:
    """Rows by the sum of their n - f - 2 smallest squared distances to others; of equal ones the first party."""
    apart = np.sort(distances(updates), axis=1)[:, 1:]  # without the distance to itself
    scores = apart[:, : len(updates) - hostile - 2].sum(axis=1)
    return np.argsort(scores, kind="stable")


def _middle(updates: np.ndarray, drop: int, weights: np.ndarray | None = None) -> np.ndarray:
    """The mean of each coordinate without its `drop` largest and smallest; of `weights` @ U where given."""
    n, d = updates.shape
    out = np.empty(d, np.float32)
    for at in range(0, d, BLOCK):
        rows = updates[:, at : at + BLOCK]
        rows = rows.copy() if weights is None else (weights @ rows.astype(np.float64)).astype(np.float32)
        _exchange(rows)
        out[at : at + rows.shape[1]] = _mean(rows[drop : n - drop])
    return out


def _exchange(rows: np.ndarray) -> None:
    """Sort each column ``[n, d]`` in place: odd-even exchange of whole rows, where a sort of short columns is slow."""
    n = len(rows)
    for turn in range(n):
        first, second = rows[turn % 2 : n - 1 : 2], rows[turn % 2 + 1 : n : 2]
        low = np.minimum(first, second)
        np.maximum(first, second, out=second)
        first[...] = low
