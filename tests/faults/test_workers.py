"""Workers that die and simulators that break: shown, mended, counted, and the run completes; or it gives up with 3."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

import shoal
from shoal.environments import _check
from tests import faults
from tests.faults import envs

WAYS = {
    "hogwild": ("a3c", "--workers", 1),
    "host": ("a2c", "--runtime.processes", 0, "--runtime.environments", 2),
    "host-processes": ("a2c", "--runtime.processes", 2, "--runtime.environments", 2),
    "parameter-server": ("a3c", "--runtime", "parameter_server", "--workers", 1),
}


@pytest.fixture(autouse=True)
def once(monkeypatch, tmp_path):
    """What is to happen once in a run has not happened yet."""
    monkeypatch.setenv("SHOAL_TEST_ONCE", str(tmp_path / "once"))
    return tmp_path / "once"


def train(capsys, out, way, env, *more):
    return faults.call(
        capsys, "train", *WAYS[way], "--env", f"tests.faults.envs:{env}-v0", "--steps", 1000, "--out", out, "--json",
        "--eval-episodes", 1, *more,
    )  # fmt: skip


@pytest.mark.parametrize("way", ["hogwild", "host", "host-processes"])
@pytest.mark.parametrize("env", ["RaisesOnce", "RaisesInReset"])
def test_a_simulator_that_raises_is_shown_replaced_and_counted(way, env, capsys, tmp_path, once):
    ended = train(capsys, tmp_path / "run", way, env)
    assert ended.code == 0, ended.err
    assert once.exists(), "it did raise"
    summary = ended.json
    assert (summary["status"], summary["faults"]["restarts"]) == ("completed", 1)
    assert summary["env_steps"] >= 1000
    assert summary["eval_return_mean"] == envs.LENGTH
    assert ended.err.count("fault: ") == 1
    assert "Traceback (most recent call last):" in ended.err
    assert f"RuntimeError: {envs.STORY}" in ended.err
    assert "envs.py" in ended.err, "the line that raised is shown"
    assert "1 restart" in ended.err.splitlines()[-2], "the last screen counts it"
    assert max(line["restarts"] for line in faults.metrics(tmp_path / "run")) <= 1
    assert faults.metrics(tmp_path / "run")[-1]["restarts"] == 1


@pytest.mark.parametrize("way", ["hogwild", "host-processes"])
def test_a_worker_that_takes_its_process_with_it_is_restarted(way, capsys, tmp_path, once):
    ended = train(capsys, tmp_path / "run", way, "Dies")
    assert ended.code == 0, ended.err
    assert once.exists()
    assert (ended.json["status"], ended.json["faults"]["restarts"]) == ("completed", 1)
    assert "SIGKILL" in ended.err
    assert "restarting it in 0.1 s" in ended.err


@pytest.mark.parametrize("way", ["hogwild", "host-processes"])
def test_a_worker_killed_from_outside_is_restarted(way, tmp_path):
    out, steps = tmp_path / "run", 2500
    typed = ("a3c", "--workers", 2) if way == "hogwild" else WAYS[way]
    with faults.Process(
        "train", *typed, "--env", "tests.faults.envs:Slow-v0", "--steps", steps, "--out", out, "--json",
        "--eval-episodes", 0,
    ) as process:  # fmt: skip
        faults.wait_for_training(process, out, 100)
        workers = process.workers()
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        faults.wait(lambda: len(set(process.workers()) - set(workers)) == 1 or not process.runs(), "a new worker")
        ended = process.ended()
    assert ended.code == 0, ended.err
    assert (ended.json["status"], ended.json["faults"]["restarts"]) == ("completed", 1)
    assert ended.json["env_steps"] >= steps
    assert "SIGKILL" in ended.err
    assert faults.summary(out) == ended.json


@pytest.mark.parametrize(
    ("way", "env", "story"),
    [
        ("hogwild", "RaisesAlways", envs.STORY),
        ("host", "RaisesAlways", envs.STORY),
        pytest.param("parameter-server", "RaisesAlways", envs.STORY, marks=pytest.mark.slow),
        ("host-processes", "RaisesAlways", envs.STORY),
        ("host", "NeverResets", envs.STORY),
        ("host-processes", "NeverResets", envs.STORY),
        ("hogwild", "OnlyInTheParent", "no module named 'simulator'"),
        ("host-processes", "OnlyInTheParent", "no module named 'simulator'"),
    ],
)
def test_a_crash_loop_ends_with_3_and_its_traceback(way, env, story, capsys, tmp_path, once, monkeypatch):
    del once
    monkeypatch.setattr(_check, "first", lambda _: None)  # as if it had worked when it was looked at
    ended = train(capsys, tmp_path / "run", way, env)
    assert ended.code == 3, ended.err
    assert ended.out == ""
    last = ended.err[ended.err.rindex("shoal: ") :]
    assert "5 times" in last
    assert "Traceback (most recent call last):" in last
    assert story in last
    assert "training.py" not in last, "the traceback is the fault's, not ours"
    summary = faults.summary(tmp_path / "run")
    assert summary["status"] == "failed"
    assert story in summary["error"]
    assert summary["params_sha256"] is None
    assert summary["eval_return_mean"] is None


@pytest.mark.parametrize("way", WAYS)
def test_numbers_that_are_not_finite_are_kept_out_counted_and_called_the_simulator_s(way, capsys, tmp_path, once):
    del once
    ended = train(capsys, tmp_path / "run", way, "PaysNaN")
    assert ended.code == 0, ended.err
    told = ended.json["faults"]
    assert 18 <= told["non_finite_rewards"] <= ended.json["env_steps"] // 50, "of each simulator every 50th"
    assert 12 <= told["non_finite_observations"] <= ended.json["env_steps"] // 70
    assert told["non_finite"] == told["restarts"] == 0, "nothing is left for the learner to drop"
    assert ended.err.count("fault: the simulator gives rewards that are not finite") == 1
    assert ended.err.count("fault: the simulator gives observations that are not finite") == 1
    assert f"the simulator gave {told['non_finite_rewards']} rewards that are not finite, taken as 0" in ended.err
    policy = shoal.load(tmp_path / "run").policy
    for leaves in policy.params.values():
        for leaf in leaves.values():
            assert np.isfinite(leaf).all()
    for line in faults.metrics(tmp_path / "run"):  # JSON has no NaN: null instead
        assert all(value is None or np.isfinite(value) for value in line.values())
