"""How far the policy that acted (mu) is from the one that learns, split into what compression and what waiting did.

With v the version that acted and pi_v its full-precision snapshot, log mu/pi_now = log mu/pi_v + log pi_v/pi_now: the
first part is compression, the second staleness. NumPy only, so that any process can measure; probabilities are natural
logarithms, divergences nats, versions count updates of the learner.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from etils import epy

from shoal.core import types

with epy.lazy_imports():
    import numpy as np

LARGEST = 20.0  # log weights are clamped to so much either way before they are exponentiated
NEAR = 0.1  # of continuous actions in [-1, 1]: 5 % of the range apart counts as equal

# Thresholds of the alarms, those of verl (docs/algo/rollout_corr.md).
ESS_LOW, CHI2_HIGH, DLOGP_HIGH = 0.3, 1.0, 1.05
WEIGHT = (0.5, 2.0)


# ------------------------------------------------------------------------------------------------ formulas


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of the probabilities of logits ``[..., n]``; masked ones may be -inf."""
    shifted = logits - np.max(logits, axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def kl_categorical(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p || q) of choices, exact.

    Args:
        p: Logits ``[..., n]``; -inf: never chosen.
        q: Likewise.

    Returns:
        ``[...]`` nats; infinite where p chooses what q never does.
    """
    log_p, log_q = log_softmax(np.asarray(p, np.float64)), log_softmax(np.asarray(q, np.float64))
    chosen = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        return np.sum(np.where(chosen > 0, chosen * (log_p - log_q), 0.0), axis=-1)


def kl_gaussian(p: tuple[np.ndarray, np.ndarray], q: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """KL(p || q) of Gaussians with independent dimensions, exact; squashing both by one function changes nothing.

    Args:
        p: Means and standard deviations, ``[..., d]`` each.
        q: Likewise.

    Returns:
        ``[...]`` nats.
    """
    (mean_p, std_p), (mean_q, std_q) = ([np.asarray(part, np.float64) for part in one] for one in (p, q))
    apart = (std_p**2 + (mean_p - mean_q) ** 2) / (2 * std_q**2)
    return np.sum(np.log(std_q / std_p) + apart - 0.5, axis=-1)


def kl_k3(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """Estimates ``[n]`` of KL(p || q) from samples of p: r - 1 - log r with r = q/p; never negative, little variance.

    Source: Schulman 2020, Approximating KL Divergence (the estimator k3).
    """
    log_r = np.clip(np.asarray(log_q, np.float64) - np.asarray(log_p, np.float64), -LARGEST, LARGEST)
    return np.expm1(log_r) - log_r


def weights(log_rho: np.ndarray) -> np.ndarray:
    """Importance weights rho ``[n]`` = pi/mu of their logarithms, which are clamped to `LARGEST`."""
    return np.exp(np.clip(np.asarray(log_rho, np.float64), -LARGEST, LARGEST))


def ess(weights: np.ndarray) -> float | None:
    """Effective sample size as a share: (sum w)^2 / (n sum w^2), in (0, 1]; None of nothing, or of zeros only."""
    w = np.asarray(weights, np.float64)
    return _ess(w.size, float(w.sum()), float(np.square(w).sum()))


def action_agreement(packed: np.ndarray, full: np.ndarray, near: float | None = None) -> float | None:
    """Share of observations on which two policies prefer the same action; None without observations.

    Args:
        packed: Outputs ``[n, actions]`` of the compressed policy: logits or values of choices, or (`near`) the actions.
        full: Outputs of the full-precision policy of the same version, on the same observations.
        near: None compares the best choice; else continuous actions agree if no component is further apart than this
            (`NEAR` where actions lie in [-1, 1]).
    """
    ours, theirs = np.asarray(packed), np.asarray(full)
    if not len(ours):
        return None
    if near is None:
        return float(np.mean(np.argmax(ours, axis=-1) == np.argmax(theirs, axis=-1)))
    return float(np.mean(np.all(np.abs(ours - theirs) <= near, axis=-1)))


# ------------------------------------------------------------------------------------------------ what was measured


class Measured(NamedTuple):
    """The metrics of a number of steps; None where nothing was measured."""

    steps: int  # steps with a log-probability of the policy that acted
    split: int  # of them, steps whose version was still at hand in full precision
    kl_compression: float | None  # E_mu[log mu - log pi_v], nats
    kl_staleness: float | None  # E_mu[log pi_v - log pi_now]
    kl_total: float | None  # their sum; without any split, E_mu[log mu - log pi_now]
    kl_k3: float | None  # the other estimate of `kl_compression`
    ess: float | None  # in (0, 1]
    ess_corrected: float | None  # of the weights as the corrector takes them: clipped, 0 where it rejects
    chi2: float | None  # mean rho^2 - 1
    weight_mean: float | None  # mean rho; 1 in expectation
    clip_fraction: float | None  # share of steps with rho > clip
    rejected_low: float | None  # share of steps with rho < low
    rejected_high: float | None  # share of steps with rho > high
    log_rho_mean: float | None
    log_rho_std: float | None  # population deviation
    log_rho_max: float | None
    dlogp: float | None  # mean |log pi - log mu|
    dlogp_exp: float | None  # mean exp |log pi - log mu|
    action_agreement: float | None  # by observations
    non_finite: int  # steps left out because a log-probability was not finite

    def correction(self, name: str) -> dict[str, Any]:
        """The object `correction` of the summary of a run whose corrector has this name."""
        keys = (
            "kl_compression", "kl_staleness", "kl_total", "kl_k3", "ess", "ess_corrected", "clip_fraction",
            "weight_mean", "chi2", "dlogp", "rejected_low", "rejected_high",
        )  # fmt: skip
        every = self._asdict()
        return {
            "name": name,
            **{key: every[key] for key in keys},
            "log_rho": {"mean": self.log_rho_mean, "std": self.log_rho_std, "max": self.log_rho_max},
            "alarms": list(alarms(self)),
        }

    def metrics(self) -> dict[str, float | None]:
        """What a line of ``metrics.jsonl`` tells."""
        keys = ("kl_compression", "kl_staleness", "ess", "clip_fraction", "weight_mean", "chi2", "action_agreement")
        every = self._asdict()
        return {key: every[key] for key in keys}


def alarms(measured: Measured) -> tuple[str, ...]:
    """What is wrong with the weights, one text for each threshold that was crossed."""
    found = []
    if (share := measured.ess) is not None and share < ESS_LOW:
        found.append(f"effective sample size {share:.2g} is below {ESS_LOW:g}: a few steps carry the update")
    if (mean := measured.weight_mean) is not None and not WEIGHT[0] <= mean <= WEIGHT[1]:
        found.append(f"mean weight {mean:.3g} is outside {WEIGHT[0]:g} to {WEIGHT[1]:g}: log mu is not of what acted")
    if (chi2 := measured.chi2) is not None and chi2 > CHI2_HIGH:
        found.append(f"chi-square {chi2:.3g} is above {CHI2_HIGH:g}: the weights vary too much to correct with")
    if (apart := measured.dlogp_exp) is not None and apart > DLOGP_HIGH:
        found.append(f"mean exp |log pi - log mu| {apart:.3g} is above {DLOGP_HIGH:g}: the acting policy has drifted")
    return tuple(found)


class Sums(NamedTuple):
    """What `Measured` is made of; sums of two stretches, or of two processes, are added by `joined`."""

    steps: float = 0.0
    split: float = 0.0
    compression: float = 0.0
    staleness: float = 0.0
    k3: float = 0.0
    log_rho: float = 0.0
    log_rho_squared: float = 0.0
    rho: float = 0.0
    rho_squared: float = 0.0
    corrected: float = 0.0  # weights as the corrector takes them
    corrected_squared: float = 0.0
    clipped: float = 0.0
    low: float = 0.0
    high: float = 0.0
    apart: float = 0.0
    exp_apart: float = 0.0
    compared: float = 0.0  # observations
    agreed: float = 0.0
    non_finite: float = 0.0
    log_rho_max: float = -math.inf  # the one that is not added

    def joined(self, other: Sums) -> Sums:
        """Of both."""
        added = Sums._make(a + b for a, b in zip(self, other, strict=True))
        return added._replace(log_rho_max=max(self.log_rho_max, other.log_rho_max))

    def measured(self) -> Measured:
        """The metrics."""
        n, split = self.steps, self.split
        compression, staleness = _mean(self.compression, split), _mean(self.staleness, split)
        spread = None if not n else math.sqrt(max(self.log_rho_squared / n - (self.log_rho / n) ** 2, 0.0))
        squared = _mean(self.rho_squared, n)
        both = None if compression is None or staleness is None else compression + staleness
        return Measured(
            steps=int(n),
            split=int(split),
            kl_compression=compression,
            kl_staleness=staleness,
            kl_total=_mean(-self.log_rho, n) if both is None else both,
            kl_k3=_mean(self.k3, split),
            ess=_ess(n, self.rho, self.rho_squared),
            ess_corrected=_ess(n, self.corrected, self.corrected_squared),
            chi2=None if squared is None else squared - 1.0,
            weight_mean=_mean(self.rho, n),
            clip_fraction=_mean(self.clipped, n),
            rejected_low=_mean(self.low, n),
            rejected_high=_mean(self.high, n),
            log_rho_mean=_mean(self.log_rho, n),
            log_rho_std=spread,
            log_rho_max=self.log_rho_max if n else None,
            dlogp=_mean(self.apart, n),
            dlogp_exp=_mean(self.exp_apart, n),
            action_agreement=_mean(self.agreed, self.compared),
            non_finite=int(self.non_finite),
        )


USUAL = types.Bounds(clip=1.0)  # what is counted as clipped where the corrector does not look at rho: V-trace's


class Drift:
    """Accumulates: the whole run, and what came since it was last asked."""

    def __init__(self, bounds: types.Bounds | None = None) -> None:
        """Args: `bounds`, of the corrector in use; None: it does not look at rho."""
        self.bounds = bounds
        self.total = Sums()
        self._recent = Sums()

    def add(
        self,
        log_mu: np.ndarray,
        log_pi_now: np.ndarray,
        log_pi_v: np.ndarray | None = None,
        used: np.ndarray | None = None,
    ) -> None:
        """Counts steps.

        Args:
            log_mu: Of the actions taken, by the policy that acted: ``[...]``.
            log_pi_now: By the learner's policy of this moment.
            log_pi_v: By the full-precision snapshot of the version that acted; None where it is no longer at hand.
            used: Where False, a step is padding and not counted.
        """
        self._count(sums(log_mu, log_pi_now, log_pi_v, used, self.bounds))

    def compare(self, packed: np.ndarray, full: np.ndarray, near: float | None = None) -> None:
        """Counts observations on which two policies agree; see `action_agreement`."""
        share = action_agreement(packed, full, near)
        if share is not None:
            n = len(np.asarray(packed))
            self._count(Sums(compared=n, agreed=float(round(share * n))))

    def take(self) -> Measured:
        """The metrics of what came since the last call."""
        recent, self._recent = self._recent, Sums()
        return recent.measured()

    def measured(self) -> Measured:
        """The metrics of the whole run."""
        return self.total.measured()

    def _count(self, added: Sums) -> None:
        self.total, self._recent = self.total.joined(added), self._recent.joined(added)


def sums(
    log_mu: np.ndarray,
    log_pi_now: np.ndarray,
    log_pi_v: np.ndarray | None = None,
    used: np.ndarray | None = None,
    bounds: types.Bounds | None = None,
) -> Sums:
    """`Sums` of some steps; arguments as of `Drift.add`."""
    within = bounds or USUAL
    mu, now = (np.asarray(part, np.float64) for part in (log_mu, log_pi_now))
    counted = np.ones(mu.shape, bool) if used is None else np.asarray(used, bool)
    known = counted & np.isfinite(mu) & np.isfinite(now)
    split = None if log_pi_v is None else np.asarray(log_pi_v, np.float64)
    if split is not None:
        known &= np.isfinite(split)
    dropped = float(counted.sum() - known.sum())
    mu, now = mu[known], now[known]
    if not mu.size:
        return Sums(non_finite=dropped)
    parts = {}
    if split is not None:
        then = split[known]
        parts = {"split": float(mu.size), "compression": float((mu - then).sum())}
        parts |= {"staleness": float((then - now).sum()), "k3": float(kl_k3(mu, then).sum())}
    log_rho = now - mu
    rho, apart = weights(log_rho), np.abs(log_rho)
    taken = np.where((rho < within.low) | (rho > within.high), 0.0, np.minimum(rho, within.clip))
    taken = np.ones_like(rho) if bounds is None else taken
    return Sums(
        **parts,
        steps=float(mu.size),
        log_rho=float(log_rho.sum()),
        log_rho_squared=float(np.square(log_rho).sum()),
        rho=float(rho.sum()),
        rho_squared=float(np.square(rho).sum()),
        corrected=float(taken.sum()),
        corrected_squared=float(np.square(taken).sum()),
        clipped=float(np.count_nonzero(rho > within.clip)),
        low=float(np.count_nonzero(rho < within.low)),
        high=float(np.count_nonzero(rho > within.high)),
        apart=float(apart.sum()),
        exp_apart=float(weights(apart).sum()),
        non_finite=dropped,
        log_rho_max=float(log_rho.max()),
    )


def _mean(total: float, n: float) -> float | None:
    return total / n if n else None


def _ess(n: float, total: float, squared: float) -> float | None:
    return total**2 / (n * squared) if n and squared else None
