"""Who trains together: parties of a file, of a set of environments, and copies; and every mistake in naming them."""

from __future__ import annotations

import dataclasses
import json
import pickle

import jax
import numpy as np
import pytest

import shoal
from shoal import environments, experiment
from shoal.command import cli
from shoal.core import errors, seeds
from shoal.experiment import parties, presets
from shoal.networks import scopes

FILE = """
[[party]]
name = "clinic"
env = "probe:match"

[[party]]
name = "office"
env = "probe:truncated"
environment = { time_limit = 5 }
network = { adapter = 8 }
"""


def resolved(preset="collab_a2c", env=None, **given):
    return presets.resolve(presets.Request(preset, env, **given))


def refused(run, *given, **settings):
    with pytest.raises(errors.Refused) as caught:
        run(*given, **settings)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def filed(text, tmp_path):
    place = tmp_path / "owners.toml"
    place.write_text(text)
    return place


def asked(text, tmp_path, **given):
    """The experiment of a parties file."""
    request = parties.over(presets.Request("collab_a2c", **given), filed(text, tmp_path))
    return presets.resolve(request)


# ------------------------------------------------------------------------------------------------ the file


def test_a_file_names_the_parties(tmp_path):
    first, second = parties.read(filed(FILE, tmp_path))
    assert first == parties.Owner("clinic", "probe:match", {}, {})
    assert second == parties.Owner("office", "probe:truncated", {"time_limit": 5}, {"adapter": 8})
    made, opened = asked(FILE, tmp_path)
    assert (made.env, made.configs["runtime"].parties, opened.spec.id) == ("probe:match", 2, "probe:match")


MISTAKES = {  # what the file holds -> what is said
    "[party]\nname='a'\nenv='CartPole-v1'": "it holds no party. Each party is a table [[party]]",
    "": "it holds no party",
    "x = [": "cannot be read (no TOML: ",
    "steps = 5\n" + FILE: "unknown key 'steps' (known: party)",
    "[[party]]\nname='a'\nenvironmen={}\nenv='CartPole-v1'": "key of party 1 'environmen'; did you mean 'environment'?",
    "[[party]]\nenv='CartPole-v1'": 'party 1: name=None, but a text is needed; give name = "..."',
    "[[party]]\nname='a'\nenv=3": "party 1: env=3, but a text is needed",
    "[[party]]\nname='a/b'\nenv='CartPole-v1'": "party 1: the name 'a/b' is to stand in files",
    "[[party]]\nname='a'\nenv='CartPole-v1'\n" * 2: "two parties are called 'a'; give each a name of its own",
    "[[party]]\nname='a'\nenv='CartPole-v1'\nnetwork=3": "party 1: network=3 is no table of settings",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_every_mistake_in_a_file_is_one_line(text, tmp_path):
    place = filed(text, tmp_path)
    told = refused(parties.read, place)
    assert str(place) in told
    assert MISTAKES[text] in told


SETTINGS = {  # of the second party -> what is said
    "env = 'CartPol-v1'": "party b: unknown environment 'CartPol-v1'; did you mean 'CartPole-v1'?",
    "env = 'owners:CartPole-lengths/9'": "party b: owners:CartPole-lengths/9: there is no owner '9'",
    "env = 'CartPole-v1'\nenvironment = { time_limt = 5 }": "party b: unknown config key 'environment.time_limt'",
    "env = 'CartPole-v1'\nenvironment = { time_limit = 'x' }": "party b: environment.time_limit='x' has the wrong",
    "env = 'CartPole-v1'\nenvironment = { draw = 1 }": "party b: unknown config key 'environment.draw'",
    "env = 'probe:match'\nnetwork = { hidden = [0] }": "party b: network.hidden=(0,) is out of range",
    "env = 'probe:match'\nnetwork = { torso = 'none' }": "party b: unknown value of network.torso 'none'",
    "env = 'Acrobot-v1'": "the global layer trunk_dense_0 is [6, 64] at party b, and [1, 64] at party a",
    "env = 'probe:match'\nnetwork = { hidden = [32, 64] }": "trunk_dense_0 is [1, 32] at party b, and [1, 64] at",
    "env = 'probe:match'\nnetwork = { form = 'none' }": "layer policy is [64, 2] at party b, and missing at",
    "env = 'tests.scripted:Orders-v0'": "at party b, and [1, 64] at party a; global layers must have the same shape",
    "env = 'ALE/Nothing-v5'": "party b: ",
}


@pytest.mark.parametrize("text", SETTINGS)
def test_what_does_not_fit_together_names_the_party_or_the_layer(text, tmp_path):
    whole = f"[[party]]\nname = 'a'\nenv = 'probe:match'\n[[party]]\nname = 'b'\n{text}\n"
    assert SETTINGS[text] in refused(asked, whole, tmp_path).replace("params/", "")


def test_the_first_party_is_named_too(tmp_path):
    whole = "[[party]]\nname = 'a'\nenv = 'CartPol-v1'\n[[party]]\nname = 'b'\nenv = 'probe:match'\n"
    assert "party a: unknown environment 'CartPol-v1'" in refused(asked, whole, tmp_path)


def test_layers_that_differ_may_be_local(tmp_path):
    """Form C: what is seen and done is the owner's, and the layers between are everybody's."""
    whole = FILE.replace("probe:truncated", "Acrobot-v1")
    form_c = {"settings": {"network": {"form": "C"}}}
    assert "the global layer trunk_dense_0 is [8, 64] at party office" in refused(asked, whole, tmp_path, **form_c)
    made, _ = asked(whole.replace("adapter = 8", ""), tmp_path, **form_c)
    built = experiment.build(made)
    sizes = [party.rebuild().spec.observation.shape for party in built.parts.parties]
    assert sizes == [(1,), (6,)]
    layouts = [
        scopes.layout(jax.eval_shape(party.rebuild().agent.init, seeds.key(0)).params) for party in built.parts.parties
    ]
    assert layouts[0] == layouts[1]
    assert not built.parts.alike


def test_the_file_and_other_options_must_agree(tmp_path):
    place = filed(FILE, tmp_path)
    assert "--env probe:match beside a parties file" in refused(
        parties.over, presets.Request("collab_a2c", "probe:match"), place
    )
    request = parties.over(presets.Request("collab_a2c", settings={"runtime": {"parties": 3}}), place)
    assert "--parties 3, but the parties file has 2" in refused(presets.resolve, request)
    alone = parties.over(presets.Request("a2c"), place)
    assert "the on_device runtime trains no parties; use --runtime federated" in refused(presets.resolve, alone)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["a2c", "--parties", "3"], "the on_device runtime has none; leave it out, or use --runtime federated"),
        (["collab_a2c", "--parties-file", "no.toml"], "the parties file no.toml cannot be read (No such file"),
        (["collab_a2c", "--parties", "0"], "runtime.parties=0 is out of range"),
        (["collab_a2c", "--federation.partys", "3"], "'--federation.partys'; did you mean --runtime.parties?"),
        (["collab_dqn", "--parties", "3", "--environment.parties", "7"], "owners:CartPole-lengths is to have 7"),
        (["a2c", "--env", "owners:Spaces"], "no single learner fits it"),
        (["collab_a2c", "--runtime.placement", "axis", "--env", "owners:Spaces", "--network.form", "C"],
         "one compiled program cannot serve these parties"),
        (["consensus", "--env", "gymnax:Pendulum-v1"], "policies that give each of some actions a chance"),
        (["consensus", "--runtime.public-from", "bounds"], "declares no finite bounds of what is seen"),
        (["collab_a2c", "--runtime.participation", "0"], "runtime.participation=0 asks nobody"),
        (["collab_a2c", "--parties", "2", "--runtime.join", "0:9", "1:9"], "none would ever begin"),
        (["collab_a2c", "--parties", "2", "--runtime.join", "1"], "parties are numbered 0 to 1; give e.g. 1:20000"),
        (["independent", "--parties", "2", "--runtime.join", "2:9"], "runtime.join=2:9 changes nothing"),
        (["collab_a2c", "--parties", "2", "--runtime.paces", "1", "-4"], "runtime.paces=1 -4: give each of the 2"),
        (["collab_a2c", "--parties", "2", "--runtime.paces", "1", "1", "1"], "runtime.paces=1 1 1"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line_end_with_2(typed, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *typed, "--steps", "100"]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing is made"


# ------------------------------------------------------------------------------------------------ what is built


def test_who_trains_together_is_written_down_and_read_again(tmp_path):
    made, _ = asked(FILE, tmp_path)
    written = json.loads(json.dumps(made.to_json()))
    assert [one["name"] for one in written["parties"]] == ["clinic", "office"]
    assert experiment.from_json(written) == made
    assert "parties" not in resolved(env="owners:CartPole-lengths")[0].to_json(), "older digests stay what they were"
    damaged = {**written, "parties": [{"name": "clinic"}]}
    assert "party 1: env=None" in refused(experiment.from_json, damaged)


def test_a_set_has_as_many_owners_as_there_are_parties():
    made, opened = resolved("collab_dqn", settings={"runtime": {"parties": 3}})
    assert made.configs["environment"].parties == 3
    parts = experiment.build(made, opened).parts
    assert [(party.name, party.env) for party in parts.parties] == [
        (str(at), f"owners:CartPole-lengths/{at}") for at in range(3)
    ]
    assert parts.alike
    assert parts.device_env.init_as is not None
    assert parts.spec.id == "owners:CartPole-lengths"


def test_a_party_alone_has_the_environment_of_his_place():
    """What `rebuild` makes, also after it was sent, is his own environment and nobody else's."""
    made, opened = resolved("collab_dqn", settings={"runtime": {"parties": 3}})
    whole = experiment.build(made, opened).parts
    for at, party in enumerate(whole.parties):
        parts = pickle.loads(pickle.dumps(party.rebuild))()
        assert parts.spec.id == f"owners:CartPole-lengths/{at}"
        assert parts.parties == ()
        mine = parts.device_env.init(jax.random.key(1))
        jax.tree.map(np.testing.assert_array_equal, mine, whole.device_env.init_as(jax.random.key(1), at))
        state = parts.environment.host()
        assert state.spec.id == parts.spec.id


def test_copies_of_an_environment_are_alike_and_python_is_not():
    copies = experiment.build(*resolved(env="probe:match", settings={"runtime": {"parties": 2}})).parts
    assert copies.alike
    assert [party.env for party in copies.parties] == ["probe:match"] * 2
    python = experiment.build(*resolved(env="CartPole-v1", settings={"runtime": {"parties": 2}})).parts
    assert not python.alike
    assert python.parties[1].rebuild().device_env is None


def test_owners_of_different_spaces_are_not_alike_and_share_what_they_can():
    made, _ = resolved("collab_dqn", "owners:Spaces")
    assert (made.configs["network"].form, made.steps) == ("C", 150_000)
    parts = experiment.build(made).parts
    assert not parts.alike
    assert [party.name for party in parts.parties] == ["CartPole", "Acrobot", "MountainCar"]
    assert parts.spec.id == "owners:Spaces/0"
    assert "the global layer" in refused(resolved, "collab_dqn", "owners:Spaces", settings={"network": {"form": "A"}})


def test_steps_are_divided_and_so_is_the_horizon_of_annealing():
    made, _ = resolved("collab_dqn", steps=1_000, settings={"runtime": {"parties": 4}})
    assert experiment.horizon(made) == 250
    assert experiment.horizon(dataclasses.replace(made, anneal=2_000)) == 500
    alone = dataclasses.replace(made, runtime="on_device", configs={**made.configs, "runtime": on_device()})
    assert experiment.horizon(alone) == 1_000


def on_device():
    return experiment.config_class("runtime", "on_device")()


def test_nobody_exchanges_what_nobody_has():
    """Without global layers there is nothing to push; alone, or agreeing on decisions, none is needed."""
    local = {"network": {"form": "none", "critic_form": "none"}}
    assert resolved(env="probe:match", settings=local)[0]
    agents = [(str(at), agent_of(form), spec_of()) for at, form in enumerate(("D", "local"))]
    assert "missing at party 1" in refused(parties.check, agents, "gradient")
    assert "no layer is everybody's" in refused(parties.check, agents[1:], "delta")
    parties.check(agents, "none")
    parties.check(agents, "outputs")


def agent_of(form):
    made, opened = resolved(env="probe:match", settings={"network": {"shared": False}})
    network = dataclasses.replace(made.configs["network"], form="A", critic_form="A")
    made = dataclasses.replace(made, configs={**made.configs, "network": network})
    agent = experiment.build(made, opened).parts.agent
    if form != "local":
        return agent
    return agent._replace(init=lambda key: agent.init(key)._replace(params={"own_x": {"kernel": jax.numpy.zeros(3)}}))


def spec_of(env="probe:match"):
    return environments.open(env, environments.Config()).spec


def test_decisions_that_are_agreed_on_are_of_the_same_actions():
    agents = [("a", None, spec_of()), ("b", None, spec_of("gymnax:Acrobot-v1"))]
    told = refused(parties.check, agents, "outputs")
    assert "party b chooses among 3 actions, and party a among 2" in told


# ------------------------------------------------------------------------------------------------ presets


def test_baselines_differ_from_collaboration_in_what_they_say_they_do():
    found = {name: resolved(name)[0] for name in ("collab_a2c", "independent", "shared", "pooled")}
    runtimes = {name: made.configs["runtime"] for name, made in found.items()}
    assert {name: made.steps for name, made in found.items()} == dict.fromkeys(found, 250_000)
    assert found["independent"].configs["network"] == found["collab_a2c"].configs["network"], "as many parameters"
    assert runtimes["independent"] == dataclasses.replace(runtimes["collab_a2c"], exchange="none")
    assert runtimes["shared"] == runtimes["collab_a2c"]
    assert found["shared"].configs["network"].form == "none"
    for kind in ("algorithm", "optimiser"):
        assert len({str(found[name].configs[kind]) for name in ("collab_a2c", "independent", "shared")}) == 1
    assert found["pooled"].runtime == "on_device"
    assert runtimes["pooled"].environments == 5 * runtimes["collab_a2c"].environments
    assert "BREAKS THE BOUNDARY" in presets.find("pooled").summary
    assert [name for name in presets.PRESETS if presets.caution(name)] == ["pooled"]


def test_a_run_of_pooled_says_that_it_breaks_the_boundary(tmp_path, capsys):
    run = shoal.train("pooled", env="probe:match", steps=512, out=tmp_path / "run", eval_episodes=0)
    assert run.summary["caution"] == presets.caution("pooled")
    assert capsys.readouterr().err.startswith("pooled breaks the boundary"), "before it begins"


def test_parties_train_from_python_and_each_is_told(tmp_path):
    """Two copies of a probe, a few rounds: the steps are divided."""
    run = shoal.train(
        "collab_a2c", env="probe:match", parties=2, steps=512, out=tmp_path / "run", eval_episodes=0, quiet=True
    )
    told = run.summary["federation"]["parties"]
    assert [one["name"] for one in told] == ["0", "1"]
    assert [one["env_steps"] for one in told] == [256, 256]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["parts"]["runtime"]["parties"] == 2


def test_parties_of_ones_own_from_python():
    tables = [{"name": "a", "env": "probe:match"}, {"name": "b", "env": "probe:match"}]
    request = parties.over(presets.Request("collab_a2c"), tables)
    assert [one.name for one in request.parties] == ["a", "b"]
    assert experiment.build(*presets.resolve(request)).parts.alike, "nothing tells them apart but their names"
    assert "party 2: name=None" in refused(parties.over, presets.Request("collab_a2c"), [tables[0], {"env": "x"}])
