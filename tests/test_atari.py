"""Atari games against a reference written from the papers, on top of Gymnasium's raw colour frames."""

from __future__ import annotations

import collections
import sys

import ale_py
import cv2
import gymnasium
import numpy as np
import pytest

from shoal import environments
from shoal.core import errors, options
from shoal.environments import atari

BREAKOUT = "ALE/Breakout-v5"
FIRE = 1  # in Breakout: nothing, fire, right, left


def opened(env_id=BREAKOUT, **settings):
    return environments.open(env_id, atari.Config(**settings))


def play(env, actions, seed=0):
    """First observation, and (observation to act on, outcome) of every action."""
    first = env.reset(seed)
    return first, [env.step(action) for action in actions]


def script(n, steps, seed=0):
    return np.random.default_rng(seed).integers(n, size=steps).tolist()


class Reference:
    """Mnih et al. (2015), methods: max of two frames, luminance, 84 x 84, four stacked, four repeated, one no-op."""

    def __init__(self, game, flicker=True):
        gymnasium.register_envs(ale_py)
        self.env = gymnasium.make(game, frameskip=1, repeat_action_probability=0.0, disable_env_checker=True)
        self.flicker = flicker

    def shrink(self, screens):
        grey = [np.rint(screen @ np.array([0.2989, 0.587, 0.114])).astype(np.uint8) for screen in screens]
        return cv2.resize(np.maximum(*grey), (84, 84), interpolation=cv2.INTER_AREA)

    def reset(self):
        self.env.reset()
        screen = self.env.step(0)[0]
        self.stack = collections.deque([self.shrink([screen, screen])] * 4, maxlen=4)
        return np.stack(self.stack, axis=-1)

    def step(self, action):
        screens, total, over = [], 0.0, False
        while len(screens) < 4 and not over:
            screen, reward, over, _, _ = self.env.step(action)
            screens.append(screen)
            total += reward
        pair = screens[-2:] if len(screens) == 4 and self.flicker else [screens[-1]] * 2
        self.stack.append(self.shrink(pair))
        return np.stack(self.stack, axis=-1), total, over


@pytest.mark.parametrize(("game", "least"), [(BREAKOUT, 2), ("ALE/BeamRider-v5", 0)])
def test_preprocessing_equals_the_papers(game, least):
    made = opened(game, noops=1)
    env, reference, ends = made.make_host(), Reference(game), 0
    np.testing.assert_array_equal(env.reset(0), reference.reset())
    for action in script(made.spec.action.n, 500, seed=1):
        obs, outcome = env.step(action)
        expected, reward, over = reference.step(action)
        np.testing.assert_array_equal(outcome.next_obs, expected)
        assert (outcome.reward, outcome.discount, outcome.truncated) == (reward, 1.0 - over, False)
        np.testing.assert_array_equal(obs, reference.reset() if over else expected)
        ends += over
    assert ends >= least


def test_the_maximum_of_two_frames_mends_flicker():
    """Beam Rider draws its sprites in every other frame: the last frame alone lacks some of them."""
    game = "ALE/BeamRider-v5"
    made = opened(game, noops=1)
    env, blind = made.make_host(), Reference(game, flicker=False)
    env.reset(0), blind.reset()
    lacking = 0
    for action in script(made.spec.action.n, 100):
        shown, single = env.step(action)[1].next_obs[..., -1], blind.step(action)[0][..., -1]
        brighter = shown.astype(int) - single
        assert brighter.min() >= 0
        lacking += (brighter > 60).sum() > 20  # pixels
    assert lacking > 50


def test_frames_are_stacked_newest_last():
    env = opened().make_host()
    first, steps = play(env, script(4, 30))
    kept = [obs.copy() for obs, _ in steps]
    assert all(np.array_equal(first[..., i], first[..., 0]) for i in range(4))
    before = first
    for obs, outcome in steps:
        np.testing.assert_array_equal(outcome.next_obs[..., :3], before[..., 1:])
        before = obs
    assert not np.array_equal(steps[-1][0][..., 3], steps[0][0][..., 0])  # and something moves
    for (obs, _), copy in zip(steps, kept, strict=True):  # nothing handed out is overwritten later
        np.testing.assert_array_equal(obs, copy)


def test_one_small_picture_of_the_field_alone():
    made = opened("ALE/Pong-v5", size=42, frames=1, crop=(34, 194), noops=1)
    assert made.spec.observation[:4] == ((42, 42, 1), "uint8", True, 1)
    assert any("42 by 42 of rows 34 to 193, one at a time" in note for note in made.spec.notes)
    env, whole = made.make_host(), opened("ALE/Pong-v5", noops=1).make_host()
    first, steps = play(env, script(6, 40))
    whole.reset(0)
    assert first.shape == (42, 42, 1)
    for (obs, outcome), action in zip(steps, script(6, 40), strict=True):
        whole.step(action)
        screen = whole._screens.max(axis=0)
        np.testing.assert_array_equal(obs[..., 0], cv2.resize(screen[34:194], (42, 42), interpolation=cv2.INTER_AREA))
        np.testing.assert_array_equal(outcome.next_obs, obs)


@pytest.mark.parametrize("rows", [(34, 30), (0, 211), (10, 12), (-1, 100)])
def test_rows_that_are_not_there_are_refused(rows):
    with pytest.raises(errors.Refused, match=r"the screen has 210 rows"):
        opened("ALE/Pong-v5", crop=rows)


def test_three_frames_are_stacked_newest_last():
    env = opened(frames=3).make_host()
    before, steps = play(env, script(4, 10))
    for obs, outcome in steps:
        np.testing.assert_array_equal(outcome.next_obs[..., :2], before[..., 1:])
        before = obs


def test_spec_says_what_is_seen():
    spec = opened().spec
    assert spec.observation[:4] == ((84, 84, 4), "uint8", True, 4)
    assert (spec.action.n, spec.time_limit, spec.on_device) == (4, 27_000, False)
    assert opened(repeat=2).spec.time_limit == 54_000
    assert any("rewards as the game pays them" in note for note in spec.notes)


def test_no_ops_follow_the_seed():
    env = opened("ALE/Freeway-v5").make_host()  # where cars move at once
    firsts = [env.reset(seed) for seed in (0, 1, 2, 3, 0)]
    np.testing.assert_array_equal(firsts[0], firsts[-1])
    assert len({obs.tobytes() for obs in firsts[:-1]}) > 1
    still = opened("ALE/Freeway-v5", noops=0).make_host()
    np.testing.assert_array_equal(still.reset(0), still.reset(1))


def test_the_next_game_begins_with_no_ops_of_its_own():
    env = opened("ALE/Freeway-v5", time_limit=2).make_host()
    _, steps = play(env, [0] * 16)
    begun = {obs.tobytes() for obs, outcome in steps if outcome.truncated}
    assert len(begun) > 1


def test_sticky_actions_repeat_with_the_seed():
    actions = script(4, 120)
    runs = [play(opened(sticky=sticky).make_host(), actions)[1] for sticky in (0.25, 0.25, 0.0)]
    same, differ = ([np.array_equal(a[0], b[0]) for a, b in zip(runs[0], run, strict=True)] for run in runs[1:])
    assert all(same)
    assert not all(differ)


def test_a_time_limit_truncates_and_shows_the_true_successor():
    actions = script(4, 25)
    env, endless = opened(time_limit=10).make_host(), opened().make_host()
    (_, cut), (_, went_on) = play(env, actions, seed=3), play(endless, actions, seed=3)
    ends = [(outcome.discount, outcome.truncated) for _, outcome in cut]
    assert ends == [(1.0, step in (10, 20)) for step in range(1, 26)]
    np.testing.assert_array_equal(cut[9][1].next_obs, went_on[9][1].next_obs)
    begun = cut[9][0]
    assert all(np.array_equal(begun[..., i], begun[..., 0]) for i in range(4))


def test_episodic_life_ends_episodes_and_not_the_game():
    made = opened(episodic_life=True)
    env, whole = made.make_host(), made.make_eval()
    actions = [FIRE if step % 8 == 0 else 0 for step in range(400)]
    (_, lives), (_, games) = play(env, actions), play(whole, actions)
    ends = [step for step, (_, outcome) in enumerate(lives) if outcome.discount == 0]
    over = [step for step, (_, outcome) in enumerate(games) if outcome.discount == 0]
    assert over
    assert over == ends[4::5], "five lives a game"
    assert not any(outcome.truncated for _, outcome in lives)
    for step, ((obs, outcome), (_, real)) in enumerate(zip(lives, games, strict=True)):
        assert outcome.reward == real.reward
        np.testing.assert_array_equal(outcome.next_obs[..., 3], real.next_obs[..., 3])  # the same game all along
        if step in ends and step not in over:  # the next episode begins where the life was lost
            assert all(np.array_equal(obs[..., i], outcome.next_obs[..., 3]) for i in range(4))
    assert opened().make_eval is None


def test_a_life_lost_at_the_limit_is_a_real_end():
    actions = [FIRE if step % 8 == 0 else 0 for step in range(60)]
    _, steps = play(opened(episodic_life=True).make_host(), actions)
    lost = next(step for step, (_, outcome) in enumerate(steps, 1) if outcome.discount == 0)
    env = opened(episodic_life=True, time_limit=lost).make_host()
    _, steps = play(env, actions[:lost])
    assert (steps[-1][1].discount, steps[-1][1].truncated) == (0.0, False)
    obs, _ = steps[-1]
    np.testing.assert_array_equal(obs, opened(noops=0).make_host().reset(0))  # a new game, not the old one


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("env_id", "settings", "says"),
    [
        ("ALE/Pung-v5", {}, "did you mean 'ALE/Pong-v5'"),
        ("ALE/Pong-v4", {}, "did you mean 'ALE/Pong-v5'"),
        ("ALE/", {}, "unknown environment"),
        (BREAKOUT, {"observe": (0,)}, "shows an image"),
        (BREAKOUT, {"time_limit": -1}, "time_limit=-1"),
        ("ale_py:ALE/Pong-v5", {}, "opened with their preprocessing"),
        ("ale_py:PongNoFrameskip-v4", {}, "opened with their preprocessing"),
    ],
)
def test_refused_in_one_line(env_id, settings, says):
    with pytest.raises(errors.Refused, match=says) as caught:
        opened(env_id, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", ["ale_py", "cv2"])
def test_a_missing_package_names_the_extra(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(errors.Refused, match=r"pip install 'shoal-rl\[atari\]'"):
        opened()
    assert not any(name.startswith("ALE/") for name in environments.names())


def test_settings_have_bounds():
    assert environments.config_class(BREAKOUT) is atari.Config
    assert options.build(atari.Config, {"sticky": 0.25, "episodic_life": True}, "environment").sticky == 0.25
    with pytest.raises(errors.Refused, match=r"environment.repeat=0 is out of range"):
        options.check(options.build(atari.Config, {"repeat": 0}, "environment"), "environment")
