"""An agent alone on the schedule that won a population: when its numbers change, and what is refused."""

from __future__ import annotations

import functools
import json
import shutil

import jax
import numpy as np
import pytest

import shoal
from shoal.core import errors, types
from shoal.experiment import scheduled
from shoal.runtimes.population import chronicle, lineage
from tests import conftest, faults

RATE, COST = "optimiser.learning_rate", "algorithm.entropy_cost"
SCHEDULE = ((0, {RATE: 2.0**-6, COST: 0.25}), (8, {RATE: 2.0**-8}), (16, {COST: 0.0}))
RUN = ("a2c", "--env", "probe:match")
ALONE = types.Ways()


def agent_of(rule="actor_critic", **settings):
    return conftest.build_agent(conftest.env_spec((3,), choices=2), rule=rule, local=True, streams=2, **settings)


def test_numbers_change_when_the_schedule_says():
    agent = agent_of(algorithm={"rollout_length": 2})
    made = scheduled.follow(agent, SCHEDULE)
    rollout = conftest.random_rollout(conftest.env_spec((3,), choices=2), 2, 2, seed=0)
    hyper, update, plain = agent.about.hyper, jax.jit(made.update), jax.jit(agent.update)
    state, alone = made.init(jax.random.key(0)), agent.init(jax.random.key(0))
    for done in range(0, 24, 4):
        rate, cost = (2.0**-6 if done < 8 else 2.0**-8), (0.25 if done < 16 else 0.0)
        assert (state.env_steps, hyper[RATE].get(state), hyper[COST].get(state)) == (done, rate, cost)
        alone = hyper[COST].put(hyper[RATE].put(alone, rate), cost)
        state, _ = update(state, rollout, jax.random.key(done))
        alone, _ = plain(alone, rollout, jax.random.key(done))
        for one, other in zip(jax.tree.leaves(state.params), jax.tree.leaves(alone.params), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5)
    assert update._cache_size() == 1, "a change compiles nothing anew"


def test_who_acts_acts_with_the_numbers_of_now():
    agent = conftest.build_agent(
        conftest.env_spec((3,), low=(-1.0,), high=(1.0,)), rule="td3", local=True, algorithm={"capacity": 8, "batch": 2}
    )  # fmt: skip
    made = scheduled.follow(agent, ((0, {"algorithm.noise": 0.5}), (10, {"algorithm.noise": 0.25})))
    state = agent.init(jax.random.key(0))
    for steps, noise in ((0, 0.5), (9, 0.5), (10, 0.25), (1000, 0.25)):
        assert made.snapshot(state._replace(env_steps=np.int32(steps))).exploration[0] == noise
    rollout = conftest.random_rollout(conftest.env_spec((3,), low=(-1.0,), high=(1.0,)), 1, 1, seed=0)
    lean = state._replace(env_steps=np.int32(10), memory=())
    assert made.about.practice.prepare(lean, rollout)[0].hyper.noise == 0.25, "with the memory elsewhere too"


def test_a_schedule_is_data():
    assert scheduled.made(json.loads(json.dumps(scheduled.plain(SCHEDULE)))) == SCHEDULE
    for wrong in ([[0, {RATE: 1.0}], [0, {RATE: 2.0}]], [[0, {RATE: float("nan")}]]):
        with pytest.raises(ValueError, match="schedule"):
            scheduled.made(wrong)


@pytest.mark.parametrize(
    ("schedule", "how", "says"),
    [
        (((0, {"algorithm.noise": 0.1}),), ALONE, "sets algorithm.noise, which actor_critic does not have"),
        (((0, {RATE: -1.0}),), ALONE, "must be between 0"),
        (SCHEDULE, types.Ways(members=8), "8 members"),
        (SCHEDULE, types.Ways(captures=True), "applies gradients itself"),
    ],
)
def test_refused(schedule, how, says):
    with pytest.raises(errors.Refused, match=says) as refused:
        scheduled.check(schedule, agent_of(), "actor_critic", how, "some")
    assert "\n" not in str(refused.value)


# ------------------------------------------------------------------------------------------------ runs


def population(folder, points):
    """What is read of a population's run: two members, of which 1 won, and before that came from 0."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"steps": 2000}))
    (_, first), (steps, then) = points
    event = functools.partial(chronicle.Event, "exchange", 10, steps)
    journal = lineage.Lineage()
    values = {name: np.float32([value, 0.9 if name in then else value]) for name, value in first.items()}
    journal.add(chronicle.initial(values, 2))
    journal.add([event(0, fitness=1.0, rank=1, round=0), event(1, 0, 1.0, 0, hyperparameters=then, round=0)])
    journal.write(folder, {})
    return folder


def test_a_run_follows_it_and_needs_no_other_folder(capsys, tmp_path):
    source = population(tmp_path / "population", ((0, {RATE: 0.001, COST: 0.01}), (320, {RATE: 0.0})))
    ended = faults.call(capsys, "train", *RUN, "--from-schedule", source, "--out", tmp_path / "run", "--json")
    assert ended.code == 0, ended.err
    assert "follows a schedule of algorithm.entropy_cost, optimiser.learning_rate: 1 change" in ended.err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["schedule"] == [[0, {RATE: 0.001, COST: 0.01}], [320, {RATE: 0.0}]]
    assert config["steps"] == 1000, "as many as one member had"
    shutil.rmtree(source)
    shorter = faults.train(capsys, tmp_path / "shorter", *RUN, *again(tmp_path, 320), "--steps", 640)
    assert shorter["params_sha256"] == ended.json["params_sha256"], "with a rate of 0 nothing was learned since"
    other = faults.train(capsys, tmp_path / "other", *RUN, "--steps", 320)
    assert other["params_sha256"] != ended.json["params_sha256"]
    assert faults.call(capsys, "eval", tmp_path / "run", "--episodes", 2).code == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "summary.json").unlink()
    resumed = faults.call(capsys, "resume", tmp_path / "run", "--eval-episodes", 0, "--json")
    assert resumed.json["params_sha256"] == ended.json["params_sha256"]


def again(tmp_path, steps):
    place = tmp_path / "again"
    return "--from-schedule", population(place, ((0, {RATE: 0.001, COST: 0.01}), (steps, {RATE: 0.0})))


def test_from_python(tmp_path):
    source = population(tmp_path / "population", ((0, {RATE: 0.001}), (320, {RATE: 0.002})))
    run = shoal.train("a2c", "probe:match", from_schedule=source, out=tmp_path / "run", eval_episodes=0, quiet=True)
    assert run.experiment.schedule == ((0, {RATE: 0.001}), (320, {RATE: 0.002}))
    assert run.summary["env_steps"] >= 1000


@pytest.mark.parametrize(
    ("where", "points", "says"),
    [
        ("nowhere", None, "there is no such folder"),
        ("", None, "has no lineage"),
        ("population", ((0, {"algorithm.noise": 0.1}), (320, {"algorithm.noise": 0.2})), "does not have"),
    ],
)
def test_a_run_that_has_no_fitting_schedule_is_refused(where, points, says, capsys, tmp_path):
    if points:
        population(tmp_path / where, points)
    ended = faults.call(capsys, "train", *RUN, "--from-schedule", tmp_path / where, "--out", tmp_path / "new")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert says in ended.err
    assert not (tmp_path / "new").exists()
