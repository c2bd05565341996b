"""A secure sum: the server adds up what parties send and learns their sum, and of each message nothing.

Updates become whole numbers, and every pair of parties a mask that one of them adds and the other subtracts:

    q_i = round((clip(u_i, c) + c) R / (2c)) in {0..R},   N R < 2^b
    sent_i = q_i + b_i + sum_{j>i} m_ij - sum_{j<i} m_ji   (mod 2^b)

The keys behind the masks are shared out (`shares`), so those of parties that drop out can be made again. The mask b_i
of each party alone is what Bonawitz et al. 2016 (arXiv:1611.04482, section 4.2, "double-masking") add to the pairs: of
a party the others give away either b_i or its key, never both, so a message that comes late stays hidden. Against a
server that follows the protocol and is curious; keys are not signed, so one that lies about them is not held off.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from shoal.core import errors
from shoal.runtimes.federated import agreement, shares

TYPES = {32: "<u4", 64: "<u8"}


class Aborted(errors.ShoalError):
    """Too few are left: the sum cannot be told, the round fails and changes nothing."""


class Settings(NamedTuple):
    """What all parties of a round agree on beforehand."""

    cohort: tuple[int, ...]  # numbers of the parties, ascending
    threshold: int  # how many must be left at the end; `threshold`
    bound: float  # c, of every coordinate
    size: int  # d
    round: int
    run: bytes = b""
    bits: int = 32  # b

    @property
    def levels(self) -> int:
        """R: the most for which N R < 2^b."""
        return (2**self.bits - 1) // len(self.cohort)

    @property
    def dtype(self) -> np.dtype:
        """Of what is sent."""
        return np.dtype(TYPES[self.bits])

    def enough(self, who: Collection[int]) -> None:
        """Refuse to go on with too few.

        Raises:
            Aborted: There are.
        """
        if len(who) < self.threshold:
            raise Aborted(f"{len(who)} parties are left, and {self.threshold} are needed; the round fails")

    def place(self, *parties: int) -> bytes:
        """What keys are bound to: this round, and these parties."""
        return self.run + struct.pack(f"<Q{len(parties)}q", self.round, *parties)


def threshold(cohort: int) -> int:
    """How many of a cohort must be left: two thirds, so that no server can play two halves against each other."""
    return max(2, 2 * cohort // 3 + 1)


# ------------------------------------------------------------------------------------------------ numbers


def quantised(vector: np.ndarray, settings: Settings) -> np.ndarray:
    """An update as whole numbers, ``[d]`` in {0..R}.

    Raises:
        Unfit: It holds a number that is not finite.
    """
    exact = np.asarray(vector, np.float64)
    if not np.isfinite(exact).all():
        raise errors.Unfit("an update holds numbers that are not finite; it does not leave")
    c, levels = settings.bound, settings.levels
    return np.rint((np.clip(exact, -c, c) + c) * (levels / (2.0 * c))).astype(settings.dtype)


def restored(total: np.ndarray, parties: int, settings: Settings) -> np.ndarray:
    """The sum of updates out of the sum of their whole numbers, f64 ``[d]``."""
    c = settings.bound
    return total.astype(np.float64) * (2.0 * c / settings.levels) - parties * c


def stream(seed: bytes, settings: Settings) -> np.ndarray:
    """A mask, uniform in {0..2^b - 1}: SHAKE-256 of 32 bytes."""
    data = hashlib.shake_256(seed).digest(settings.size * settings.dtype.itemsize)
    return np.frombuffer(data, settings.dtype)


# ------------------------------------------------------------------------------------------------ a party


class Hello(NamedTuple):
    """What a party shows first: two public keys, 64 bytes."""

    masking: bytes
    sealing: bytes


class Shown(NamedTuple):
    """What a party shows last, of every other: its share of a mask or of a key, never of both."""

    alone: Mapping[int, int]  # of those whose update arrived: value of the share of b
    keys: Mapping[int, int]  # of those who are lost: value of the share of the secret key


class Member:
    """One party in one round: `hello`, `shared`, `masked`, `shown`, in this order and once each."""

    def __init__(self, me: int, settings: Settings, kit: agreement.Kit) -> None:
        """Args: `me`, its number in the cohort; `settings`, of the round; `kit`, where its secrets come from."""
        self._me, self._settings, self._kit = me, settings, kit
        self._masking, self._sealing = kit.keys(kit.draw()), kit.keys(kit.draw())
        self._alone = kit.draw()
        self._hellos: dict[int, Hello] = {}
        self._held: dict[int, tuple[int, int]] = {}  # of others: values of the shares of (b, secret key)
        self._done = False

    def hello(self) -> Hello:
        """Its public keys."""
        return Hello(self._masking.public, self._sealing.public)

    def shared(self, hellos: Mapping[int, Hello]) -> dict[int, bytes]:
        """Its secrets in shares, sealed for each of those whose keys arrived.

        Raises:
            Aborted: There are too few.
        """
        self._hellos = {party: hello for party, hello in hellos.items() if party in self._settings.cohort}
        self._settings.enough(self._hellos)
        places = {party: party + 1 for party in sorted(self._hellos)}
        both = [
            shares.cut(secret, [*places.values()], self._settings.threshold, self._kit.below)
            for secret in (self._alone, self._masking.secret)
        ]
        made = {}
        for party, alone, key in zip(places, *both, strict=True):
            if party == self._me:
                self._held[party] = alone.value, key.value
                continue
            data = b"".join(one.value.to_bytes(shares.BYTES, "big") for one in (alone, key))
            where = self._settings.place(self._me, party)
            made[party] = self._kit.seal(self._between(party, where), data, where)
        return made

    def masked(self, vector: np.ndarray, inbox: Mapping[int, bytes]) -> np.ndarray:
        """Its update as it is sent, ``[d]``.

        Args:
            vector: f32 ``[d]``.
            inbox: From each other party that goes on, its share for this one.

        Raises:
            Aborted: There are too few, or a share was changed on its way.
            Unfit: The update is not finite.
        """
        for party, sealed in inbox.items():
            where = self._settings.place(party, self._me)
            try:
                data = self._kit.unseal(self._between(party, where), sealed, where)
            except (ValueError, KeyError) as wrong:
                raise Aborted(f"the share of party {party} cannot be opened; the round fails") from wrong
            half = shares.BYTES
            self._held[party] = int.from_bytes(data[:half], "big"), int.from_bytes(data[half:], "big")
        self._settings.enough(self._held)
        total = quantised(vector, self._settings) + stream(self._alone, self._settings)
        for party in self._held:
            if party != self._me:
                total += between(self._settings, self._masking, self._me, party, self._hellos[party].masking)
        return total

    def shown(self, arrived: Collection[int], lost: Collection[int]) -> Shown:
        """What the server needs to take masks off.

        Args:
            arrived: Whose update the server says it has.
            lost: Whose it says will not come.

        Raises:
            Aborted: It asks for both of one party, twice, or with too few left.
        """
        if self._done or set(arrived) & set(lost) or self._me not in arrived:
            raise Aborted("a server that asks for both secrets of a party, or twice, is told nothing; the round fails")
        self._settings.enough(arrived)
        self._done = True
        alone = {party: self._held[party][0] for party in arrived if party in self._held}
        return Shown(alone, {party: self._held[party][1] for party in lost if party in self._held})

    def _between(self, party: int, where: bytes) -> bytes:
        return self._sealing.agreed(self._hellos[party].sealing, b"seal" + where)


def between(settings: Settings, keys: agreement.Keys, me: int, other: int, public: bytes) -> np.ndarray:
    """What one party adds for the mask that it has with another: m_ij, or its negative."""
    where = settings.place(min(me, other), max(me, other))
    mask = stream(keys.agreed(public, b"mask" + where), settings)
    return mask if me < other else np.negative(mask)
