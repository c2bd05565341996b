"""The server's optimisers, in NumPy: the experiment's own rule for gradients; for deltas a plain step, or Adam.

The same formulas as `formulas.rules`, which a process without JAX cannot import; a test holds the two together.
Compiled for a CPU those multiply and add in one rounding, and so does `_fused`: with adam and momentum the server's
step has the bits of one at home. With rmsprop and adagrad it is within 1e-6: XLA takes the machine's reciprocal root.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

F = np.float32
MOMENTUM = F(0.9)  # of adam's first moment (β₁), as in `formulas.rules`
RULES = ("adam", "rmsprop", "momentum", "adagrad")
KEPT: Mapping[str, tuple[str, ...]] = {  # statistics of each rule, [size] f32 each
    "adam": ("mu", "nu"),
    "rmsprop": ("nu",),
    "momentum": ("mu",),
    "adagrad": ("sum_of_squares",),
    "sgd": (),
}
NEVER = 3.4028234663852886e38  # stands for "never" (`optimise.LARGEST`)

Statistics = dict[str, np.ndarray]


class Numbers(NamedTuple):
    """Of an optimiser, as in `optimise.Hyper`; its clip is the parties' matter."""

    rule: str = "sgd"
    learning_rate: float = 1.0
    anneal_steps: float = NEVER  # environment steps of a party after which the rate is 0
    decay: float = 0.99
    epsilon: float = 1e-5


FED_ADAM = Numbers("adam", 1e-2, NEVER, 0.99, 1e-3)  # Reddi et al. 2020, arXiv:2003.00295, algorithm 2: β₂, τ


def first(rule: str, size: int) -> Statistics:
    """The statistics before the first step; `count` is a scalar i32."""
    return {name: np.zeros(size, F) for name in KEPT[rule]} | {"count": np.zeros((), np.int32)}


def stepped(
    numbers: Numbers, kept: Statistics, theta: np.ndarray, gradient: np.ndarray, env_steps: float
) -> tuple[np.ndarray, Statistics]:
    """One step of the experiment's own optimiser; all in f32.

    Args:
        numbers: Its rule and numbers.
        kept: Its statistics; not changed.
        theta: ``[size]``.
        gradient: ``[size]``, clipped at the parties.
        env_steps: Of a party before this round, for annealing.

    Returns:
        θ and the statistics after it.
    """
    eta = _rate(numbers, env_steps)
    step, statistics = _STEPS[numbers.rule](numbers, kept, gradient)
    return _fused(-eta, step, theta), statistics


def fed_adam(numbers: Numbers, kept: Statistics, theta: np.ndarray, delta: np.ndarray) -> tuple[np.ndarray, Statistics]:
    """FedAdam: m ← β₁ m + (1 - β₁) Δ, v ← β₂ v + (1 - β₂) Δ², θ + η m / (√v + τ); no correction of the bias.

    Source: Reddi et al. 2020, arXiv:2003.00295, algorithm 2.
    """
    mu = MOMENTUM * kept["mu"] + (F(1) - MOMENTUM) * delta
    nu = F(numbers.decay) * kept["nu"] + (F(1) - F(numbers.decay)) * delta * delta
    step = F(numbers.learning_rate) * mu / (np.sqrt(nu) + F(numbers.epsilon))
    return theta + step, {"mu": mu, "nu": nu, "count": np.array(kept["count"] + 1, np.int32)}


def _fused(a: np.ndarray | np.float32, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Multiply and add f32 with one rounding, a b + c: the product of two is exact in float64."""
    return (np.multiply(a, b, dtype=np.float64) + c).astype(F)


def _rate(numbers: Numbers, env_steps: float) -> np.float32:
    """The annealed step size η₀ max(0, 1 - T / T_end) (`optimise.rate`)."""
    left = F(1) - F(env_steps) / F(numbers.anneal_steps)
    return F(numbers.learning_rate) * (left + abs(left)) / F(2)


def _adam(numbers: Numbers, kept: Statistics, gradient: np.ndarray) -> tuple[np.ndarray, Statistics]:
    decay, count = F(numbers.decay), kept["count"] + np.int32(1)
    mu = _fused(MOMENTUM, kept["mu"], (F(1) - MOMENTUM) * gradient)
    nu = _fused(decay, kept["nu"], (F(1) - decay) * gradient * gradient)
    root = np.sqrt(F(1) - decay ** F(count))
    size = root / (F(1) - MOMENTUM ** F(count))
    return size * mu / (np.sqrt(nu) + F(numbers.epsilon) * root), {
        "mu": mu,
        "nu": nu,
        "count": np.array(count, np.int32),
    }


def _rmsprop(numbers: Numbers, kept: Statistics, gradient: np.ndarray) -> tuple[np.ndarray, Statistics]:
    decay = F(numbers.decay)
    nu = _fused(decay, kept["nu"], (F(1) - decay) * gradient * gradient)
    return gradient / np.sqrt(nu + F(numbers.epsilon)), {"nu": nu, "count": kept["count"]}


def _momentum(numbers: Numbers, kept: Statistics, gradient: np.ndarray) -> tuple[np.ndarray, Statistics]:
    decay = F(numbers.decay)
    mu = _fused(decay, kept["mu"], (F(1) - decay) * gradient)
    return mu, {"mu": mu, "count": kept["count"]}


def _adagrad(numbers: Numbers, kept: Statistics, gradient: np.ndarray) -> tuple[np.ndarray, Statistics]:
    total = kept["sum_of_squares"] + gradient * gradient
    root = np.sqrt(np.maximum(total + F(numbers.epsilon), F(1e-37)))
    return np.where(total > 0, gradient / root, F(0)), {"sum_of_squares": total, "count": kept["count"]}


def _sgd(numbers: Numbers, kept: Statistics, gradient: np.ndarray) -> tuple[np.ndarray, Statistics]:
    del numbers
    return gradient, dict(kept)


_STEPS: Mapping[str, Callable[[Numbers, Statistics, np.ndarray], tuple[np.ndarray, Statistics]]] = {
    "adam": _adam,
    "rmsprop": _rmsprop,
    "momentum": _momentum,
    "adagrad": _adagrad,
    "sgd": _sgd,
}
