from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from shoal import environments
from shoal.command import cli
from shoal.core import errors, registry
from shoal.environments import _check, _walk
from shoal.experiment import presets
from shoal.runs import run_folder


def check(env_id, steps=60, **config):
    return _check.check(env_id, environments.Config(**config), steps)


SOUND = ["CartPole-v1", "gymnax:CartPole-v1", "probe:memory", "tests.scripted:Dict-v0", "envpool:CartPole-v1"]


@pytest.mark.parametrize("env_id", SOUND)
def test_a_sound_environment_has_no_problems(env_id):
    findings = check(env_id)
    assert findings.problems == ()
    assert findings.ok
    assert findings.deterministic
    assert findings.steps == 60
    assert findings.episodes == findings.terminated + findings.truncated > 0
    assert findings.steps_per_s > 0


def test_counts_endings_apart():
    findings = check("tests.scripted:Mixed-v0", steps=14)  # 2 (terminated), 4 (truncated), 1 (both), twice
    assert (findings.episodes, findings.terminated, findings.truncated) == (6, 4, 2)
    assert findings.length_mean == pytest.approx(14 / 6)
    assert findings.return_mean == pytest.approx(2 * (3 + 10 + 1) / 6)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Unseeded", "the same seed began with different observations"),
        ("Noisy", "the same seed and actions gave different observations"),
        ("Raises", "raised RuntimeError: the simulator broke"),
        ("NotFinite", "is not finite"),
        ("Outside", "outside"),
        ("ResetsInside", "is the first of the next"),
    ],
)
def test_a_broken_promise_is_found(name, says):
    findings = check(f"tests.scripted:{name}-v0")
    assert not findings.ok
    assert any(says in problem.what for problem in findings.problems), findings.problems
    assert all(problem.remedy for problem in findings.problems)
    assert any("PROBLEM" in line and says in line for line in _check.lines(findings))


def test_a_time_limit_mends_an_endless_environment():
    assert any("give one" in remark for remark in check("tests.scripted:Endless-v0").remarks)
    findings = check("tests.scripted:Endless-v0", time_limit=20)
    assert findings.ok
    assert (findings.terminated, findings.truncated) == (0, 3)


def test_only_pure_jax_is_compiled_with_the_learner(monkeypatch):
    names = registry.names
    monkeypatch.setattr(registry, "names", lambda kind: ["host", "on_device"] if kind == "runtime" else names(kind))
    assert check("tests.scripted:Terminates-v0").runtimes == ("host",)
    assert check("probe:match").runtimes == ("host", "on_device")


def test_an_environment_that_pays_nan_repeats_itself_all_the_same():
    opened = environments.open("tests.faults.envs:PaysNaN-v0", environments.Config())
    one, again, other = (_walk.walk(opened, 120, seed) for seed in (3, 3, 4))
    assert np.isnan([outcome.reward for outcome in one.outcomes]).any()
    assert _walk.same(one, again)
    assert not _walk.same(one, other)


def test_seeds_that_change_nothing_are_a_remark():
    findings = check("tests.scripted:Terminates-v0")
    assert not findings.seed_matters
    assert "every seed begins with the same observation" in findings.remarks
    assert check("probe:match").seed_matters


@pytest.mark.parametrize("env_id", ["CartPole-v1", "tests.scripted:NotFinite-v0", "tests.scripted:Raises-v0"])
def test_json_is_strict(env_id):
    findings = check(env_id)
    told = json.loads(json.dumps(findings.to_json(), allow_nan=False))
    assert told["env"] == env_id
    assert told["ok"] == findings.ok
    assert told["spec"]["observation"]["shape"] == list(findings.spec.observation.shape)
    assert len(told["problems"]) == len(findings.problems)


def test_lines_show_what_the_agent_sees():
    told = "\n".join(_check.lines(check("tests.scripted:ChannelFirst-v0")))
    assert "image [12, 10, 4] uint8" in told
    assert "channels in front" in told
    assert "one of 3 choices" in told


def test_a_game_is_sound():
    findings = check("ALE/Breakout-v5", time_limit=25)
    assert findings.ok, findings.problems
    assert (findings.terminated, findings.truncated) == (0, 2)
    assert "image [84, 84, 4] uint8" in "\n".join(_check.lines(findings))


def test_the_adapters_own_settings_are_options(capsys):
    asked = [
        "check-env",
        "ALE/Breakout-v5",
        "--steps",
        "120",
        "--environment.repeat",
        "8",
        "--environment.episodic-life",
    ]
    assert cli.main([*asked, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["spec"]["time_limit"] == 13_500
    assert told["terminated"] > 1
    assert any("whole games" in note for note in told["spec"]["notes"])
    for wrong in (["CartPole-v1", "--environment.repeat", "8"], ["ALE/Pong-v5", "--environment.repeat", "0"]):
        assert cli.main(["check-env", *wrong]) == 2
        assert "repeat" in capsys.readouterr().err


def test_an_environment_that_cannot_be_opened_is_refused():
    with pytest.raises(errors.Refused, match="did you mean"):
        check("CartPole-v9")


def test_checking_gymnasium_does_not_import_jax():
    code = (
        "import sys\nfrom shoal import environments\nfrom shoal.environments import _check as check_env\n"
        "check_env.lines(check_env.check('CartPole-v1', environments.Config(), 50))\nassert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------------------------------------- before a run

WRONG = {
    "Row": "the observation of step 0 is float32[1, 2], declared is float32[2]; return what observation_space declares",
    "RowLater": "the observation of step 1 is float32[1, 2], declared is float32[2]",
    "ResetOnly": "the first reset raised TypeError: reset returned one ndarray, not (observation, info) as since",
    "FourValues": "step 1 raised TypeError: step returned 4 values, not (observation, reward, terminated, truncated",
    "Unseedable": "the first reset raised TypeError: Unseedable.reset() got an unexpected keyword argument 'seed'",
    "RewardArray": "step 1 raised TypeError: the reward is an array of shape (1,), not a number; mend the environment",
    "RaisesAlways": "step 1 raised RuntimeError: the simulator broke",
    "NeedsScenario": "cannot be made: TypeError: NeedsScenario.__init__() missing 1 required positional argument",
    "NoConstructor": "cannot be made: FileNotFoundError: no such scene: kitchen.xml",
}
RUNTIMES = {
    "host": ("a2c",),
    "population": ("random_search", "--members", "2"),
    "federated": ("a2c", "--runtime", "federated", "--parties", "2"),
    "actor_learner": ("a2c", "--runtime", "actor_learner"),
    "hogwild": ("a3c", "--workers", "1"),
    "parameter_server": ("gorila", "--workers", "1"),
    "peers": ("parallel_sarsa", "--algorithm.low", "0", "0", "--algorithm.high", "1", "1"),
    "map_reduce": ("batch_linear", "--algorithm.low", "0", "0", "--algorithm.high", "1", "1"),
}


def test_every_runtime_for_python_simulators_is_tried():
    assert {*RUNTIMES} == {*registry.names("runtime")} - {"on_device"}


@pytest.mark.parametrize(
    ("name", "runtime"),
    [*((name, "host") for name in WRONG), *(("Row", other) for other in RUNTIMES if other != "host")],
)
def test_a_wrong_environment_is_refused_before_anything_is_created(name, runtime, tmp_path, capsys):
    env_id, out = f"tests.faults.envs:{name}-v0", tmp_path / "run"
    code = cli.main(["train", *RUNTIMES[runtime], "--env", env_id, "--steps", "100", "--out", str(out)])
    said = capsys.readouterr().err.strip()
    assert code == 2, said
    assert WRONG[name] in said
    assert said.count("\n") == 0, "one line"
    assert not out.exists()


@pytest.mark.parametrize("name", [name for name in WRONG if name[0] != "N"])
def test_it_says_what_check_env_says(name):
    env_id = f"tests.faults.envs:{name}-v0"
    found = _check.first(environments.open(env_id, environments.Config()))
    assert found in check(env_id).problems


def test_a_comparison_and_a_resume_look_too(tmp_path, capsys):
    env_id, out = "tests.faults.envs:Row-v0", tmp_path / "run"
    assert cli.main(["compare", "a2c", "ppo", "--env", env_id, "--steps", "100", "--out", str(out)]) == 2
    assert WRONG["Row"] in capsys.readouterr().err
    assert not out.exists()
    made, _ = presets.resolve(presets.Request("a2c", env_id, 100))
    with run_folder.making(out) as folder:
        run_folder.write_config(folder, made, "shoal train")
    assert cli.main(["resume", str(out)]) == 2
    assert WRONG["Row"] in capsys.readouterr().err


def test_a_sound_environment_is_made_once_more_and_closed(monkeypatch):
    opened, closed = environments.open("CartPole-v1", environments.Config()), []
    host = opened.make_host

    def counted():
        env = host()
        monkeypatch.setattr(env, "close", lambda: closed.append(env))
        return env

    assert _check.first(opened._replace(make_host=counted)) is None
    assert len(closed) == 1
    assert _check.first(environments.open("probe:match", environments.Config())) is None
