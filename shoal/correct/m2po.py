"""M2PO's mask, for state values: the steps of largest (log π/μ)² are rejected until its mean is within τ.

The mean is over the kept steps of one stream of a rollout; the paper's is over a batch of sequences.

Source: Zheng et al. 2025, "Prosperity before Collapse", arXiv:2510.01161; AReaL, `docs/algorithms/m2po.md`.
"""

from __future__ import annotations

import dataclasses

from shoal.core import options, types
from shoal.correct import _weights


@dataclasses.dataclass(frozen=True)
class Config(_weights.Weight):
    """λ-returns, steps rejected until the second moment of log ratios is small."""

    lambda_: float = options.number(1.0, low=0.0, high=1.0)
    """1: the longest return available; lower trades variance for bias (GAE)."""
    moment: float = options.number(0.04, low=0.0)
    """The largest mean of (log ratio)^2 over the steps of a stream that are kept (tau)."""


def build(config: Config) -> types.Corrector:
    """The corrector."""
    return _weights.alone(config, _weights.How(weight=config.weight, reject="m2po"))
