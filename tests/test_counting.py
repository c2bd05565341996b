"""Runs longer than their counters hold are refused, also by `resume`; every rule: `conformance/test_algorithms.py`."""

from __future__ import annotations

import dataclasses

import pytest

from shoal.core import errors
from shoal.experiment import counting, presets
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
