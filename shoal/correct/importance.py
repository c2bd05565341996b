"""Per-decision importance sampling, for state values: unbiased, and of unbounded variance.

With a control variate it is V-trace without bounds: every temporal difference is weighed by the product of the ratios
up to it. Plain, every reward is. Truncated importance sampling, which leaves returns as they are and weighs the losses,
is the corrector `tis`, and a weight of this one.

Source: Precup, Sutton and Singh 2000, "Eligibility Traces for Off-Policy Policy Evaluation", section 3; the control
variate: Thomas and Brunskill 2016, arXiv:1604.00923.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from etils import epy

from shoal.core import options, types
from shoal.correct import _weights

with epy.lazy_imports():
    import jax.numpy as jnp
    import numpy as np

    from shoal.formulas import importance, returns


@dataclasses.dataclass(frozen=True)
class Config(_weights.Weight, _weights.Reject):
    """Per-decision importance sampling."""

    form: Literal["control_variate", "plain"] = "control_variate"
    """Whether temporal differences are weighed, which varies less, or rewards."""
    lambda_: float = options.number(1.0, low=0.0, high=1.0)
    """Trace decay; 1 is without bias."""


class Hyper(NamedTuple):
    """Numbers that may change; f32 scalars."""

    lambda_: Any
    axes: Mapping[str, Any]  # `_weights.numbers`


def build(config: Config) -> types.Corrector:
    """The corrector."""
    how = _weights.How(config.weight, config.reject)
    return types.Corrector(
        hyper=Hyper(lambda_=np.float32(config.lambda_), axes=_weights.numbers(config, how)),
        of="v",
        needs_mu=True,
        correct=functools.partial(correct, config.form, how),
        weighs=how != _weights.How(),
        densities=how.reject != "dppo_tv",
        bounds=_weights.bounds(config, how),
    )


def correct(form: str, how: _weights.How, hyper: Hyper, steps: types.Steps) -> types.Corrected:
    """See `types.Corrector`; a weight takes the place of the policy gradient's ratio, which would count twice."""
    rho = jnp.exp(importance.log_ratio(steps.log_pi, steps.log_mu))
    along = steps.reward, steps.discount, steps.cut, steps.value, steps.next_value
    if form == "plain":
        target, error = returns.per_decision(rho, *along, hyper.lambda_)
    else:
        target, error = returns.vtrace(rho, rho, *along, hyper.lambda_)
    weighed = _weights.weigh(how, hyper.axes, steps, rho * error if how.weight == "none" else error)
    return types.Corrected(target, weighed.advantage, weighed.weight, weighed.told)
