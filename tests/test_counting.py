"""Runs longer than their counters hold are refused, also by `resume`; every rule: `conformance/test_algorithms.py`."""

from __future__ import annotations

import dataclasses

import pytest

from shoal.core import errors
from shoal.experiment import budget, counting, presets
from shoal.runs import run_folder, training


@pytest.mark.parametrize("runtime", ["host", "hogwild"])
def test_a_run_that_was_begun_longer_is_not_resumed(runtime, tmp_path):
    made, _ = presets.resolve(presets.Request("a2c", env="CartPole-v1", runtime=runtime, steps=counting.MOST))
    (tmp_path / "run").mkdir()
    longer = dataclasses.replace(made, steps=2**31)
    run_folder.write_config(tmp_path / "run", longer, "shoal train")
    with pytest.raises(errors.Refused, match="steps=2,147,483,648, but a run counts them in 32 bits; give at most"):
        training.resume(tmp_path / "run")


def test_nothing_is_created_for_one(tmp_path):
    with pytest.raises(errors.Refused, match="32 bits"):
        training.train(presets.Request("a2c", env="CartPole-v1", episodes=10_000_000), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("preset", "runtime", "most"),
    [("collab_a2c", {"parties": 100_000}, "--parties 100000: 200,000"), ("pbt_ppo", {"members": 100_000}, "--members")],
)
def test_nobody_is_to_train_who_has_no_step_for_an_update(preset, runtime, most, tmp_path):
    asked = presets.Request(preset, env="probe:match", steps=200_000, settings={"runtime": runtime})
    with pytest.raises(errors.Refused, match=f"{most}.* are not one update each.*at most --"):
        training.train(asked, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_short_run_of_a_few_is_let_be():
    counting.check_shares(100, 128, counting.FEW, "members", "--members")
    counting.check_shares(128 * 300, 128, 300, "members", "--members")
    with pytest.raises(errors.Refused, match="give at least --steps 38400, or at most --members 299"):
        counting.check_shares(128 * 300 - 1, 128, 300, "members", "--members")


def test_seeds_side_by_side_are_no_more_than_have_their_files_open(tmp_path, monkeypatch):
    monkeypatch.setattr(budget.resource, "getrlimit", lambda _: (1024, 4096))
    budget.check_files(240)
    with pytest.raises(
        errors.Refused, match=r"--seeds 100000: each seed keeps 4 files open.* 1,024; give at most --seeds 240"
    ):
        training.train_seeds(presets.Request("ppo", env="probe:match"), 100_000, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
