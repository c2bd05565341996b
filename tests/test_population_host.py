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


# ------------------------------------------------------------------------------------------------ what goes wrong


def on(env, monkeypatch, tmp_path, **more):
    """Two members in two processes, on an environment that misbehaves once."""
    monkeypatch.setenv("SHOAL_TEST_ONCE", str(tmp_path / "once"))
    return built("a2c", f"tests.faults.envs:{env}-v0", processes=2, environments=1, episodes=1, **more)


def test_a_process_that_dies_costs_the_episodes_of_its_block_alone(monkeypatch, tmp_path):
    made = on("DiesAtWork", monkeypatch, tmp_path, interval=1000)
    observer, result = run(made, steps=400, host=False)
    assert result.final.faults["restarts"] == 1
    assert len(observer.faults) == 1
    assert "SIGKILL" in observer.faults[0]
    episodes = [episode for progress in observer.told for episode in progress.episodes]
    cut = [episode for episode in episodes if episode.length < 10]
    assert len({episode.worker for episode in cut}) <= 1
    assert result.final.env_steps == 400
    assert all(value is not None for value in result.final.subsystems["population"]["fitness"])


def test_a_slow_simulator_holds_nobody_up_before_the_end_of_a_call(monkeypatch, tmp_path):
    made = on("SlowOne", monkeypatch, tmp_path, interval=100)
    observer, result = run(made, steps=200, host=False)
    slow, quick = sorted(result.final.subsystems["population"]["paces"], reverse=True)
    assert slow > 0.95
    assert quick < 0.3, "with ten times the speed it is long there, and waits"
    assert result.final.split["waiting"] > 0
    stages = {progress.stage.doing for progress in observer.told if progress.stage}
    assert "waiting for slow simulators" in stages
    steps = np.asarray(result.final.save().loop.members.state.env_steps)
    assert steps.tolist() == [100, 100], "of both as many are learned from as were acted"


def test_a_simulator_that_raises_is_replaced(monkeypatch, tmp_path):
    monkeypatch.setenv("SHOAL_TEST_ONCE", str(tmp_path / "once"))
    made = built("a2c", "tests.faults.envs:RaisesOnce-v0", episodes=1, interval=1000)
    observer, result = run(made, steps=480, host=False)
    assert result.final.faults["restarts"] == 1
    assert "the simulator broke" in observer.faults[0]
