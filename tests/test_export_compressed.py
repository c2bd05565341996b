"""`shoal export --compressed`: the file computes what actors would run, and both policies' returns are told."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import onnxruntime
import pytest

from shoal import experiment
from shoal.core import errors
from shoal.networks import compact, export
from shoal.networks.engines import in_jax
from shoal.runs import compressing, training
from tests import conftest, faults
from tests.test_compress import agent_for, packed_by, packing, policy_for, seen

TYPED = ("ppo", "--env", "probe:match", "--steps", 2048, "--runtime.environments", 8, "--algorithm.rollout-length", 16,
         "--network.hidden", 16)  # fmt: skip


def opened(model):
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), providers=["CPUExecutionProvider"]
    )


def test_what_is_exported_is_what_was_packed_and_both_are_measured(finished, tmp_path, capsys):
    run = finished(*TYPED, "--compressor", "chain", "--compressor.members", "prune", "quantise").folder
    ended = faults.call(
        capsys, "export", run, "--compressed", "--episodes", 8, "--json", "--out", tmp_path / "small.onnx"
    )
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert told["level"] == "75 % of the units pruned, int8 dynamic"
    assert told["compressed"] > 0.5
    assert told["episodes"] == 8
    assert 0.0 <= told["return_compressed"] <= told["return_full"] == 1.0
    assert f"mean return of 8 episodes: 1 in full, {told['return_compressed']:.4g} compressed" in ended.err
    built, made, policy = training.load(run, lambda _: None)
    packed = compressing.pack(built, made, policy, lambda _: None)
    obs = np.random.default_rng(0).normal(size=(32, 1)).astype(np.float32)
    expected, _ = built.parts.compressor.runner(packed, 32, "jax")(obs, ())
    session = opened(tmp_path / "small.onnx")
    action, logits, value = session.run(["action", "logits", "value"], {"obs": obs})
    np.testing.assert_allclose(logits, expected["policy"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(value, expected["value"][:, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(action, expected["policy"].argmax(axis=-1))
    assert session.get_modelmeta().custom_metadata_map["compression"] == packed.level


@pytest.mark.parametrize("mode", ["dynamic", "static"])
@pytest.mark.parametrize("shape", [(4,), (36, 36, 2)], ids=["vectors", "pictures"])
def test_layers_of_eight_bits_are_written_with_operators_that_any_runtime_has(mode, shape):
    agent = agent_for(shape)
    obs = seen(agent, 16)
    network, _, _ = packed_by(packing("quantise", agent, mode=mode, keep="none"), policy_for(agent), obs)
    model = export.compact_model(network, "categorical", conftest.env_spec((4,), choices=4).action)
    assert {entry.domain for entry in model.opset_import} == {""}
    assert {node.domain for node in model.graph.node} == {""}
    (logits,) = opened(model.SerializeToString()).run(["logits"], {"obs": obs})
    expected = np.asarray(in_jax.forward(network.spec)(network.params, obs, ())[0]["policy"])
    if mode == "dynamic":  # one range for each call, here as there
        assert {layer.kind for layer in compact.layers(network)} & {"dense8", "conv8"}
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-3 * np.abs(expected).max())


def test_a_student_is_taught_before_it_is_written(finished):
    run = finished(*TYPED, "--compressor", "chain", "--compressor.members", "prune", "quantise").folder
    built, made, policy = training.load(run, lambda _: None)
    configs = {**made.configs, "compressor": experiment.config_class("compressor", "distil")(shrink=2.0)}
    made = dataclasses.replace(made, compressor="distil", configs=configs)
    built, said = experiment.build(made), []
    packed = compressing.pack(built, made, policy, said.append)
    assert said[0] == "collecting 2048 observations"
    assert said[1] == "teaching the student"
    assert "distil_steps 3200" in said[2]
    small = compressing.network(packed)
    assert small.params["policy_trunk_dense_0"]["kernel"].shape == (1, 8)
    found = compressing.measure(built, made, policy, packed, 8, said.append)
    assert (found.full, found.compressed, found.episodes) == (1.0, 1.0, 8)


def test_observations_are_those_that_the_policy_comes_to_see(finished):
    run = finished(*TYPED, "--compressor", "chain", "--compressor.members", "prune", "quantise").folder
    built, _, policy = training.load(run, lambda _: None)
    one, other = (compressing.observations(built.parts, policy, seed, 50) for seed in (0, 1))
    assert one.shape == (50, *built.parts.spec.observation.shape)
    assert {*np.unique(one)} == {-1.0, 1.0}
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(one, compressing.observations(built.parts, policy, 0, 50))


def test_where_nothing_was_compressed_there_is_nothing_to_export(finished, capsys, tmp_path):
    run = finished(*TYPED).folder
    ended = faults.call(capsys, "export", run, "--compressed", "--out", tmp_path / "small.onnx")
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert "identity" in ended.err
    assert not list(tmp_path.iterdir())
    ended = faults.call(capsys, "export", run, "--compressed", "--episodes", 0)
    assert ended.code == 2
    assert "--episodes 0" in ended.err


def test_a_policy_that_is_not_finite_is_not_written(finished):
    run = finished(*TYPED, "--compressor", "chain", "--compressor.members", "prune", "quantise").folder
    built, made, policy = training.load(run, lambda _: None)
    spoilt = policy._replace(params=jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), policy.params))
    with pytest.raises(errors.Unfit):
        compressing.pack(built, made, spoilt, lambda _: None)
