"""Several seeds in one program: each is the run it would be alone, and the group can be stopped and killed like one."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import shoal
from shoal import experiment, log
from shoal.command import cli
from shoal.core import errors, tree
from shoal.experiment import budget
from shoal.report import statistics
from shoal.runs import group as groups
from shoal.runtimes.members import chunks
from tests import faults

SHORT = ("a2c", "--env", "probe:match", "--runtime.environments", 8, "--steps", 2000)
CHUNKS = ("a2c", "--env", "gymnax:CartPole-v1", "--runtime.environments", 16, "--runtime.chunk-steps", 160)
STEPS = ("--steps", 16_000)  # a hundred reports: time to be killed between two
CARTPOLE = (*CHUNKS, *STEPS, "--eval-episodes", 0)
UNTIL = (*CHUNKS, *STEPS, "--until")  # a goal that follows: 35 is reached after 10,000 steps
EVALUATED = ("--eval-episodes", 3)
SEEDS = 3
ALL = {"SHOAL_SAVE_EVERY": 0}  # a checkpoint at every report


def episodes(folder):
    """Finished episodes, their wall time apart."""
    rows = csv.DictReader((folder / "episodes.csv").read_text().splitlines())
    return [{name: value for name, value in row.items() if name != "wall_s"} for row in rows]


def digests(summary):
    return [run["params_sha256"] for run in summary["runs"]]


def close(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


# ------------------------------------------------------------------------------------------------ what a group leaves


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """A finished group of seeds 4, 5 and 6."""
    folder = tmp_path_factory.mktemp("group") / "runs"
    typed = ["train", *SHORT, "--seed", 4, "--seeds", SEEDS, "--out", folder, *EVALUATED, "--quiet"]
    assert cli.main([str(word) for word in typed]) == 0
    return folder


def test_every_seed_has_an_ordinary_run_folder(group, capsys):
    for seed in (4, 5, 6):
        folder = group / f"seed-{seed}"
        summary = faults.summary(folder)
        assert (summary["seed"], summary["status"], summary["eval_episodes"]) == (seed, "completed", 3)
        assert summary["episodes"] == len(episodes(folder))
        assert faults.metrics(folder)[-1]["step"] == summary["env_steps"]
        assert list(folder.glob("events.out.tfevents.*"))
        assert (folder / "report.html").stat().st_size
        assert faults.call(capsys, "eval", folder, "--episodes", 2, "--json").json["eval_return_mean"] is not None
    assert faults.call(capsys, "export", group / "seed-5", "--out", group / "seed-5" / "policy.onnx").code == 0
    complete = faults.call(capsys, "resume", group / "seed-5")
    assert (complete.code, "is complete" in complete.err) == (2, True)


def test_the_summary_is_of_all_seeds(group):
    whole, config = faults.summary(group), json.loads((group / "config.json").read_text())
    runs = [faults.summary(group / f"seed-{seed}") for seed in (4, 5, 6)]
    assert whole["seeds"] == config["seeds"] == [4, 5, 6]
    assert (whole["status"], whole["runtime"], whole["exact"]) == ("completed", "on_device", True)
    assert whole["env_steps"] == sum(run["env_steps"] for run in runs)
    assert whole["env_steps_per_s"] == pytest.approx(whole["env_steps"] / whole["train_s"])
    for name in ("return", "eval_return"):
        means = [run[f"{name}_mean"] for run in runs]
        assert whole[f"{name}_iqm"] == pytest.approx(statistics.iqm(means))
        low, high = whole[f"{name}_interval"]
        assert low <= whole[f"{name}_iqm"] <= high
    assert whole["solved"] is None, "there was no goal"
    assert digests(whole) == [run["params_sha256"] for run in runs]
    assert len(set(digests(whole))) == SEEDS, "seeds differ"


def test_the_report_is_of_all_seeds(group, capsys, tmp_path):
    written = (group / "report.html").read_text()
    assert "3 seeds" in written
    assert "IQM of 3 runs" in written
    told = faults.call(capsys, "report", group, "--out", tmp_path / "again.html")
    assert told.code == 0
    assert (tmp_path / "again.html").read_text() == written


def test_a_group_is_not_one_run(group, capsys):
    for verb in ("eval", "export"):
        ended = faults.call(capsys, verb, group)
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert f"{group}/seed-4" in ended.err
    with pytest.raises(errors.Refused, match="several seeds"):
        shoal.load(group)
    assert "is complete" in faults.call(capsys, "resume", group).err


def test_json_and_screen_are_of_the_group(capsys, tmp_path):
    ended = faults.call(capsys, "train", *SHORT, "--seeds", SEEDS, "--out", tmp_path / "runs", "--json", *EVALUATED)
    assert ended.code == 0
    assert ended.json == faults.summary(tmp_path / "runs")
    lines = [line for line in ended.err.splitlines() if line.startswith("step=")]
    assert all("seeds=" in line and "/6000 " in line for line in lines), "of all seeds, none of one alone"
    for words in ("seeds=3/3", "a2c on probe:match (seeds 0 to 2): completed", "IQM", "95 % interval", "seed 1 "):
        assert words in ended.err


def test_one_seed_has_no_interval(capsys, tmp_path):
    summary = faults.train(capsys, tmp_path / "runs", *SHORT, "--seeds", 1)
    assert summary["return_iqm"] == summary["runs"][0]["return_mean"]
    assert summary["return_interval"] is None
    assert summary["eval_return_iqm"] is None


def test_python_trains_several_seeds(tmp_path):
    group = shoal.train("a2c", env="probe:match", steps=20_000, seeds=2, out=tmp_path / "runs", quiet=True,
        algorithm={"entropy_cost": 0.0})  # fmt: skip
    assert [run.experiment.seed for run in group.runs] == [0, 1]
    assert group.summary["eval_return_iqm"] == 1.0
    assert group.runs[1].evaluate(20).returns == [1.0] * 20
    assert shoal.load(group.runs[1].folder).summary == group.runs[1].summary


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"env": "probe:match", "runtime": "hogwild", "seeds": 2}, ["on_device", "host", "hogwild", "one by one"]),
        ({"env": "probe:match", "seeds": 0}, ["0", "at least 1"]),
        ({"env": "probe:match", "seeds": 1.5}, ["1.5", "at least 1"]),
        ({"env": "probe:match", "seeds": 2, "seed": 2**63 - 1}, ["out of range"]),
    ],
)
def test_what_cannot_run_together_is_refused(given, words, tmp_path):
    with pytest.raises(errors.Refused) as refused:
        shoal.train("a2c", **given, out=tmp_path / "runs", quiet=True)
    assert "\n" not in str(refused.value)
    for word in words:
        assert word in str(refused.value)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ what a seed computes


@pytest.mark.parametrize("preset", ["a2c", pytest.param("ppo", marks=pytest.mark.slow), "dqn"])
def test_a_seed_learns_what_it_would_alone(preset, tmp_path):
    given = {"env": "probe:match", "steps": 4000, "eval_episodes": 0, "quiet": True}
    group = shoal.train(preset, **given, seed=2, seeds=2, out=tmp_path / "group")
    for run in group.runs:
        alone = shoal.train(preset, **given, seed=run.experiment.seed, out=tmp_path / f"{run.experiment.seed}")
        assert run.summary["env_steps"] == alone.summary["env_steps"]
        close(run.policy.params, alone.policy.params)
        assert episodes(run.folder) == episodes(alone.folder)


def test_the_same_command_gives_the_same_bits(undisturbed, capsys, tmp_path):
    again = faults.train(capsys, tmp_path / "again", *CARTPOLE[:-2], "--seeds", SEEDS)
    assert digests(again) == digests(faults.summary(undisturbed))


def test_a_seed_that_is_done_keeps_what_it_had_then(capsys, tmp_path):
    goal = (*UNTIL, 30)
    whole = faults.train(capsys, tmp_path / "group", *goal, "--seeds", SEEDS)
    assert whole["solved"] == SEEDS
    ends = [run["env_steps"] for run in whole["runs"]]
    assert len(set(ends)) > 1, "they end at different steps, or nothing is tested"
    for run in whole["runs"]:
        alone = faults.train(capsys, tmp_path / str(run["seed"]), *goal, "--seed", run["seed"])
        for key in ("env_steps", "solved_at_step", "return_mean"):
            assert run[key] == pytest.approx(alone[key]), key
        ours, theirs = shoal.load(run["run"]), shoal.load(tmp_path / str(run["seed"]))
        close(ours.policy.params, theirs.policy.params)
        assert run["params_sha256"] == tree.sha256(ours.policy.params), "what it came to is what was saved"
        last = newest(tmp_path / "group" / f"seed-{run['seed']}")
        assert last.name == f"step-{run['env_steps']:012d}"


@pytest.mark.parametrize("preset", ["ppo", pytest.param("dqn", marks=pytest.mark.slow)])
def test_on_how_many_cores_they_run_changes_nothing(preset, tmp_path):
    """Three seeds on two devices are two and two, one of which is nobody's; memories are not filled up like that."""
    seeds = 3 if preset == "ppo" else 2
    typed = ("train", preset, "--env", "probe:match", "--steps", 3000, "--runtime.chunk-steps", 1000, "--seeds", seeds)
    ended = {}
    for devices in (1, 2):
        with faults.Process(
            *typed, "--eval-episodes", 0, "--out", tmp_path / f"{devices}", "--json", JAX_NUM_CPU_DEVICES=devices
        ) as process:
            ended[devices] = process.ended()
        assert ended[devices].code == 0, ended[devices].err
    one, two = (shoal.load(tmp_path / f"{devices}" / f"seed-{seeds - 1}") for devices in (1, 2))
    close(one.policy.params, two.policy.params)
    assert episodes(one.folder) == episodes(two.folder)
    assert len(ended[2].json["runs"]) == seeds


def test_a_device_is_made_for_each_core_seeds_can_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "9")  # and as it was afterwards
    for seeds, devices in [(1, None), (2, "2"), (10, "3")]:
        monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
        experiment.prepare_seeds("on_device", seeds)
        assert os.environ.get("JAX_NUM_CPU_DEVICES") == devices
    experiment.prepare_seeds("on_device", 2)
    assert os.environ["JAX_NUM_CPU_DEVICES"] == "3", "what a person has set stays"


@pytest.mark.parametrize("seeds", [(), ("--seeds", SEEDS)], ids=["one", "several"])
def test_computing_ahead_changes_no_bit(seeds, capsys, tmp_path, monkeypatch):
    typed = (*UNTIL, 35, *seeds)
    ahead = faults.train(capsys, tmp_path / "ahead", *typed)
    monkeypatch.setattr(chunks, "TWICE", 0)
    after = faults.train(capsys, tmp_path / "after", *typed)
    assert (ahead["env_steps"], ahead["episodes"]) == (after["env_steps"], after["episodes"])
    if seeds:
        assert digests(ahead) == digests(after)
    else:
        assert ahead["params_sha256"] == after["params_sha256"]


# ------------------------------------------------------------------------------------------------ stopped, killed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The group that the disturbed ones must come to."""
    folder = tmp_path_factory.mktemp("undisturbed") / "runs"
    typed = ["train", *CARTPOLE, "--seeds", SEEDS, "--out", folder, "--quiet"]
    assert cli.main([str(word) for word in typed]) == 0
    return folder


@pytest.fixture(scope="module")
def dead(tmp_path_factory):
    """A group killed with kill -9, as a folder to copy."""
    folder = tmp_path_factory.mktemp("dead") / "runs"
    with faults.Process("train", *CARTPOLE, "--seeds", SEEDS, "--out", folder, **ALL) as process:
        last = folder / f"seed-{SEEDS - 1}" / "checkpoints"
        faults.wait(lambda: len(list(last.glob("step-*"))) > 1 or not process.runs(), "checkpoints")
        time.sleep(0.1)
        assert process.runs(), "it ended before it could be killed"
        process.signal(signal.SIGKILL)
        process.ended()
    return folder


@pytest.fixture
def copy(dead, tmp_path):
    return shutil.copytree(dead, tmp_path / "runs")


def newest(folder):
    return max((folder / "checkpoints").glob("step-*"))


def check_same(folder, summary, undisturbed):
    expected = faults.summary(undisturbed)
    assert (summary["status"], summary["exact"]) == ("completed", True)
    assert digests(summary) == digests(expected)
    assert summary["return_iqm"] == expected["return_iqm"]
    for seed in range(SEEDS):
        ours, theirs = folder / f"seed-{seed}", undisturbed / f"seed-{seed}"
        assert episodes(ours) == episodes(theirs)
        steps = [line["step"] for line in faults.metrics(ours)]
        assert steps == sorted(set(steps))
        for key in ("env_steps", "updates", "episodes", "return_mean", "best_return_mean"):
            assert faults.summary(ours)[key] == faults.summary(theirs)[key], key


def lose_newest(folder):
    shutil.rmtree(newest(folder / "seed-1"))


def lose_all(folder):
    shutil.rmtree(folder / "seed-1" / "checkpoints")


def damage_newest(folder):
    data = newest(folder / "seed-1") / "arrays.bin"
    data.write_bytes(data.read_bytes()[:-1])


@pytest.mark.parametrize(
    "harm", [None, lose_newest, lose_all, damage_newest], ids=lambda f: f.__name__ if f else "kill"
)
def test_killed_it_reaches_the_same_bits(harm, undisturbed, copy, capsys):
    """Also when the kill came between the saves of two seeds, before the first of one, or damaged one."""
    if harm:
        harm(copy)
    ended = faults.call(capsys, "resume", copy, "--json", "--eval-episodes", 0)
    assert ended.code == 0, ended.err
    check_same(copy, ended.json, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_all_are_saved(number, undisturbed, tmp_path, capsys):
    out = tmp_path / "runs"
    with faults.Process("train", *CARTPOLE, "--seeds", SEEDS, "--out", out, "--json", **ALL) as process:
        faults.wait((out / "seed-2" / "checkpoints").is_dir, "a checkpoint")
        process.signal(number)
        ended = process.ended()
    assert ended.code == 75, ended.err
    assert ended.json == faults.summary(out)
    assert (ended.json["status"], ended.json["stopped_by"]) == ("interrupted", number.name)
    assert f"shoal resume {out}" in ended.err
    assert ended.err.count("finishing the update") == 1
    for seed in range(SEEDS):
        summary = faults.summary(out / f"seed-{seed}")
        assert summary["status"] == "interrupted"
        assert newest(out / f"seed-{seed}").name == f"step-{summary['env_steps']:012d}"
    resumed = faults.call(capsys, "resume", out, "--json", "--eval-episodes", 0)
    assert resumed.code == 0, resumed.err
    check_same(out, resumed.json, undisturbed)


def test_one_seed_goes_on_alone_and_the_rest_after_it(undisturbed, copy, capsys):
    alone = faults.call(capsys, "resume", copy / "seed-1", "--json", "--eval-episodes", 0)
    assert alone.code == 0, alone.err
    assert alone.json["env_steps"] == faults.summary(undisturbed / "seed-1")["env_steps"]
    assert alone.json["exact"] is False, "another program rounds differently, and that is said"
    rest = faults.call(capsys, "resume", copy, "--json", "--eval-episodes", 0)
    assert rest.code == 0, rest.err
    assert rest.json["runs"][1]["params_sha256"] == alone.json["params_sha256"], "it was done already"
    ours, expected = digests(rest.json), digests(faults.summary(undisturbed))
    assert (ours[0], ours[2]) == (expected[0], expected[2])
    assert rest.json["exact"] is False


def test_a_seed_whose_goal_was_met_stays_as_it_was(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("SHOAL_SAVE_EVERY", "0")
    out = tmp_path / "runs"
    whole = faults.train(capsys, out, *UNTIL, 35, "--seeds", SEEDS)
    last = max(whole["runs"], key=lambda run: run["env_steps"])
    assert min(run["env_steps"] for run in whole["runs"]) < last["env_steps"], "or nothing is tested"
    for path in (out, *out.glob("seed-*")):
        (path / "summary.json").unlink()  # killed before the last seed met its goal
    shutil.rmtree(newest(out / f"seed-{last['seed']}"))
    ended = faults.call(capsys, "resume", out, "--json", "--eval-episodes", 0)
    assert ended.code == 0, ended.err
    assert ended.json["runs"] == whole["runs"]
    assert (ended.json["solved"], ended.json["exact"]) == (SEEDS, True)
    for path in out.glob("seed-*"):
        (path / "summary.json").unlink()
    (out / "summary.json").unlink()  # killed after that
    assert faults.call(capsys, "resume", out, "--json", "--eval-episodes", 0).json["runs"] == whole["runs"]


def test_a_group_killed_before_it_was_saved_begins_anew(undisturbed, copy, capsys):
    for seed in range(SEEDS):
        shutil.rmtree(copy / f"seed-{seed}" / "checkpoints")
    resumed = faults.call(capsys, "resume", copy, "--json", "--eval-episodes", 0)
    assert resumed.code == 0, resumed.err
    assert resumed.err.count("was never saved: it begins anew") == SEEDS
    check_same(copy, resumed.json, undisturbed)


def test_an_edited_list_of_seeds_is_refused(copy, capsys):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"seeds": "all"}))
    ended = faults.call(capsys, "resume", copy)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "restore it" in ended.err


def test_a_group_in_use_is_left_alone(tmp_path, capsys):
    out = tmp_path / "runs"
    typed = (*CHUNKS, "--steps", 10**9, "--seeds", 2)
    with faults.Process("train", *typed, "--out", out) as process:
        faults.wait_for_training(process, out / "seed-1")
        for folder in (out, out / "seed-0"):
            ended = faults.call(capsys, "resume", folder)
            assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
            assert "in use by another process" in ended.err
        assert process.runs()


# ------------------------------------------------------------------------------------------------ the screen


def test_the_board_adds_seeds_up():
    class Screen(log.Quiet):
        shown, count = None, 0

        def show(self, status):
            self.shown, self.count = status, self.count + 1

    screen = Screen()
    board = groups.Board(screen, [7, 8, 9])
    status = log.Status("a2c", "x", "on_device", 7, 100, 1000, 50.0, 10.0, 12.0, 3, {}, {}, 0, 1.0, 5.0, 18.0, None)
    for at, mean in enumerate((10.0, None, 40.0)):
        board.lane(at).show(status._replace(return_mean=mean))
    seen = screen.shown
    assert (seen.step, seen.steps, seen.steps_per_s, seen.episodes) == (300, 3000, 150.0, 9)
    assert (seen.return_mean, seen.together.iqm, seen.together.finished) == (25.0, 25.0, 0)
    assert screen.count == 1, "once a round"
    board.done(2)
    board.lane(2).show(status._replace(return_mean=40.0))
    board.lane(0).show(status._replace(return_mean=10.0))
    board.lane(1).show(status._replace(return_mean=10.0))
    seen = screen.shown
    assert (seen.step, seen.steps, seen.steps_per_s) == (300, 2100, 100.0), (
        "what a done seed left out is not waited for"
    )
    assert (seen.return_mean, seen.together.finished) == (20.0, 1)


# ------------------------------------------------------------------------------------------------ memory


def test_a_replay_memory_is_told_before_the_run(capsys, tmp_path):
    out = tmp_path / "run"
    typed = ("dqn", "--env", "probe:match", "--algorithm.capacity", 4000, "--steps", 400)
    ended = faults.call(capsys, "train", *typed, "--out", out, "--json", "--eval-episodes", 0)
    assert ended.code == 0, ended.err
    assert ended.err.startswith("replay memory: 4,000 steps, ")
    replay = ended.json["replay"]
    assert replay["steps"] == 4000
    assert 4000 * 10 < replay["bytes"] < 4000 * 100
    two = faults.call(capsys, "train", *typed, "--seeds", 2, "--out", tmp_path / "two", "--json", "--eval-episodes", 0)
    assert two.json["replay"] == {"steps": 8000, "bytes": 2 * replay["bytes"]}
    assert "each of 2 seeds" in two.err
    plain = faults.call(capsys, "train", *SHORT, "--out", tmp_path / "plain", "--json", "--eval-episodes", 0)
    assert "replay" not in plain.json


def test_a_replay_memory_that_cannot_fit_is_refused(tmp_path):
    """In a process of its own that may not take more than a few gigabytes."""
    script = f"""
import re, sys
from shoal.command import cli
code = cli.main(["train", "dqn", "--env", "probe:match", "--algorithm.capacity", str(10**11),
                 "--out", {str(tmp_path / "run")!r}])
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])  # ru_maxrss is inherited
assert peak < 1.5e6, "it was allocated"
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    for words in ("MB", "available", "algorithm.capacity"):
        assert words in done.stderr
    assert not list(tmp_path.iterdir())


def test_seeds_count_for_the_memory_they_take(monkeypatch):
    needed = budget.Need(600 * budget.MB, {"steps": 10, "bytes": 500 * budget.MB})
    monkeypatch.setattr(budget, "available", lambda: 1000 * budget.MB)
    assert budget.check(needed, 1) == "replay memory: 10 steps, 500 MB"
    with pytest.raises(errors.Refused, match=r"1,200 MB.*1,000 MB.*fewer seeds"):
        budget.check(needed, 2)


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_container_counts(version, tmp_path, monkeypatch):
    below, names = (
        ("memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
        ("", ("memory.max", "memory.current")),
    )[version - 1]
    folder = tmp_path / below
    folder.mkdir(exist_ok=True)
    for name, value in zip(names, (900 * budget.MB, 500 * budget.MB), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"inactive_file {100 * budget.MB}\nanon 5\n")
    monkeypatch.setattr(budget, "CGROUPS", tmp_path)
    monkeypatch.setattr(budget, "_meminfo", lambda: 2000 * budget.MB)
    assert budget.available() == 500 * budget.MB, "file pages can be had back"
    (folder / names[0]).write_text("max\n")
    assert budget.available() == 2000 * budget.MB
