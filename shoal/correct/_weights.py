"""What a corrector that looks at μ may do to single steps, on two independent axes: weigh them, and reject them.

With ρ = π(a|x) / μ(a|x) and log ρ brought to ±20 first (`importance.log_ratio`):

* weight ``tis``: min(C, ρ); ``icepop``: ρ inside [low, high], else 0.
* reject ``seq_mis``, ``geo_rs``: all steps of a segment whose product, or geometric mean, of ρ is out of bounds, a
  segment being what lies between two cuts; ``dppo_tv``: a step that moves an action whose probability is already off by
  more than a threshold further away; ``m2po``: the steps of largest (log ρ)² until its mean is within a bound.

A rejected step has the weight 0, and leaves the denominator of the loss (`types.Corrected`).

Source: tis: Yao et al. 2025, `yaof20/Flash-RL`; icepop, dppo_tv: PrimeIntellect-ai/prime-rl, `trainer/rl/loss.py`;
seq_mis, geo_rs: verl, `docs/algo/rollout_corr.md`; m2po: Zheng et al. 2025, arXiv:2510.01161.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from etils import epy

from shoal.core import errors, options, types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np

    from shoal.formulas import importance, returns


@dataclasses.dataclass(frozen=True)
class Weight:
    """The first axis, as settings."""

    weight: Literal["none", "tis", "icepop"] = options.later("none")
    """What the losses of a step are multiplied by; none: 1, tis: min(cap, ratio), icepop: the ratio within bounds."""
    cap: float = options.number(2.0, low=0.0, new=True)
    """Weight tis: the largest weight (C)."""
    low: float = options.number(0.5, low=0.0, new=True)
    """Weight icepop: the smallest ratio that is not rejected."""
    high: float = options.number(5.0, low=0.0, new=True)
    """Weight icepop: the largest ratio that is not rejected."""


@dataclasses.dataclass(frozen=True)
class Reject:
    """The second axis, as settings."""

    reject: Literal["none", "seq_mis", "geo_rs", "dppo_tv", "m2po"] = options.later("none")
    """Which steps are left out of the loss, besides."""
    product_low: float = options.number(0.5, low=0.0, new=True)
    """Reject seq_mis: the smallest product of a segment's ratios."""
    product_high: float = options.number(2.0, low=0.0, new=True)
    """Reject seq_mis: the largest product of a segment's ratios."""
    mean_low: float = options.number(0.999, low=0.0, new=True)
    """Reject geo_rs: the smallest geometric mean of a segment's ratios."""
    mean_high: float = options.number(1.001, low=0.0, new=True)
    """Reject geo_rs: the largest geometric mean of a segment's ratios."""
    shift: float = options.number(0.2, low=0.0, new=True)
    """Reject dppo_tv: how far the probability of an action may be off where it is to be moved further."""
    penalty: float = options.number(1e-3, low=0.0, new=True)
    """Reject dppo_tv: weight of (log ratio)^2 in the policy's loss."""
    moment: float = options.number(0.04, low=0.0, new=True)
    """Reject m2po: the largest mean of (log ratio)^2 over the steps of a stream that are kept."""


class How(NamedTuple):
    """What is chosen of the two axes; fixed."""

    weight: str = "none"
    reject: str = "none"


class Judged(NamedTuple):
    """What one axis makes of a stream ``[T]``."""

    weight: Any  # f32
    low: Any  # bool: rejected, since π makes the action too unlikely beside μ
    high: Any  # bool: rejected, since it makes it too likely


class Weighed(NamedTuple):
    """What both make of it."""

    weight: Any  # f32, 0: rejected
    advantage: Any  # f32, with what a rule adds to the policy's loss
    told: types.Metrics


NUMBERS = {  # of which settings an axis makes something
    "tis": ("cap",),
    "icepop": ("low", "high"),
    "seq_mis": ("product_low", "product_high"),
    "geo_rs": ("mean_low", "mean_high"),
    "dppo_tv": ("shift", "penalty"),
    "m2po": ("moment",),
}


def numbers(config: Any, how: How) -> Mapping[str, Any]:
    """The numbers that are in force, f32 scalars by the names of their settings.

    Args:
        config: Of the corrector; it has the settings of what is chosen.
        how: What is chosen.

    Raises:
        Refused: A lower bound is above its upper one.
    """
    names = (*NUMBERS.get(how.weight, ()), *NUMBERS.get(how.reject, ()))
    found = {name: vars(config)[name] for name in names}
    for low, high in (NUMBERS["icepop"], NUMBERS["seq_mis"], NUMBERS["geo_rs"]):
        if low in found and found[low] > found[high]:
            raise errors.Refused(
                f"corrector.{low}={found[low]:g} is above corrector.{high}={found[high]:g}, so nothing would be kept; "
                "lower the one or raise the other"
            )
    if "cap" in found:
        check_cap("cap", found["cap"])
    return {name: np.float32(value) for name, value in found.items()}


def check_cap(name: str, value: float) -> None:
    """Refuse an upper bound of the weights that leaves none.

    Args:
        name: Of the setting.
        value: Its value, at least 0.

    Raises:
        Refused: It is 0.
    """
    if value == 0.0:
        raise errors.Refused(f"corrector.{name}=0 makes every weight 0, so nothing would be learned; give more, e.g. 1")


def bounds(config: Any, how: How) -> types.Bounds:
    """What the first axis does to single weights; rejections of the second look at more than one.

    Args:
        config: Of the corrector.
        how: What is chosen.
    """
    if how.weight == "tis":
        return types.Bounds(clip=config.cap)
    return types.Bounds(low=config.low, high=config.high) if how.weight == "icepop" else types.Bounds()


def weigh(how: How, given: Mapping[str, Any], steps: types.Steps, advantage: Any) -> Weighed:
    """Weights of the steps of one stream.

    Args:
        how: What is chosen.
        given: `numbers`.
        steps: The stream ``[T]``.
        advantage: ``[T]``, by the signs of which dppo_tv rejects.
    """
    if how == How():
        return Weighed(jnp.ones_like(advantage), advantage, {})
    log_rho = importance.log_ratio(steps.log_pi, steps.log_mu)
    one, never = jnp.ones_like(log_rho), jnp.zeros_like(log_rho, dtype=bool)
    first, second = Judged(one, never, never), Judged(one, never, never)
    told: dict[str, Any] = {}
    if how.weight == "tis":
        rho = jnp.exp(log_rho)
        first = Judged(jnp.minimum(given["cap"], rho), never, never)
        told["clip_fraction"] = rho > given["cap"]
    elif how.weight == "icepop":
        rho = jnp.exp(log_rho)
        first = Judged(rho, rho < given["low"], rho > given["high"])
    if how.reject != "none":
        low, high = REJECTIONS[how.reject](given, log_rho, steps, advantage)
        second = Judged(one, low, high)
    if how.reject == "dppo_tv":  # the gradient of β (log π - log μ)² by log π is 2 β log ρ
        advantage = advantage - 2.0 * given["penalty"] * log_rho
    low, high = first.low | second.low, first.high | second.high
    if how != How(weight="tis"):
        told |= {"rejected_low": low, "rejected_high": high}
    weight = jnp.where(low | high, 0.0, first.weight * second.weight)
    return Weighed(weight, advantage, {name: flags.astype(weight.dtype) for name, flags in told.items()})


# ------------------------------------------------------------------------------------------------ rejections
# (numbers, log ρ, steps, advantage) -> (too low, too high), bool [T]


def _seq_mis(given: Mapping[str, Any], log_rho: Any, steps: types.Steps, advantage: Any) -> tuple[Any, Any]:
    del advantage
    total, _ = _segments(log_rho, steps.cut)
    return total < jnp.log(given["product_low"]), total > jnp.log(given["product_high"])


def _geo_rs(given: Mapping[str, Any], log_rho: Any, steps: types.Steps, advantage: Any) -> tuple[Any, Any]:
    del advantage
    total, length = _segments(log_rho, steps.cut)
    mean = total / length
    return mean < jnp.log(given["mean_low"]), mean > jnp.log(given["mean_high"])


def _dppo_tv(given: Mapping[str, Any], log_rho: Any, steps: types.Steps, advantage: Any) -> tuple[Any, Any]:
    del log_rho
    moved = jnp.exp(steps.log_pi) - jnp.exp(steps.log_mu)
    return (moved < -given["shift"]) & (advantage < 0), (moved > given["shift"]) & (advantage > 0)


def _m2po(given: Mapping[str, Any], log_rho: Any, steps: types.Steps, advantage: Any) -> tuple[Any, Any]:
    del advantage
    square = log_rho * log_rho
    if not isinstance(steps.counts, tuple):
        square = jnp.where(steps.counts, square, jnp.inf)  # padding comes last, and is no part of any mean before it
    order = jnp.argsort(square)
    means = jnp.cumsum(square[order]) / jnp.arange(1, len(square) + 1).astype(square.dtype)  # they only grow
    dropped = jnp.zeros_like(square, dtype=bool).at[order].set(means > given["moment"])
    return dropped & (log_rho < 0), dropped & (log_rho >= 0)


REJECTIONS = {"seq_mis": _seq_mis, "geo_rs": _geo_rs, "dppo_tv": _dppo_tv, "m2po": _m2po}


def _segments(each: Any, cut: Any) -> tuple[Any, Any]:
    """For every step of a stream, the sum over the steps of its segment, and how many they are; f32 ``[T]``."""
    segment = jnp.cumsum(jnp.append(False, cut[:-1]).astype(jnp.int32))  # a step after a cut begins the next one
    add = functools.partial(jax.ops.segment_sum, segment_ids=segment, num_segments=len(each))
    return add(each)[segment], add(jnp.ones_like(each))[segment]


# ------------------------------------------------------------------------------------------------ an axis alone


class Hyper(NamedTuple):
    """Numbers that may change; f32 scalars."""

    lambda_: Any
    axes: Mapping[str, Any]  # `numbers`


def alone(config: Any, how: How) -> types.Corrector:
    """Lambda-returns as of `correct/none.py`, whose steps are weighed or rejected: nothing else looks at μ.

    Args:
        config: Of the corrector: ``lambda_``, and the settings of what is chosen.
        how: What is chosen.
    """
    hyper = Hyper(lambda_=np.float32(config.lambda_), axes=numbers(config, how))
    correct = functools.partial(_alone, how)
    densities = how.reject != "dppo_tv"
    return types.Corrector(
        hyper=hyper,
        of="v",
        needs_mu=True,
        correct=correct,
        weighs=True,
        densities=densities,
        bounds=bounds(config, how),
    )


def _alone(how: How, hyper: Hyper, steps: types.Steps) -> types.Corrected:
    target = returns.lambda_returns(steps.reward, steps.discount, steps.cut, steps.next_value, hyper.lambda_)
    weighed = weigh(how, hyper.axes, steps, target - steps.value)
    return types.Corrected(target, weighed.advantage, weighed.weight, weighed.told)
