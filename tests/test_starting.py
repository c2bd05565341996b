"""A run that starts from another's policy: its weights and statistics, and a learner that agrees with them."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest

from shoal.core import errors, tree, types
from shoal.experiment import starting
from tests import conftest, faults

RUN = ("a2c", "--env", "probe:match", "--runtime.environments", 8, "--runtime.chunk-steps", 1000)
RULES = {
    "actor_critic": {"choices": 3}, "ppo": {"choices": 3}, "dqn": {"choices": 3}, "q_learning": {"choices": 3},
    "sac": {"low": (-1.0,), "high": (1.0,)}, "td3": {"low": (-1.0,), "high": (1.0,)},
}  # fmt: skip


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@pytest.mark.parametrize("rule", RULES)
def test_the_first_state_has_the_policy_and_targets_that_agree_with_it(rule):
    settings = {"capacity": 64, "batch": 4} if rule in ("dqn", "sac", "td3") else {}
    normalises = {"normalise_observations": True} if rule not in ("q_learning",) else {}
    agent = conftest.build_agent(
        conftest.env_spec(**RULES[rule]), rule=rule, local=True, algorithm=settings | normalises
    )
    other = agent.init(jax.random.key(1))
    if normalises:
        other = other._replace(normaliser=jax.tree.map(lambda leaf: leaf + 1, other.normaliser))
    start = jax.device_get(starting.kept(agent.snapshot(other)))
    starting.check(agent, start, "runs/x")
    state, cold = (jax.jit(made.init)(jax.random.key(0)) for made in (starting.warm(agent, start), agent))
    assert same(starting.kept(agent.snapshot(state)), start)
    assert not same(cold.params, state.params)
    part = agent.about.fields.policy
    if part:
        assert same({**state.params, part: cold.params[part]}, cold.params), "critics begin as always"
    assert same(state.optimiser, cold.optimiser)
    for name in (agent.about.fields.target, agent.about.fields.own_target):
        if name is not None:
            target = tree.field(state, name)
            target = target.params if isinstance(target, types.Target) else target
            of = (
                {layer: state.params[layer] for layer in target}
                if isinstance(target, dict)
                else state.params["critics"]
            )
            assert same(target, of)


def test_what_does_not_fit_is_refused_with_both_shapes():
    spec = conftest.env_spec(choices=3)
    agent = conftest.build_agent(spec, local=True)
    start = starting.kept(agent.snapshot(agent.init(jax.random.key(0))))
    wider = conftest.build_agent(spec, local=True, network={"hidden": (7,)})
    wide = starting.kept(wider.snapshot(wider.init(jax.random.key(0))))
    with pytest.raises(errors.Refused, match=r"runs/x.*\[7, 3\] there and \[5, 3\] here"):
        starting.check(agent, wide, "runs/x")
    with pytest.raises(errors.Refused, match=r"--algorithm\.normalise-observations"):
        starting.check(agent, start | {"normaliser": (np.zeros(3),)}, "runs/x")
    team = conftest.build_agent(spec, rule="map_propagation", local=True)
    with pytest.raises(errors.Refused, match="without --from"):
        starting.check(team, start, "runs/x")


def test_a_run_starts_from_anothers_policy_and_can_begin_anew(finished, capsys, tmp_path):
    source = finished(*RUN, "--steps", 1000)
    typed = (*RUN, "--steps", 1000, "--from", source.folder, "--optimiser.learning-rate", 0, "--seed", 5)
    found = faults.train(capsys, tmp_path / "run", *typed)
    assert found["params_sha256"] == source.told["params_sha256"], "nothing was learned since"
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert len(config["start"]) == 64
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # killed before its first
    (tmp_path / "run" / "summary.json").unlink()
    again = faults.call(capsys, "resume", tmp_path / "run", "--eval-episodes", 0, "--json")
    assert again.json["params_sha256"] == source.told["params_sha256"]
    shutil.rmtree(tmp_path / "run" / "start")
    (tmp_path / "run" / "summary.json").unlink()
    lost = faults.call(capsys, "resume", tmp_path / "run")
    assert (lost.code, lost.err.count("\n")) == (2, 1)
    assert "is lost" in lost.err


def test_seeds_start_from_it_too_and_what_is_no_run_is_refused(finished, capsys, tmp_path):
    source = finished(*RUN, "--steps", 1000)
    typed = (*RUN, "--steps", 1000, "--optimiser.learning-rate", 0)
    found = faults.train(capsys, tmp_path / "runs", *typed, "--from", source.folder, "--seeds", 2)
    assert {run["params_sha256"] for run in found["runs"]} == {source.told["params_sha256"]}
    assert (tmp_path / "runs" / "seed-1" / "start").is_dir()
    for given, words in ((tmp_path, "is not a run folder"), (tmp_path / "runs", "several seeds")):
        ended = faults.call(capsys, "train", *typed, "--from", given, "--out", tmp_path / "new")
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert words in ended.err
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("more", [("--workers", 2), ("--workers", 1, "--replayable")], ids=["racing", "replayable"])
def test_workers_start_from_it(more, capsys, tmp_path):
    first = faults.train(capsys, tmp_path / "first", "a3c", "--env", "CartPole-v1", "--workers", 1, "--steps", 2000)
    typed = ("a3c", "--env", "CartPole-v1", *more, "--steps", 1000, "--from", tmp_path / "first")
    found = faults.train(capsys, tmp_path / "run", *typed, "--optimiser.learning-rate", 0)
    assert found["params_sha256"] == first["params_sha256"]
    if "--replayable" in more:
        assert faults.call(capsys, "replay", tmp_path / "run").code == 0
