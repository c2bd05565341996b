"""Rejected segments, for state values: where the geometric mean of their π/μ is out of bounds.

Unlike a product it does not grow with the length of a segment, which is what lies between two cuts of a rollout.

Source: verl, `docs/algo/rollout_corr.md` (bounds 0.999 and 1.001).
"""

from __future__ import annotations

import dataclasses

from shoal.core import options, types
from shoal.correct import _weights


@dataclasses.dataclass(frozen=True)
class Config(_weights.Weight):
    """λ-returns, segments rejected by the geometric mean of their ratios."""

    lambda_: float = options.number(1.0, low=0.0, high=1.0)
    """1: the longest return available; lower trades variance for bias (GAE)."""
    mean_low: float = options.number(0.999, low=0.0)
    """The smallest geometric mean of a segment's ratios."""
    mean_high: float = options.number(1.001, low=0.0)
    """The largest geometric mean of a segment's ratios."""


def build(config: Config) -> types.Corrector:
    """The corrector."""
    return _weights.alone(config, _weights.How(weight=config.weight, reject="geo_rs"))
