"""Members of a population on Python simulators: the same learning as on the device, whatever becomes of a simulator."""

from __future__ import annotations

import functools
import json
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import shoal
from shoal import experiment
from shoal.core import errors, seeds, tree, types
from shoal.experiment import presets
from shoal.runs import replaying
from shoal.runtimes.experience import vectors
from shoal.runtimes.members import dispatch
from shoal.runtimes.population import chronicle, compiling, lineage, loop, on_host, standing
from tests.conformance.test_runtimes import Observer

SMALL = {"network": {"hidden": (8,)}}
REPLAY = {"batch": 8, "capacity": 200, "learning_starts": 10}
RULES = {  # on probes that show the same whatever their seed
    "a2c": ("a2c", "probe:discount", {}),
    "a3c_lstm": ("a3c_lstm", "probe:discount", {}),
    "dqn": ("dqn", "probe:truncated", {"algorithm": {**REPLAY, "rollout_length": 2, "replay": "prioritised"}}),
}


def built(name, env=None, steps=480, **runtime):
    preset, usual, settings = RULES[name]
    given = {"members": 2, "environments": 2, "interval": 60, "episodes": 3, "dispatch": "vmap", "processes": 0,
        "prior": ("optimiser.learning_rate=log_uniform(1e-3,1e-2)",), **runtime}  # fmt: skip
    small = {"network": {"hidden": (8,), **({"lstm": 4} if name == "a3c_lstm" else {})}}
    asked = presets.Request(
        preset, env or usual, steps, runtime="population", settings={"runtime": given, **small, **settings}
    )
    return experiment.build(presets.resolve(asked)[0])


def run(made, steps=480, saved=None, host=True, **options):
    observer = Observer(**options)
    parts = made.parts._replace(device_env=None) if host else made.parts
    return observer, made.runtime.run(parts, 0, steps, None, observer, saved)


@pytest.fixture(scope="module", autouse=True)
def cache():
    experiment.cache()


@pytest.mark.parametrize("name", RULES)
def test_members_learn_what_they_learn_on_the_device(name):
    made = built(name)
    _, there = run(made, host=False)
    _, here = run(made)
    ours, theirs = here.final.save(), there.final.save()
    assert ours.loop.common.update == theirs.loop.common.update > 0
    for found, wanted in zip(
        jax.tree.leaves(ours.loop.members.state), jax.tree.leaves(theirs.loop.members.state), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(ours.standing.fitness, theirs.standing.fitness, rtol=1e-5)
    assert ours.standing.exchanges == theirs.standing.exchanges >= 1


@functools.cache
def lock_step():
    """In one block."""
    return run(built("a2c", members=4))[1].final.save()


def test_blocks_in_processes_learn_what_one_block_here_does():
    made = built("a2c", members=4)
    object.__setattr__(made.runtime._config, "processes", 2)  # refused where the environment is compiled
    observer, result = run(made)
    saved, whole = result.final.save(), lock_step()
    for found, wanted in zip(
        jax.tree.leaves(saved.loop.members.state), jax.tree.leaves(whole.loop.members.state), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)
    assert result.final.workers["of"] == 2
    assert len(result.final.subsystems["population"]["paces"]) == 2
    episodes = [episode for progress in observer.told for episode in progress.episodes]
    assert {episode.worker for episode in episodes} == set(range(4))
    assert len(episodes) == result.final.env_steps / 2, "an episode of this probe is two steps"
