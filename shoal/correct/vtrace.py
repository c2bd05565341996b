"""V-trace: targets for the learner's policy from experience of an older one.

Source: Espeholt et al. 2018, arXiv:1802.01561, equation 1; clip and lambda as in its section 4.1.
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
    """V-trace."""

    lambda_: float = options.number(1.0, low=0.0, high=1.0)
    """Trace decay."""
    clip: float = options.number(1.0, low=0.0)
    """Upper bound of the importance weights in the temporal differences (rho-bar)."""


def build(config: Config) -> types.Corrector:
    """The corrector as a function of one stream ``[T]``."""

    def correct(log_rho: Any, reward: Any, discount: Any, cut: Any, value: Any, next_value: Any) -> types.Corrected:
        target, advantage = returns.vtrace(
            log_rho, reward, discount, cut, value, next_value, config.lambda_, config.clip
        )
        return types.Corrected(target, advantage)

    return correct
