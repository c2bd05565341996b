"""IcePop, for state values: steps are weighed by π/μ, and rejected where it is out of bounds.

Source: PrimeIntellect-ai/prime-rl, `trainer/rl/loss.py` (bounds 0.5 and 5).
"""

from __future__ import annotations

import dataclasses

from shoal.core import options, types
from shoal.correct import _weights


@dataclasses.dataclass(frozen=True)
class Config(_weights.Reject):
    """λ-returns, steps weighed by a ratio that must be within bounds."""

    lambda_: float = options.number(1.0, low=0.0, high=1.0)
    """1: the longest return available; lower trades variance for bias (GAE)."""
    low: float = options.number(0.5, low=0.0)
    """The smallest ratio that is not rejected."""
    high: float = options.number(5.0, low=0.0)
    """The largest ratio that is not rejected."""


def build(config: Config) -> types.Corrector:
    """The corrector."""
    return _weights.alone(config, _weights.How(weight="icepop", reject=config.reject))
