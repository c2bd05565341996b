"""Truncated importance sampling, for state values: the losses of a step are weighed by min(C, π/μ).

λ-returns as they are; only how much each step counts is corrected, so what a rollout is worth stays that of the policy
that acted.

Source: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training", `yaof20/Flash-RL`
(C = 2 and C = 8); Ionides 2008, "Truncated importance sampling".
"""

from __future__ import annotations

import dataclasses

from shoal.core import options, types
from shoal.correct import _weights


@dataclasses.dataclass(frozen=True)
class Config(_weights.Reject):
    """λ-returns, steps weighed by a truncated ratio."""

    lambda_: float = options.number(1.0, low=0.0, high=1.0)
    """1: the longest return available; lower trades variance for bias (GAE)."""
    cap: float = options.number(2.0, low=0.0)
    """The largest weight (C)."""


def build(config: Config) -> types.Corrector:
    """The corrector."""
    return _weights.alone(config, _weights.How(weight="tis", reject=config.reject))
