"""DPPO's mask, for state values: a step is rejected where it moves a probability that is off further away.

Rejected are π - μ > δ with A > 0, and π - μ < -δ with A < 0; the policy's loss has β (log π - log μ)² besides, whose
gradient goes in as -2 β log ρ of the advantage. Probabilities of choices only: densities have no such threshold.

Source: PrimeIntellect-ai/prime-rl, `trainer/rl/loss.py` (δ = 0.2, β = 1e-3).
"""

from __future__ import annotations

import dataclasses

from shoal.core import options, types
from shoal.correct import _weights


@dataclasses.dataclass(frozen=True)
class Config(_weights.Weight):
    """λ-returns, steps rejected where a probability is off and would go further."""

    lambda_: float = options.number(1.0, low=0.0, high=1.0)
    """1: the longest return available; lower trades variance for bias (GAE)."""
    shift: float = options.number(0.2, low=0.0)
    """How far the probability of an action may be off where it is to be moved further."""
    penalty: float = options.number(1e-3, low=0.0)
    """Weight of (log ratio)^2 in the policy's loss."""


def build(config: Config) -> types.Corrector:
    """The corrector."""
    return _weights.alone(config, _weights.How(weight=config.weight, reject="dppo_tv"))
