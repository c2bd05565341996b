"""Memory several processes write without locks: named arrays in one anonymous file.

The file never has a name (memfd, or a temporary file unlinked at once), so whatever ends the run, kill -9 included,
the kernel frees it with the last process that holds it: nothing can leak. Arrays begin on 64-byte boundaries; an
aligned 4- or 8-byte store is never torn on the supported processors, so a racing reader sees an old or a new element.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import multiprocessing.reduction
import os
import select
import tempfile
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

SPINS = 40  # times a lock is asked for, some 2 µs each, before its caller sleeps
ALIGNMENT = 64  # bytes; one cache line
Layout = Mapping[str, tuple[tuple[int, ...], str]]  # name -> (shape, dtype)


class Block:
    """Named arrays shared with the spawned processes it is passed to.

    ``block["theta"]`` is an ordinary NumPy array. A block may only be pickled as an argument of a process being
    spawned; it arrives as the same memory.
    """

    def __init__(self, layout: Layout, handle: int | None = None) -> None:
        """Map the arrays; a new file of zeros unless `handle` is that of an existing one.

        Args:
            layout: Shape and dtype of each array.
            handle: A file descriptor received from the process that made the block.
        """
        self.layout = dict(layout)
        offsets, size = {}, 0
        for name, (shape, dtype) in self.layout.items():
            offsets[name] = size
            length = int(np.prod(shape)) * np.dtype(dtype).itemsize
            size += -(-length // ALIGNMENT) * ALIGNMENT
        #: Descriptor of the file; -1 once closed.
        self.handle = _anonymous(max(size, ALIGNMENT)) if handle is None else handle
        self._closing = weakref.finalize(self, os.close, self.handle)  # or the file would outlive its block
        self._map = mmap.mmap(self.handle, max(size, ALIGNMENT))
        self._arrays = {
            name: np.frombuffer(self._map, dtype, int(np.prod(shape)), offsets[name]).reshape(shape)
            for name, (shape, dtype) in self.layout.items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """All of them by name."""
        return self._arrays

    def leading(self, count: int) -> np.ndarray:
        """The bytes of the first `count` arrays as one array, the gaps between them included."""
        return np.frombuffer(self._map, np.uint8, size(dict(list(self.layout.items())[:count])))

    def __reduce__(self) -> Any:
        return _attach, (self.layout, multiprocessing.reduction.DupFd(self.handle))

    def locked(self, place: int | None = None, *, reading: bool = False) -> Lock:
        """``with block.locked():`` one process at a time; the kernel lets go of the lock if its holder dies.

        Args:
            place: One of as many locks as one likes, each on its own; None takes them all.
            reading: Several readers may hold it together, none beside a writer.
        """
        return Lock(self, place, reading=reading)

    def close(self) -> None:
        """Let go of the memory; it is freed with the last array taken from it."""
        self._arrays.clear()
        self._closing()
        self.handle = -1


class Lock:
    """A lock between processes, on a file; not for a process that holds it already. See `Block.locked`."""

    def __init__(self, block: Block, place: int | None = None, *, reading: bool = False) -> None:
        self._block, self._kind = block, fcntl.LOCK_SH if reading else fcntl.LOCK_EX  # the block: its file stays open
        self._at = (0, 0) if place is None else (1, place)  # bytes from an offset; no byte is touched

    def __enter__(self) -> None:
        for _ in range(SPINS):  # held for microseconds: asking again is cheaper than to sleep and be woken
            try:
                fcntl.lockf(self._block.handle, self._kind | fcntl.LOCK_NB, *self._at)
            except BlockingIOError:
                continue
            return
        fcntl.lockf(self._block.handle, self._kind, *self._at)

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._block.handle, fcntl.LOCK_UN, *self._at)


def total(counts: np.ndarray) -> int:
    """The sum of a few whole numbers, of each worker's; Python's is quicker than NumPy's for so few."""
    return sum(counts.tolist())


def size(layout: Layout) -> int:
    """Bytes that arrays take, each on its boundary."""
    lengths = (int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in layout.values())
    return sum(-(-length // ALIGNMENT) * ALIGNMENT for length in lengths)


class Bell:
    """What a process sleeps on until another rings; as a `Block`, only pickled for a process being spawned.

    Rings are not counted: whoever wakes looks at shared memory for what there is to do. Nothing of it has a name.
    """

    def __init__(self, ends: tuple[int, int] | None = None) -> None:
        """Args: `ends`, file descriptors (to read, to write) received from the process that made the bell."""
        self._read, self._write = ends or os.pipe()
        for end in (self._read, self._write):
            os.set_blocking(end, False)
        self._poll = select.poll()
        self._poll.register(self._read, select.POLLIN)

    def ring(self) -> None:
        """Wake the sleeper, or keep it from falling asleep."""
        with contextlib.suppress(BlockingIOError):  # so many rings that the pipe is full wake as well
            os.write(self._write, b"!")

    def wait(self, seconds: float) -> None:
        """Sleep until somebody rings, `seconds` at most; returns at once if it rang since the last call."""
        if self._poll.poll(seconds * 1000):
            with contextlib.suppress(BlockingIOError):
                os.read(self._read, 4096)

    def __reduce__(self) -> Any:
        return _attach_bell, tuple(multiprocessing.reduction.DupFd(end) for end in (self._read, self._write))

    def close(self) -> None:
        """Let go of it; calling it twice is harmless."""
        ends, self._read, self._write = (self._read, self._write), -1, -1
        for end in ends:
            if end >= 0:
                os.close(end)


def _attach_bell(read: Any, write: Any) -> Bell:
    return Bell((read.detach(), write.detach()))


def _attach(layout: Layout, handle: Any) -> Block:
    return Block(layout, handle.detach())


def _anonymous(size: int) -> int:
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("shoal", os.MFD_CLOEXEC)
    else:  # macOS
        handle, path = tempfile.mkstemp(prefix="shoal-")
        os.unlink(path)
    os.ftruncate(handle, size)
    return handle
