"""Members of a population on Python simulators: the same learning as on the device, whatever becomes of a simulator."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import shoal
from shoal import experiment
from shoal.core import errors, tree
from shoal.experiment import presets
from shoal.runs import replaying
from shoal.runs.session import lives
from shoal.runtimes.experience import pools
from shoal.runtimes.population import greedy, lineage, on_host, stepping
from tests import faults
from tests.conformance.test_runtimes import Observer

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


@pytest.mark.parametrize("name", ["a2c", "dqn", pytest.param("a3c_lstm", marks=pytest.mark.slow)])
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_simulator_that_raises_is_replaced(monkeypatch, tmp_path):
    monkeypatch.setenv("SHOAL_TEST_ONCE", str(tmp_path / "once"))
    made = built("a2c", "tests.faults.envs:RaisesOnce-v0", episodes=1, interval=1000)
    observer, result = run(made, steps=480, host=False)
    assert result.final.faults["restarts"] == 1
    assert "the simulator broke" in observer.faults[0]


# ------------------------------------------------------------------------------------------------ a run


def test_members_with_a_memory_train_and_exchange():
    asked = presets.Request(
        "pbt_td3", "Pendulum-v1", 1600,
        settings={
            "network": {"hidden": (8,)}, "algorithm": {**REPLAY, "capacity": 500},
            "runtime": {"members": 2, "processes": 0, "interval": 400, "episodes": 1, "dispatch": "vmap"},
        },
    )  # fmt: skip
    observer, result = run(experiment.build(presets.resolve(asked)[0]), steps=1600, host=False)
    told, kept = result.final.subsystems["population"], result.final.save().loop
    assert (result.final.env_steps, told["exchanges"], told["compilations_after_first_exchange"]) == (1600, 1, 0)
    assert all(-2000 < value < 0 for value in told["fitness"])
    assert result.final.metrics["q"] != 0
    assert (int(kept.common.memory.current_index), bool(kept.common.memory.is_full)) == (300, True)
    episodes = [(episode.worker, episode.length) for progress in observer.told for episode in progress.episodes]
    assert sorted(episodes) == [(member, 200) for member in (0, 1) for _ in range(4)]


def test_members_in_processes_train_and_exchange_on_cart_pole(tmp_path):
    done = shoal.train(
        "pbt_ppo", env="CartPole-v1", members=2, steps=1024, out=tmp_path / "ppo", quiet=True, eval_episodes=0,
        network={"hidden": (8,)}, algorithm={"rollout_length": 16, "minibatches": 2, "epochs": 1},
        runtime={"processes": 2, "environments": 4, "interval": 256, "episodes": 2, "dispatch": "vmap"},
    )  # fmt: skip
    assert (done.summary["status"], done.summary["updates"]) == ("completed", 8)
    assert done.summary["population"]["exchanges"] == 1
    assert all(value >= 8 for value in done.summary["population"]["fitness"])
    assert done.summary["return_mean"] > 8
    assert done.summary["faults"] == {"non_finite": 0, "restarts": 0}
    assert {*done.summary["split"]} == {"environment", "inference", "learning", "waiting"}
    assert done.summary["workers"]["of"] == 2
    events = lineage.read(done.folder)
    assert [event.event for event in events] == ["init"] * 2 + ["exchange"] * 2 + ["fitness"] * 2
    with pytest.raises(errors.Refused, match=r"CartPole-v1 is stepped in Python"):
        replaying.replay(done.folder, print)


def test_a_run_goes_on_with_fresh_episodes_and_its_lineage():
    made = built("dqn", steps=960)
    first, stopped = run(made, steps=960, stop_at=200)
    saved = stopped.final.save()
    assert 0 < saved.loop.common.update < 60
    second, resumed = run(made, steps=960, saved=saved)
    ours = resumed.final.save()
    assert ours.loop.common.update == 120
    assert ours.standing.exchanges == 7
    told = [event for done in (stopped, resumed) for event in done.final.artefacts[lineage.FILE].events()]
    assert [event.update for event in told if event.event == "exchange" and event.member == 0] == [
        15 * at for at in range(1, 8)
    ]
    assert second.told[-1].env_steps == 960
    del first


def test_streams_break_off_where_simulators_could_not_be_saved():
    made = built("dqn", chunk_steps=64)
    saved = run(made, stop_at=50)[1].final.save()  # in the middle of an episode
    newest = int(saved.loop.common.memory.current_index) - 1
    before, count = saved.loop.members.memory.experience, int(saved.loop.common.memory.current_index)
    assert count > 2
    assert not before.truncated[:, :, newest].any()
    after = on_host.anew(made.parts.agent, saved.loop).members.memory.experience
    assert np.asarray(after.truncated)[:, :, newest].all(), "of every member"
    np.testing.assert_array_equal(after.truncated[:, :, :newest], before.truncated[:, :, :newest])
    assert not lives._resumes_exactly(presets.resolve(presets.Request("pbt_td3", "Pendulum-v1", 100))[0])
    assert lives._resumes_exactly(presets.resolve(presets.Request("pbt_td3", "gymnax:Pendulum-v1", 100))[0])


@pytest.mark.slow
def test_a_member_that_is_not_finite_is_replaced_alone():
    made = built("a2c", members=4, steps=960, exchange="none", interval=1000, chunk_steps=160)
    saved = run(made, steps=960, stop_at=100)[1].final.save()
    sound = run(made, steps=960, saved=saved, stop_at=200)[1].final
    params = jax.tree.map(np.array, saved.loop.members.state.params)
    for leaf in jax.tree.leaves(params):
        leaf[3] = np.nan
    members = saved.loop.members._replace(state=saved.loop.members.state._replace(params=params))
    upset = run(made, steps=960, saved=saved._replace(loop=saved.loop._replace(members=members)), stop_at=200)[1].final
    assert upset.faults["non_finite"] == 1
    ours, theirs = upset.save().loop.members.state.params, sound.save().loop.members.state.params
    for at in range(4):
        same = [np.array_equal(a[at], b[at]) for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True)]
        assert all(same) == (at != 3)
    assert tree.all_finite(ours)


@pytest.mark.slow
def test_asked_to_end_while_a_fitness_is_measured_it_ends_as_it_was(monkeypatch):
    monkeypatch.setattr(greedy.beside, "LOOK", 0.0)
    made = built("a2c")

    class Leaves(Observer):
        def __call__(self, progress):
            super().__call__(progress)
            return progress.stage is None or progress.stage.doing != "measuring fitness"

    observer = Leaves()
    result = made.runtime.run(made.parts._replace(device_env=None), 0, 480, None, observer, None)
    assert result.final.updates == 6
    assert not result.final.save().standing.measured.any()


def test_what_is_compiled_is_stepped_by_no_process():
    with pytest.raises(errors.Refused, match=r"processes=2.*probe:discount"):
        built("a2c", processes=2)


@pytest.mark.slow
def test_blocks_lie_on_other_devices_than_the_whole_to_the_same_numbers(tmp_path):
    script = """
import sys, numpy as np, jax
from tests import test_population_host as here
from shoal import experiment
experiment.cache()
made = here.built("a2c")
object.__setattr__(made.runtime._config, "processes", 2)
_, result = here.run(made)
assert result.final.subsystems["population"]["devices"] == int(sys.argv[1])
np.savez(sys.argv[2], *jax.tree.leaves(result.final.save().loop.members.state))
"""
    found = []
    for devices in (2, 1):
        out = tmp_path / f"{devices}.npz"
        done = subprocess.run(
            [sys.executable, "-c", script, str(devices), str(out)], capture_output=True, text=True, check=False,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(dict(np.load(out)))
    for name, leaf in found[0].items():
        np.testing.assert_allclose(leaf, found[1][name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_one_that_died_while_it_was_asked_nothing_answers_with_its_first_observations():
    made = built("a2c", "CartPole-v1")
    pool = pools.Pooled(made.parts, 0, 4, 0, 2, lambda *_: None)
    try:
        pool.reset()
        os.kill(pool.about()["pids"][1], signal.SIGKILL)
        left = np.zeros(2, np.int32)
        until = time.monotonic() + faults.LONGEST
        while not pool._early and time.monotonic() < until:  # the first block acts on, meanwhile it is replaced
            pool.ask(0, left)
            while not pool.answers(0.1):
                pass
        pool.ask(1, left)
        (batch,) = pool.answers(0.0).values()
        assert batch.outcome.truncated.all()
        pool.ask(1, left)
        answers = {}
        while not answers:
            answers = pool.answers(0.1)
        assert not answers[1].outcome.truncated.any(), "a step of its own, not one that it owed"
    finally:
        pool.close()


def test_what_is_not_finite_is_no_action():
    given = np.array([[np.nan, 1.5], [np.inf, -np.inf]], np.float32)
    np.testing.assert_array_equal(stepping.bearable(given), [[0.0, 1.5], [0.0, 0.0]])
