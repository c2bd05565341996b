"""Actors and a learner on simulators of every kind: they begin, act compressed, learn, and end with nothing mended."""

from __future__ import annotations

import importlib.util

import pytest

from tests import faults

SMALL = ("--network.hidden", 8, "--compressor.engine", "numpy")
KINDS = {  # what it is -> (module it needs, what is typed)
    "Atari": (
        "ale_py",
        ("accerl", "--env", "ALE/Pong-v5", "--runtime.environments", 2, "--algorithm.rollout-length", 8, "--steps", 96,
         "--compressor", "prune", "--compressor.share", 0.9, "--compressor.engine", "numpy"),
    ),
    "EnvPool": (
        "envpool",
        ("actorq", "--env", "envpool:CartPole-v1", *SMALL, "--steps", 600, "--algorithm.learning-starts", 100,
         "--algorithm.batch", 8),
    ),
    "MuJoCo, PPO": (
        "mujoco",
        ("ppo", "--env", "InvertedPendulum-v5", "--runtime", "actor_learner", "--compressor", "quantise", *SMALL,
         "--corrector", "tis", "--runtime.environments", 2, "--algorithm.rollout-length", 16, "--steps", 320),
    ),
    "MuJoCo, TD3": (
        "mujoco",
        ("actorq_td3", "--env", "InvertedPendulum-v5", *SMALL, "--steps", 400, "--algorithm.learning-starts", 100,
         "--algorithm.capacity", 1000, "--algorithm.batch", 8),
    ),
    "Box2D": (
        "Box2D",
        ("accerl", "--env", "LunarLander-v3", "--network.hidden", 16, "--compressor.engine", "numpy", "--steps", 640),
    ),
    "rewards that are not finite": (
        "gymnasium",
        ("impala", "--env", "tests.faults.envs:PaysNaN-v0", *SMALL, "--algorithm.rollout-length", 8, "--steps", 640),
    ),
    "several choices": (
        "gymnasium", ("impala", "--env", "probe:pair", "--compressor", "quantise", *SMALL, "--steps", 640),
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_trains(kind, tmp_path, capsys):
    needs, typed = KINDS[kind]
    if importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    told = faults.train(capsys, tmp_path / "run", *typed)
    assert told["status"] == "completed"
    assert told["env_steps"] >= typed[typed.index("--steps") + 1]
    mended = {name: count for name, count in told["faults"].items() if count and name != "rollouts_late"}
    assert (set(mended) == {"non_finite_rewards", "non_finite_observations"}) if "finite" in kind else mended == {}
    assert told["actor"]["rollouts"] == told["updates"]
    assert sum(told["learner"]["split"].values()) == pytest.approx(told["train_s"], rel=0.02, abs=0.02)
