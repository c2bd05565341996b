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
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

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

    def __reduce__(self) -> Any:
        return _attach, (self.layout, multiprocessing.reduction.DupFd(self._handle))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time; the kernel lets go of the lock if its holder dies."""
        fcntl.lockf(self._handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._handle, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of the memory; arrays taken from the block must not be used afterwards."""
        self._arrays.clear()
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


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
