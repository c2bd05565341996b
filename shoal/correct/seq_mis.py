"""Masked sequences, for state values: a segment is rejected where the product of its π/μ is out of bounds.

A segment is what lies between two cuts of a rollout: an episode, or as much of it as the rollout holds.

Source: verl, `docs/algo/rollout_corr.md` (bounds 0.5 and 2).
"""

from __future__ import annotations

import dataclasses

from shoal.core import options, types
from shoal.correct import _weights


@dataclasses.dataclass(frozen=True)
class Config(_weights.Weight):
    """λ-returns, segments rejected by the product of their ratios."""

    lambda_: float = options.number(1.0, low=0.0, high=1.0)
    """1: the longest return available; lower trades variance for bias (GAE)."""
    product_low: float = options.number(0.5, low=0.0)
    """The smallest product of a segment's ratios."""
    product_high: float = options.number(2.0, low=0.0)
    """The largest product of a segment's ratios."""


def build(config: Config) -> types.Corrector:
    """The corrector."""
    return _weights.alone(config, _weights.How(weight=config.weight, reject="seq_mis"))
