"""Tree-backup(λ), for action values: traces by how probable the action is to the learner's policy; μ is not asked.

For actors whose policy has no probabilities to tell, such as a greedy one. With a greedy policy to learn the trace is λ
where the action is the greedy one and 0 elsewhere: Watkins' Q(λ).

Source: Precup, Sutton and Singh 2000, "Eligibility Traces for Off-Policy Policy Evaluation", section 4; as a trace:
Munos et al. 2016, arXiv:1606.02647, section 2.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from etils import epy

from shoal.core import options, types

with epy.lazy_imports():
    import jax.numpy as jnp
    import numpy as np

    from shoal.formulas import returns


@dataclasses.dataclass(frozen=True)
class Config:
    """Tree-backup."""

    lambda_: float = options.number(1.0, low=0.0, high=1.0)
    """Trace decay."""


class Hyper(NamedTuple):
    """Numbers that may change; f32 scalars."""

    lambda_: Any


def build(config: Config) -> types.Corrector:
    """The corrector."""
    return types.Corrector(hyper=Hyper(lambda_=np.float32(config.lambda_)), of="q", needs_mu=False, correct=correct)


def correct(hyper: Hyper, steps: types.Steps) -> types.Corrected:
    """See `types.Corrector`."""
    trace = hyper.lambda_ * jnp.exp(steps.log_pi)
    along = steps.reward, steps.discount, steps.cut, steps.value, steps.next_value
    target = returns.action_values(trace, *along)
    return types.Corrected(target=target, advantage=target - steps.value, weight=jnp.ones_like(target), told={})
