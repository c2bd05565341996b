"""Epsilon of Gaussian mechanisms, by Rényi accounting or by the privacy loss distribution: dp-accounting's.

Mironov 2017, arXiv:1702.07476; Koskela et al. 2020, arXiv:1906.03049. Nothing is claimed for sampling (q = 1).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import ModuleType

from shoal.core import errors


def epsilon(multipliers: Mapping[float, int], delta: float, *, by: str = "rdp") -> float:
    """Of several Gaussian mechanisms on the same data.

    Args:
        multipliers: Noise multiplier at sensitivity 1 -> how many releases.
        delta: Of (epsilon, delta).
        by: "rdp" (an upper bound, quick) or "pld" (tight).
    """
    return _of(tuple(sorted(multipliers.items())), delta, by)


@functools.lru_cache(maxsize=4096)  # parties in lock-step have spent the same
def _of(spent: tuple[tuple[float, int], ...], delta: float, by: str) -> float:
    if not spent:
        return 0.0
    library = _library()
    accountant = library.rdp.RdpAccountant() if by == "rdp" else library.pld.PLDAccountant()
    for multiplier, times in spent:
        accountant.compose(library.GaussianDpEvent(multiplier), times)
    return float(accountant.get_epsilon(delta))


def _library() -> ModuleType:
    """dp-accounting, imported when it is needed (the extra `federated`)."""
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError as missing:
        raise errors.Refused(
            "noise needs a ledger, and the ledger dp-accounting; install the extra: pip install 'shoal-rl[federated]'"
        ) from missing
    return dp_accounting
