"""A policy in a loop of one's own: it takes what the simulator gives, and gives what the simulator takes."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import re

import gymnasium
import jax
import numpy as np
import pytest

import shoal
from shoal import environments
from shoal.core import errors, importing
from shoal.experiment import presets

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "policy.md"


class Odd(gymnasium.Env):
    """Choices from -1 on; a dictionary with a text in it."""

    observation_space = gymnasium.spaces.Dict(
        {"word": gymnasium.spaces.Text(5), "x": gymnasium.spaces.Box(-1, 1, (2,), np.float32)}
    )
    action_space = gymnasium.spaces.Discrete(3, start=-1)

    def __init__(self, length=3, render_mode=None):
        self.render_mode, self.length, self.at = render_mode, length, 0

    def _obs(self):
        return {"word": "left", "x": np.array([self.at / 10, 0.5], np.float32)}

    def reset(self, seed=None, options=None):  # noqa: ARG002
        super().reset(seed=seed)
        self.at = 0
        return self._obs(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.at += 1
        return self._obs(), float(action), self.at >= self.length, False, {}


def twice(env):
    return gymnasium.wrappers.TransformReward(env, lambda reward: 2 * reward)


def fails(env):
    raise RuntimeError(f"no screen for {env}")


ID = "tests.test_playing:Odd"


def opened(**given):
    return environments.open(ID, environments.config_class(ID)(**given))


# --------------------------------------------------------------------------------------------------- how it is made


def test_a_class_is_an_environment_with_its_arguments_and_wrappers_and_without_a_key():
    found = opened(kwargs='{"length": 2}', wrappers=("tests.test_playing:twice",), ignore=("word",))
    assert found.spec.observation.shape == (2,)
    env = found.make_host()
    env.reset(0)
    outcomes = [env.step(2)[1] for _ in range(2)]
    assert [outcome.reward for outcome in outcomes] == [2.0, 2.0], "1, doubled"
    assert [outcome.discount for outcome in outcomes] == [1.0, 0.0], "it ends after two steps"
    env.close()


def test_a_picture_that_is_left_alone_stays_a_picture(monkeypatch):
    picture = gymnasium.spaces.Box(0, 255, (7, 7, 3), np.uint8)
    monkeypatch.setattr(
        Odd, "observation_space", gymnasium.spaces.Dict({"image": picture, "word": Odd.observation_space["word"]})
    )
    shown = opened(ignore=("word",)).spec.observation
    assert (shown.shape, shown.dtype, shown.image) == ((7, 7, 3), "uint8", True)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ["word (Text)", "--environment.ignore word"]),
        ({"ignore": ("words",)}, ["words", "word, x"]),
        ({"ignore": ("word", "x")}, ["nothing"]),
        ({"ignore": ("word",), "wrappers": ("twice",)}, ["twice", "module:function"]),
        ({"ignore": ("word",), "wrappers": ("tests.test_playing:fails",)}, ["RuntimeError", "no screen"]),
        ({"ignore": ("word",), "wrappers": ("tests.test_playing:repr",)}, ["is no function"]),
        ({"ignore": ("word",), "wrappers": ("tests.nowhere:f",)}, ["tests.nowhere", "cannot be imported"]),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_refused_in_one_line(given, words):
    with pytest.raises(errors.Refused) as refused:
        opened(**given)
    assert "\n" not in str(refused.value)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize("text", ["[1]", "{", "3"])
def test_arguments_are_a_json_object(text):
    with pytest.raises(errors.Refused, match="JSON object"):
        opened(kwargs=text)


def test_arguments_reach_gymnax_too():
    config = environments.config_class("gymnax:DeepSea-bsuite")
    shown = environments.open("gymnax:DeepSea-bsuite", config(kwargs='{"size": 5}')).spec.observation.shape
    assert shown != environments.open("gymnax:DeepSea-bsuite", config()).spec.observation.shape


def test_a_module_that_raises_is_told_with_what_it_raised(tmp_path, monkeypatch):
    (tmp_path / "broken_envs.py").write_text("undefined_name\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.Refused, match=r"'broken_envs' cannot be imported .NameError: name 'undefined_name'"):
        environments.open("broken_envs:Env-v0", environments.Config())


def test_an_id_without_its_version_is_the_newest():
    assert environments.full("CartPole") == "CartPole-v1"
    for given in ("CartPole-v0", "Nope", "gymnax:CartPole-v1", "my:Env", "ALE/Pong-v5"):
        assert environments.full(given) == given
    made, _ = presets.resolve(presets.Request("ppo", "CartPole"))
    assert made.env == "CartPole-v1"
    assert presets.note(presets.Request("ppo", "CartPole")) is None, "and it is tuned for it"


def test_a_class_is_named_by_its_module_and_a_local_one_is_refused():
    assert importing.name_of(Odd) == ID
    with pytest.raises(errors.Refused, match="top of a module"):
        importing.name_of(lambda: None)


# ------------------------------------------------------------------------------------------------------ how it acts


@pytest.fixture(scope="module")
def recurrent(finished):
    return finished(
        "a2c", "--env", "CartPole-v1", "--network.lstm", 4, "--runtime.environments", 2, "--steps", 320
    ).folder


def test_the_loop_of_the_page_plays_an_episode(recurrent):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, str(PAGE), "exec"), {"RUN": recurrent})
    assert float(said.getvalue()) >= 8, "so long it takes to fall"


def test_it_is_told_in_three_lines(recurrent):
    shown = repr(shoal.load(recurrent))
    assert shown.count("\n") == 2
    for word in ("a2c", "CartPole-v1", "completed", "320 steps", str(recurrent), "act(obs)"):
        assert word in shown


def test_memory_lasts_until_it_is_reset_and_streams_have_their_own(recurrent):
    player = shoal.load(recurrent).player
    obs = np.array([0.0, 1.0, 0.0, -1.0], np.float32)

    def memory(place):
        """Of every stream, [B, ...]."""
        leaves = jax.tree.leaves(player._carries[place])
        return np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in leaves], axis=1)

    player.act_many([obs, obs])
    first = memory(2)
    player.act_many([obs, obs])
    assert not np.array_equal(first, memory(2)), "it remembers"
    player.reset([True, False])
    player.act_many([obs, obs])
    player.act(obs)
    np.testing.assert_allclose(memory(2)[0], memory(0)[0], rtol=1e-5)  # one forgot, and `act` began anew
    assert not np.allclose(memory(2)[1], memory(0)[0], rtol=1e-3), "the other did not"
    player.reset()
    player.act_many([obs, obs])
    assert np.array_equal(first, memory(2)), "all forgot"


def test_another_shape_is_refused(recurrent):
    with pytest.raises(errors.Refused, match=r"\[3\].*\[4\]"):
        shoal.load(recurrent).act([1.0, 2.0, 3.0])


def test_observations_and_actions_are_those_of_the_environment(finished):
    settings = ("--env", ID, "--environment.ignore", "word", "--environment.kwargs", '{"length": 2}')
    run = shoal.load(finished("a2c", *settings, "--runtime.environments", 2, "--steps", 40).folder)
    assert json.loads((run.folder / "config.json").read_text())["parts"]["environment"]["ignore"] == ["word"]
    env = run.player._hands
    assert env.see({"x": np.array([1, 2]), "word": "left"}).tolist() == [1.0, 2.0]
    chosen = run.act({"x": np.zeros(2, np.float32), "word": "left"})
    assert chosen in (-1, 0, 1)
    assert run.act_many([{"x": np.zeros(2, np.float32), "word": ""}] * 3) == [chosen] * 3
    with pytest.raises(errors.Refused, match="not one of"):
        run.act({"y": "up"})
