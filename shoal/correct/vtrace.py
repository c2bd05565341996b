"""V-trace, for state values: targets of the learner's policy from experience of an older one, by truncated ratios.

Source: Espeholt et al. 2018, arXiv:1802.01561, equation 1; its bounds and lambda as in section 4.1. What is learned is
the value of the policy proportional to min(ρ̄ μ, π).
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
    """V-trace."""

    lambda_: float = options.number(1.0, low=0.0, high=1.0)
    """Trace decay."""
    clip: float = options.number(1.0, low=0.0)
    """Upper bound of the importance weights in the temporal differences (rho-bar)."""
    c_bar: float = options.number(1.0, low=0.0, new=True)
    """Upper bound of the importance weights in the traces (c-bar)."""
    rho_pg: float = options.number(0.0, low=0.0, new=True)
    """Upper bound of the importance weights of the policy gradient; 0: that of clip."""


class Hyper(NamedTuple):
    """Numbers that may change; f32 scalars."""

    lambda_: Any
    clip: Any
    c_bar: Any
    rho_pg: Any
    axes: Mapping[str, Any]  # `_weights.numbers`


def build(config: Config) -> types.Corrector:
    """The corrector."""
    _weights.check_cap("clip", config.clip)
    how = _weights.How(config.weight, config.reject)
    hyper = Hyper(
        lambda_=np.float32(config.lambda_),
        clip=np.float32(config.clip),
        c_bar=np.float32(config.c_bar),
        rho_pg=np.float32(config.rho_pg or config.clip),
        axes=_weights.numbers(config, how),
    )
    return types.Corrector(
        hyper=hyper,
        of="v",
        needs_mu=True,
        correct=functools.partial(correct, how),
        weighs=how != _weights.How(),
        densities=how.reject != "dppo_tv",
        bounds=_weights.bounds(config, how)._replace(clip=config.clip),
    )


def correct(how: _weights.How, hyper: Hyper, steps: types.Steps) -> types.Corrected:
    """See `types.Corrector`; a weight takes the place of the policy gradient's ratio, which would count twice."""
    ratio = jnp.exp(importance.log_ratio(steps.log_pi, steps.log_mu))
    rho, trace = jnp.minimum(hyper.clip, ratio), jnp.minimum(hyper.c_bar, ratio)
    along = steps.reward, steps.discount, steps.cut, steps.value, steps.next_value
    target, error = returns.vtrace(rho, trace, *along, hyper.lambda_)
    advantage = jnp.minimum(hyper.rho_pg, ratio) * error if how.weight == "none" else error
    weighed = _weights.weigh(how, hyper.axes, steps, advantage)
    told = {**weighed.told, "clip_fraction": (ratio > hyper.clip).astype(ratio.dtype)}
    return types.Corrected(target=target, advantage=weighed.advantage, weight=weighed.weight, told=told)
