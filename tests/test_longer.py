"""A run goes on beyond the steps it was asked for: to what it had come to if it had been asked for them at once."""

from __future__ import annotations

import json
import shutil

import jax
import pytest

import shoal
from shoal.core import errors
from shoal.experiment import extending
from shoal.formulas import optimise
from shoal.runs import checkpoint, run_folder
from shoal.runtimes import on_device
from tests import faults

RUN = (  # chunks of equal length: tests are compiled in a way in which another length rounds differently
    "a2c", "--env", "probe:match", "--runtime.environments", 8, "--runtime.chunk-steps", 1000, "--optimiser.no-anneal",
)  # fmt: skip
ANNEALED = RUN[:-1]


@pytest.fixture
def half(finished, tmp_path):
    return shutil.copytree(finished(*RUN, "--steps", 1000).folder, tmp_path / "run")


def go_on(capsys, folder, steps, *more):
    ended = faults.call(capsys, "resume", folder, "--steps", steps, *more, "--eval-episodes", 0, "--json")
    assert ended.code == 0, ended.err
    return ended.json, ended.err


def test_it_comes_to_the_bits_of_a_run_that_was_asked_for_them_at_once(half, finished, capsys):
    whole = finished(*RUN, "--steps", 2000).told
    found, said = go_on(capsys, half, "2e3")
    assert "going on to 2,000 steps in all" in said
    for key in ("params_sha256", "env_steps", "updates", "episodes", "return_mean", "steps"):
        assert found[key] == whole[key], key
    assert found["exact"] is True
    steps = [line["step"] for line in faults.metrics(half)]
    assert steps == sorted(set(steps))
    config = json.loads((half / "config.json").read_text())
    assert (config["steps"], config["earlier"]) == (
        2000, [{"steps": 1000, "episodes": None, "anneal": None, "goal": None}],
    )  # fmt: skip
    assert shoal.load(half).experiment.steps == 2000
    again, _ = go_on(capsys, half, 3000)
    assert (again["env_steps"], len(json.loads((half / "config.json").read_text())["earlier"])) == (3000, 2)


def test_killed_before_its_first_new_checkpoint_it_goes_on_by_itself(half, finished, capsys, monkeypatch):
    monkeypatch.setattr(checkpoint, "newest", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        faults.call(capsys, "resume", half, "--steps", 2000)
    monkeypatch.undo()
    (half / "summary.json").unlink(missing_ok=True)
    ended = faults.call(capsys, "resume", half, "--eval-episodes", 0, "--json")
    assert ended.json["params_sha256"] == finished(*RUN, "--steps", 2000).told["params_sha256"]


def test_what_is_no_more_than_before_is_refused_and_leaves_it_as_it_was(half, capsys):
    before = {path: path.read_bytes() for path in half.rglob("*.json")}
    for typed, words in (
        (("--steps", 1000), "has 1,000 steps already"),
        (("--steps", 3 * 10**9), "2,000,000,000"),
        (("--reanneal",), "give --steps as well"),
        ((), "--steps N` goes on"),
    ):
        ended = faults.call(capsys, "resume", half, *typed)
        assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
        assert words in ended.err
    assert before == {path: path.read_bytes() for path in half.rglob("*.json")}
    made = shoal.load(half).experiment
    recorded = made.__class__(
        **{**vars(made), "runtime": "hogwild", "configs": {**made.configs, "runtime": _recording()}}
    )
    with pytest.raises(errors.Refused, match="could not be replayed"):
        extending.longer(half, recorded, 5000, taken=1000, reanneal=True)


def _recording():
    from shoal.runtimes import hogwild

    return hogwild.Config(replayable=True)


def test_the_schedule_of_the_rate_ends_where_it_ended_or_begins_anew(finished, tmp_path, capsys):
    folder = shutil.copytree(finished(*ANNEALED, "--steps", 1000).folder, tmp_path / "run")
    old, said = go_on(capsys, folder, 2000)
    assert "lowered to 0 over the first 1,000 and stays there: --reanneal" in said
    first = shoal.load(finished(*ANNEALED, "--steps", 1000).folder)
    assert old["params_sha256"] == json.loads((first.folder / "summary.json").read_text())["params_sha256"], "rate 0"
    new, said = go_on(capsys, folder, 4000, "--reanneal")
    assert "lowered to 0 over all of them" in said
    assert new["params_sha256"] != old["params_sha256"]
    made = shoal.load(folder).experiment
    built = shoal.experiment.build(made)
    hypers = [
        node
        for node in jax.tree.leaves(
            run_folder.newest(folder, made, built, print).tree, is_leaf=lambda node: isinstance(node, optimise.Hyper)
        )
        if isinstance(node, optimise.Hyper)
    ]
    assert [float(hyper.anneal_steps) for hyper in hypers] == [4000.0]


def test_a_goal_is_dropped_and_seeds_go_on_together(capsys, tmp_path):
    out = tmp_path / "runs"
    short = (*RUN[:-2], 200, RUN[-1])  # reports after 200 steps, so that a goal ends them before their last
    before = faults.train(capsys, out, *short, "--steps", 1000, "--seeds", 2, "--until", -2)
    least = max(run["env_steps"] for run in before["runs"])
    assert least < 1000, "the goal ended them, or nothing is tested"
    refused = faults.call(capsys, "resume", out, "--steps", least)
    assert (refused.code, f"has {least:,} steps already" in refused.err) == (2, True)
    found, said = go_on(capsys, out, 2000)
    assert "going on to 2,000 steps" in said
    assert (found["status"], found["goal"]) == ("completed", None)
    for run, earlier in zip(found["runs"], before["runs"], strict=True):
        assert run["env_steps"] >= 2000 > earlier["env_steps"] - 1
        assert json.loads((out / f"seed-{run['seed']}" / "config.json").read_text())["steps"] == 2000


@pytest.mark.parametrize(
    ("steps", "done", "plan"),
    [
        (2000, 0, (40, 50, 50)), (4000, 50, (40, 50, 100)), (4000, 100, (40, 100, 100)), (4040, 100, (40, 1, 101)),
        (400_000, 50, (40, 100, 10_050)),
    ],
)  # fmt: skip
def test_what_is_left_is_cut_up_by_itself(steps, done, plan):
    found = on_device._plan(on_device.Config(environments=8, chunk_steps=4000), 5, steps, done)
    assert tuple(found)[:1] == plan[:1]
    assert found.updates >= -(-steps // 40)
    assert (found.updates - done) % found.per_chunk == 0
    if steps < 10_000:
        assert tuple(found) == plan


@pytest.mark.slow
@pytest.mark.parametrize(
    "typed",
    [
        ("a3c", "--env", "CartPole-v1", "--workers", 2), ("gorila", "--env", "CartPole-v1", "--workers", 1),
        ("parallel_sarsa",), ("dqn", "--env", "CartPole-v1", "--runtime", "host"),
    ],
    ids=lambda typed: typed[0],
)  # fmt: skip
def test_every_runtime_goes_on(typed, capsys, tmp_path):
    first = faults.train(capsys, tmp_path / "run", *typed, "--steps", 1000)
    found, _ = go_on(capsys, tmp_path / "run", 3000)
    assert found["status"] == "completed"
    assert found["env_steps"] >= 3000 > first["env_steps"]
