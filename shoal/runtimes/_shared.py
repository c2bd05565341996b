"""Memory several processes write without locks: named arrays in one anonymous file.

The file never has a name (memfd, or a temporary file unlinked at once), so whatever ends the run, kill -9 included,
the kernel frees it with the last process that holds it: nothing can leak. Arrays begin on 64-byte boundaries; an
aligned 4- or 8-byte store is never torn on the supported processors, so a racing reader sees an old or a new element.
"""

from __future__ import annotations

import fcntl
import mmap
import multiprocessing.reduction
import os
import tempfile
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
        self._handle = _anonymous(max(size, ALIGNMENT)) if handle is None else handle
        self._map = mmap.mmap(self._handle, max(size, ALIGNMENT))
        self._arrays = {
            name: np.frombuffer(self._map, dtype, int(np.prod(shape)), offsets[name]).reshape(shape)
            for name, (shape, dtype) in self.layout.items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def leading(self, count: int) -> np.ndarray:
        """The bytes of the first `count` arrays as one array, the gaps between them included."""
        return np.frombuffer(self._map, np.uint8, size(dict(list(self.layout.items())[:count])))

    def __reduce__(self) -> Any:
        return _attach, (self.layout, multiprocessing.reduction.DupFd(self._handle))

    def locked(self) -> Lock:
        """``with block.locked():`` one process at a time; the kernel lets go of the lock if its holder dies."""
        return Lock(self._handle)

    def close(self) -> None:
        """Let go of the memory; arrays taken from the block must not be used afterwards."""
        self._arrays.clear()
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class Lock:
    """A lock between processes, on a file; not for a process that holds it already."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __enter__(self) -> None:
        for _ in range(SPINS):  # held for microseconds: asking again is cheaper than to sleep and be woken
            try:
                fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            return
        fcntl.lockf(self._handle, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._handle, fcntl.LOCK_UN)


def size(layout: Layout) -> int:
    """Bytes that arrays take, each on its boundary."""
    lengths = (int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in layout.values())
    return sum(-(-length // ALIGNMENT) * ALIGNMENT for length in lengths)


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
