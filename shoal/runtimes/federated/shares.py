"""Secrets cut into shares over a prime field: any `threshold` of them give it back, fewer say nothing of it.

Shamir 1979, "How to share a secret", Communications of the ACM 22(11).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

PRIME = 2**521 - 1  # a Mersenne prime, above every secret of 32 bytes
BYTES = 66  # of a share


class Share(NamedTuple):
    """One point of the polynomial."""

    at: int  # x, above 0
    value: int  # in the field


def cut(secret: bytes, places: Sequence[int], threshold: int, below: Callable[[int], int]) -> list[Share]:
    """A share for each place.

    Args:
        secret: 32 bytes.
        places: Different numbers above 0, e.g. of parties counted from 1.
        threshold: How many shares give the secret back.
        below: Draws a number in [0, n), e.g. `secrets.randbelow`; whoever can repeat its draws knows the secret.
    """
    if not 1 <= threshold <= len(places):
        raise ValueError(f"{threshold} of {len(places)} shares cannot be asked for")
    polynomial = [int.from_bytes(secret, "big"), *(below(PRIME) for _ in range(threshold - 1))]
    return [Share(place, _at(polynomial, place)) for place in places]


def _at(polynomial: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * x + coefficient) % PRIME
    return value


def weights(places: Sequence[int]) -> dict[int, int]:
    """What the value at each place is multiplied by to give that at 0 (Lagrange)."""
    made = {}
    for place in places:
        above, below = 1, 1
        for other in places:
            if other != place:
                above, below = above * other % PRIME, below * (other - place) % PRIME
        made[place] = above * pow(below, -1, PRIME) % PRIME
    return made


def joined(values: Mapping[int, int], factors: Mapping[int, int]) -> bytes:
    """The secret of 32 bytes.

    Args:
        values: Place -> value, of as many shares as the threshold says.
        factors: `weights` of these places.

    Raises:
        ValueError: They are no shares of one such secret.
    """
    number = sum(factor * values[place] for place, factor in factors.items()) % PRIME
    if number.bit_length() > 256:
        raise ValueError("these shares are not of one secret")
    return number.to_bytes(32, "big")
