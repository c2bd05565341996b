"""Linear value functions from sums over samples: LSTD(Q), LSPI, TD and TDC as map, plain sum and solve.

With φ = φ(s, a), φ' = φ(s', π(s')), c = γ discount and δ = r + c w·φ' - w·φ, a mapper emits float64 sums over chunks
of its shard; they add up to the sums over all samples, however these are cut.

| method | emitted                            | solved                                                             |
|--------|------------------------------------|--------------------------------------------------------------------|
| lstd   | A = Σ φ (φ - c φ')ᵀ, b = Σ r φ     | w = (A + ε I)⁻¹ b                                                  |
| lspi   | the same with π greedy in w        | the same, until w stays                                            |
| td     | Σ δ φ                              | w ← w + (α / n) Σ                                                  |
| tdc    | Σ δ φ, Σ c φ' (φᵀu), Σ (δ - φᵀu) φ | w ← w + (α / n) (first - second); u ← u + (β / n) third            |

Sources: Bradtke & Barto 1996 (LSTD); Lagoudakis & Parr 2003 (LSPI); Sutton et al. 2009 (TDC); as map and reduce: Li &
Schuurmans 2011.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from shoal.algorithms._linear import features
from shoal.core import errors, types

BEYOND = 1e100  # no value is so large: the weights grow without bound, and their squares would overflow


class Numbers(NamedTuple):
    """What a method is run with."""

    method: str  # lstd, lspi, td, tdc
    discount: float  # γ
    ridge: float  # ε
    step_size: float  # α
    correction_step_size: float  # β
    tolerance: float  # ‖w - w_old‖ at which w stays


class Prepared(NamedTuple):
    """A chunk of samples, its features computed."""

    here: np.ndarray  # [n, F] φ(s)
    action: np.ndarray  # [n] i32
    reward: np.ndarray  # [n] f64
    after: np.ndarray  # [n, F] c φ(s')
    finite: np.ndarray  # [n] bool: whether the sample can be learned from


def prepare(made: features.Features, discount: float, samples: types.Transition) -> Prepared:
    """Features of a chunk; samples that are not finite get weight 0.

    Args:
        made: The features.
        discount: γ.
        samples: Leading ``[n]``.
    """
    with np.errstate(invalid="ignore"):
        here = np.asarray(made.vector(np.asarray(samples.obs, np.float64), np))
        after = np.asarray(made.vector(np.asarray(samples.next_obs, np.float64), np))
    reward = np.asarray(samples.reward, np.float64)
    finite = np.isfinite(reward) & np.isfinite(samples.obs).all(1) & np.isfinite(samples.next_obs).all(1)
    here, after, reward = (np.where(finite if x.ndim == 1 else finite[:, None], x, 0.0) for x in (here, after, reward))
    after *= discount * np.asarray(samples.discount, np.float64)[:, None]
    return Prepared(here, np.asarray(samples.action), reward, after, finite)


def sample_bytes(size: int) -> int:
    """What a prepared sample takes: its features and its successor's, dense.

    Args:
        size: Features, F.
    """
    return 2 * size * np.dtype(np.float64).itemsize


def begin(method: str, actions: int, size: int) -> dict[str, np.ndarray]:
    """Weights at 0.

    Args:
        method: Its name; only tdc has the second vector.
        actions: A.
        size: Features, F.
    """
    second = {"u": np.zeros(actions * size)} if method == "tdc" else {}
    return {"w": np.zeros(actions * size), **second}


def map_chunk(numbers: Numbers, actions: int, memory: Mapping[str, np.ndarray], chunk: Prepared) -> dict[str, Any]:
    """The sums of one chunk, float64.

    Args:
        numbers: The method's.
        actions: A.
        memory: ``w`` [A F], and ``u`` of tdc.
        chunk: The samples.
    """
    weights = memory["w"].reshape(actions, -1)
    probability = _policy(numbers.method, weights, chunk.after)
    error = (
        chunk.reward
        + (probability * (chunk.after @ weights.T)).sum(1)
        - (chunk.here * weights[chunk.action]).sum(1)
    )  # fmt: skip
    sums = {"n": np.float64(chunk.finite.sum()), "squares": np.sum(error**2)}
    if numbers.method in ("lstd", "lspi"):
        return sums | _normal_equations(actions, chunk, probability)
    sums["first"] = _by_action(actions, chunk, error)
    if numbers.method == "tdc":
        second = memory["u"].reshape(actions, -1)
        guess = (chunk.here * second[chunk.action]).sum(1)
        sums["second"] = ((probability * guess[:, None]).T @ chunk.after).ravel()
        sums["third"] = _by_action(actions, chunk, error - guess)
    return sums


def _policy(method: str, weights: np.ndarray, after: np.ndarray) -> np.ndarray:
    """π(a | s') ``[n, A]``: greedy for lspi; for the others that which the samples were taken with, uniform."""
    actions = len(weights)
    if method != "lspi":
        return np.full((len(after), actions), 1.0 / actions)
    return np.eye(actions)[np.argmax(after @ weights.T, 1)]


def _normal_equations(actions: int, chunk: Prepared, probability: np.ndarray) -> dict[str, Any]:
    """A ``[A F, A F]`` and b ``[A F]``; rows of an action come from its own samples alone."""
    size = chunk.here.shape[1]
    matrix, vector = np.zeros((actions, size, actions, size)), np.zeros((actions, size))
    for action in range(actions):
        mine = chunk.action == action
        here, after = chunk.here[mine], chunk.after[mine]
        matrix[action, :, action] = here.T @ here
        for other in range(actions):
            matrix[action, :, other] -= here.T @ (probability[mine, other, None] * after)
        vector[action] = chunk.reward[mine] @ here
    return {"A": matrix.reshape(actions * size, -1), "b": vector.ravel()}


def _by_action(actions: int, chunk: Prepared, weight: np.ndarray) -> np.ndarray:
    """Σ weight φ(s, a), ``[A F]``."""
    chosen = chunk.action[:, None] == np.arange(actions)
    return ((chosen * weight[:, None]).T @ chunk.here).ravel()


def solve(
    numbers: Numbers, memory: Mapping[str, np.ndarray], sums: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, float], bool]:
    """From the sums of all chunks to new weights.

    Args:
        numbers: The method's.
        memory: Before.
        sums: Of `map_chunk`, added up.

    Returns:
        The memory after, metrics, and whether nothing is left to do.

    Raises:
        GaveUp: There is no sample, the matrix cannot be inverted, or the weights grow without bound.
    """
    before, count = memory["w"], float(sums["n"])
    if not count:
        raise errors.GaveUp(
            "none of the samples can be learned from: their observations or rewards are not finite; "
            "look at the environment with `shoal check-env`"
        )
    after = dict(memory)
    if numbers.method in ("lstd", "lspi"):
        try:
            after["w"] = np.linalg.solve(sums["A"] + numbers.ridge * np.eye(len(before)), sums["b"])
        except np.linalg.LinAlgError:
            raise errors.GaveUp("the samples do not determine the weights; raise algorithm.ridge above 0") from None
    else:
        after["w"] = before + numbers.step_size / count * (sums["first"] - sums.get("second", 0.0))
    if numbers.method == "tdc":
        after["u"] = memory["u"] + numbers.correction_step_size / count * sums["third"]
    if not np.abs(after["w"]).max() < BEYOND:
        raise errors.GaveUp(
            f"the weights of {numbers.method} grew beyond {BEYOND:g}; lower algorithm.step-size, or scale the features"
        )
    change = float(np.linalg.norm(after["w"] - before))
    metrics = {"change": change, "bellman_error": float(np.sqrt(sums["squares"] / count))}
    return after, metrics, numbers.method == "lstd" or change < numbers.tolerance
