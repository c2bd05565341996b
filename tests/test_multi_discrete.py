"""Several choices at once: from the simulator's space to what is learned, wherever it is learned, and back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from gymnasium import spaces

import shoal
from shoal import environments, experiment
from shoal.core import errors
from shoal.environments import _check, _gymnasium_spaces, _walk
from shoal.experiment import presets
from shoal.formulas import distributions
from shoal.runtimes.crew import threads
from shoal.runtimes.experience import segments, vectors
from tests import faults, scripted

ORDERS = "tests.scripted:Orders-v0"
LEARNERS = [name for name, preset in presets.PRESETS.items()
            if "multi_discrete" in experiment.traits(preset.algorithm).actions]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ spaces


@pytest.mark.parametrize(
    ("space", "sizes", "starts", "own", "dtype", "notes"),
    [
        (spaces.MultiDiscrete([3, 4]), (3, 4), (0, 0), None, "int64", 0),
        (spaces.MultiDiscrete([5], start=[2]), (5,), (2,), None, "int64", 1),
        (spaces.MultiDiscrete([[1, 2], [3, 4]], dtype=np.int32), (1, 2, 3, 4), (0,) * 4, (2, 2), "int32", 1),
        (spaces.MultiBinary(3), (2, 2, 2), (0, 0, 0), None, "int8", 0),
        (spaces.MultiBinary((1, 2)), (2, 2), (0, 0), (1, 2), "int8", 1),
    ],
)
def test_a_space_of_several_choices_is_flat_and_goes_back_as_it_was(space, sizes, starts, own, dtype, notes):
    spec, told = _gymnasium_spaces.action_spec("Env-v0", space)
    assert (spec.kind, spec.discrete, spec.n, spec.shape) == ("multi_discrete", True, 0, (len(sizes),))
    assert (spec.sizes, spec.starts, spec.own_shape, spec.own_dtype) == (sizes, starts, own, dtype)
    assert len(told) == notes
    act, act_many = _gymnasium_spaces.actor(space), _gymnasium_spaces.batch_actor(space)
    first, last = np.zeros(len(sizes), np.int32), np.array(sizes, np.int32) - 1
    assert act(first).ravel().tolist() == list(starts)
    assert act(last).ravel().tolist() == [start + size - 1 for start, size in zip(starts, sizes, strict=True)]
    assert all(space.contains(each) for each in (act(first), act(last), *act_many(np.stack([first, last, last]))))
    assert act(last).dtype == act_many(last[None]).dtype == space.dtype
    assert not space.contains(act(last + 1)), "what is too much is not hidden"
    chance = np.random.default_rng(0)
    drawn = [act(_walk.action(spec, chance)) for _ in range(200)]
    assert all(map(space.contains, drawn))
    assert len({one.tobytes() for one in drawn}) == np.prod(sizes), "every combination"


def test_a_space_of_no_choice_is_refused():
    with pytest.raises(errors.Refused, match=r"MultiDiscrete.*supported: Discrete, MultiDiscrete, MultiBinary and Box"):
        _gymnasium_spaces.action_spec("Env-v0", spaces.MultiDiscrete(np.zeros(0, int)))


def test_what_was_shifted_is_noted_and_its_choices_are_shown():
    findings = _check.check(ORDERS, environments.Config(), steps=60)
    assert findings.ok, findings.problems
    lines = "\n".join(_check.lines(findings))
    assert "does      2 choices at once: 1 of 2 and 1 of 4" in lines
    assert "the first of each choice stands for -1, 5" in lines
    assert findings.to_json()["spec"]["action"]["sizes"] == (2, 4)


@pytest.mark.parametrize(("env_id", "taken"), [(ORDERS, [0, 7]), ("probe:pair", [1, 2])])
def test_a_loop_of_ones_own_gives_the_simulator_all_its_choices(env_id, taken):
    hands = environments.Opener(env_id, environments.Config()).hands()
    np.testing.assert_array_equal(hands.act(np.int32([1, 2])), taken)


def test_a_simulator_is_timed_with_several_choices_too(monkeypatch):
    """An action that it does not take would end the measurement, and nothing would ever pay."""
    monkeypatch.setattr(threads, "cores", lambda: 2)
    monkeypatch.setattr(vectors, "PAYS", 0.0)
    made = presets.resolve(presets.Request("ppo", ORDERS))[0]
    assert vectors.processes_that_pay(experiment.build(made).parts, 8, 0, pytest.fail) == 2


# ------------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize("preset", [name for name in presets.PRESETS if name not in LEARNERS])
def test_rules_of_a_single_choice_name_the_presets_that_fit(preset):
    with pytest.raises(errors.Refused, match=f"multi_discrete; presets that fit: {', '.join(LEARNERS)}$") as refused:
        presets.resolve(presets.Request(preset, ORDERS))
    assert "\n" not in str(refused.value)


def test_those_that_fit_are_actor_critic_and_ppo():
    alone = ["a2c", "a3c", "a3c_lstm", "a3c_paper", "a3c_continuous", "ppo", "impala", "accerl"]
    populations = ["pbt_ppo", "mf_pbt", "random_search"]
    owners = ["collab_a2c", "consensus", "independent", "shared", "pooled"]
    assert [*alone, *populations, *owners] == LEARNERS


def test_a_worker_that_decides_in_numpy_writes_its_choices_down_and_how_likely_they_were():
    parts = experiment.build(presets.resolve(presets.Request("a3c", ORDERS))[0]).parts
    agent, rng = parts.agent, np.random.default_rng(0)
    room = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), segments.like(parts))
    state = jax.eval_shape(agent.init, jax.random.key(0))
    state = state._replace(
        params=jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), state.params)
    )
    stream = segments.HostSegments(segments.Programs(parts), state, room, 5, "here")
    assert stream._small, "not by XLA"
    for _ in range(10):
        assert stream.collect(None).steps == agent.about.rollout_length
        steps = room.transitions
        assert (steps.action.shape[1:], steps.action.dtype) == ((1, 2), np.int32)
        assert (steps.action < (2, 4)).all()
        output = jax.vmap(lambda obs: agent.about.networks["policy"].apply(state.params, obs, ())[0]["policy"])(
            steps.obs[:, 0]
        )
        told = jax.vmap(distributions.multi_categorical((2, 4)).log_prob)(output, jnp.array(steps.action[:, 0]))
        np.testing.assert_allclose(steps.extras.log_prob[:, 0], told, rtol=1e-4)
    assert len(np.unique(told)) > 1
    stream.close()


RUNS = {  # where it learns -> (preset, steps, settings)
    "hogwild": ("a3c", 12_000, {"workers": 2}),
    "parameter_server": ("a3c", 12_000, {"runtime": "parameter_server", "workers": 2}),
    "host": ("ppo", 16_000, {"runtime": {"processes": 0, "environments": 16}}),
    "host-processes": ("a2c", 16_000, {"runtime": {"processes": 2}}),
}
SETTINGS = {
    "a3c": {"algorithm": {"discount": 0.0}, "optimiser": {"learning_rate": 1e-2}},
    "a2c": {"algorithm": {"discount": 0.0}, "optimiser": {"learning_rate": 1e-2}},
    "ppo": {"algorithm": {"discount": 0.0, "rollout_length": 32}, "optimiser": {"learning_rate": 1e-2}},
}


@pytest.mark.parametrize(
    "where", [where if where == "host" else pytest.param(where, marks=pytest.mark.slow) for where in RUNS]
)
def test_both_choices_are_learned_and_the_policy_is_the_environments_in_every_form(where, tmp_path, capsys):
    """A policy that had only one of the two right would earn nothing."""
    preset, steps, settings = RUNS[where]
    out = tmp_path / "run"
    run = shoal.train(
        preset, ORDERS, steps=steps, out=out, eval_episodes=10, quiet=True, **SETTINGS[preset], **settings
    )
    assert run.summary["eval_return_mean"] == 10.0
    player, space = shoal.load(out), scripted.Orders.action_space
    seen = np.eye(3, dtype=np.float32)
    for obs, right in zip(seen, scripted.Orders.RIGHT, strict=True):
        action = player.act(obs)
        assert space.contains(action)
        assert tuple(action) == right
    assert faults.call(capsys, "export", out).code == 0
    (path,) = out.glob("*.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    exported = session.run(["action"], {"obs": seen})[0]
    assert exported.dtype == np.int64
    np.testing.assert_array_equal(exported, scripted.Orders.RIGHT)
