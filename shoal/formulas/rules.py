"""The rules of `optimise.local` on one flat vector, and what each keeps.

A rule takes the numbers, what it keeps, the gradient (0 where it was not finite), whether it was finite and what the
learner asks of the step; it returns the step, without the rate, and what it keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from etils import epy

if TYPE_CHECKING:
    from shoal.formulas import optimise

with epy.lazy_imports():
    import jax.numpy as jnp

TINY = 1e-37  # keeps a root from being 0 where the quotient is not used
MOMENTUM = 0.9  # of adam's first moment (beta 1)


class Adam(NamedTuple):
    """Running statistics of ``adam``."""

    count: Any  # scalar i32
    mu: Any  # [size] f32
    nu: Any  # [size] f32


class RMSProp(NamedTuple):
    """Running statistics of ``rmsprop``."""

    nu: Any  # [size] f32


class Momentum(NamedTuple):
    """Running statistics of ``momentum``."""

    mu: Any  # [size] f32


class AdaGrad(NamedTuple):
    """Running statistics of ``adagrad``."""

    sum_of_squares: Any  # [size] f32


def adam(hyper: optimise.Hyper, old: Adam, gradient: Any, finite: Any, ask: optimise.Step) -> tuple[Any, Adam]:
    """Adam: m ← β₁ m + (1 - β₁) g, v ← β₂ v + (1 - β₂) g²; m̂ / (√v̂ + ε) with the corrections taken as scalars.

    Source: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1 in the order of its section 2: a root and a division for
    each element, where correcting both moments first asks for three divisions.
    """
    count = old.count + finite.astype(jnp.int32)
    first, second = (jnp.where(finite, decay, 1.0) for decay in (MOMENTUM, hyper.decay))
    mu = first * old.mu + (1.0 - first) * gradient
    nu = second * old.nu + (1.0 - second) * gradient * gradient
    t = jnp.maximum(count, 1)  # nothing is 0 / 0 where the very first gradient is skipped
    root = jnp.sqrt(1.0 - hyper.decay**t)
    size, root = (jnp.where(ask.corrected, a, 1.0) for a in (root / (1.0 - MOMENTUM**t), root))
    return jnp.where(finite, size, 0.0) * mu / (jnp.sqrt(nu) + hyper.epsilon * root), Adam(count, mu, nu)


def rmsprop(hyper: optimise.Hyper, old: RMSProp, gradient: Any, finite: Any, ask: optimise.Step) -> tuple[Any, RMSProp]:
    """RMSProp: v ← α v + (1 - α) g²; g / √(v + ε)."""
    del ask
    decay = jnp.where(finite, hyper.decay, 1.0)
    nu = decay * old.nu + (1.0 - decay) * gradient * gradient
    return gradient / jnp.sqrt(nu + hyper.epsilon), RMSProp(nu)


def momentum(
    hyper: optimise.Hyper, old: Momentum, gradient: Any, finite: Any, ask: optimise.Step
) -> tuple[Any, Momentum]:
    """Momentum SGD: m ← α m + (1 - α) g; a step of m."""
    del ask
    decay = jnp.where(finite, hyper.decay, 1.0)
    mu = decay * old.mu + (1.0 - decay) * gradient
    return jnp.where(finite, mu, 0.0), Momentum(mu)


def adagrad(hyper: optimise.Hyper, old: AdaGrad, gradient: Any, finite: Any, ask: optimise.Step) -> tuple[Any, AdaGrad]:
    """AdaGrad: v ← v + g²; g / √(v + ε), and 0 where there was never a gradient."""
    del finite, ask  # a gradient of 0 leaves everything as it was
    total = old.sum_of_squares + gradient * gradient
    return jnp.where(total > 0, gradient / jnp.sqrt(jnp.maximum(total + hyper.epsilon, TINY)), 0.0), AdaGrad(total)


class Rule(NamedTuple):
    """One of them."""

    kept: Any  # its statistics' class
    step: Callable[..., tuple[Any, Any]]


RULES: dict[str, Rule] = {
    "adam": Rule(Adam, adam),
    "rmsprop": Rule(RMSProp, rmsprop),
    "momentum": Rule(Momentum, momentum),
    "adagrad": Rule(AdaGrad, adagrad),
}
