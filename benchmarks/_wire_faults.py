"""Messages that are none: every fault of the wire by its name, and mutations of a good one.

None of them is a message that a party may send: where a good one only says other finite numbers, no guard could tell.
"""

from __future__ import annotations

import gzip
import pickle
import struct
from typing import Any

import numpy as np

from shoal.runtimes.federated import message

HEAD, COUNTS = 76, 17  # bytes of a header, and of the counts at the end


class Executed:
    """What a pickle of it would do where somebody loads it: write a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        """See `pickle`."""
        return open, ("executed-by-a-pickle", "w")


def faults(spec: message.Spec, body: bytes) -> dict[str, tuple[bytes, str]]:
    """What is sent in the place of a good message, and the reason it must be turned away for, by the fault's name.

    Args:
        spec: Of the message.
        body: A good one, up.
    """
    pickled, bomb = pickle.dumps(Executed()), gzip.compress(bytes(1 << 24), mtime=0)
    text = b'{"../../theta": "NaN", "traceback": "ValueError: ..."}'
    return {
        "empty": (b"", "size"),
        "truncated": (body[:-1], "size"),
        "oversized": (body + bytes(1 << 20), "size"),
        "twice": (body + body, "size"),
        "a pickle": (pickled, "size"),
        "a pickle of the length": (_sized(spec, pickled), "header"),
        "an archive bomb": (_sized(spec, bomb), "header"),
        "text": (_sized(spec, text), "header"),
        **_other_tensors(spec, body),
        **_other_numbers(body),
        **_other_headers(spec, body),
    }


def _other_tensors(spec: message.Spec, body: bytes) -> dict[str, tuple[bytes, str]]:
    """As a party sends them that holds another global part."""
    (name, shape), *rest = spec.tensors
    reshaped = tuple((each, (*size, 1)) for each, size in spec.tensors)
    swapped = np.frombuffer(body[HEAD:-COUNTS], spec.dtype).byteswap().tobytes()
    big_endian = body[: HEAD - 32] + spec._replace(dtype=">f4").digest + swapped + body[-COUNTS:]

    def of(tensors: Any = spec.tensors, dtype: str = spec.dtype) -> bytes:
        other = message.Spec(tuple(tensors), dtype)
        return message.encode_up(other, message.decode_up(spec, body)._replace(vector=np.ones(other.size, dtype)))

    return {
        "an extra key": (of([*spec.tensors, ("policy/extra/kernel", (2, 2))]), "size"),
        "a missing key": (of(rest), "size"),
        "a renamed key": (of([("renamed", shape), *rest]), "spec"),
        "a path in a key": (of([(f"../../{name}", shape), *rest]), "spec"),
        "another shape": (of(reshaped), "spec"),
        "another order": (of(spec.tensors[::-1]), "spec"),
        "whole numbers": (of(dtype="<u4"), "spec"),
        "wide numbers": (of(dtype="<u8"), "size"),
        "another byte order": (big_endian, "spec"),
        "another hash": (_at(body, HEAD - 32, bytes(32)), "spec"),
    }


def _other_numbers(body: bytes) -> dict[str, tuple[bytes, str]]:
    end = len(body)
    return {
        "NaN": (_at(body, HEAD, struct.pack("<f", np.nan)), "not_finite"),
        "infinity": (_at(body, end - COUNTS - 4, struct.pack("<f", -np.inf)), "not_finite"),
        "NaN in counts": (_at(body, end - COUNTS, struct.pack("<d", np.nan)), "counts"),
        "a negative count": (_at(body, end - COUNTS, struct.pack("<q", -1)), "counts"),
        "a count of 1e12": (_at(body, end - COUNTS + 8, struct.pack("<q", 10**12)), "counts"),
        "no updates": (_at(body, end - COUNTS + 8, struct.pack("<q", 0)), "counts"),
        "an unknown outcome": (_at(body, end - 1, b"\x07"), "outcome"),
        "failed, with tensors": (_at(body, end - 1, bytes([message.FAILED])), "outcome"),
    }


def _other_headers(spec: message.Spec, body: bytes) -> dict[str, tuple[bytes, str]]:
    up = message.decode_up(spec, body)
    head = up.header

    def of(**changes: Any) -> bytes:
        return message.encode_up(spec, up._replace(header=head._replace(**changes)))

    other = next(kind for kind in message.KINDS if kind != head.kind)
    return {
        "another protocol": (_at(body, 4, struct.pack("<H", message.PROTOCOL + 1)), "header"),
        "a download": (_at(body, 6, bytes([message.DOWN])), "header"),
        "an unknown kind": (_at(body, 7, b"\xff"), "header"),
        "another kind": (of(kind=other), "kind"),
        "another run": (of(run=b"?" * 16), "run"),
        "another's name": (of(party=head.party + 1), "party"),
        "a round to come": (of(round=head.round + 1), "round"),
        "a version to come": (of(base=head.base + 1), "round"),
        "an older round": (of(round=head.round - 1), "late"),
    }


def mutated(spec: message.Spec, body: bytes, random: np.random.Generator) -> bytes:
    """A good message spoilt by chance: cut, lengthened, a bit of its header flipped, numbers that are none, noise.

    Args:
        spec: Of the message.
        body: A good one, up.
        random: What it is drawn from.
    """
    turn = int(random.integers(6))
    if turn == 0:
        return body[: int(random.integers(len(body)))]
    if turn == 1:
        return body + random.bytes(int(random.integers(1, 4096)))
    if turn == 2:
        at, bit = divmod(int(random.integers(8 * HEAD)), 8)
        return _at(body, at, bytes([body[at] ^ 1 << bit]))
    if turn == 3:
        bits = 0x7F800000 | int(random.integers(1 << 23)) | int(random.integers(2)) << 31  # NaNs and infinities
        return _at(body, HEAD + 4 * int(random.integers(spec.size)), struct.pack("<I", bits))
    if turn == 4:
        count = int(random.integers(message.MOST + 1, 1 << 62)) * int(random.choice([-1, 1]))
        return _at(body, len(body) - COUNTS + 8 * int(random.integers(2)), struct.pack("<q", count))
    return random.bytes(int(random.choice([len(body), int(random.integers(1, 2 * len(body)))])))


def _sized(spec: message.Spec, content: bytes) -> bytes:
    """Of the right length, so that it is not turned away for that alone."""
    return content.ljust(spec.bytes_up, b"\0")[: spec.bytes_up]


def _at(body: bytes, at: int, content: bytes) -> bytes:
    """Other bytes at a place."""
    return body[:at] + content + body[at + len(content) :]
