"""EnvPool's environments: truthful ends, against Gymnasium's CartPole and the games of `atari.py`."""

from __future__ import annotations

import re
import sys

import gymnasium
import numpy as np
import pytest

import shoal
from shoal import environments
from shoal.core import errors, options
from shoal.environments import atari, envpool

COUNT = 6
CARTPOLE = "envpool:CartPole-v1"


def opened(env_id=CARTPOLE, **settings):
    return environments.open(env_id, envpool.Config(**settings))


def roll(vector, actions):
    """First observations and the batches of ``[T, B]`` actions."""
    first = vector.reset()
    return first, [vector.step(row) for row in actions]


def script(steps, count=COUNT, n=2, seed=0):
    return np.random.default_rng(seed).integers(n, size=(steps, count))


def equal(batch, other):
    return all(map(np.array_equal, (batch.obs, *batch.outcome), (other.obs, *other.outcome)))


class Physics:
    """Gymnasium's CartPole, put into any state."""

    def __init__(self):
        self.env = gymnasium.make("CartPole-v1", disable_env_checker=True).unwrapped
        self.env.reset(seed=0)

    def step(self, state, action):
        self.env.state, self.env.steps_beyond_terminated = tuple(state.astype(float)), None
        successor, _, terminated, _, _ = self.env.step(int(action))
        return successor, terminated


def test_no_action_is_lost_and_successors_are_true():
    """Every step of every environment moves as Gymnasium's physics do: at an end, and right after it."""
    physics, actions = Physics(), script(150)
    before, batches = roll(opened().make_vector(3, COUNT), actions)
    lengths, ends = np.zeros(COUNT, int), 0
    for batch, row in zip(batches, actions, strict=True):
        reward, discount, truncated, successor = batch.outcome
        lengths += 1
        for i in range(COUNT):
            expected, terminated = physics.step(before[i], row[i])
            np.testing.assert_allclose(successor[i], expected, atol=1e-5)
            assert (reward[i], discount[i], truncated[i]) == (1.0, 1.0 - terminated, False)
            if terminated:
                assert (np.abs(batch.obs[i]) <= 0.05).all()  # the next episode's first
                lengths[i], ends = 0, ends + 1
            else:
                np.testing.assert_array_equal(batch.obs[i], successor[i])
        before = batch.obs
    assert ends > 2 * COUNT


def test_a_limit_truncates_and_a_fall_at_the_limit_terminates():
    """EnvPool itself calls every end at its limit a truncation."""
    actions = np.ones((40, COUNT), int)  # always to the right: down after eight to ten steps
    _, free = roll(opened().make_vector(1, COUNT), actions[:12])
    falls = [next(t for t, batch in enumerate(free, 1) if batch.outcome.discount[i] == 0) for i in range(COUNT)]
    limit = sorted(falls)[COUNT // 2]
    first, cut = roll(opened(time_limit=limit).make_vector(1, COUNT), actions[:limit])
    outcome = cut[-1].outcome
    assert min(falls) < limit or max(falls) > limit
    for i, fall in enumerate(falls):
        if fall >= limit:
            assert (outcome.discount[i], outcome.truncated[i]) == ((0, False) if fall == limit else (1, True))
            np.testing.assert_array_equal(outcome.next_obs[i], free[limit - 1].outcome.next_obs[i])
            assert (np.abs(cut[-1].obs[i]) <= 0.05).all()
    assert (np.abs(first) <= 0.05).all()


def test_truncated_episodes_begin_anew_and_count_anew():
    _, batches = roll(opened(time_limit=5).make_vector(0, COUNT), script(23))
    for step, batch in enumerate(batches, 1):
        assert batch.outcome.truncated.all() == (step % 5 == 0)
        assert (batch.outcome.discount == 1).all()
        assert (batch.outcome.reward == 1).all()


def test_bits_follow_the_seed_and_not_the_threads():
    actions = script(80)
    runs = [
        roll(opened(threads=threads).make_vector(seed, COUNT), actions) for seed, threads in ((5, 0), (5, 1), (6, 1))
    ]
    (first, one), (again, two), (other, _) = runs
    np.testing.assert_array_equal(first, again)
    assert all(map(equal, one, two))
    assert len(np.unique(np.concatenate([first, other]), axis=0)) == 2 * COUNT


@pytest.mark.parametrize("env_id", [CARTPOLE, "envpool:Breakout-v5"])
def test_nothing_handed_out_is_overwritten(env_id):
    vector = opened(env_id, time_limit=4).make_vector(0, 2)
    first, batches = roll(vector, script(6, 2))
    kept = [first, *(batch.obs for batch in batches), *(batch.outcome.next_obs for batch in batches)]
    copies = [array.copy() for array in kept]
    for row in script(12, 2, seed=1):
        vector.step(row)
    assert all(map(np.array_equal, kept, copies))


def test_a_single_one_is_a_pool_of_one():
    made, actions = opened(), script(60, 1)
    env = made.make_host()
    first, batches = roll(made.make_vector(9, 1), actions)
    for _ in range(2):  # a reset begins the same stream anew
        np.testing.assert_array_equal(env.reset(9), first[0])
        for batch, row in zip(batches, actions, strict=True):
            obs, outcome = env.step(row[0])
            np.testing.assert_array_equal(obs, batch.obs[0])
            np.testing.assert_array_equal(outcome.next_obs, batch.outcome.next_obs[0])
            assert outcome[:3] == tuple(leaf[0] for leaf in batch.outcome[:3])
    env.close(), env.close()


@pytest.mark.parametrize(
    ("env_id", "shape", "dtype", "bounds"),
    [
        ("envpool:FrozenLake-v1", (16,), "float32", None),
        ("envpool:HalfCheetah-v4", (17,), "float32", (-1.0, 1.0)),
        ("envpool:LunarLanderContinuous-v3", (8,), "float32", (-1.0, 1.0)),
        ("envpool:Pong-v5", (84, 84, 4), "uint8", None),
    ],
)
def test_what_the_agent_sees_and_does(env_id, shape, dtype, bounds):
    spec = opened(env_id).spec
    assert (spec.observation.shape, spec.observation.dtype) == (shape, dtype)
    assert spec.observation.stack == (4 if len(shape) == 3 else 1)
    assert spec.action.discrete == (bounds is None)
    if bounds:
        assert {*zip(spec.action.low, spec.action.high, strict=True)} == {bounds}


def test_choices_are_one_hot_and_features_can_be_picked():
    obs = opened("envpool:FrozenLake-v1").make_vector(0, 3).reset()
    np.testing.assert_array_equal(obs, np.eye(16)[[0, 0, 0]])
    whole, part = (opened(observe=shown).make_vector(4, 3).reset() for shown in ((), (2, 0)))
    np.testing.assert_array_equal(part, whole[:, [2, 0]])


def test_half_cheetah_truncates_and_hopper_terminates():
    actions = np.zeros((1001, 2, 6), np.float32)
    _, batches = roll(opened("envpool:HalfCheetah-v4").make_vector(0, 2), actions)
    cut = [step for step, batch in enumerate(batches, 1) if batch.outcome.truncated.any()]
    assert cut == [1000]
    assert all((batch.outcome.discount == 1).all() for batch in batches)
    _, batches = roll(opened("envpool:Hopper-v4").make_vector(0, 2), np.ones((120, 2, 3), np.float32))
    assert any((batch.outcome.discount == 0).any() for batch in batches)
    assert not any(batch.outcome.truncated.any() for batch in batches)


@pytest.mark.parametrize("episodic_life", [False, True])
def test_games_are_those_of_the_other_adapter(episodic_life):
    """Frame by frame; but for the last frame of a game that ends within a step, where EnvPool shows an older one."""
    single = environments.open("ALE/Breakout-v5", atari.Config(noops=1, episodic_life=episodic_life)).make_host()
    made = opened("envpool:Breakout-v5", noops=1, episodic_life=episodic_life)
    vector, ends, unlike = made.make_vector(0, 2), 0, 0
    np.testing.assert_array_equal(np.stack([single.reset(0)] * 2), vector.reset())
    for action in script(400, 1, n=4, seed=1)[:, 0]:
        obs, outcome = single.step(action)
        batch = vector.step(np.array([action, 0]))
        assert outcome[:3] == tuple(leaf[0] for leaf in batch.outcome[:3])
        np.testing.assert_array_equal(obs, batch.obs[0])
        over = outcome.discount == 0
        same = np.array_equal(outcome.next_obs, batch.outcome.next_obs[0])
        assert same or over
        ends, unlike = ends + over, unlike + (not same)
    assert ends > (5 if episodic_life else 1)
    assert unlike <= 2
    assert (made.make_eval is not None) == episodic_life


def test_the_host_runtime_steps_them_as_one(tmp_path):
    run = shoal.train("a2c", env=CARTPOLE, runtime="host", steps=2000, seed=1, out=tmp_path / "1", eval_episodes=2)
    again = shoal.train("a2c", env=CARTPOLE, runtime="host", steps=2000, seed=1, out=tmp_path / "2", eval_episodes=0)
    assert run.summary["status"] == "completed"
    assert run.summary["episodes"] > 5
    assert run.summary["faults"]["restarts"] == 0
    assert run.summary["params_sha256"] == again.summary["params_sha256"]


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("env_id", "settings", "says"),
    [
        ("envpool:Cartpole-v1", {}, "did you mean 'envpool:CartPole-v1'"),
        ("envpool:Pong-v4", {}, "did you mean 'envpool:Pong-v5'"),
        (CARTPOLE, {"noops": 10}, "environment.noops=10 is for Atari games"),
        (CARTPOLE, {"episodic_life": True}, "environment.episodic_life=True is for Atari games"),
        (CARTPOLE, {"observe": (4,)}, "no feature 4"),
        (CARTPOLE, {"time_limit": -1}, "time_limit=-1"),
        ("envpool:Pong-v5", {"observe": (0,)}, "shows an image"),
        ("envpool:CheetahRun-v1", {}, "observation space Dict"),
    ],
)
def test_refused_in_one_line(env_id, settings, says):
    with pytest.raises(errors.Refused, match=re.escape(says)) as caught:
        opened(env_id, **settings)
    assert "\n" not in str(caught.value)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)  # as if it were not installed
    with pytest.raises(errors.Refused, match=r"pip install 'shoal-rl\[envpool\]'"):
        opened()
    assert not any(name.startswith("envpool:") for name in environments.names())


def test_settings_have_bounds():
    with pytest.raises(errors.Refused, match=r"environment.noops=0 is out of range"):
        options.check(options.build(envpool.Config, {"noops": 0}, "environment"), "environment")
