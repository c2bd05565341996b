"""Names of other frameworks lead to the right ones; numbers may be written as people write them."""

from __future__ import annotations

import pytest

import shoal
from shoal.command import arguments
from shoal.command.verbs import train
from shoal.core import aliases, errors
from shoal.experiment import presets
from shoal.report import closing
from tests import faults


def flags(preset):
    request = presets.Request(preset, corrector="vtrace" if preset == "a3c" else None)
    return {flag.removeprefix("--") for flag in arguments.flags(train.options(request))}


def test_every_alias_leads_to_a_setting_that_some_preset_has():
    known = set().union(*(flags(preset) for preset in ("ppo", "sac", "dqn", "a3c", "gorila"))) | {"environment.kwargs"}
    for alias, here in aliases.SETTINGS.items():
        assert set(here) <= known, alias
        assert alias not in known


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("train ppo --lr 1", "did you mean --optimiser.learning-rate?"),
        ("train ppo --learning_rate 1", "did you mean --optimiser.learning-rate?"),
        ("train sac --gamma 0.9", "did you mean --algorithm.discount?"),
        ("train ppo --total_timesteps=9", "did you mean --steps?"),
        ("train ppo --n_envs 3", "did you mean --runtime.environments?"),
        ("train a3c --n-envs 3", "did you mean --workers?"),
        ("train ppo --resume runs/x", "`shoal resume RUN` continues a run"),
        ("train ppo --env cartpole", "did you mean 'CartPole-v1'?"),
        ("train cartpole", "--env CartPole-v1"),
        ("train a3c --corrector vtrace --corrector.rho-bar 3", "did you mean --corrector.clip?"),
        ("train ppo --zzz 3", "nothing like it"),
        ("train dqn --env probe:target", "presets that fit: a2c, a3c"),
        ("train ppo --steps 1.5e0", "1.5e0"),
    ],
)
def test_the_command_line_names_what_was_meant(typed, words, capsys):
    ended = faults.call(capsys, *typed.split())
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert words in ended.err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"learning_rate": 1e-3}, "did you mean optimiser={'learning_rate': ...}?"),
        ({"gamma": 0.9}, "did you mean algorithm={'discount': ...}?"),
        ({"total_timesteps": 9}, "did you mean steps=...?"),
        ({"hidden": (3,)}, "did you mean network={'hidden': ...}?"),
        ({"qqq": 1}, "unknown argument 'qqq'"),
        ({"algorithm": {"gamma": 0.9}}, "Here gamma is algorithm.discount."),
    ],
)
def test_python_names_what_was_meant(given, words, tmp_path):
    with pytest.raises(errors.Refused) as refused:
        shoal.train("a2c", "probe:match", out=tmp_path / "run", **given)
    assert words in str(refused.value)


def test_whole_numbers_are_taken_as_they_are_written():
    def steps(text, preset="ppo"):
        return arguments.parse(train.options(presets.Request(preset)), f"train {preset}", [preset, *text.split()]).steps

    assert (
        steps("--steps 1e6") == steps("--steps=1E+6") == steps("--steps 1_000_000") == steps("--steps 1.0e6") == 10**6
    )
    given = arguments.parse(
        train.options(presets.Request("ppo")), "train ppo", ["ppo", "--algorithm.rollout-length", "1e2"]
    )
    assert given.algorithm_config.rollout_length == 100
    request = presets.Request("a2c", "probe:match", steps=2e3)
    assert presets.resolve(request)[0].steps == 2000
    with pytest.raises(errors.Refused, match="whole number"):
        presets.resolve(request._replace(steps=2.5))


def test_a_preset_tells_where_it_is_not_tuned():
    assert presets.note(presets.Request("ppo", "CartPole-v1")) is None
    told = presets.note(presets.Request("td3", "Acrobot-v1"))
    assert told.startswith("td3 is not tuned for Acrobot-v1")
    assert "map_propagation" in told
    assert "tuned for it" not in presets.note(presets.Request("ppo", "tests.faults.envs:Calm-v0"))
    assert presets.note(presets.Request("ppo", "probe:match")) is None, "probes are there for anything"


def test_steps_that_were_rounded_up_are_told():
    summary = {"steps": 100, "env_steps": 128, "episodes": 4, "updates": 4}
    assert closing._steps(summary) == "128 (100 asked for: updates are whole) in 4 episodes, 4 updates"
    assert "asked" not in closing._steps(summary | {"steps": 128})


def test_a_setting_of_another_part_is_not_named():
    assert aliases.setting("network.gamma", {"algorithm.discount"}) is None
