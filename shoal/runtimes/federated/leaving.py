"""What happens to an update before it leaves its owner: the finite check, the clip, the ledger's line, the noise.

The norm is of the whole update, in float64, and taken after the finite check (``min(1, nan)`` is 1 in Python). Nothing
but NumPy is needed here, so a party's process can use it without JAX.

Sources: McMahan et al. 2018, arXiv:1710.06963 (the clip); Dwork and Roth 2014, appendix A (the Gaussian mechanism).
Float noise is not hardened against attacks on the last bits (arXiv:2307.03543).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from shoal.core import errors, seeds
from shoal.runtimes.federated import ledger as ledgers

SIMULATED = "simulated DP, no protection"  # how noise is told of that comes from the seed of the run
SMALLEST = 1e-12  # of a norm that is divided by


class Draws(Protocol):
    """Where noise comes from."""

    simulated: bool  # whether somebody who knows the run's seed could subtract it

    def normal(self, size: int, party: int, turn: int) -> np.ndarray:
        """Independent standard normal numbers, f64 ``[size]``.

        Args:
            size: How many.
            party: Whose release they are for.
            turn: Which release of that party, e.g. the number of the round.
        """
        ...


class Secure:
    """The system's secure source: what a deployment draws from. No two calls are alike, whatever they are for."""

    simulated = False

    def normal(self, size: int, party: int, turn: int) -> np.ndarray:
        """See `Draws`: Box and Muller 1958, from uniform numbers of 53 bits."""
        del party, turn
        pairs = (size + 1) // 2
        bits = np.frombuffer(os.urandom(16 * pairs), np.uint64).reshape(2, pairs)
        u, v = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # in (0, 1): the logarithm is finite
        radius, angle = np.sqrt(-2.0 * np.log(u)), 2.0 * np.pi * v
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size]


class Seeded:
    """Noise from the run's seed, for simulations: the same in a resumed run, and no protection."""

    simulated = True

    def __init__(self, seed: int) -> None:
        """Args: `seed`, of the run."""
        self._seed = seed

    def normal(self, size: int, party: int, turn: int) -> np.ndarray:
        """See `Draws`."""
        # Twice 32 bits: over the releases of a long run one seed of 32 bits would be met again.
        words = [seeds.derive(self._seed, "noise", party, turn, half) for half in range(2)]
        return np.random.Generator(np.random.Philox(words[0] << 32 | words[1])).standard_normal(size)


class Settings(NamedTuple):
    """What is done to updates, and what is claimed for it."""

    clip: float = 0.0  # C, of the norm of the whole update; 0: it leaves as it is
    noise: float = 0.0  # z: the standard deviation is z C; 0: none
    unit: str = ledgers.PARTY  # what epsilon is of (`ledger.RELATIONS`)


class Clipped(NamedTuple):
    """An update within its bound."""

    vector: np.ndarray  # f64 [d]
    norm: float  # before the clip
    factor: float  # what it was multiplied by, at most 1


def clip(vector: np.ndarray, most: float) -> Clipped:
    """An update scaled down to a norm: u min(1, C / ‖u‖₂).

    Args:
        vector: ``[d]``.
        most: C; 0 leaves it alone.

    Raises:
        Unfit: It holds a number that is not finite.
    """
    exact = np.asarray(vector, np.float64)
    if not np.isfinite(exact).all():
        raise errors.Unfit("an update holds numbers that are not finite; it does not leave")
    norm = float(np.sqrt(exact @ exact))
    factor = min(1.0, most / max(norm, SMALLEST)) if most > 0.0 else 1.0
    return Clipped(exact * factor, norm, factor)


class Leaving:
    """Clips, has the ledger charged, adds noise: in this order, and nothing leaves where one of them fails.

    One object serves one party, or all parties of a simulation. What the server says of clip and noise is not asked:
    an owner's promise is the owner's.
    """

    def __init__(self, settings: Settings, draws: Draws, ledger: ledgers.Ledger | None) -> None:
        """Begin.

        Args:
            settings: What is done.
            draws: Where noise comes from.
            ledger: Where it is written down; None without noise, and in a simulation that charges whole rounds before
                it asks anybody (`events`).
        """
        if settings.noise > 0.0 and ledger is None and not draws.simulated:
            raise ValueError("noise without a ledger: nobody would know what was spent")
        if settings.noise > 0.0 and settings.clip <= 0.0:
            raise ValueError("noise without a clip: nothing bounds what it is to hide")
        self._settings, self._draws, self._ledger = settings, draws, ledger
        self.norms: list[float] = []  # of updates before the clip, in this life
        self._clipped = 0

    def __call__(self, vector: np.ndarray, *, party: int, turn: int) -> np.ndarray:
        """What may leave.

        Args:
            vector: The update of the global part, f32 ``[d]``.
            party: Whose.
            turn: Which release of that party, e.g. the number of the round.

        Returns:
            f32 ``[d]``.

        Raises:
            Unfit: The update is not finite.
            Spent: The release would pass the budget; nothing was written or drawn.
        """
        rule = self._settings
        clipped = clip(vector, rule.clip)
        self.norms.append(clipped.norm)
        self._clipped += clipped.factor < 1.0
        if rule.noise == 0.0:
            return clipped.vector.astype(np.float32)
        if self._ledger is not None:
            self._ledger.charge([event(rule, party=party, turn=turn)])
        noise = self._draws.normal(len(clipped.vector), party, turn)
        return (clipped.vector + rule.noise * rule.clip * noise).astype(np.float32)

    def told(self) -> dict[str, float | None]:
        """``clip_fraction`` and ``update_norm_*`` of all updates since the beginning of this life."""
        return summed(self.norms, self._clipped)


def events(settings: Settings, cohort: Iterable[int], *, turn: int) -> list[ledgers.Event]:
    """What a simulation charges for a round before it asks anybody: one release of each of the cohort."""
    return [event(settings, party=party, turn=turn) for party in cohort] if settings.noise else []


def summed(norms: Sequence[float], clipped: int) -> dict[str, float | None]:
    """What the summary tells of updates; None where there was none."""
    return {
        "clip_fraction": clipped / len(norms) if norms else None,
        "update_norm_median": float(np.median(norms)) if norms else None,
        "update_norm_max": max(norms, default=None),
    }


def event(settings: Settings, *, party: int, turn: int) -> ledgers.Event:
    """What the ledger is to be charged for one release.

    Args:
        settings: What was done to the update.
        party: Whose release; `ledger.SERVER`: the server's.
        turn: Which.
    """
    relation = ledgers.RELATIONS[settings.unit]
    multiplier = settings.noise / relation.sensitivity
    return ledgers.Event(party, turn, multiplier, settings.noise, settings.clip, settings.unit)


# ------------------------------------------------------------------------------------------------ central


class Central:
    """The server's noise: it is trusted, and protects owners from whoever reads the model that it releases.

    theta + (eta / K) (sum_i clip(Delta_i, C) + N(0, (z C)² I)), with K fixed in advance and no weights: one owner more
    or less changes the sum by C at most.
    """

    def __init__(self, settings: Settings, cohort: int, draws: Draws, ledger: ledgers.Ledger) -> None:
        """Begin.

        Args:
            settings: What is done; its unit is `ledger.OWNER`.
            cohort: K, how many owners a round asks, however many of them answer.
            draws: Where noise comes from.
            ledger: Where it is written down.
        """
        if settings.clip <= 0.0 or settings.noise <= 0.0:
            raise ValueError("central noise needs a clip and a noise above 0")
        self._settings, self._cohort, self._draws, self._ledger = settings, cohort, draws, ledger

    def __call__(self, updates: np.ndarray, *, turn: int) -> np.ndarray:
        """The mean that may be released.

        Args:
            updates: ``[n, d]``, n ≤ K; each is clipped here once more, whatever its owner did.
            turn: Which release.

        Returns:
            f32 ``[d]``: the noised sum over K.

        Raises:
            Unfit: An update is not finite.
            Spent: The release would pass the budget.
        """
        rule = self._settings
        total = np.zeros(updates.shape[1], np.float64)
        for update in updates:  # in the order that was given: it is part of the result
            total += clip(update, rule.clip).vector
        return self.noised(total, turn=turn)

    def noised(self, total: np.ndarray, *, turn: int) -> np.ndarray:
        """The same from a sum of updates within their bound, e.g. the one a secure sum shows."""
        if not np.isfinite(total).all():
            raise errors.Unfit("a sum holds numbers that are not finite; it is not released")
        self._ledger.charge([event(self._settings, party=ledgers.SERVER, turn=turn)])
        noise = self._draws.normal(len(total), ledgers.SERVER, turn)
        return ((total + self._settings.noise * self._settings.clip * noise) / self._cohort).astype(np.float32)


def noise_of_mean(settings: Settings, owners: int, size: int) -> float:
    """How large the noise in a mean of updates is beside the largest that the mean can be: z √d / n, or z √(d / n).

    Args:
        settings: What is done.
        owners: n.
        size: d.
    """
    share = owners if settings.unit == ledgers.OWNER else math.sqrt(owners)
    return settings.noise * math.sqrt(size) / share
