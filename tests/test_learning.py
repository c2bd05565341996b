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
