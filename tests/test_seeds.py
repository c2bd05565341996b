from __future__ import annotations

import itertools
import subprocess
import sys

import jax
import numpy as np

from shoal.core import seeds


def test_documented_values():
    """Fixed for ever: a run of today must be repeatable by a later version."""
    assert seeds.derive(0) == 1609362278
    assert seeds.derive(0, "worker", 1, "environment", 3) == 4063612677
    assert seeds.derive(2**63 - 1, "evaluation", 0) == 3973729694


def test_no_two_places_of_a_run_share_a_seed():
    purposes = ("environment", "action", "key", "update")
    grid = itertools.product(range(8), range(16), range(8), purposes)
    found = [seeds.derive(run, "worker", worker, "incarnation", life, what) for run, worker, life, what in grid]
    assert len(set(found)) == len(found)
    assert all(0 <= seed < 2**32 for seed in found)


def test_places_are_told_apart_by_where_their_parts_end():
    assert seeds.derive(1, 23) != seeds.derive(12, 3)
    assert seeds.derive(1, "a", "b") != seeds.derive(1, "ab")
    assert seeds.derive(1, 2) != seeds.derive(1, 2, 0)


def test_seeds_are_spread_evenly():
    found = np.array([seeds.derive(0, i) for i in range(4000)], np.float64) / 2**32
    assert abs(found.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.05


def test_keys_follow_the_seeds():
    key = jax.random.key_data(seeds.key(3, "action", 1))
    np.testing.assert_array_equal(key, jax.random.key_data(jax.random.key(seeds.derive(3, "action", 1))))
    assert (key != jax.random.key_data(seeds.key(3, "action", 2))).any()


def test_another_process_derives_the_same_and_needs_no_jax():
    code = (
        "import sys; from shoal.core import seeds; print(seeds.derive(5, 'worker', 2))\nassert 'jax' not in sys.modules"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert int(printed) == seeds.derive(5, "worker", 2)
