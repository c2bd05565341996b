from __future__ import annotations

import subprocess
import sys

import jax
import numpy as np
import onnx
import onnxruntime
import pytest

from shoal.core import errors, types
from shoal.formulas import normalise
from shoal.networks import export

NETWORKS = {
    "mlp": ((4,), {"hidden": (8, 6)}),
    "separate": ((4,), {"hidden": (8,), "shared": False, "activation": "relu"}),
    "flat_image": ((5, 4, 3), {"hidden": (8,)}),
    "dqn_2013": ((36, 40, 2), {"torso": "dqn_2013"}),
    "nature": ((40, 36, 1), {"torso": "nature"}),
    "universe": ((42, 40, 1), {"torso": "universe", "lstm": 4}),
    "lstm": ((4,), {"hidden": (8,), "lstm": 5}),
    "lstm_separate": ((4,), {"hidden": (), "lstm": 5, "shared": False}),
}


def session(model):
    wanted = onnxruntime.SessionOptions()
    wanted.intra_op_num_threads = wanted.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), wanted, providers=["CPUExecutionProvider"])


def random_policy(agent, normaliser=()):
    """Greedy, biases too drawn at random: the initial ones are 0, and a file that lost them would look right."""
    rng = np.random.default_rng(1)

    def draw(leaf):
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 100
        return rng.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32)

    params = jax.tree.map(draw, jax.eval_shape(agent.about.networks["policy"].init, jax.random.key(0)))
    return types.Policy(params, normaliser, np.float32(0.0))


def exported(agent, spec, normaliser=()):
    """(greedy policy, model)"""
    policy = random_policy(agent, normaliser)
    return policy, export.onnx_model(agent.about.networks["policy"].spec, policy, agent.about.head, spec.action)


def answers(agent):
    """policy, observations [B], carries [B] -> head outputs, new carries, actions; one compilation"""

    def both(policy, obs, carry):
        seen = normalise.apply(policy.normaliser, obs) if policy.normaliser else obs
        outputs, following = agent.about.networks["policy"].apply(policy.params, seen, carry)
        return outputs, following, agent.act(policy, carry, obs, jax.random.key(0))[0]

    return jax.jit(jax.vmap(both, in_axes=(None, 0, 0)))


def carries(agent, batch):
    return jax.tree.map(lambda leaf: np.zeros((batch, *leaf.shape), np.float32), agent.about.carry)


def fed(obs, carry):
    named = {
        f"carry_{name}_{part}": leaf
        for name, pair in (carry or {}).items()
        for part, leaf in zip("ch", pair, strict=True)
    }
    return {"obs": np.asarray(obs)} | {name: np.asarray(leaf) for name, leaf in named.items()}


def run(running, obs, carry=None):
    names = [output.name for output in running.get_outputs()]
    return dict(zip(names, running.run(None, fed(obs, carry)), strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_runtime_agrees_with_the_network_and_the_agent(name, env_spec, build_agent, observations):
    shape, network = NETWORKS[name]
    spec = env_spec(shape, choices=4)
    agent = build_agent(spec, network=network)
    policy, model = exported(agent, spec)
    running, ask, batch = session(model), answers(agent), 200
    carry, taken = carries(agent, batch), set()
    for step in range(3 if agent.about.carry else 1):
        obs = observations(spec.observation, batch, seed=step)
        found = run(running, obs, carry)
        outputs, carry, action = ask(policy, obs, carry)
        np.testing.assert_allclose(found["logits"], outputs["policy"], atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(found["value"], outputs["value"][:, 0], atol=1e-5, rtol=1e-5)
        for key, leaf in fed(obs, carry).items():
            if key != "obs":
                np.testing.assert_allclose(found[f"next_{key}"], leaf, atol=1e-5, rtol=1e-5)
        assert found["action"].dtype == np.int64
        np.testing.assert_array_equal(found["action"], action)
        taken |= set(found["action"].tolist())
    assert len(taken) > 1, "a constant would agree with anything"


@pytest.mark.parametrize("low", [(-0.2, -np.inf), (-np.inf, -np.inf)])
def test_gaussian_actions_are_the_mean_within_finite_bounds(low, env_spec, build_agent, observations):
    spec = env_spec((3,), low=low, high=(0.1, np.inf))
    agent = build_agent(spec)
    policy = random_policy(agent)
    policy.params["policy"]["kernel"] *= 3.0  # beyond the bounds, now and then
    model = export.onnx_model(agent.about.networks["policy"].spec, policy, agent.about.head, spec.action)
    obs = observations(spec.observation, 300)
    found = run(session(model), obs)
    outputs, _, action = answers(agent)(policy, obs, ())
    mean, raw = np.split(np.asarray(outputs["policy"], np.float64), 2, axis=1)
    np.testing.assert_allclose(found["mean"], mean, atol=1e-5)
    np.testing.assert_allclose(found["variance"], np.logaddexp(raw, 0) + 1e-4, atol=1e-5)
    np.testing.assert_allclose(found["action"], np.clip(action, low, spec.action.high), atol=1e-5)
    assert (np.abs(found["action"][:, 1]) > 0.2).any()  # no bound: nothing was held back
    assert found["action"][:, 0].max() == np.float32(0.1)
    assert found["action"].dtype == np.float32


@pytest.mark.parametrize("count", [0.0, 1.0, 50.0])
def test_the_normaliser_and_its_clip_are_part_of_the_graph(count, env_spec, build_agent, observations):
    spec = env_spec((3,), choices=3)
    agent = build_agent(spec, algorithm={"normalise_observations": True})
    mean, m2 = np.array([0.5, -0.3, 0.0], np.float32), np.array([40.0, 1.0, 1e-12], np.float32)
    statistics = normalise.Statistics(np.float32(count), mean, m2)
    policy, model = exported(agent, spec, statistics)
    obs = 3.0 * observations(spec.observation, 200)  # far beyond the clip in the feature that hardly varied
    found = run(session(model), obs)
    outputs, _, action = answers(agent)(policy, obs, ())
    np.testing.assert_allclose(found["logits"], outputs["policy"], atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(found["action"], action)


HEADS = {  # what an agent of each algorithm is asked for: (rule, network, what the environment takes)
    "dqn": ("dqn", {"hidden": (8,)}, "choices"),
    "dqn_dueling": ("dqn", {"hidden": (8,), "dueling": True}, "choices"),
    "ppo": ("ppo", {"hidden": (8,)}, "choices"),
    "q_learning": ("q_learning", {"hidden": (8,)}, "choices"),
    "ppo_gaussian": ("ppo", {"hidden": (8,), "shared": False}, "box"),
    "ppo_lstm": ("ppo", {"hidden": (8,), "lstm": 4}, "box"),
    "sac": ("sac", {"hidden": (8,)}, "box"),
    "td3": ("td3", {"hidden": (8,)}, "box"),
}
BOX = {"low": (-2.0, -0.1), "high": (1.0, 3.0)}


@pytest.mark.parametrize("name", HEADS)
def test_every_algorithms_greedy_action_is_the_exported_one(name, env_spec, build_agent, observations):
    rule, network, takes = HEADS[name]
    spec = env_spec((4,), **({"choices": 4} if takes == "choices" else BOX))
    sizes = {"ppo": {"minibatches": 1}, "q_learning": {}}.get(rule, {"capacity": 64})
    agent = build_agent(spec, rule=rule, network=network, algorithm={**sizes, "normalise_observations": True})
    statistics = normalise.Statistics(np.float32(50), np.full(4, 0.3, np.float32), np.full(4, 90.0, np.float32))
    given = jax.jit(lambda key: agent.snapshot(agent.init(key)))(jax.random.key(0))
    policy = random_policy(agent, statistics)
    policy = policy._replace(exploration=given.exploration, stream=given.stream)  # greedy all the same
    model = export.onnx_model(agent.about.networks["policy"].spec, policy, agent.about.head, spec.action)
    carry = carries(agent, 200)
    obs = observations(spec.observation, 200)
    found = run(session(model), obs, carry)
    outputs, _, action = answers(agent)(policy, obs, carry)
    if takes == "choices":
        np.testing.assert_array_equal(found["action"], action)
        assert len(set(found["action"].tolist())) > 1, "a constant would agree with anything"
    else:
        np.testing.assert_allclose(found["action"], np.clip(action, BOX["low"], BOX["high"]), atol=1e-5)
        assert found["action"].std(axis=0).min() > 0.01
        assert (found["action"] >= np.float32(BOX["low"])).all()
        assert (found["action"] <= np.float32(BOX["high"])).all()
    if "q" in outputs:
        np.testing.assert_allclose(found["q"], outputs["q"], atol=1e-5, rtol=1e-5)
    if rule == "sac":
        mean, raw = np.split(np.asarray(outputs["policy"]), 2, axis=1)
        np.testing.assert_allclose(found["mean"], mean, atol=1e-5)
        np.testing.assert_allclose(found["deviation"], np.exp(np.clip(raw, -20, 2)), rtol=1e-4)
    if name == "ppo_gaussian":
        raw = np.asarray(policy.params["policy_free"]["bias"], np.float64)
        np.testing.assert_allclose(found["variance"], np.tile(np.log1p(np.exp(raw)) + 1e-4, (200, 1)), rtol=1e-5)


def test_a_deviation_beyond_its_bounds_is_written_as_it_acts(env_spec, build_agent, observations):
    spec = env_spec((4,), **BOX)
    agent = build_agent(spec, rule="sac", algorithm={"capacity": 64})
    policy = random_policy(agent)
    policy.params["policy"]["bias"][2:] = [9.0, -40.0]
    model = export.onnx_model(agent.about.networks["policy"].spec, policy, agent.about.head, spec.action)
    found = run(session(model), observations(spec.observation, 50))
    np.testing.assert_allclose(found["deviation"], np.tile(np.exp([2.0, -20.0]), (50, 1)), rtol=1e-5)


@pytest.mark.parametrize(("count", "deviation"), [(1.0, 1.0), (50.0, 3.0)])
def test_a_value_of_normalised_rewards_is_told_in_units_of_the_reward(
    count, deviation, env_spec, build_agent, observations
):
    spec = env_spec((4,), choices=3)
    agent = build_agent(spec, rule="ppo", algorithm={"normalise_returns": True})
    moments = normalise.Statistics(np.float32(count), np.float32(7.0), np.float32(50 * 9.0))
    policy = random_policy(agent)
    obs = observations(spec.observation, 50)
    outputs = answers(agent)(policy, obs, ())[0]
    model = export.onnx_model(
        agent.about.networks["policy"].spec, policy._replace(returns=moments), agent.about.head, spec.action
    )
    found = run(session(model), obs)
    np.testing.assert_allclose(found["value"], deviation * outputs["value"][:, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["logits"], outputs["policy"], rtol=1e-5, atol=1e-5)


def layered(heads, kind="tanh"):
    seen = types.ObservationSpec((2,), "float32", False)
    trunks = {
        name: (types.Layer("dense", f"{name}_dense", 3), types.Layer(kind, ""), types.Layer("lstm", f"{name}_lstm", 2))
        for name in ("a", "b")
    }
    return types.NetworkSpec(seen, trunks, heads)


def parameters():
    """Of `layered`'s trunks and heads."""
    gates = {
        f"{side}{gate}": {"kernel": np.ones((3 if side == "i" else 2, 2)), "bias": np.ones(2)}
        for side in "ih"
        for gate in "ifgo"
    }
    dense = {"kernel": np.ones((2, 3)), "bias": np.zeros(3)}
    params = {f"{name}_{layer}": weights for name in "ab" for layer, weights in (("dense", dense), ("lstm", gates))}
    return params | {"policy": {"kernel": np.ones((2, 2)), "bias": np.zeros(2)}}


CHOICES = types.ActionSpec(True, 2, (), (), ())


def test_only_the_trunks_that_are_needed_are_written():
    head = types.Layer("dense", "policy", 2)
    spec = layered({"policy": ("a", (head,)), "goal": ("b", (types.Layer("dense", "value", 1),))})
    model = export.onnx_model(spec, types.Policy(parameters(), (), 0.0), "categorical", CHOICES)
    assert [each.name for each in model.graph.input] == ["obs", "carry_a_lstm_c", "carry_a_lstm_h"]
    outputs = ["action", "logits", "next_carry_a_lstm_c", "next_carry_a_lstm_h"]
    assert [each.name for each in model.graph.output] == outputs
    assert len(model.graph.initializer) == 2 + 4 + 2  # a's dense, a's cell with its split, the head


@pytest.mark.parametrize(
    ("heads", "kind", "head", "message"),
    [
        ({"q": ("a", ())}, "tanh", "categorical", "policy head.*'q'"),
        ({"policy": ("a", ())}, "tanh", "greedy", "q head.*'policy'"),
        ({"policy": ("a", ())}, "swish", "categorical", "unknown kind of layer 'swish'"),
        ({"policy": ("a", ())}, "tanh", "categoric", "did you mean 'categorical'"),
    ],
)
def test_what_cannot_be_written_is_refused(heads, kind, head, message):
    spec = layered(heads, kind)
    with pytest.raises(errors.Refused, match=message):
        export.onnx_model(spec, types.Policy(parameters(), (), 0.0), head, CHOICES)


def test_the_file_is_described_and_replaced_whole(tmp_path, env_spec, build_agent, monkeypatch):
    spec = env_spec((3,), choices=2)
    agent = build_agent(spec)
    about = {"preset": "a2c", "env": "CartPole-v1", "shoal": "0.1.0"}
    model = export.onnx_model(
        agent.about.networks["policy"].spec, random_policy(agent), agent.about.head, spec.action, about
    )
    path = tmp_path / "policy.onnx"
    path.write_bytes(b"older")
    assert export.write(path, model) == path.stat().st_size
    read = onnx.load(path)
    assert {entry.key: entry.value for entry in read.metadata_props} == about
    assert [opset.version for opset in read.opset_import] == [export.OPSET]
    assert [dim.dim_param for dim in read.graph.input[0].type.tensor_type.shape.dim] == ["batch", ""]
    kept = path.read_bytes()

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.os, "fsync", fails)
    with pytest.raises(errors.Refused, match="No space left"):
        export.write(path, model)
    assert path.read_bytes() == kept
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(errors.Refused, match="No such file"):
        export.write(tmp_path / "missing" / "policy.onnx", model)


def test_import_leaves_onnx_and_jax_alone():
    code = "import sys; from shoal.networks import export; assert not {'jax', 'onnx', 'onnxruntime'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
