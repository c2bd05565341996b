"""Finished runs are trained once."""

from __future__ import annotations

import pytest

from tests import faults, runs
from tests.test_cli import A2C


def test_a_run_is_trained_once_and_told_as_it_was_printed(finished, monkeypatch):
    first = finished(*A2C)
    assert first.told == faults.summary(first.folder)
    assert first.told["status"] == "completed"
    monkeypatch.setattr(runs, "_train", lambda *_: pytest.fail("trained again"))
    assert finished(*A2C) == first


def test_what_is_typed_tells_runs_apart_and_a_mistake_is_not_kept(tmp_path):
    finished = runs.store(tmp_path)
    for _ in range(2):
        with pytest.raises(AssertionError, match="unknown preset 'a2cc'"):
            finished("a2cc")
    assert finished("a2c", "--env", "probe:constant", "--steps", 320).told["env_steps"] == 320
    assert finished("a2c", "--env", "probe:constant", "--steps", 640).told["env_steps"] == 640
