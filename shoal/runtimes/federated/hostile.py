"""Parties that attack: what they send in the place of what they computed; for threat tests and simulations alone.

They see every honest update of the round that came before theirs was sent, which is more than a real one would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from shoal.core import errors
from shoal.runtimes.federated import guard, message, network

LARGEST = 3.4028234663852886e38  # of float32


class Attack(NamedTuple):
    """What one party does."""

    party: int
    kind: str  # of `ATTACKS`
    factor: float  # how strongly, see there


class Seen(NamedTuple):
    """What an attacker knows when it sends."""

    own: np.ndarray  # [d] f64, what it computed
    others: np.ndarray  # [m, d] f64, updates of the round, the hostile ones as they were computed
    factor: float
    random: np.random.Generator


class Kind(NamedTuple):
    """One way to attack."""

    lie: Callable[[Seen], np.ndarray]  # -> [d]
    factor: float  # where none is given
    counts: tuple[int, int] | None = None  # (env_steps, updates) that are told; None: the true ones


def _noise(seen: Seen) -> np.ndarray:
    drawn = seen.random.standard_normal(seen.own.size)
    return drawn * (seen.factor * np.linalg.norm(seen.own) / max(float(np.linalg.norm(drawn)), 1e-12))


ATTACKS: Mapping[str, Kind] = {
    # -k u (FedPG-BR, Fan et al. 2021, arXiv:2110.14074)
    "sign_flip": Kind(lambda seen: -seen.factor * seen.own, 1.0),
    # k u, up to the largest float32
    "scaling": Kind(lambda seen: seen.factor * seen.own, 1e6),
    # Gaussian, k times as long as u
    "noise": Kind(_noise, 10.0),
    "nan": Kind(lambda seen: np.full_like(seen.own, np.nan), 1.0),
    "zero": Kind(lambda seen: np.zeros_like(seen.own), 1.0),
    # mean - k deviations: within the spread of the honest (A Little Is Enough, Baruch et al. 2019, arXiv:1902.06156)
    "alie": Kind(lambda seen: seen.others.mean(axis=0) - seen.factor * seen.others.std(axis=0), 1.5),
    # -k mean: an inner product below 0 with what is sought (Xie et al. 2019, arXiv:1903.03936)
    "ipm": Kind(lambda seen: -seen.factor * seen.others.mean(axis=0), 3.0),
    "false_counts": Kind(lambda seen: seen.own, 1.0, (10**12, 10**12)),
}


def parsed(given: Sequence[str], parties: int) -> tuple[Attack, ...]:
    """Attacks as a person types them: "7:sign_flip", or "7:scaling:1e3" with a factor.

    Args:
        given: One a hostile party.
        parties: How many there are.

    Raises:
        Refused: It is none, or there is no such party.
    """
    attacks = tuple(_parsed(text, parties) for text in given)
    if len({attack.party for attack in attacks}) < len(attacks):
        raise errors.Refused(f"runtime.attack={' '.join(given)} names a party twice; give each one attack at most")
    return attacks


def _parsed(text: str, parties: int) -> Attack:
    number, _, rest = text.partition(":")
    kind, _, factor = rest.partition(":")
    if not number.isdecimal() or int(number) >= parties:
        raise errors.Refused(
            f"runtime.attack={text}: give PARTY:KIND or PARTY:KIND:FACTOR, with a party from 0 to {parties - 1}"
        )
    if kind not in ATTACKS:
        raise errors.unknown("kind of runtime.attack", kind, ATTACKS)
    try:
        strength = float(factor or ATTACKS[kind].factor)
    except ValueError:
        strength = math.nan
    if not math.isfinite(strength):
        raise errors.Refused(f"runtime.attack={text}: the factor must be a number, e.g. {number}:{kind}:10")
    return Attack(int(number), kind, strength)


def lies(
    spec: message.Spec, attacks: Sequence[Attack], replies: Sequence[network.Reply], seed: int
) -> list[network.Reply]:
    """Replies as they arrive, those of hostile parties as they sent them.

    Args:
        spec: Of the updates.
        attacks: Who does what.
        replies: As they were computed.
        seed: Of noise; the same round of a party draws the same.
    """
    told = [guard.read(spec, reply.body)[0] for reply in replies]
    said = [up.vector.astype(np.float64) for up in told if up is not None and up.outcome == message.OK]
    by_party = {attack.party: attack for attack in attacks}

    def sent(reply: network.Reply, up: message.Up | None) -> network.Reply:
        attack = by_party.get(reply.party)
        if attack is None or reply.body is None or up is None or up.outcome != message.OK:
            return reply
        return reply._replace(body=_lie(attack, up, reply.body, np.stack(said), seed))

    return [sent(reply, up) for reply, up in zip(replies, told, strict=True)]


def _lie(attack: Attack, up: message.Up, body: bytes, others: np.ndarray, seed: int) -> bytes:
    kind = ATTACKS[attack.kind]
    random = np.random.Generator(np.random.Philox([seed, attack.party << 48 | up.header.round]))
    lie = kind.lie(Seen(up.vector.astype(np.float64), others, attack.factor, random))
    tensors = np.clip(lie, -LARGEST, LARGEST).astype(up.vector.dtype).tobytes()
    return message.forged(body, tensors, kind.counts or (up.env_steps, up.updates))


class Hostile:
    """A `network.Network` some of whose parties attack."""

    def __init__(self, honest: network.Network, spec: message.Spec, attacks: Sequence[Attack], seed: int) -> None:
        """Wrap one.

        Args:
            honest: Carries the bytes.
            spec: Of the updates.
            attacks: Who does what.
            seed: Of noise.
        """
        self._honest, self._spec, self._attacks, self._seed = honest, spec, attacks, seed

    def parties(self) -> Sequence[str]:
        """See `network.Network`."""
        return self._honest.parties()

    def send(self, party: int, body: bytes) -> int:
        """See `network.Network`."""
        return self._honest.send(party, body)

    def poll(self, seconds: float) -> list[network.Reply]:
        """See `network.Network`."""
        return lies(self._spec, self._attacks, self._honest.poll(seconds), self._seed)

    def close(self) -> None:
        """See `network.Network`."""
        self._honest.close()
