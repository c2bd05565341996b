from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import shoal
from shoal import experiment, log
from shoal.core import errors
from shoal.experiment import presets
from shoal.runs import run_folder, session, training
from shoal.runs.session import memory
from tests import faults

WHOLE = ("config.json", "metrics.jsonl", "episodes.csv", "summary.json", "report.html")  # of a completed run
HOST = ("a2c", "--env", "CartPole-v1", "--runtime.environments", 4, "--steps", 600)
DEVICE = ("a2c", "--env", "gymnax:CartPole-v1", "--runtime.environments", 8, "--steps", 2000)
ALONE = ("a3c", "--workers", 1, "--steps", 600)


def episodes(folder):
    return list(csv.DictReader((folder / "episodes.csv").read_text().splitlines()))


def check_folder(folder, summary):
    """A completed run's folder holds what the design page says, and its files agree with each other."""
    for name in WHOLE:
        assert (folder / name).stat().st_size, name
    assert list(folder.glob("events.out.tfevents.*"))
    assert list((folder / "checkpoints").iterdir())
    assert not list(folder.rglob(".tmp*"))
    assert faults.summary(folder) == summary
    assert summary["status"] == "completed"
    lines = faults.metrics(folder)
    assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})
    assert lines[-1]["step"] == summary["env_steps"]
    assert summary["episodes"] == len(episodes(folder))
    if summary["goal"] is None:
        assert lines[-1]["episodes"] == summary["episodes"]
    assert np.isfinite([line["loss"] for line in lines if line.get("loss") is not None]).all()
    config = json.loads((folder / "config.json").read_text())
    assert set(config["machine"]) == {"cpu", "cores", "memory_gb", "instruction_sets"}
    made = experiment.from_json(config)
    assert (made.preset, made.env, made.seed) == (summary["preset"], summary["env"], summary["seed"])
    assert (folder / "config.json").read_text().count("experiment_sha256") == 1


# ------------------------------------------------------------------------------------------------ each way of running


def test_a3c_trains_cartpole_with_two_workers(capsys, tmp_path):
    out = tmp_path / "run"
    summary = faults.train(capsys, out, "a3c", "--env", "CartPole-v1", "--workers", 2, "--steps", 3000, evaluate=2)
    check_folder(out, summary)
    assert summary["runtime"] == "hogwild"
    assert 3000 <= summary["env_steps"] < 3200
    workers = summary["workers"]
    assert workers["of"] == 2
    assert sum(workers["env_steps"]) == summary["env_steps"]
    assert sum(workers["updates"]) == summary["updates"]
    assert min(workers["env_steps"]) > 0, "both work"
    assert workers["lag_mean"] >= 0
    assert {row["worker"] for row in episodes(out)} == {"0", "1"}
    assert summary["faults"] == {"restarts": 0, "non_finite": 0}
    lengths = sum(int(row["length"]) for row in episodes(out))
    assert lengths <= summary["env_steps"] < lengths + 2 * 500
    assert all(float(row["episode_return"]) == int(row["length"]) for row in episodes(out)), "CartPole pays 1 a step"


@pytest.mark.parametrize(
    ("runtime", "typed"),
    [
        ("on_device", DEVICE),
        ("host", HOST),
        ("host", ("a2c", "--env", "tests.scripted:Dict-v0", "--runtime.environments", 3, "--steps", 90)),
        (
            "hogwild",
            ("a3c_lstm", "--env", "CartPole-v1", "--environment.observe", 0, 2, "--workers", 1, "--steps", 400),
        ),
        ("hogwild", ("a3c_continuous", "--env", "Pendulum-v1", "--workers", 1, "--steps", 600)),
        ("hogwild", ("a3c", "--env", "probe:match", "--workers", 1, "--steps", 300)),
    ],
    ids=["on_device", "host", "own-env", "lstm", "continuous", "hogwild-jax"],
)
def test_every_preset_trains(runtime, typed, finished):
    folder, summary = finished(*typed)
    check_folder(folder, summary)
    assert summary["runtime"] == runtime
    assert summary["env_steps"] >= typed[-1]
    assert summary["episodes"] > 0
    assert summary["updates"] > 0


@pytest.mark.parametrize("preset", ["a2c", "a3c"])
def test_a_run_ends_early_when_its_goal_is_reached(preset, capsys, tmp_path):
    out, steps = tmp_path / "run", 300_000
    short = ("--runtime.environments", 10, "--runtime.chunk-steps", 200) if preset == "a2c" else ("--workers", 1)
    ended = faults.call(
        capsys, "train", preset, "--env", "probe:constant", "--steps", steps, "--until", 1, "--out", out, "--json",
        "--eval-episodes", 0, *short,
    )  # fmt: skip
    summary = ended.json
    check_folder(out, summary)
    assert 100 <= summary["solved_at_step"] <= summary["env_steps"] < steps / 100
    assert (summary["goal"], summary["return_mean"]) == (1.0, 1.0)
    assert f"reached 1 after {summary['solved_at_step']} steps" in ended.err


def test_a_goal_out_of_reach_is_said_to_be_missed(capsys, tmp_path):
    ended = faults.call(
        capsys, "train", "a2c", "--env", "probe:constant", "--steps", 320, "--until", 2, "--out", tmp_path / "run"
    )
    assert ended.code == 0
    assert "the goal of 2 was not reached" in ended.err
    assert faults.summary(tmp_path / "run")["solved_at_step"] is None


# ------------------------------------------------------------------------------------------------ seeds


@pytest.mark.parametrize(
    "typed",
    [DEVICE, (*HOST, "--runtime.processes", 0), ALONE, (*ALONE[:-1], 20_000, "--env", "probe:action", "--until", 0.5)],
    ids=["on_device", "host", "hogwild-alone", "hogwild-until"],
)
def test_same_seed_same_bits(typed, finished, capsys, tmp_path):
    first, other = finished(*typed).told, finished(*typed, "--seed", 4).told
    again = faults.train(capsys, tmp_path / "again", *typed, "--seed", 0)
    assert first["params_sha256"] == again["params_sha256"]
    assert (first["env_steps"], first["episodes"]) == (again["env_steps"], again["episodes"])
    assert (first["return_mean"], first["solved_at_step"]) == (again["return_mean"], again["solved_at_step"])
    assert first["params_sha256"] != other["params_sha256"]


def test_host_gives_the_same_bits_wherever_environments_are_stepped(finished, capsys, tmp_path):
    first, here = finished(*HOST, "--runtime.processes", 0)
    there, uneven = (
        faults.train(capsys, tmp_path / str(processes), *HOST, "--runtime.processes", processes) for processes in (2, 3)
    )
    assert here["params_sha256"] == there["params_sha256"] == uneven["params_sha256"]
    assert (there["workers"]["of"], uneven["workers"]["of"]) == (2, 3)
    assert episodes(first)
    assert episodes(first) == _without_time(tmp_path / "2", first)


def _without_time(folder, first):
    """Episodes of a run, with the wall time of the first one in place of its own."""
    return [
        {**row, "wall_s": reference["wall_s"]} for row, reference in zip(episodes(folder), episodes(first), strict=True)
    ]


# ------------------------------------------------------------------------------------------------ signals

LONG = {
    "on_device": ("a2c", "--env", "gymnax:CartPole-v1", "--steps", 10**9, "--runtime.chunk-steps", 2000),
    "host": ("a2c", "--env", "CartPole-v1", "--steps", 10**9, "--runtime.processes", 0),
    "host-processes": ("a2c", "--env", "CartPole-v1", "--steps", 10**9, "--runtime.processes", 2),
    "hogwild": ("a3c", "--workers", 2, "--steps", 10**9),
}


@pytest.mark.parametrize(
    ("way", "number"),
    [
        ("on_device", "SIGINT"),
        ("host", "SIGTERM"),
        ("host-processes", "SIGINT"),
        ("hogwild", "SIGINT"),
        ("hogwild", "SIGTERM"),
    ],
)
def test_asked_to_stop_it_saves_and_says_how_to_go_on(way, number, tmp_path):
    out = tmp_path / "run"
    with faults.Process("train", *LONG[way], "--out", out, "--json") as process:
        faults.wait_for_training(process, out)
        process.ctrl_c() if number == "SIGINT" else process.signal(signal.SIGTERM)
        ended = process.ended()
    assert ended.code == 75, ended.err
    summary = ended.json
    assert summary == faults.summary(out)
    assert (summary["status"], summary["stopped_by"]) == ("interrupted", number)
    assert 0 < summary["env_steps"] < 10**9
    assert f"shoal resume {out}" in ended.err
    assert "Traceback" not in ended.err
    newest = max(path.name for path in (out / "checkpoints").iterdir())
    assert newest == f"step-{summary['env_steps']:012d}", "what was learned last is saved"
    assert "\x1b" not in ended.err, "no control characters where there is no terminal"
    assert "\r" not in ended.err


def test_ctrl_c_while_workers_start_meets_none_of_them(tmp_path):
    """A terminal's Ctrl-C goes to every process, also to one that has just begun to import."""
    out = tmp_path / "run"
    with faults.Process("train", *LONG["hogwild"], "--out", out, "--json") as process:
        faults.wait(lambda: len(process.workers()) == 2, "both workers")
        process.ctrl_c()
        ended = process.ended()
    assert ended.code == 75, ended.err
    assert "Traceback" not in ended.err
    assert ended.json["faults"].get("restarts", 0) == 0
    assert f"shoal resume {out}" in ended.err
    assert (ended.json["status"], ended.json["env_steps"], ended.json["train_s"]) == ("interrupted", 0, None)
    assert not (out / "checkpoints").exists(), "nothing was learned: a resume begins anew"


def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    out = tmp_path / "run"
    typed = ("train", "a3c", "--env", "tests.faults.envs:Viscous-v0", "--workers", 1, "--network.hidden", 8)
    with faults.Process(*typed, "--out", out) as process:
        process.says("step=")  # its worker is ready
        process.ctrl_c()
        process.says("Ctrl-C again")
        process.ctrl_c()
        ended = process.ended()
        faults.wait(lambda: not process.left(), "its workers to end", faults.ENDING)
    assert ended.code == 130
    assert "what was saved before is intact" in ended.err
    assert "Traceback" not in ended.err
    assert faults.summary(out)["status"] == "interrupted"


# ------------------------------------------------------------------------------------------------ from Python


def test_python_trains_loads_and_evaluates(tmp_path):
    made = shoal.train(
        "a2c", env="probe:match", steps=20_000, seed=1, out=tmp_path / "run", eval_episodes=0, quiet=True,
        algorithm={"entropy_cost": 0.0},
    )  # fmt: skip
    assert made.summary["status"] == "completed"
    assert made.experiment.configs["algorithm"].entropy_cost == 0.0
    played = made.evaluate(20)
    assert played.returns == [1.0] * 20, "the greedy policy names the cue"
    again = shoal.load(tmp_path / "run")
    assert again.summary == made.summary
    assert again.evaluate(20) == played
    assert again.experiment == made.experiment


def test_python_refuses_what_the_command_line_refuses(tmp_path):
    out = tmp_path / "run"
    for arguments, words in (
        ({"preset": "a4c"}, "did you mean 'a3c'"),
        ({"preset": "a3c", "env": "CartPol-v1"}, "did you mean 'CartPole-v1'"),
        ({"preset": "a3c", "steps": 0}, "at least 1"),
        ({"preset": "a3c", "steps": 1.5}, "steps"),
        ({"preset": "a3c", "seed": -1}, "between 0"),
        ({"preset": "a3c", "workers": 0}, "between 1"),
        ({"preset": "a2c", "workers": 2}, "workers"),
        ({"preset": "a3c", "runtime": "cluster"}, "unknown runtime 'cluster'"),
        ({"preset": "a3c", "compressor": "identty"}, "did you mean 'identity'"),
        ({"preset": "a3c", "compressor": {"bits": 4}}, "compressor.bits"),
        ({"preset": "a3c", "until": "never"}, "'never'"),
        ({"preset": "a3c", "eval_episodes": -1}, "-1"),
        ({"preset": "a3c", "algorithm": {"entropy_csot": 1.0}}, "did you mean 'algorithm.entropy_cost'"),
        ({"preset": "a3c", "algorithm": {"discount": "high"}}, "wrong type"),
        ({"preset": "a3c", "algorithm": {"discount": float("nan")}}, "not a number"),
        ({"preset": "a3c", "algoritm": {"discount": 0.9}}, "did you mean 'algorithm'"),
        ({"preset": "impala", "compressor": 3}, "compressor=3 is neither a name nor settings"),
        ({"preset": "pbt_ppo", "runtime": {"factors": [0.5]}}, "runtime.factors=[0.5] has 1 values; give 2"),
        ({"preset": "collab_a2c", "parties": 2.5}, "parties=2.5 is neither a number"),
    ):
        with pytest.raises(errors.Refused) as refused:
            shoal.train(**arguments, out=out, quiet=True)
        assert words in str(refused.value), arguments
        assert "\n" not in str(refused.value)
        assert not out.exists()
    with pytest.raises(errors.Refused, match="not a run folder"):
        shoal.load(out)
    with pytest.raises(errors.Refused, match="not a run folder"):
        shoal.resume(out)


def test_of_a_run_that_ends_early_nothing_is_left_and_its_memory_is_of_the_end(tmp_path, monkeypatch):
    shown, looks = [], []

    class Console(log.Quiet):
        def show(self, status):
            shown.append(status.eta_s)

    monkeypatch.setattr(memory, "peak_mb", lambda: looks.append(1) or 100.0 + len(looks))
    runtime = {"environments": 4, "processes": 0}  # where stepping takes long, `host` would start some by itself
    request = presets.Request("a2c", "CartPole-v1", 100_000, episodes=3, settings={"runtime": runtime})
    run = training.train(request, tmp_path / "run", console=Console(), eval_episodes=0)
    assert run.summary["episodes"] == 3
    assert shown[-1] == 0.0  # not what the other steps would have taken
    assert run.summary["peak_rss_mb"] == 100.0 + len(looks)


def test_runs_of_one_name_in_one_second_have_folders_of_their_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_folder.time, "strftime", lambda _: "20260730-120000")
    made = presets.resolve(presets.Request("a2c", "probe:constant", 100))[0]
    names = []
    for _ in range(3):
        place = run_folder.free(run_folder.named(made, [0], None), exact=False)
        with run_folder.making(place, exact=False) as folder:
            names.append(folder.name)
    first = "a2c-probe_constant-0-20260730-120000"
    assert names == [first, f"{first}-2", f"{first}-3"]
    assert sorted(os.listdir("runs")) == names
    with pytest.raises(errors.Refused, match="exists"):
        run_folder.free(run_folder.named(made, [0], tmp_path / "runs" / first))


def test_pace_of_checkpoints_is_checked_before_anything_is_made(monkeypatch, tmp_path):
    monkeypatch.setenv("SHOAL_SAVE_EVERY", "often")
    with pytest.raises(errors.Refused, match="SHOAL_SAVE_EVERY='often'"):
        shoal.train("a2c", env="probe:constant", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("SHOAL_SAVE_EVERY", "0.5")
    assert session.save_every() == 0.5


def test_an_evaluation_that_takes_for_ever_is_left_at_a_signal(tmp_path):
    """Training is over and saved, so the run is complete; its evaluation is what was not measured."""
    command = [
        *(sys.executable, "-m", "shoal", "train", "a2c", "--env", "CartPole-v1", "--steps", "400", "--json"),
        *("--environment.time-limit", "30", "--eval-episodes", "1000000", "--out", str(tmp_path / "run")),
    ]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run" / "checkpoints").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2.0)
    run.terminate()
    out, _ = run.communicate(timeout=30)
    summary = json.loads(out)
    assert (run.returncode, summary["status"], summary["eval_return_mean"]) == (0, "completed", None)


@pytest.mark.parametrize(
    ("preset", "settings", "threads"),
    [
        ("ppo", {}, "1"),
        ("ppo", {"network": {"torso": "dqn_2013"}}, None),  # `hidden` tells nothing beside convolutions
        ("sac", {}, None),
        ("ppo", {"runtime": {"threads": 2}}, "2"),
        ("dqn", {}, "1"),
    ],
)
def test_small_gradient_steps_are_given_one_thread(preset, settings, threads, monkeypatch):
    monkeypatch.setenv("NPROC", "9")  # and as it was afterwards
    monkeypatch.delenv("NPROC")
    made, _ = presets.resolve(presets.Request(preset, env=None, settings=settings))
    assert os.environ.get("NPROC") == threads
    monkeypatch.setenv("NPROC", "3")
    experiment.prepare(made.runtime, made.algorithm, made.configs)
    assert os.environ["NPROC"] == "3", "what a person has set stays"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"members": 3, "runtime": {"members": 4}}, r"members=3 and runtime\.members=4 are two values"),
        ({"workers": 2, "runtime": {"name": "hogwild", "workers": 3}}, r"workers=2 and runtime\.workers=3"),
        ({"env_kwargs": {"a": 1}, "environment": {"kwargs": {"a": 2}}}, r"env_kwargs=.*environment\.kwargs="),
    ],
)
def test_a_short_argument_and_its_setting_may_not_differ(given, told, tmp_path):
    with pytest.raises(errors.Refused, match=told):
        shoal.train("a2c", env="CartPole-v1", out=tmp_path / "run", quiet=True, **given)
    assert not (tmp_path / "run").exists()


def test_one_value_given_twice_is_fine(monkeypatch):
    asked = []
    monkeypatch.setattr(training, "train", lambda request, *_, **__: asked.append(request))
    shoal.train("pbt_ppo", members=3, runtime={"members": 3, "episodes": 1})
    assert asked[0].settings["runtime"] == {"members": 3, "episodes": 1}
