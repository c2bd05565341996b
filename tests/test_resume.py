from __future__ import annotations

import csv
import json
import random
import shutil
import signal
import time

import pytest

from shoal import experiment
from shoal.command import cli
from shoal.runs import checkpoint
from tests import faults

STEPS = 40_000
DEVICE = (
    "a2c", "--env", "gymnax:CartPole-v1", "--runtime.environments", 16, "--runtime.chunk-steps", 160,
    "--steps", STEPS, "--eval-episodes", 0,
)  # fmt: skip
KILLS = 3
ALL = {"SHOAL_SAVE_EVERY": 0}  # a checkpoint at every report


def steps_of(folder):
    return [line["step"] for line in faults.metrics(folder)]


def episodes(folder):
    """Finished episodes, their wall time apart."""
    rows = csv.DictReader((folder / "episodes.csv").read_text().splitlines())
    return [{name: value for name, value in row.items() if name != "wall_s"} for row in rows]


def check_logs(folder):
    """Nothing is told twice, and nothing out of order."""
    steps = steps_of(folder)
    assert steps == sorted(set(steps))
    rows = episodes(folder)
    for worker in {row["worker"] for row in rows}:  # reports of several workers may overtake each other
        ends = [int(row["env_steps"]) for row in rows if row["worker"] == worker]
        assert ends == sorted(ends)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run that the disturbed ones must come to."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert cli.main(["train", *map(str, DEVICE), "--out", str(folder), "--quiet"]) == 0
    return folder


def killed(folder, *typed, moment):
    """A command killed with kill -9, `moment` seconds after its first new checkpoint."""
    before = set((folder / "checkpoints").glob("step-*"))
    with faults.Process(*typed, **ALL) as process:
        faults.wait(
            lambda: set((folder / "checkpoints").glob("step-*")) - before or not process.runs(), "a new checkpoint"
        )
        time.sleep(moment)  # the moment of the kill is what is drawn
        alive = process.runs()
        process.signal(signal.SIGKILL)
        ended = process.ended()
    assert ended.code in (0, -signal.SIGKILL), ended.err
    return alive


@pytest.fixture(scope="module")
def dead(tmp_path_factory):
    """A run killed early, as a folder to copy."""
    folder = tmp_path_factory.mktemp("dead") / "run"
    assert killed(folder, "train", *DEVICE, "--out", folder, moment=0.1)
    assert len(list((folder / "checkpoints").glob("step-*"))) > 1, "there must be one before the newest"
    return folder


@pytest.fixture
def copy(dead, tmp_path):
    return shutil.copytree(dead, tmp_path / "run")


def test_killed_at_random_moments_it_reaches_the_same_bits(undisturbed, copy, capsys):
    chance, kills = random.Random(20), 1
    while kills < KILLS and killed(copy, "resume", copy, "--eval-episodes", 0, moment=chance.uniform(0.0, 0.2)):
        kills += 1
    assert kills == KILLS, "the run is too short to be killed so often"
    ended = faults.call(capsys, "resume", copy, "--json", "--eval-episodes", 0)
    assert ended.code == 0, ended.err
    summary, expected = ended.json, faults.summary(undisturbed)
    assert summary["status"] == "completed"
    assert summary["params_sha256"] == expected["params_sha256"]
    assert summary["exact"] is True
    for key in ("env_steps", "updates", "episodes", "return_mean", "return_std", "best_return_mean"):
        assert summary[key] == expected[key], key
    assert episodes(copy) == episodes(undisturbed)
    check_logs(copy)
    assert steps_of(copy)[-1] == summary["env_steps"]
    assert not list(copy.rglob(".tmp-*")), "what killed saves left is cleared"


REPLAYED = ("--algorithm.capacity", 512, "--algorithm.batch", 16, "--algorithm.learning-starts", 64)
RULES = {  # every algorithm, small: what a memory holds is part of what must come back
    "ppo": (
        "gymnax:CartPole-v1", 6400, "--algorithm.rollout-length", 16, "--algorithm.normalise-returns",
        "--algorithm.normalise-observations",
    ),
    "dqn": ("gymnax:CartPole-v1", 3200, "--algorithm.replay", "prioritised", "--algorithm.n-step", 3, *REPLAYED),
    "td3": ("gymnax:Pendulum-v1", 1600, *REPLAYED, "--algorithm.normalise-observations"),
    "sac": ("gymnax:Pendulum-v1", 1600, *REPLAYED),
    "async_sarsa": (  # a target network, a step that waits, a final epsilon for every stream
        "gymnax:CartPole-v1", 3200, "--runtime", "on_device", "--algorithm.target-period", 150,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "preset", [pytest.param(name, marks=pytest.mark.slow) if name == "td3" else name for name in RULES]
)
def test_stopped_and_resumed_every_algorithm_reaches_the_same_bits(preset, tmp_path, capsys):
    """Parameters, targets, optimisers, statistics and the memory: the whole tree of the last checkpoint."""
    env, steps, *settings = RULES[preset]
    typed = (
        preset, "--env", env, "--runtime.environments", 4, "--runtime.chunk-steps", 64, "--steps", steps,
        "--network.hidden", 16, *settings,
    )  # fmt: skip
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    faults.train(capsys, whole, *typed)
    with faults.Process("train", *typed, "--eval-episodes", 0, "--out", halved, "--json", **ALL) as process:
        faults.wait_for_training(process, halved, steps // 4)
        process.signal(signal.SIGTERM)
        stopped = process.ended()
    assert stopped.code == 75, stopped.err
    assert 0 < stopped.json["env_steps"] < steps
    ended = faults.call(capsys, "resume", halved, "--json", "--eval-episodes", 0)
    assert ended.code == 0, ended.err
    assert ended.json["params_sha256"] == faults.summary(whole)["params_sha256"]
    last = newest(whole), newest(halved)
    assert last[0].name == last[1].name
    assert (last[0] / "arrays.bin").read_bytes() == (last[1] / "arrays.bin").read_bytes()
    told = (last[0] / "manifest.json").read_text()
    remembers = preset not in ("ppo", "async_sarsa")
    assert ("memory" in told and "experience" in told) == remembers, "the memory is part of it"
    assert ("pending" in told and "target" in told) == (preset == "async_sarsa")


def arrays(folder):
    """What the newest checkpoint holds."""
    made = experiment.from_json(json.loads((folder / "config.json").read_text()))
    built = experiment.build(made)
    return checkpoint.load(newest(folder), built.runtime.like(built.parts, made.seed)).tree


def newest(folder):
    return max((folder / "checkpoints").glob("step-*"))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(undisturbed, copy, capsys):
    bad = newest(copy)
    flip(bad / "arrays.bin")
    ended = faults.call(capsys, "resume", copy, "--json", "--eval-episodes", 0)
    assert ended.code == 0, ended.err
    assert f"checkpoint {bad.name} is damaged" in ended.err
    assert "the one before" in ended.err
    assert ended.json["params_sha256"] == faults.summary(undisturbed)["params_sha256"]
    assert episodes(copy) == episodes(undisturbed)
    check_logs(copy)
    assert list((copy / "checkpoints").glob(f"bad-{bad.name}-*")), "set aside, not deleted"


def test_without_a_usable_checkpoint_it_ends_with_4(copy, capsys):
    for folder in (copy / "checkpoints").glob("step-*"):
        flip(folder / "manifest.json")
    for verb in ("eval", "export", "resume"):
        ended = faults.call(capsys, verb, copy)
        assert ended.code == 4, ended.err
        assert "no usable checkpoint" in ended.err
        assert ended.out == ""
    assert json.loads((copy / "config.json").read_text())["steps"] == STEPS, "nothing else is touched"


def test_a_run_killed_before_it_was_saved_begins_anew_in_its_folder(undisturbed, copy, capsys):
    shutil.rmtree(copy / "checkpoints")
    (copy / ".tmp-status.json-1").touch()
    read = faults.call(capsys, "eval", copy)
    assert (read.code, read.err.count("\n")) == (4, 1)
    assert "none was saved; `shoal resume` begins it anew" in read.err
    ended = faults.call(capsys, "resume", copy, "--json", "--eval-episodes", 0)
    assert ended.code == 0, ended.err
    assert "was never saved: it begins anew" in ended.err
    summary, expected = ended.json, faults.summary(undisturbed)
    for key in ("status", "params_sha256", "exact", "env_steps", "episodes"):
        assert summary[key] == expected[key], key
    assert episodes(copy) == episodes(undisturbed), "what the killed life told is gone"
    check_logs(copy)
    assert not list(copy.rglob(".tmp-*"))


def test_one_whose_checkpoints_were_all_set_aside_does_not_begin_anew(copy, capsys):
    for folder in (copy / "checkpoints").glob("step-*"):
        flip(folder / "manifest.json")
    for _ in range(2):
        ended = faults.call(capsys, "resume", copy)
        assert ended.code == 4
        assert "start the run anew in another folder" in ended.err


@pytest.mark.parametrize(
    "change",
    [("steps", STEPS * 2), ("parts.algorithm.discount", 0.9), ("parts.network.hidden", [8]), ("seed", 5)],
    ids=lambda change: change[0],
)
def test_an_edited_config_is_refused(change, copy, capsys):
    path, value = change
    config = json.loads((copy / "config.json").read_text())
    *above, last = path.split(".")
    place = config
    for name in above:
        place = place[name]
    place[last] = value
    (copy / "config.json").write_text(json.dumps(config))
    before = sorted(copy.rglob("*"))
    ended = faults.call(capsys, "resume", copy)
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert "config.json" in ended.err
    assert "restore it" in ended.err
    assert sorted(copy.rglob("*")) == before


def test_a_run_in_use_is_left_alone(tmp_path, capsys):
    folder = tmp_path / "run"
    with faults.Process("train", *DEVICE[:-4], "--steps", 10**9, "--out", folder) as process:
        faults.wait_for_training(process, folder)
        ended = faults.call(capsys, "resume", folder)
        assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
        assert f"in use by another process (id {process.pid})" in ended.err
        assert process.runs()
    assert not (folder / "summary.json").exists()


@pytest.mark.parametrize(
    "typed",
    [
        ("a2c", "--env", "tests.faults.envs:Slow-v0", "--runtime.processes", 0, "--runtime.environments", 2),
        ("a2c", "--env", "tests.faults.envs:Slow-v0", "--runtime.processes", 2, "--runtime.environments", 2),
        ("a3c", "--env", "tests.faults.envs:Slow-v0", "--workers", 2),
        pytest.param(  # its checkpoint is taken and continued in test_parameter_server too
            ("gorila", "--env", "tests.faults.envs:Slow-v0", "--workers", 2, "--runtime.shards", 1, *REPLAYED),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["host", "host-processes", "hogwild", "parameter-server"],
)
def test_counters_go_on_where_simulators_cannot_be_saved(typed, tmp_path, capsys):
    folder, steps = tmp_path / "run", 1200
    with faults.Process("train", *typed, "--steps", steps, "--out", folder, "--json") as process:
        faults.wait_for_training(process, folder, 100)
        process.signal(signal.SIGTERM)
        stopped = process.ended()
    assert stopped.code == 75, stopped.err
    before = stopped.json
    assert 0 < before["env_steps"] < steps
    told = episodes(folder)
    ended = faults.call(capsys, "resume", folder, "--json", "--eval-episodes", 0)
    assert ended.code == 0, ended.err
    after = ended.json
    assert after["status"] == "completed"
    assert after["stopped_by"] is None
    assert steps <= after["env_steps"] <= steps + 100
    assert after["updates"] > before["updates"]
    assert after["wall_s"] > before["wall_s"]
    assert after["train_s"] > before["train_s"]
    assert after["episodes"] == len(episodes(folder)) > before["episodes"]
    assert episodes(folder)[: len(told)] == told, "episodes before the stop stay as they were"
    assert after["exact"] is False, "the episodes under way were lost, and that is said"
    check_logs(folder)
    if "workers" in after and "env_steps" in after["workers"]:
        assert sum(after["workers"]["env_steps"]) == after["env_steps"]


def test_a_killed_asynchronous_run_goes_on_from_its_last_checkpoint(tmp_path, capsys):
    """Nothing older than the checkpoint is lost: parameters, target, every worker's statistics, counters, schedules."""
    folder, steps, period = tmp_path / "run", 4000, 430
    typed = (
        "async_q", "--env", "tests.faults.envs:Slow-v0", "--workers", 2, "--steps", steps,
        "--runtime.statistics", "worker", "--optimiser.rule", "momentum", "--algorithm.epsilon-steps", steps,
        "--algorithm.target-period", period, "--network.hidden", 8,
    )  # fmt: skip
    assert killed(folder, "train", *typed, "--eval-episodes", 0, "--out", folder, moment=0.3)
    saved = arrays(folder)
    before = saved["steps"].sum()
    assert 0 < before < steps
    assert saved["g"].shape == (2, *saved["theta"].shape)
    assert saved["g"].any()
    assert saved["copies"][0] == pytest.approx(before // period, abs=1)
    ended = faults.call(capsys, "resume", folder, "--json", "--eval-episodes", 0)
    assert ended.code == 0, ended.err
    assert ended.json["env_steps"] >= steps
    assert ended.json["updates"] > saved["updates"].sum()
    check_logs(folder)
    after = [line for line in faults.metrics(folder) if line["step"] >= before]
    assert after[-1]["step"] == ended.json["env_steps"]
    chances = [line["epsilon"] for line in after if line.get("epsilon") is not None]
    slowest = 1 - 0.5 * (before / steps)  # of a worker that ends at 0.5
    assert chances
    assert all(chance <= slowest + 0.01 for chance in chances), "epsilon goes on from the global step"
    final = arrays(folder)
    assert final["copies"][0] == final["steps"].sum() // period


def test_a_goal_met_before_the_stop_stays_met(tmp_path, capsys):
    """Interrupted while it was being saved, a solved run must not train on."""
    folder = tmp_path / "run"
    typed = ("a2c", "--env", "probe:constant", "--runtime.environments", 10, "--runtime.chunk-steps", 200)
    faults.train(capsys, folder, *typed, "--steps", 40_000, "--until", 1)
    whole = faults.summary(folder)
    (folder / "summary.json").unlink()  # killed after the last checkpoint, before the summary
    ended = faults.call(capsys, "resume", folder, "--json", "--eval-episodes", 0)
    assert ended.code == 0, ended.err
    assert ended.json["solved_at_step"] == whole["solved_at_step"]
    assert ended.json["env_steps"] == whole["env_steps"]
    assert ended.json["params_sha256"] == whole["params_sha256"]
