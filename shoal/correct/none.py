"""No correction: lambda-returns, right when the policy that acted is the one that learns.

Source: Mnih et al. 2016, arXiv:1602.01783 (lambda = 1: the n-step returns of A3C); Schulman et al. 2016,
arXiv:1506.02438 (lambda < 1: generalised advantage estimation).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from etils import epy

from shoal import options, types

with epy.lazy_imports():
    from shoal import returns


@dataclasses.dataclass(frozen=True)
class Config:
    """Lambda-returns."""

    lambda_: float = options.number(1.0, low=0.0, high=1.0)
    """1: the longest return available (A3C); lower trades variance for bias (GAE)."""


def build(config: Config) -> types.Corrector:
    """The corrector as a function of one stream ``[T]``."""

    def correct(log_rho: Any, reward: Any, discount: Any, cut: Any, value: Any, next_value: Any) -> types.Corrected:
        del log_rho
        target = returns.lambda_returns(reward, discount, cut, next_value, config.lambda_)
        return types.Corrected(target, target - value)

    return correct
