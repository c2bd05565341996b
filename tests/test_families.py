"""Environments of other people's packages train as they come (extra ``families``)."""

from __future__ import annotations

import importlib.util

import pytest

from tests import faults

FAMILIES = {
    "minigrid": ("minigrid:MiniGrid-Empty-5x5-v0", "--environment.ignore", "mission", "direction"),
    "highway_env": ("highway_env:highway-fast-v0",),
    "popgym": ("popgym:popgym-RepeatPreviousEasy-v0", "--network.lstm", 16),
    "gymnasium": ("FrozenLake-v1", "--environment.kwargs", '{"is_slippery": false}'),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("package", FAMILIES)
def test_they_train(package, capsys, tmp_path):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install -e '.[families]'")
    typed = ("--env", *FAMILIES[package], "--steps", 20_000, "--runtime.environments", 8)
    summary = faults.train(capsys, tmp_path / "run", "ppo", *typed, evaluate=3)
    assert (summary["status"], summary["eval_episodes"]) == ("completed", 3)
    assert summary["faults"].get("restarts", 0) == 0
    assert summary["return_mean"] is not None
    if package == "gymnasium":
        assert summary["eval_return_mean"] == 1.0, "a lake that is not slippery is learned"
