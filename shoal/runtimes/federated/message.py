"""What crosses between owners and the server, as bytes: one fixed header, raw tensors, a few counted numbers.

There is no room for anything else: the length of a message follows from the specification of the global part, which
both sides hold, and names of tensors never travel (their hash does). NumPy and the standard library only; nothing that
arrives is unpickled, and no array is made before the length is right.

```
header    magic 4 · protocol u16 · direction u8 · kind u8 · run 16 bytes · party u32 · round u64 · base u64 · hash of
          the specification 32 bytes                                                                        (76 bytes)
tensors   little-endian, in the specification's order                                              (4 or 8 bytes each)
counts    up: env_steps i64 · updates i64 · outcome u8                                                      (17 bytes)
settings  down: local_updates i64 · clip f64 · noise f64 · server_step f64 · mu f64                         (40 bytes)
```
"""

from __future__ import annotations

import functools
import hashlib
import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

PROTOCOL = 1
MAGIC = b"SHLF"
UP, DOWN = 1, 2  # directions
GRADIENT, DELTA, OUTPUTS, MASKED, JOIN = 1, 2, 3, 4, 5  # kinds
KINDS = (GRADIENT, DELTA, OUTPUTS, MASKED, JOIN)
OK, SKIPPED, FAILED = 0, 1, 2  # outcomes: the tensors of the last two are all 0
OUTCOMES = (OK, SKIPPED, FAILED)
DTYPES = ("<f4", "<u4", "<u8")
MOST = 10**9  # counts of one round beyond this are no counts

_HEADER = struct.Struct("<4sHBB16sIQQ32s")
_COUNTS = struct.Struct("<qqB")
_SETTINGS = struct.Struct("<qdddd")


class Malformed(ValueError):
    """A message that is none; `reason` is one word of a fixed list (`guard.REASONS`)."""

    def __init__(self, reason: str, told: str = "") -> None:
        super().__init__(told or reason)
        self.reason = reason


class Spec(NamedTuple):
    """Which tensors travel: the global part's, in order; both sides hold it, neither sends it."""

    tensors: tuple[tuple[str, tuple[int, ...]], ...]  # (name, shape)
    dtype: str = "<f4"  # "<u4" and "<u8" for masked sums

    @property
    def size(self) -> int:
        """Numbers in all."""
        return sum(math.prod(shape) for _, shape in self.tensors)

    @property
    def digest(self) -> bytes:
        """32 bytes that differ where a name, a shape, the order or the dtype differs."""
        return _digest(self)

    @property
    def bytes_up(self) -> int:
        """Length of every message of a party."""
        return _HEADER.size + np.dtype(self.dtype).itemsize * self.size + _COUNTS.size

    @property
    def bytes_down(self) -> int:
        """Length of every message of the server."""
        return _HEADER.size + np.dtype(self.dtype).itemsize * self.size + _SETTINGS.size


@functools.lru_cache(maxsize=64)
def _digest(spec: Spec) -> bytes:
    told = hashlib.sha256(f"shoal federation {PROTOCOL} {spec.dtype}".encode())
    for name, shape in spec.tensors:
        told.update(struct.pack("<Q", len(name.encode())) + name.encode())
        told.update(struct.pack(f"<Q{len(shape)}Q", len(shape), *shape))
    return told.digest()


class Settings(NamedTuple):
    """Numbers that the server tells with the global part."""

    local_updates: int = 1  # H
    clip: float = 0.0  # norm that an update is clipped to; 0: it is not
    noise: float = 0.0  # multiplier z; 0: none
    server_step: float = 1.0  # what the server multiplies the aggregate with
    mu: float = 0.0  # of FedProx; 0: none


class Header(NamedTuple):
    """Whose message it is, and of which round."""

    run: bytes  # [16]
    party: int  # its number
    round: int  # asynchronously the number of the job
    base: int  # version of the global part that it was computed from
    kind: int  # GRADIENT, DELTA, OUTPUTS, MASKED or JOIN


class Up(NamedTuple):
    """From a party."""

    header: Header
    vector: np.ndarray  # [size] of the specification's dtype
    env_steps: int = 0  # of this round
    updates: int = 0  # of this round
    outcome: int = OK


class Down(NamedTuple):
    """From the server."""

    header: Header
    vector: np.ndarray  # [size] f32
    settings: Settings = Settings()


def encode_up(spec: Spec, up: Up) -> bytes:
    """The bytes of a party's message, `Spec.bytes_up` of them.

    Args:
        spec: Of what is sent.
        up: The message.

    Raises:
        Malformed: Wrong shape or dtype, a number that is not finite, a count outside its range. Nothing was written.
    """
    if up.outcome not in OUTCOMES:
        raise Malformed("outcome", f"outcome {up.outcome}; known are 0 to {len(OUTCOMES) - 1}")
    counts = _counts(up.env_steps, up.updates, up.outcome)
    return _opened(spec, UP, up.header) + _tensors(spec, up.vector) + counts


def encode_down(spec: Spec, down: Down) -> bytes:
    """The bytes of the server's message, `Spec.bytes_down` of them.

    Args:
        spec: Of what is sent.
        down: The message.

    Raises:
        Malformed: As `encode_up`, or a setting that is not finite or below 0. Nothing was written.
    """
    _check_settings(down.settings)
    return _opened(spec, DOWN, down.header) + _tensors(spec, down.vector) + _SETTINGS.pack(*down.settings)


def decode_up(spec: Spec, body: bytes) -> Up:
    """A party's message; `Up.vector` is a read-only view of `body`.

    Args:
        spec: Of what was to be sent.
        body: As it arrived.

    Raises:
        Malformed: It is none.
    """
    header = _header(spec, body, UP, spec.bytes_up)
    env_steps, updates, outcome = _COUNTS.unpack_from(body, len(body) - _COUNTS.size)
    if outcome not in OUTCOMES:
        raise Malformed("outcome")
    _counts(env_steps, updates, outcome)
    return Up(header, _vector(spec, body), env_steps, updates, outcome)


def decode_down(spec: Spec, body: bytes) -> Down:
    """The server's message; `Down.vector` is a read-only view of `body`.

    Args:
        spec: Of what was to be sent.
        body: As it arrived.

    Raises:
        Malformed: It is none.
    """
    header = _header(spec, body, DOWN, spec.bytes_down)
    settings = Settings(*_SETTINGS.unpack_from(body, len(body) - _SETTINGS.size))
    _check_settings(settings)
    return Down(header, _vector(spec, body), settings)


def finite(vector: np.ndarray) -> bool:
    """Whether every number is; of whole numbers they are."""
    return vector.dtype.kind != "f" or bool(np.isfinite(vector).all())


def norm(vector: np.ndarray) -> float:
    """The Euclidean norm, its squares summed in float64: float32 overflows from 1.8e19 on."""
    wide = vector.astype(np.float64)
    return math.sqrt(float(wide @ wide))


def joined(spec: Spec, tensors: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """One flat vector of named tensors.

    Args:
        spec: What they must be.
        tensors: (name, array), in the specification's order.

    Raises:
        Malformed: Another key, order, shape or dtype than the specification's.
    """
    if tuple((name, tuple(array.shape)) for name, array in tensors) != spec.tensors:
        raise Malformed("spec", "other tensors than those of the global part")
    if any(array.dtype != np.dtype(spec.dtype) for _, array in tensors):
        raise Malformed("dtype", f"tensors must be {spec.dtype}")
    return np.concatenate([array.reshape(-1) for _, array in tensors] or [np.zeros(0, spec.dtype)])


def forged(body: bytes, tensors: bytes, counts: tuple[int, int]) -> bytes:
    """A party's message with other bytes in the place of its tensors and counts, unchecked: what one may send.

    Args:
        body: A message up.
        tensors: Its own, of any length.
        counts: (env_steps, updates).
    """
    return body[: _HEADER.size] + tensors + _COUNTS.pack(*counts, OK)


def _opened(spec: Spec, direction: int, header: Header) -> bytes:
    if len(header.run) != 16 or header.kind not in KINDS:
        raise Malformed("header", f"a run is named by 16 bytes, a kind is one of {KINDS}")
    if not (0 <= header.party < 1 << 32 and 0 <= header.round < 1 << 63 and 0 <= header.base < 1 << 63):
        raise Malformed("header", "party, round or version outside its range")
    return _HEADER.pack(MAGIC, PROTOCOL, direction, header.kind, *header[:4], spec.digest)


def _tensors(spec: Spec, vector: np.ndarray) -> bytes:
    if not isinstance(vector, np.ndarray) or vector.dtype != np.dtype(spec.dtype):
        raise Malformed("dtype", f"the vector must be an array of {spec.dtype}")
    if vector.shape != (spec.size,):
        raise Malformed("shape", f"the vector is {list(vector.shape)}, not [{spec.size}]")
    if not finite(vector):
        raise Malformed("not_finite")
    return vector.tobytes()


def _counts(env_steps: int, updates: int, outcome: int) -> bytes:
    if not (0 <= env_steps <= MOST and 0 <= updates <= MOST):
        raise Malformed("counts", f"{env_steps} environment steps and {updates} updates in one round")
    return _COUNTS.pack(env_steps, updates, outcome)


def _check_settings(settings: Settings) -> None:
    if not all(math.isfinite(number) and number >= 0 for number in settings):
        raise Malformed("settings", "a setting that is not finite, or below 0")


def _header(spec: Spec, body: bytes, direction: int, length: int) -> Header:
    """Length first, then field by field: nothing is allocated for a message of another length."""
    if type(body) is not bytes:
        raise Malformed("type")
    if len(body) != length:
        raise Malformed("size")
    magic, protocol, towards, kind, run, party, number, base, digest = _HEADER.unpack_from(body)
    if magic != MAGIC or protocol != PROTOCOL or towards != direction or kind not in KINDS:
        raise Malformed("header")
    if number >= 1 << 63 or base >= 1 << 63:
        raise Malformed("header")
    if digest != spec.digest:
        raise Malformed("spec")
    return Header(run, party, number, base, kind)


def _vector(spec: Spec, body: bytes) -> np.ndarray:
    vector = np.frombuffer(body, spec.dtype, spec.size, _HEADER.size)
    if not finite(vector):
        raise Malformed("not_finite")
    return vector
