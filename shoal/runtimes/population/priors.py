"""Distributions of hyperparameters: what a member starts with, and what it may become.

A prior is written as ``algorithm.entropy_cost=log_uniform(1e-4,1e-1)``; its name is that of a leaf in
`types.About.hyper`. What is drawn or moved never leaves ``[low, high]``, and whole numbers stay whole.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from etils import epy

from shoal.core import errors, types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

KINDS = ("uniform", "log_uniform", "integer", "choice")
DISCOUNT = 0.9999  # the largest γ that is drawn: with 1 the value of a task without end has no bound
STEP = 0.25  # of the range: no perturbation moves further, or a factor would throw γ from one end to the other
LEAST = 0.01  # of the range of a uniform one: none moves less, or 0 would stay 0 for ever
_FORM = re.compile(r"\s*([^=\s]+)\s*=\s*([a-z_]+)\s*\(([^()]*)\)\s*")


class Prior(NamedTuple):
    """One hyperparameter's distribution."""

    kind: str  # "uniform" | "log_uniform" | "integer" (uniform, both ends in) | "choice"
    low: float
    high: float
    values: tuple[float, ...] = ()  # of a choice, in the order in which a perturbation moves along them


def read(texts: Sequence[str]) -> dict[str, Prior]:
    """Priors as they are typed, by the names of leaves.

    Args:
        texts: See `parse`.

    Raises:
        Refused: One cannot be read, or a hyperparameter has two.
    """
    found: dict[str, Prior] = {}
    for text in texts:
        name, prior = parse(text)
        if name in found:
            raise errors.Refused(f"prior {text!r}: {name} has one already; give one for each hyperparameter")
        found[name] = prior
    return found


def parse(text: str) -> tuple[str, Prior]:
    """A prior as it is typed.

    Args:
        text: ``NAME=KIND(NUMBERS)``, e.g. ``"optimiser.learning_rate=log_uniform(3e-5,3e-3)"``.

    Returns:
        The leaf's name, which may be typed like an option's; and the prior; one of a discount ends at 0.9999.

    Raises:
        Refused: It is not written so, or its numbers make no distribution.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise errors.Refused(
            f"prior {text!r} cannot be read; write NAME=KIND(NUMBERS), e.g. algorithm.tau=log_uniform(1e-3,1e-1)"
        )
    name, kind, inner = found[1].replace("-", "_"), found[2], found[3]
    if kind not in KINDS:
        raise errors.unknown(f"distribution of {name}", kind, KINDS)
    try:
        numbers = tuple(float(one) for one in inner.split(","))
    except ValueError:
        raise errors.Refused(f"prior {text!r}: {inner!r} are no numbers; separate them by commas") from None
    _check_numbers(text, kind, numbers)
    if name.endswith(".discount"):
        numbers = tuple(DISCOUNT if DISCOUNT < one <= 1.0 else one for one in numbers)  # beyond 1: `check` refuses it
    return name, Prior(kind, min(numbers), max(numbers), numbers if kind == "choice" else ())


def _check_numbers(text: str, kind: str, numbers: tuple[float, ...]) -> None:
    if not all(map(math.isfinite, numbers)):
        raise errors.Refused(f"prior {text!r} has a bound that is not finite; give finite numbers")
    if kind == "choice":
        if len(set(numbers)) != len(numbers):
            raise errors.Refused(f"prior {text!r} has a value twice; give each once")
        return
    if len(numbers) != 2 or numbers[0] > numbers[1]:
        raise errors.Refused(f"prior {text!r}: {kind} takes the lowest and the highest value, in this order")
    if kind == "log_uniform" and numbers[0] <= 0:
        raise errors.Refused(
            f"prior {text!r}: log_uniform needs a lowest value above 0; use uniform for a range from 0"
        )
    if kind == "integer" and not all(one.is_integer() for one in numbers):
        raise errors.Refused(f"prior {text!r}: the ends of integer are whole numbers")


def check(priors: Mapping[str, Prior], hyper: Mapping[str, types.Leaf]) -> None:
    """Refuse what the agent does not have or may not be.

    Args:
        priors: By the names of leaves.
        hyper: Of the agent (`types.About.hyper`).

    Raises:
        Refused: An unknown leaf, values out of a leaf's range, or fractions where it takes whole numbers.
    """
    for name, prior in priors.items():
        if name not in hyper:
            raise errors.unknown("hyperparameter in a prior", name, hyper)
        leaf = hyper[name]
        if not leaf.low <= prior.low <= prior.high <= leaf.high:
            raise errors.Refused(
                f"the prior of {name} spans {prior.low:g} to {prior.high:g}, but it must lie between {leaf.low:g} and "
                f"{leaf.high:g}; narrow it"
            )
        whole = prior.kind == "integer" or (prior.kind == "choice" and all(one.is_integer() for one in prior.values))
        if leaf.scale == "integer" and not whole:
            raise errors.Refused(
                f"{name} takes whole numbers, but its prior is {prior.kind}; use integer({math.ceil(prior.low)},"
                f"{math.floor(prior.high)})"
            )


def draw(priors: Mapping[str, Prior], key: types.Key) -> dict[str, types.Scalar]:
    """One member's hyperparameters, f32 scalars; a prior more or less changes none of the others.

    Args:
        priors: By the names of leaves.
        key: The member's; consumed.
    """
    return {name: _drawn(prior, of(key, name)) for name, prior in priors.items()}


def of(key: types.Key, name: str) -> types.Key:
    """The key of one hyperparameter."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _drawn(prior: Prior, key: types.Key) -> types.Scalar:
    if prior.kind == "choice":
        return jnp.asarray(prior.values, jnp.float32)[jax.random.randint(key, (), 0, len(prior.values))]
    if prior.kind == "integer":
        return jax.random.randint(key, (), int(prior.low), int(prior.high) + 1).astype(jnp.float32)
    if prior.kind == "log_uniform":
        value = jnp.exp(jax.random.uniform(key, (), minval=math.log(prior.low), maxval=math.log(prior.high)))
    else:
        value = jax.random.uniform(key, (), minval=prior.low, maxval=prior.high)
    return _within(prior, value)


def perturbed(
    prior: Prior, value: types.Scalar, up: types.Scalar, factors: tuple[float, float] = (0.8, 1.25)
) -> types.Scalar:
    """A value moved one step.

    It is multiplied by a factor, but moves by no more than a quarter of the range (of its logarithm where the prior is
    log-uniform): else γ in [0.9, 1] would only know the two ends. Uniform ones move by a hundredth of it at least,
    whole numbers by one, choices to the neighbour. At the end of the range the step goes the other way.

    Args:
        prior: Its distribution.
        value: f32 scalar within it.
        up: Scalar bool: by the second factor, else by the first.
        factors: Below and above 1.

    Source: Jaderberg et al. 2017, arXiv:1711.09846 (the factors); the bound of a step is our choice.
    """
    value = jnp.asarray(value, jnp.float32)
    there, back = (_moved(prior, value, way, factors) for way in (up, ~jnp.asarray(up, bool)))
    return jnp.where(there == value, back, there)


def _moved(prior: Prior, value: types.Scalar, up: types.Scalar, factors: tuple[float, float]) -> types.Scalar:
    if prior.kind == "choice":
        values = jnp.asarray(prior.values, jnp.float32)
        at = jnp.argmin(jnp.abs(values - value)) + jnp.where(up, 1, -1)
        return values[jnp.clip(at, 0, len(prior.values) - 1)]
    factor = jnp.where(up, factors[1], factors[0])
    if prior.kind == "log_uniform":
        most = STEP * (math.log(prior.high) - math.log(prior.low))
        return _within(prior, value * jnp.exp(jnp.clip(jnp.log(factor), -most, most)))
    span, step = prior.high - prior.low, jnp.abs(value * (factor - 1.0))
    if prior.kind == "integer":
        step = jnp.maximum(jnp.round(jnp.minimum(step, STEP * span)), 1.0)
        return _within(prior, jnp.round(value) + jnp.where(up, step, -step))
    step = jnp.clip(step, LEAST * span, STEP * span)
    return _within(prior, value + jnp.where(up, step, -step))


def _within(prior: Prior, value: types.Scalar) -> types.Scalar:
    return jnp.clip(value, jnp.float32(prior.low), jnp.float32(prior.high))
