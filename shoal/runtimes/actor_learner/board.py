"""The newest policy for actors: a packed snapshot in shared memory, its version and its digest.

Two places, written in turn; a reader copies the one that was finished last and holds it against its digest, so a
snapshot that was written over meanwhile, or is damaged, is never acted with.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from shoal.core import types
from shoal.runtimes.crew import sharing

LEVEL = 64  # bytes of a level in words


class Posted(NamedTuple):
    """A packed policy as it was found."""

    packed: types.Packed
    at: float  # time.monotonic() when it was posted


def layout(capacity: int) -> sharing.Layout:
    """The shared arrays; `capacity`, bytes of the largest payload."""
    return {
        "version": ((2,), "i8"),
        "size": ((2,), "i8"),
        "at": ((2,), "f8"),
        "spent": ((2,), "f8"),
        "share": ((2,), "f8"),
        "sha256": ((2, 64), "u1"),
        "level": ((2, LEVEL), "u1"),
        "posted": ((1,), "i8"),  # how many there were; the newest is in place (posted - 1) % 2
        "newest": ((1,), "i8"),  # its version
        "payload": ((2, capacity), "u1"),
    }


class Board:
    """Where one writes and all actors read."""

    def __init__(self, block: sharing.Block) -> None:
        """Args: `block` with `layout`."""
        self._block = block

    @property
    def capacity(self) -> int:
        """Bytes of the largest payload."""
        return int(self._block["payload"].shape[1])

    @property
    def version(self) -> int:
        """Of the newest; -1 before there is one."""
        return int(self._block["newest"][0]) if self._block["posted"][0] else -1

    @property
    def posted(self) -> int:
        """How many there were."""
        return int(self._block["posted"][0])

    def post(self, packed: types.Packed) -> None:
        """Put up a newer one.

        Raises:
            ValueError: It is larger than any that was foreseen.
        """
        block, size = self._block, len(packed.payload)
        if size > self.capacity:
            raise ValueError(f"a packed policy of {size} bytes does not fit into {self.capacity}")
        with block.locked():  # the learner writes too where a compressor has failed
            at = int(block["posted"][0]) % 2
            block["payload"][at, :size] = np.frombuffer(packed.payload, np.uint8)
            block["size"][at], block["version"][at] = size, packed.version
            block["spent"][at], block["share"][at] = packed.seconds, packed.compressed
            block["sha256"][at] = np.frombuffer(packed.sha256.encode(), np.uint8)
            level = packed.level.encode()[:LEVEL]
            block["level"][at, : len(level)] = np.frombuffer(level, np.uint8)
            block["level"][at, len(level) :] = 0
            block["at"][at] = time.monotonic()
            block["newest"][0] = packed.version
            block["posted"][0] += 1

    def read(self) -> Posted:
        """The newest; whoever uses it holds it against its digest."""
        block = self._block
        at = (int(block["posted"][0]) - 1) % 2
        size = int(block["size"][at])
        packed = types.Packed(
            payload=block["payload"][at, :size].tobytes(),
            version=int(block["version"][at]),
            bytes=size,
            seconds=float(block["spent"][at]),
            level=block["level"][at].tobytes().rstrip(b"\0").decode(errors="replace"),
            sha256=block["sha256"][at].tobytes().decode(errors="replace"),
            compressed=float(block["share"][at]),
        )
        return Posted(packed, float(block["at"][at]))
