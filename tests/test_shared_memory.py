"""What hogwild workers share: words, blocks, statistics; read while somebody else writes."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal.core import types
from shoal.formulas import normalise
from shoal.runtimes.crew import observed, packing, sharing
from shoal.runtimes.hogwild import process, shared_state

LAYOUT = {"theta": ((5,), "f4"), "steps": ((2,), "i8"), "flag": ((1,), "i4")}


def _write(block):
    block["theta"][2] = 7.0
    block["steps"][1] = 2**40
    with block.locked():
        block["flag"][0] += 1


def test_block_is_the_same_memory_in_a_spawned_process():
    block = sharing.Block(LAYOUT)
    process = multiprocessing.get_context("spawn").Process(target=_write, args=(block,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert block["theta"].tolist() == [0, 0, 7, 0, 0]
    assert block["steps"].tolist() == [0, 2**40]
    assert block["flag"][0] == 1
    process.close()
    block.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
def test_a_block_that_is_let_go_of_leaves_no_file_and_no_memory():
    def files():
        return [name for name in os.listdir("/proc/self/fd") if "memfd:shoal" in _target(name)]

    gc.collect()
    before = len(files())
    block = sharing.Block(LAYOUT)
    lock, theta = block.locked(), block["theta"]
    assert len(files()) == before + 2, "the file, and the mapping's own descriptor of it"
    del block
    gc.collect()
    with lock:  # the file it locks is still there
        assert len(files()) == before + 2
    del lock
    gc.collect()
    assert len(files()) == before + 1
    theta[:] = 1.0  # an array keeps the memory it is of
    del theta
    gc.collect()
    assert len(files()) == before


def _target(name):
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        return ""


def test_arrays_begin_on_cache_lines():
    block = sharing.Block(LAYOUT)
    assert all(block[name].ctypes.data % 64 == 0 for name in LAYOUT)


def test_words_bring_every_bit_back():
    tree = {
        "f": np.array([[1.5, -0.0, np.nan]], np.float32),
        "i": np.array([1, -2, 2**31 - 1], np.int32),
        "u": np.array(2**32 - 1, np.uint32),
        "b": np.array([True, False]),
        "none": (),
    }
    words, views, unpack = packing.make(tree)
    jax.tree.map(lambda room, leaf: room.__setitem__(..., leaf), views, tree)
    back = jax.jit(unpack)(words)
    for name in "fiub":
        assert back[name].dtype == tree[name].dtype
        assert np.asarray(back[name]).tobytes() == tree[name].tobytes()
    packed = np.asarray(jax.jit(lambda vector: packing.pack(unpack(vector)))(words))
    np.testing.assert_array_equal(packed, words)


def test_words_refuse_what_does_not_fit():
    assert not packing.fits({"image": np.zeros(3, np.uint8)})
    assert packing.fits({"x": np.zeros(3, np.float32), "empty": ()})


def test_latest_returns_can_be_read_while_they_are_written():
    block = sharing.Block(process.layout(shared_state.Sizes(1), 4, 5000))
    stop = threading.Event()

    def toggle():  # NumPy lets other threads run while it copies: the race of two processes
        while not stop.is_set():
            block["ended_at"][:] = 1
            block["ended_at"][:] = 0

    writer = threading.Thread(target=toggle)
    writer.start()
    try:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            assert len(process._latest(block, 5000)) <= 5000
    finally:
        stop.set()
        writer.join()


def test_latest_returns_come_in_the_order_of_steps():
    block = sharing.Block(process.layout(shared_state.Sizes(1), 2, 3))
    block["ended_at"][:] = [[10, 40, 20], [30, 0, 0]]
    block["returns"][:] = [[1, 4, 2], [3, 9, 9]]
    assert process._latest(block, 3) == [2, 3, 4]
    assert types.Goal(3.0, 3).met(process._latest(block, 3))


@pytest.mark.parametrize("pieces", [1, 3])
def test_shared_statistics_equal_those_taken_at_once(pieces):
    observations = np.random.default_rng(0).normal(3.0, 2.0, (60, 1, 4)).astype(np.float32)
    block = sharing.Block(process.layout(shared_state.Sizes(1, 4), 1, 1))
    for piece in np.array_split(observations, pieces):
        observed.absorb(block, piece)
    like = normalise.init((4,))
    found = observed.normaliser(block, like)
    wanted = normalise.of(jnp.asarray(observations), (4,))
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert observed.normaliser(block, ()) == ()
