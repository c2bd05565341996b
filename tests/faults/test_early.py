"""A signal while a run compiles or starts its workers: it is answered at once, and nothing stays."""

from __future__ import annotations

import signal
import time

import pytest

from tests import faults

ANSWERED = 4.0  # seconds; about one on a machine with nothing else to do. What is waited for takes a minute
SLUGGISH = {"module": "tests.faults.sluggish", "SHOAL_PROGRAMS": 0}
SLOW = ("--env", "tests.faults.envs:OpensSlowly-v0")
SMALL = ("--network.hidden", 8)
WAYS = {  # what is typed, and what is said to be going on
    "on_device": (("a2c", "--env", "probe:match", *SMALL), "compiling"),
    "host": (("a2c", "--env", "tests.faults.envs:Calm-v0", "--runtime.processes", 0, *SMALL), "compiling"),
    "seeds": (("a2c", "--env", "probe:match", "--seeds", 2, *SMALL), "compiling"),
    "processes": (("a2c", *SLOW, "--runtime.processes", 2, *SMALL), "starting 2 workers: 0 of 2"),
    "hogwild": (("a3c", *SLOW, "--workers", 2, *SMALL), "starting 2 workers: 0 of 2"),
    "parameter_server": (("gorila", *SLOW, "--workers", 2, *SMALL), "starting 2 bundles: 0 of 2"),
    "peers": (
        ("parallel_sarsa", *SLOW, "--workers", 2, "--algorithm.low", 0, 0, "--algorithm.high", 1, 1),
        "starting 2 workers: 0 of 2",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_signal_is_answered_and_the_folder_says_what_happened(way, tmp_path):
    (typed, said), out = WAYS[way], tmp_path / "run"
    with faults.Process(
        "train", *typed, "--steps", 10**6, "--out", out, "--json", **SLUGGISH, SHOAL_TEST_SLOW="update"
    ) as process:
        process.says(said)
        process.signal(signal.SIGTERM)
        sent = time.monotonic()
        ended = process.ended()
        assert time.monotonic() - sent < ANSWERED
        assert not process.left(), "its workers have ended too"
    assert ended.code == 75, ended.err
    assert ended.json == faults.summary(out)
    assert (ended.json["status"], ended.json["stopped_by"], ended.json["env_steps"]) == ("interrupted", "SIGTERM", 0)
    assert ended.json["train_s"] is None, "it never trained"
    assert "interrupted by SIGTERM before the first step" in ended.err
    assert f"shoal resume {out}" in ended.err
    assert "Traceback" not in ended.err
    assert "steps/s=0" not in ended.err


def test_an_evaluation_that_compiles_is_left_too(tmp_path):
    """At the end of a run that is complete; nothing of it is undone."""
    out = tmp_path / "run"
    with faults.Process(
        "train", "a2c", "--env", "probe:match", "--steps", 2000, *SMALL, "--out", out, "--json",
        **SLUGGISH, SHOAL_TEST_SLOW="greedy",
    ) as process:  # fmt: skip
        process.says("evaluating: 0 of 20")
        process.signal(signal.SIGTERM)
        sent = time.monotonic()
        ended = process.ended()
        assert time.monotonic() - sent < ANSWERED
    assert ended.code == 0, ended.err
    assert (ended.json["status"], ended.json["eval_return_mean"]) == ("completed", None)
    assert "the evaluation was left" in ended.err
