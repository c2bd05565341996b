"""What is computed only when it is due, alone and under an axis."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal.core import tree


def _change(now, by):
    return jax.tree.map(lambda leaf: leaf * 2.0 + by["x"], now)


NOW = {"a": np.arange(6.0, dtype=np.float32).reshape(3, 2), "b": np.arange(3.0, dtype=np.float32)}
BY = {"x": np.array([1.0, 2.0, 3.0], np.float32)}


def _alone(due, now, by):
    return tree.sometimes(_change, due, now, by)


@pytest.mark.parametrize("due", [(True, True, True), (True, False, True), (False, False, False)])
def test_under_an_axis_each_lane_is_what_it_is_alone(due):
    every = jax.jit(jax.vmap(_alone))(np.array(due), NOW, BY)
    for at, one in enumerate(due):
        lane = jax.tree.map(lambda leaf, at=at: leaf[at], (NOW, BY))
        for mine, alone in zip(jax.tree.leaves(every), jax.tree.leaves(_alone(one, *lane)), strict=True):
            np.testing.assert_array_equal(mine[at], alone)
            assert mine.dtype == alone.dtype


def test_what_all_lanes_share_has_no_axis_of_its_own():
    one = jax.tree.map(lambda leaf: leaf[0], NOW)
    every = jax.vmap(_alone, in_axes=(0, None, 0))(np.array([True, False, True]), one, BY)
    np.testing.assert_array_equal(every["b"], [1.0, 0.0, 3.0])
    shared = jax.vmap(lambda due: tree.sometimes(_change, due, one, {"x": jnp.float32(5.0)}))(np.array([False, True]))
    np.testing.assert_array_equal(shared["b"], [0.0, 5.0])


def test_two_axes_over_each_other():
    due = np.array([[True, False, False], [False, False, True]])
    both = jax.tree.map(lambda leaf: np.stack([leaf, leaf + 1]), (NOW, BY))
    every = jax.vmap(jax.vmap(_alone))(due, *both)
    expected = np.where(due, both[0]["b"] * 2 + both[1]["x"], both[0]["b"])
    np.testing.assert_array_equal(every["b"], expected)


def test_nothing_is_computed_while_it_is_due_for_nobody():
    calls = []

    def told(now, by):
        jax.debug.callback(lambda: calls.append(1))
        return _change(now, by)

    run = jax.jit(jax.vmap(lambda due, now, by: tree.sometimes(told, due, now, by)))
    jax.block_until_ready(run(np.zeros(3, bool), NOW, BY))
    jax.effects_barrier()
    assert not calls
    jax.block_until_ready(run(np.array([False, True, False]), NOW, BY))
    jax.effects_barrier()
    assert calls
