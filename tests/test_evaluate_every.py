"""Evaluations while a run trains: they change nothing of it, are booked apart, and the best policy is kept."""

from __future__ import annotations

import csv
import json
import os
import shutil

import jax
import numpy as np
import pytest

import shoal
from shoal import experiment, log
from shoal.core import errors, seeds, types
from shoal.experiment import presets
from shoal.runs import checkpoint, evaluation, run_folder, session
from tests import faults

RUN = ("a2c", "--env", "probe:match", "--runtime.environments", 8, "--runtime.chunk-steps", 1000, "--steps", 3000)
EVERY = ("--evaluate-every", 2000, "--evaluate-episodes", 2)


def rows(folder):
    with open(folder / "evaluations.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_has_the_bits_of_one_without_and_keeps_its_best_policy(finished, capsys):
    plain, run = finished(*RUN), finished(*RUN, *EVERY)
    for key in ("params_sha256", "env_steps", "updates", "episodes", "return_mean", "train_return_mean"):
        assert run.told[key] == plain.told[key], key
    assert [int(row["env_steps"]) for row in rows(run.folder)] == [2000, 3000], "at the end too"
    assert [row["episodes"] for row in rows(run.folder)] == ["2", "2"]
    assert run.told["evaluations"]["best_return_mean"] == max(float(row["return_mean"]) for row in rows(run.folder))
    assert "greedy evaluations" in (run.folder / "report.html").read_text()
    config = json.loads((run.folder / "config.json").read_text())
    assert (config["evaluate_every"], config["evaluate_episodes"]) == (2000, 2)
    assert not {"evaluate_every", "evaluate_episodes"} & json.loads((plain.folder / "config.json").read_text()).keys()
    assert "evaluations" not in plain.told
    assert not (plain.folder / "evaluations.csv").exists()
    assert shoal.load(run.folder, best=True).policy.params.keys() == shoal.load(run.folder).policy.params.keys()
    ended = faults.call(capsys, "eval", run.folder, "--best", "--episodes", 2, "--json")
    assert ended.json["eval_episodes"] == 2
    for verb in ("eval", "export"):
        ended = faults.call(capsys, verb, plain.folder, "--best")
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert "--evaluate-every" in ended.err


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (("a2c", "--env", "probe:match", "--evaluate-every", 0), "--evaluate-every 0"),
        (("a2c", "--env", "probe:match", "--evaluate-episodes", 5), "give --evaluate-every as well"),
        (("batch_linear", "--evaluate-every", 100), "learns after its last sample"),
    ],
)
def test_what_makes_no_sense_is_refused(typed, words, capsys, tmp_path):
    ended = faults.call(capsys, "train", *typed, "--out", tmp_path / "run")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert words in ended.err
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- the session


@pytest.fixture(scope="module")
def built():
    request = presets.Request("a2c", "probe:constant", 1000, evaluate_every=10, evaluate_episodes=2)
    made, opened = presets.resolve(request)
    return made, experiment.build(made, opened)


@pytest.fixture
def play(monkeypatch):
    """Evaluations come to what the test says; the seeds they were given."""
    told: dict[str, list] = {"returns": [], "seeds": []}

    def evaluate(*given, **_):
        _, _, episodes, seed = given
        told["seeds"].append(seed)
        value = told["returns"].pop(0)
        if isinstance(value, Exception):
            raise value
        return evaluation.Evaluation([value] * episodes, [1] * episodes)

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    return told


def policy(value):
    params = {"w": np.full(2, value, np.float32)}
    return types.Policy(params, (), np.float32(1.0))


def progress(step, train_s=1.0):
    return types.Progress(
        env_steps=step, updates=step, train_s=train_s, episodes=[], metrics={}, split={"on_device": train_s},
        workers={}, faults={}, save=lambda: {"theta": np.full(3, step, np.float32)}, policy=lambda: policy(step),
    )  # fmt: skip


class Console(log.Quiet):
    def __init__(self):
        self.faults = []

    def fault(self, kind, text):
        self.faults.append((kind, text))


def opened(folder, built, resumed=None, console=None):
    made, parts = built
    judge = session.Judge(parts, session.Still())
    return session.Session(folder, made, console or Console(), 0.0, resumed, shared=session.Program(judge=judge))


def best(folder):
    return int(checkpoint.best(folder / "checkpoints", policy(0)).tree.params["w"][0])


def steps(folder):
    return [int(row["env_steps"]) for row in rows(folder)]


def test_the_best_is_kept_whatever_comes_later_and_over_a_resume(tmp_path, built, play, monkeypatch):
    monkeypatch.setenv("SHOAL_SAVE_EVERY", "0")
    run_folder.write_config(tmp_path, built[0], "shoal train a2c")
    kept = opened(tmp_path, built)
    play["returns"] += [1.0, 3.0, 2.0, 3.0]
    for step in (5, 12, 19, 21, 30, 40, 44):
        assert kept(progress(step))
    kept.close()
    assert steps(tmp_path) == [12, 21, 30, 40]
    assert best(tmp_path) == 21, "the earliest of equals"
    newest = checkpoint.newest(tmp_path / "checkpoints", {"theta": np.zeros(3, np.float32)}, print)
    assert newest.step == 44
    assert len(set(play["seeds"])) == 1, "the same episodes every time"
    assert play["seeds"][0] not in (built[0].seed, seeds.derive(built[0].seed, "evaluation", 0))

    for place in ("step-000000000044", "step-000000000040"):  # a kill took them: it goes on from 30
        shutil.rmtree(tmp_path / "checkpoints" / place)
    newest = checkpoint.newest(tmp_path / "checkpoints", {"theta": np.zeros(3, np.float32)}, print)
    kept = opened(tmp_path, built, newest)
    assert steps(tmp_path) == [12, 21, 30], "lines beyond it are cut"
    play["returns"] += [2.5, 4.0]
    assert kept(progress(35))
    assert kept(progress(41))
    assert best(tmp_path) == 21
    assert kept(progress(50))
    kept.close()
    assert (steps(tmp_path), best(tmp_path)) == ([12, 21, 30, 41, 50], 50)


def test_its_time_is_not_training_and_the_last_report_is_corrected_once(tmp_path, built, play):
    run_folder.write_config(tmp_path, built[0], "shoal train a2c")
    kept = opened(tmp_path, built)
    play["returns"] += [1.0, 1.0]
    assert kept(progress(12, train_s=1.0))
    kept._evaluations._still.seconds = 4.0  # as if it had taken so long
    last = progress(14, train_s=7.0)
    assert kept(last)
    result = types.Result(policy(14), last, 0.0)
    kept.finish(result)
    told = kept.summary("completed", result, 0.0)
    kept.close()
    assert (told["train_s"], told["split"]) == (3.0, {"on_device": 3.0})
    assert steps(tmp_path) == [12, 14]


def test_one_that_a_signal_ended_is_played_after_the_resume(tmp_path, built, play):
    run_folder.write_config(tmp_path, built[0], "shoal train a2c")
    kept = opened(tmp_path, built)
    play["returns"] += [evaluation.Stopped()]
    kept(progress(12))
    kept.finish(types.Result(policy(12), progress(12)._replace(updates=0), 0.0))  # nothing more is played
    kept.close()
    newest = checkpoint.newest(tmp_path / "checkpoints", {"theta": np.zeros(3, np.float32)}, print)
    play["returns"] += [1.0]
    kept = opened(tmp_path, built, newest)
    kept(progress(14))
    kept.close()
    assert steps(tmp_path) == [14]


def test_a_simulator_that_raises_or_pays_nan_costs_a_line_and_not_the_run(tmp_path, built, play):
    run_folder.write_config(tmp_path, built[0], "shoal train a2c")
    console = Console()
    kept = opened(tmp_path, built, console=console)
    play["returns"] += [OSError("gone"), float("nan"), 1.0]
    for step in (10, 20, 30):
        assert kept(progress(step))
    kept.close()
    assert [kind for kind, _ in console.faults] == ["the evaluation failed; its numbers are not measured"]
    assert (steps(tmp_path), best(tmp_path)) == ([30], 30)


# ---------------------------------------------------------------- checkpoints/best


def test_one_of_them_is_whole_wherever_the_writer_is_killed(tmp_path, monkeypatch):
    root, rename = tmp_path / "checkpoints", os.rename
    checkpoint.save_best(root, 10, policy(10), {"return_mean": 1.0})
    for dies in (1, 2):  # before the old one steps aside; before the new one takes its place
        calls = []

        def killed(source, target, calls=calls, dies=dies):
            calls.append(source)
            if len(calls) == dies:
                raise KeyboardInterrupt
            rename(source, target)

        monkeypatch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save_best(root, 20, policy(20), {"return_mean": 2.0})
        monkeypatch.undo()
        assert best(tmp_path) == 10
        assert checkpoint.best_said(root) == {"return_mean": 1.0}
    for step in range(1, 6):
        checkpoint.save(root, step, {"theta": np.zeros(1, np.float32)}, {})
    checkpoint.save_best(root, 20, policy(20), {"return_mean": 2.0})
    assert best(tmp_path) == 20
    assert sorted(os.listdir(root)) == ["best", *(f"step-{step:012d}" for step in (3, 4, 5))]

    def full(source, target, calls=[]):  # noqa: B006
        calls.append(source)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(checkpoint.NotSaved):
        checkpoint.save_best(root, 30, policy(30), {"return_mean": 3.0})
    monkeypatch.undo()
    assert (best(tmp_path), sorted(os.listdir(root))[0]) == (20, "best")


def test_one_of_another_policy_is_refused(tmp_path):
    checkpoint.save_best(tmp_path, 10, policy(10), {})
    with pytest.raises(errors.NoCheckpoint, match="holds an unknown leaf"):
        checkpoint.best(tmp_path, policy(0)._replace(params={}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "typed",
    [
        ("ppo", "--env", "CartPole-v1", "--runtime", "host"), ("a3c", "--env", "CartPole-v1", "--workers", 2),
        ("gorila", "--env", "CartPole-v1", "--workers", 1), ("parallel_sarsa",),
        ("a2c", "--env", "CartPole-v1", "--runtime", "host", "--seeds", 2),
    ],
    ids=lambda typed: typed[0],
)  # fmt: skip
def test_every_runtime_is_evaluated_on_the_way(typed, capsys, tmp_path):
    out = tmp_path / "run"
    told = faults.train(capsys, out, *typed, "--steps", 3000, "--evaluate-every", 1000, "--evaluate-episodes", 2)
    assert told["status"] == "completed"
    for folder in sorted(out.glob("seed-*")) or [out]:
        assert len(rows(folder)) >= 2
        jax.tree.map(
            np.testing.assert_array_equal,
            *[jax.tree.map(np.shape, shoal.load(folder, best=b).policy) for b in (True, False)],
        )
