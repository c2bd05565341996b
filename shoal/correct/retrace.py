"""Retrace(λ), for action values: what follows counts as far as the learner's policy would have acted so.

Traces are λ min(1, π/μ): safe for any μ, and not cut where μ is close.

Source: Munos et al. 2016, arXiv:1606.02647, equations 3 and 4.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epy

from shoal.core import options, types
from shoal.correct import _weights

with epy.lazy_imports():
    import jax.numpy as jnp
    import numpy as np

    from shoal.formulas import importance, returns


@dataclasses.dataclass(frozen=True)
class Config(_weights.Weight, _weights.Reject):
    """Retrace."""

    lambda_: float = options.number(1.0, low=0.0, high=1.0)
    """Trace decay."""


class Hyper(NamedTuple):
    """Numbers that may change; f32 scalars."""

    lambda_: Any
    axes: Mapping[str, Any]  # `_weights.numbers`


def build(config: Config) -> types.Corrector:
    """The corrector."""
    how = _weights.How(config.weight, config.reject)
    return types.Corrector(
        hyper=Hyper(lambda_=np.float32(config.lambda_), axes=_weights.numbers(config, how)),
        of="q",
        needs_mu=True,
        correct=functools.partial(correct, how),
        weighs=how != _weights.How(),
        densities=how.reject != "dppo_tv",
        bounds=_weights.bounds(config, how)._replace(clip=1.0),
    )


def correct(how: _weights.How, hyper: Hyper, steps: types.Steps) -> types.Corrected:
    """See `types.Corrector`."""
    rho = jnp.exp(importance.log_ratio(steps.log_pi, steps.log_mu))
    along = steps.reward, steps.discount, steps.cut, steps.value, steps.next_value
    target = returns.action_values(hyper.lambda_ * jnp.minimum(1.0, rho), *along)
    weighed = _weights.weigh(how, hyper.axes, steps, target - steps.value)
    told = {**weighed.told, "clip_fraction": (rho > 1.0).astype(rho.dtype)}
    return types.Corrected(target=target, advantage=weighed.advantage, weight=weighed.weight, told=told)
