"""Learning on several seeds, minutes long (`make test-slow`): the claims of the records, on seeds they do not use."""

from __future__ import annotations

import pytest

import shoal

SEEDS = (20, 21, 22)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "env", "target"),
    [
        ("a3c", "CartPole-v1", 475.0),
        ("a2c", "gymnax:CartPole-v1", 475.0),
        ("a2c", "CartPole-v1", 475.0),
        ("a3c_lstm", "CartPole-v1", 475.0),
        ("a3c_continuous", "Pendulum-v1", -250.0),
    ],
)
def test_presets_reach_their_score(preset, env, target, tmp_path):
    workers = {} if preset == "a2c" else {"workers": 2}
    solved = []
    for seed in SEEDS:
        run = shoal.train(
            preset, env, seed=seed, until=target, out=tmp_path / str(seed), eval_episodes=0, quiet=True, **workers
        )
        solved.append(run.summary["solved_at_step"] is not None)
    assert sum(solved) >= len(SEEDS) - 1, solved


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "target", "kept"),
    [
        ("async_q", 195.0, len(SEEDS) - 1),  # the record has one of ten that does not end there (decision 0041)
        ("async_sarsa", 195.0, len(SEEDS)),
        ("async_nstep_q", 475.0, len(SEEDS)),
    ],
)
def test_action_values_reach_their_score_when_they_are_followed(preset, target, kept, tmp_path):
    """Workers go on exploring, so only the greedy policy shows what was learned, and that it stays to the end."""
    reached = []
    for seed in SEEDS:
        run = shoal.train(
            preset, "CartPole-v1", seed=seed, workers=2, out=tmp_path / str(seed), eval_episodes=100, quiet=True
        )
        assert run.summary["env_steps"] <= 501_000
        reached.append(run.summary["eval_return_mean"])
    assert sum(score >= target for score in reached) >= kept, reached


@pytest.mark.parametrize(
    ("preset", "more"),
    [
        ("a3c", {}),
        pytest.param("async_sarsa", {}, marks=pytest.mark.slow),
        pytest.param("gorila", {"capacity": 2_000, "learning_starts": 200}, marks=pytest.mark.slow),
    ],
)
def test_workers_learn_from_pictures(preset, more, tmp_path):
    """Which side of a picture is bright, at ten rewards an episode; half of them are chance."""
    settings = {"algorithm": {"discount": 0.0, **more}, "network": {"torso": "dqn_2013"}}
    if preset != "gorila":
        settings["optimiser"] = {"epsilon": 1e-5, "learning_rate": 1e-3}
    run = shoal.train(
        preset, "tests.scripted:Sides-v0", steps=3_000, workers=2, out=tmp_path / "run", quiet=True, **settings
    )
    assert run.summary["eval_return_mean"] >= 9.5
