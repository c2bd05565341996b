"""Importance ratios between the policy that learns and the one that acted, and what they tell of a batch."""

from __future__ import annotations

import functools
from typing import Any

from etils import epy

from shoal.core import types

with epy.lazy_imports():
    import jax.numpy as jnp

    from shoal.formulas import losses

LIMIT = 20.0  # of log ρ: ρ between 2e-9 and 5e8, whose square float32 still holds


def log_ratio(log_pi: Any, log_mu: Any) -> Any:
    """Log ρ = log π(a|x) - log μ(a|x), brought to ±`LIMIT` before anything is made of it.

    Source: verl, `docs/algo/rollout_corr.md`, which clamps there as well.
    """
    return jnp.clip(log_pi - log_mu, -LIMIT, LIMIT)


def effective(rho: Any, counts: Any = ()) -> Any:
    """Effective sample size as a share of the samples: (Σ ρ)² / (n Σ ρ²), in (0, 1].

    Args:
        rho: Weights of any shape, not all 0.
        counts: Which of them count (`losses.counted`); (): all.

    Source: Kong 1992, "A note on importance sampling using standardized weights".
    """
    return losses.mean(rho, counts) ** 2 / losses.mean(rho * rho, counts)


def ratios(log_pi: Any, log_mu: Any, counts: Any = ()) -> types.Metrics:
    """What a batch's ratios ``[T, B]`` tell: how far apart the two policies are, and what is left of the samples.

    Args:
        log_pi: Log π(a|x) of the policy that learns.
        log_mu: Log μ(a|x) of the policy that acted.
        counts: Which steps count (`losses.counted`); (): all.

    Returns:
        ``ess`` (`effective`); ``weight_mean``, mean ρ; ``chi2``, mean ρ² - 1; ``log_rho``, ``log_rho_std`` and
        ``log_rho_max`` of log ρ; ``dlogp``, mean of abs(log ρ); ``dlogp_exp``, of its exp. f32 scalars.
    """
    mean = functools.partial(losses.mean, counts=counts)
    log_rho = log_ratio(log_pi, log_mu)
    rho, size, middle = jnp.exp(log_rho), jnp.abs(log_rho), mean(log_rho)
    there = log_rho if isinstance(counts, tuple) else jnp.where(counts, log_rho, -LIMIT)
    return {
        "ess": effective(rho, counts),
        "weight_mean": mean(rho),
        "chi2": mean(rho * rho) - 1.0,
        "log_rho": middle,
        "log_rho_std": jnp.sqrt(mean((log_rho - middle) ** 2)),
        "log_rho_max": there.max(),
        "dlogp": mean(size),
        "dlogp_exp": mean(jnp.exp(size)),
    }


def told(corrector: types.Corrector, steps: types.Steps, corrected: types.Corrected) -> types.Metrics:
    """What a corrected batch ``[T, B]`` tells: the corrector's own, rejected steps included, and the `ratios`.

    Args:
        corrector: What corrected it; one that does not look at μ tells nothing of ratios.
        steps: What it saw.
        corrected: What it made of that.
    """
    own = {name: losses.mean(values, steps.counts) for name, values in corrected.told.items()}
    return {**ratios(steps.log_pi, steps.log_mu, steps.counts), **own} if corrector.needs_mu else own
