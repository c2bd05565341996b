"""No correction, for every rule: lambda-returns, right when the policy that acted is the one that learns.

Source: Mnih et al. 2016, arXiv:1602.01783 (lambda = 1: the n-step returns of A3C); Schulman et al. 2016,
arXiv:1506.02438 (lambda < 1: generalised advantage estimation).
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
    """Lambda-returns."""

    lambda_: float = options.number(1.0, low=0.0, high=1.0)
    """1: the longest return available (A3C); lower trades variance for bias (GAE)."""


class Hyper(NamedTuple):
    """Numbers that may change; f32 scalars."""

    lambda_: Any


def build(config: Config) -> types.Corrector:
    """The corrector."""
    return types.Corrector(hyper=Hyper(lambda_=np.float32(config.lambda_)), of="v", needs_mu=False, correct=correct)


def correct(hyper: Hyper, steps: types.Steps) -> types.Corrected:
    """See `types.Corrector`."""
    target = returns.lambda_returns(steps.reward, steps.discount, steps.cut, steps.next_value, hyper.lambda_)
    return types.Corrected(target=target, advantage=target - steps.value, weight=jnp.ones_like(target), told={})
