"""Keys that two parties agree on while a third one carries their messages.

In a deployment X25519 (RFC 7748) and HKDF (RFC 5869) of the package `cryptography`, new keys for every round. In a
simulation numbers from the run's seed, with the same verbs and no protection: whoever knows a public key knows all.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple, Protocol

from shoal.core import errors

SIMULATED = "simulated masks, no protection"  # how masks are told of that come from the seed of the run
BYTES = 32  # of every key, public or not
SEALED = 16  # bytes that sealing adds


class Keys(Protocol):
    """A pair of keys, and how two of them agree."""

    secret: bytes
    public: bytes

    def agreed(self, public: bytes, context: bytes) -> bytes:
        """32 bytes that only the two owners of these keys know, for one purpose."""
        ...


class Curve:
    """X25519."""

    def __init__(self, secret: bytes) -> None:
        """Args: `secret`, 32 bytes."""
        library = _library()
        self.secret = secret
        self._key = library.asymmetric.x25519.X25519PrivateKey.from_private_bytes(secret)
        self.public: bytes = self._key.public_key().public_bytes_raw()

    def agreed(self, public: bytes, context: bytes) -> bytes:
        """See `Keys`."""
        library = _library()
        other = library.asymmetric.x25519.X25519PublicKey.from_public_bytes(public)
        hashing = library.hashes.SHA256()
        derive = library.kdf.hkdf.HKDF(algorithm=hashing, length=BYTES, salt=None, info=context)
        made: bytes = derive.derive(self._key.exchange(other))
        return made


class Pretended:
    """For simulations: the public key is the secret."""

    def __init__(self, secret: bytes) -> None:
        """Args: `secret`, 32 bytes."""
        self.secret = self.public = secret

    def agreed(self, public: bytes, context: bytes) -> bytes:
        """See `Keys`."""
        return hashlib.sha256(b"".join(sorted((self.secret, public))) + context).digest()


class Kit(NamedTuple):
    """Where a party's secrets come from, and what keys are made of them."""

    keys: Callable[[bytes], Keys]
    draw: Callable[[], bytes]  # 32 new secret bytes
    below: Callable[[int], int]  # a number in [0, n)
    seal: Callable[[bytes, bytes, bytes], bytes]  # (key for this message alone, data, where it belongs) -> sealed
    unseal: Callable[[bytes, bytes, bytes], bytes]  # (key, sealed, where it belongs) -> data; raises ValueError


def deployed() -> Kit:
    """Of the system's secure source.

    Raises:
        Refused: The package `cryptography` is not installed.
    """
    _library()
    return Kit(Curve, lambda: secrets.token_bytes(BYTES), secrets.randbelow, _seal, _unseal)


def simulated(seed: int, *place: int | str) -> Kit:
    """Of the run's seed.

    Args:
        seed: Of the run.
        *place: Whose, and in which round.
    """
    text = "/".join(map(str, (seed, "masks", *place)))
    count = 0

    def draw() -> bytes:
        nonlocal count
        count += 1
        return hashlib.sha256(f"{text}/{count}".encode()).digest()

    def below(most: int) -> int:
        return int.from_bytes(b"".join(draw() for _ in range(3)), "big") % most

    def plain(key: bytes, data: bytes, place: bytes) -> bytes:
        del key, place
        return data

    return Kit(Pretended, draw, below, plain, plain)


def _seal(key: bytes, data: bytes, place: bytes) -> bytes:
    """ChaCha20-Poly1305 (RFC 8439); the nonce may be 0, for a key seals one message."""
    sealed: bytes = _library().ciphers.aead.ChaCha20Poly1305(key).encrypt(bytes(12), data, place)
    return sealed


def _unseal(key: bytes, sealed: bytes, place: bytes) -> bytes:
    library = _library()
    try:
        data: bytes = library.ciphers.aead.ChaCha20Poly1305(key).decrypt(bytes(12), sealed, place)
    except library.InvalidTag as wrong:
        raise ValueError("a sealed message was changed, or is not for this party") from wrong
    return data


class _Library(NamedTuple):
    """What of `cryptography` is used."""

    asymmetric: ModuleType
    ciphers: ModuleType
    kdf: ModuleType
    hashes: ModuleType
    InvalidTag: type[Exception]


def _library() -> _Library:
    try:
        from cryptography import exceptions
        from cryptography.hazmat.primitives import asymmetric, ciphers, hashes, kdf
        from cryptography.hazmat.primitives.asymmetric import x25519  # noqa: F401
        from cryptography.hazmat.primitives.ciphers import aead  # noqa: F401
        from cryptography.hazmat.primitives.kdf import hkdf  # noqa: F401
    except ImportError as missing:
        raise errors.Refused(
            "a secure sum between machines needs the package cryptography; install the extra: "
            "pip install 'shoal-rl[federated]'"
        ) from missing
    return _Library(asymmetric, ciphers, kdf, hashes, exceptions.InvalidTag)
