"""Quantising, pruning and low rank: their formulas by hand, what is left of a network, what they refuse."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal.compress import _payload, _structure, _transform, _units, low_rank, prune, quantise
from shoal.core import errors, options, processor, registry, types
from shoal.networks import compact
from shoal.networks.engines import in_jax
from tests import conftest

NATURE = {"conv_0": 3_276_800, "conv_1": 2_654_208, "conv_2": 1_806_336, "dense_0": 1_605_632, "policy": 2_048}


def packing(name, agent, **settings):
    module = registry.load("compressor", name)
    return module.build(options.build(module.Config, settings, "compressor"), agent)


def agent_for(shape=(4,), **network):
    return conftest.build_agent(conftest.env_spec(shape, choices=4), network=network)


def policy_for(agent, seed=0):
    rng = np.random.default_rng(seed)
    given = jax.device_get(agent.snapshot(agent.init(jax.random.key(0))))
    return given._replace(params=jax.tree.map(lambda leaf: random(rng, leaf.shape), given.params))


def random(rng, shape):
    """Weights with which activations neither vanish nor grow."""
    deviation = 1.5 / np.sqrt(np.prod(shape[:-1])) if len(shape) > 1 else 0.3
    return rng.normal(0, deviation, shape).astype(np.float32)


def packed_by(compressor, policy, obs, memory=None, key=1):
    """(network, record, memory)"""
    memory = compressor.init(policy, jax.random.key(0)) if memory is None else memory
    memory, packed = compressor.compress(memory, policy, obs, jax.random.key(key))
    return _payload.Room(packed.payload).network, packed, memory


def run(network, obs, carry=None):
    given = compact.start(network.spec, len(obs)) if carry is None else carry
    return np.asarray(in_jax.forward(network.spec)(network.params, obs, given)[0]["policy"])


def seen(agent, count=32, seed=1):
    return np.asarray(conftest.observations(agent.about.networks["policy"].spec.observation, count, seed=seed))


def kinds(network):
    return {layer.name: layer.kind for layer in compact.layers(network) if layer.name}


def test_a_payload_holds_arrays_however_they_lie_in_memory():
    arrays = {
        "network/a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3).T,  # its columns lie together
        "network/a/bias": np.float32([1.0, 2.0, 3.0, 4.0])[::2],
        "policy/explore": np.full((), 0.5, np.float32),
        "policy/nothing": np.zeros((0, 3), np.int8),
    }
    room = _payload.Room(_payload._written(None, arrays))
    np.testing.assert_array_equal(room.network.params["a"]["kernel"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(room.network.params["a"]["bias"], [1, 3])
    assert room.policy["explore"] == 0.5
    assert room.policy["nothing"].shape == (0, 3)


# ------------------------------------------------------------------------------------------------ quantise


def test_eight_bits_of_each_output_channel_by_hand():
    kernel = np.float32([[1.0, -0.5, 0.0], [-2.0, 0.25, 0.0]])
    for xp in (np, jnp):
        whole, step = quantise.eight(kernel, 127, xp)
        np.testing.assert_allclose(step, [2 / 127, 0.5 / 127, 1.0])
        np.testing.assert_array_equal(whole, np.int8([[64, -127, 0], [-127, 64, 0]]), "1 / (2 / 127) = 63.5, to even")
        assert whole.dtype == np.int8


def test_fewer_bits_of_a_tensor_by_hand():
    """Δ = (|-1| + |3|) / 2² = 1."""
    for xp in (np, jnp):
        np.testing.assert_array_equal(quantise.uniform(np.float32([-1.0, 0.4, 0.6, 3.0]), 2, xp), [-1, 0, 1, 3])
        np.testing.assert_array_equal(quantise.uniform(np.float32([1.0, 2.0]), 1, xp), [1, 2], "from 0 on")
        np.testing.assert_array_equal(quantise.uniform(np.float32([0.0, 0.0]), 3, xp), [0, 0])


@pytest.mark.parametrize("bits", range(2, 8))
def test_fewer_bits_are_simulated_and_said_to_save_nothing(bits):
    agent = agent_for(hidden=(16,))
    network, packed, _ = packed_by(packing("quantise", agent, bits=bits, keep="none"), policy_for(agent), seen(agent))
    assert packed.compressed == 0.0
    assert set(kinds(network).values()) == {"dense"}
    for arrays in network.params.values():
        assert 2 < len(np.unique(arrays["kernel"])) <= 2**bits + 1
    assert str(bits) in packed.level


def test_of_the_nature_network_the_convolutions_are_in_eight_bits_too():
    """Specification 8.4: without them 17 % of the multiply-adds would be left to compress."""
    agent = agent_for((84, 84, 4))
    policy, obs = policy_for(agent), seen(agent, 4)
    full = compact.of(agent.about.networks["policy"].spec, policy, ("policy",))
    counts = {name.removeprefix("trunk_"): count for name, count in compact.multiply_adds(full).items()}
    assert counts == NATURE
    network, packed, _ = packed_by(packing("quantise", agent, mode="static"), policy, obs)
    assert {kind for name, kind in kinds(network).items() if "conv" in name} == {"conv8"}
    assert packed.compressed == pytest.approx(1 - NATURE["policy"] / sum(NATURE.values()))
    dense = {layer.name for layer in compact.layers(full) if layer.kind == "dense" and layer.name != "policy"}
    alone = compact.replaced(full.spec, lambda each: (each._replace(kind="dense8") if each.name in dense else each,))
    assert _transform.saved(full, full._replace(spec=alone)) == pytest.approx(0.1718, abs=1e-4)
    assert packed.bytes < 0.26 * sum(array.nbytes for arrays in full.params.values() for array in arrays.values())
    error = run(network, obs) - run(full, obs)
    assert np.abs(error).max() < 0.05 * np.abs(run(full, obs)).max()


def test_static_ranges_are_those_of_recent_observations_and_hold_zero():
    agent = agent_for(hidden=(8,), activation="relu")
    policy = policy_for(agent)
    obs = np.abs(seen(agent, 200)) + 1.0
    network, _, _ = packed_by(packing("quantise", agent, mode="static", keep="none"), policy, obs)
    first, last = network.params["trunk_dense_0"], network.params["policy"]
    assert (float(first["low"]), float(first["high"])) == (0.0, obs[_structure.rows(np.arange(200), 256)].max())
    hidden = np.maximum(obs @ policy.params["trunk_dense_0"]["kernel"] + policy.params["trunk_dense_0"]["bias"], 0.0)
    np.testing.assert_allclose([last["low"], last["high"]], [0.0, hidden.max()], rtol=1e-5)
    obs[7] = 1000.0  # one that is far from the others
    held, _, _ = packed_by(packing("quantise", agent, mode="static", keep="none", calibration=1.0), policy, obs)
    assert float(held.params["trunk_dense_0"]["high"]) < 10.0
    assert "low" not in packed_by(packing("quantise", agent, keep="none"), policy, obs)[0].params["trunk_dense_0"], (
        "dynamic"
    )


def test_what_an_lstm_gives_has_its_range_whatever_it_remembers():
    agent = agent_for(hidden=(8,), lstm=4)
    network, _, _ = packed_by(packing("quantise", agent, mode="static", keep="none"), policy_for(agent), seen(agent))
    assert kinds(network) == {"trunk_dense_0": "dense8", "trunk_lstm": "lstm", "policy": "dense8"}
    assert (network.params["policy"]["low"], network.params["policy"]["high"]) == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("keep", "full"),
    [("none", set()), ("first", {"0"}), ("last", {"policy"}), ("both", {"0", "policy"}), ("auto", {"0", "policy"})],
)
def test_the_first_and_the_last_layer_are_kept_where_asked(keep, full):
    agent = agent_for(hidden=(8, 8, 8))
    network, packed, _ = packed_by(packing("quantise", agent, keep=keep), policy_for(agent), seen(agent))
    assert {name.removeprefix("trunk_dense_") for name, kind in kinds(network).items() if kind == "dense"} == full
    counts = {"0": 32, "1": 64, "2": 64, "policy": 32}
    assert packed.compressed == pytest.approx(1 - sum(counts[name] for name in full) / sum(counts.values()))


def test_a_vector_whose_numbers_differ_in_scale_is_not_rounded_by_its_largest():
    """What `auto` keeps the first layer for: one range for positions in metres and in thousands of metres."""
    agent = agent_for(hidden=(32, 32))
    policy, obs = policy_for(agent), seen(agent, 200) * np.float32([1000.0, 1.0, 1.0, 1.0])
    policy.params["trunk_dense_0"]["kernel"][0] = 0.0
    full = compact.of(agent.about.networks["policy"].spec, policy, ("policy",))
    errors_of = {
        keep: np.abs(run(packed_by(packing("quantise", agent, keep=keep), policy, obs)[0], obs) - run(full, obs)).mean()
        for keep in ("auto", "none")
    }
    assert errors_of["auto"] < 0.05 * errors_of["none"], errors_of


def in_16_bits(activations, weights):
    """u8 [N, in] times i8 [in, out] as processors without VNNI do it (pmaddubsw): sums of two products saturate."""
    products = activations.astype(np.int64)[:, :, None] * weights.astype(np.int64)
    pairs = products[:, 0::2] + products[:, 1::2]
    return np.clip(pairs, -(2**15), 2**15 - 1).sum(axis=1)


def test_reduced_weights_never_overflow_sums_of_sixteen_bits():
    """All activations at 255 and all weights at their largest: with +-127 the sums saturate, with +-64 none does."""
    kernel, activations = np.float32([[1.0, -1.0]] * 8), np.full((1, 8), 255, np.uint8)
    for setting, fits in (("on", True), ("off", False)):
        weights, _ = quantise.eight(kernel, quantise.largest(setting), np)
        exact = activations.astype(np.int64) @ weights.astype(np.int64)
        assert np.array_equal(in_16_bits(activations, weights), exact) == fits
    assert quantise.largest("auto") == (64 if processor.saturates() else 127)


@pytest.mark.parametrize("engine", ["jax", "numpy", "onnx"])
@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_on_this_processor_the_largest_sums_come_out_right(engine, mode):
    """What `auto` chose here, fed with values that saturate where it chose wrongly."""
    agent = agent_for(hidden=(64,), activation="relu")
    policy = policy_for(agent)
    policy.params["trunk_dense_0"] = {"kernel": np.ones((4, 64), np.float32), "bias": np.zeros(64, np.float32)}
    policy.params["policy"] = {"kernel": np.ones((64, 4), np.float32), "bias": np.zeros(4, np.float32)}
    compressor = packing("quantise", agent, mode=mode, keep="none")
    obs = np.full((1, 4), 7.0, np.float32)
    _, packed, _ = packed_by(compressor, policy, obs)
    found = compressor.runner(packed, 1, engine)(obs, ())[0]["policy"]
    np.testing.assert_allclose(found, 64 * 28.0, rtol=1e-3)


def test_activations_of_simulated_bits_stay_as_they_are():
    with pytest.raises(errors.Refused, match="static is for 8 bits"):
        packing("quantise", agent_for(), mode="static", bits=4)


# ------------------------------------------------------------------------------------------------ prune


def small_network():
    """Two hidden units, the first of little use: scores 3 * 0.5 and 4 * 6."""
    spec = types.NetworkSpec(
        types.ObservationSpec((2,), "float32", False),
        {"trunk": (types.Layer("dense", "a", 2), types.Layer("relu", ""))},
        {"policy": ("trunk", (types.Layer("dense", "b", 2),)), "value": ("trunk", (types.Layer("dense", "c", 1),))},
    )
    params = {
        "a": {"kernel": np.float32([[1.0, -2.0], [-2.0, 2.0]]), "bias": np.float32([0.5, 0.25])},
        "b": {"kernel": np.float32([[0.25, 0.0], [1.0, -3.0]]), "bias": np.float32([0.0, 1.0])},
        "c": {"kernel": np.float32([[-0.25], [2.0]]), "bias": np.float32([0.0])},
    }
    return compact.Compact(spec, params)


def test_scores_and_folded_means_by_hand():
    network = small_network()
    (link,) = _structure.links(network.spec)
    np.testing.assert_array_equal(_units.scores(link, network.params), [1.5, 24.0])
    kept = _units.kept(network.spec, network.params, 0.5)
    assert kept["a"].tolist() == [1]
    obs = np.float32([[1.0, 0.0], [1.0, 1.0]])  # the first unit gives 1.5 and 0: in the mean 0.75
    smaller = _units.removed(network, kept, obs)
    np.testing.assert_array_equal(smaller.params["a"]["kernel"], [[-2.0], [2.0]])
    np.testing.assert_array_equal(smaller.params["a"]["bias"], [0.25])
    np.testing.assert_allclose(smaller.params["b"]["kernel"], [[1.0, -3.0]])
    np.testing.assert_allclose(smaller.params["b"]["bias"], [0.75 * 0.25, 1.0])
    np.testing.assert_allclose(smaller.params["c"]["bias"], [0.75 * -0.25])
    assert [layer.size for layer in compact.layers(smaller)] == [1, 0, 2, 1]
    alone = _units.removed(network, kept, obs[:0])  # relu(0.5) for an input of 0
    np.testing.assert_allclose(alone.params["b"]["bias"], [0.5 * 0.25, 1.0])


NETWORKS = {
    "dense": ((4,), {"hidden": (8, 8)}),
    "apart": ((4,), {"hidden": (8,), "shared": False}),
    "lstm": ((4,), {"hidden": (8,), "lstm": 3}),
    "convolutions": ((36, 36, 2), {"torso": "dqn_2013"}),
    "padded": ((36, 36, 1), {"torso": "universe"}),  # only the last of them may go
}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("count", [0, 16])
def test_units_that_never_change_go_without_a_trace(kind, count):
    """Half of each layer's units see nothing, so what they give is one number, which is folded into what reads it."""
    shape, network = NETWORKS[kind]
    agent = agent_for(shape, **network)
    policy, rng = policy_for(agent), np.random.default_rng(3)
    spec = compact.part(agent.about.networks["policy"].spec, ("policy",))
    for link in _structure.links(spec):
        dead = rng.permutation(link.layer.size)[: link.layer.size // 2]
        policy.params[link.layer.name]["kernel"][..., dead] = 0.0
    obs = seen(agent, count)
    full = compact.of(spec, policy, ("policy",))
    smaller, packed, _ = packed_by(packing("prune", agent, share=0.5), policy, obs)
    given, probe = compact.multiply_adds(full), seen(agent, 5, seed=9)
    left = compact.multiply_adds(smaller)
    assert all(left[link.layer.name] <= given[link.layer.name] // 2 for link in _structure.links(spec))
    assert packed.compressed == pytest.approx(1 - sum(left.values()) / sum(given.values()))
    np.testing.assert_allclose(run(smaller, probe), run(full, probe), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", NETWORKS)
def test_what_pruning_simulates_is_what_it_makes_without_observations(kind):
    shape, network = NETWORKS[kind]
    agent = agent_for(shape, **network)
    policy, compressor = policy_for(agent), packing("prune", agent)
    spec, probe = agent.about.networks["policy"].spec, seen(agent, 5, seed=9)
    smaller, _, _ = packed_by(compressor, policy, seen(agent, 0))
    simulated = jax.device_get(jax.jit(compressor.simulate)(policy, jax.random.key(0)))
    full, masked = (compact.of(spec, each, ("policy",)) for each in (policy, simulated))
    np.testing.assert_allclose(run(masked, probe), run(smaller, probe), rtol=1e-4, atol=1e-4)
    assert np.abs(run(full, probe) - run(smaller, probe)).max() > 1e-2


def test_which_units_stay_is_decided_now_and_then():
    agent = agent_for(hidden=(16,))
    compressor, obs = packing("prune", agent, refresh_every=3), seen(agent)
    kept, memory, shapes = [], None, set()
    for i in range(7):
        network, packed, memory = packed_by(compressor, policy_for(agent, seed=i), obs, memory)
        kept.append(tuple(memory[0].kept["trunk_dense_0"]))
        shapes.add(packed.bytes)
        assert network.params["trunk_dense_0"]["kernel"].shape == (4, 4)
    assert kept[0] == kept[1] == kept[2] != kept[3] == kept[4] == kept[5] != kept[6]
    assert len(shapes) == 1


def test_no_layer_is_left_without_a_unit():
    for settings, network, refused in (
        ({"share": 0.75}, {"hidden": (8, 4)}, ""),
        ({"share": 0.75}, {"hidden": (8, 3)}, "trunk_dense_1"),
        ({"share": 1.0}, {"hidden": (8,)}, "share=1"),
        ({"share": 0.9}, {"hidden": (10,)}, ""),
    ):
        found = packing("prune", agent_for(**network), **settings).refuses
        assert (refused in found) if refused else (found == ""), found
    alone = types.NetworkSpec(types.ObservationSpec((2,), "float32", False), {"t": ()}, {"policy": ("t", ())})
    assert "no hidden layer" in prune.transform(prune.Config(), agent_for()).refuses(alone)


# ------------------------------------------------------------------------------------------------ low rank


def decaying(rng, m, n, half=4.0):
    u, _, v = np.linalg.svd(rng.normal(size=(m, n)), full_matrices=False)
    return (u * 2.0 ** (-np.arange(min(m, n)) / half) @ v).astype(np.float32)


def test_factors_are_near_the_best_of_their_rank_also_when_followed():
    """Eckart and Young: no product of that rank is nearer than the singular value decomposition's."""
    rng, warm = np.random.default_rng(0), np.random.default_rng(1).normal(size=(8, 40)).astype(np.float32)
    whole, steps = decaying(rng, 60, 40), low_rank.STEPS
    for _ in range(4):
        first, warm = low_rank.factors(whole, warm, steps)
        best = np.sqrt((np.linalg.svd(whole, compute_uv=False)[8:] ** 2).sum())
        assert best <= np.linalg.norm(whole - first @ warm) + 1e-6 < 1.03 * best
        np.testing.assert_allclose(first.T @ first, np.eye(8), atol=1e-5)
        whole, steps = whole + 0.02 * decaying(rng, 60, 40), 1  # a gradient step or two later


def test_weights_of_low_rank_are_kept_as_they_are_in_fewer_numbers():
    agent = agent_for((24,), hidden=(32, 32))
    policy, rng = policy_for(agent), np.random.default_rng(0)
    thin = rng.normal(size=(32, 4)).astype(np.float32), rng.normal(size=(4, 32)).astype(np.float32)
    policy.params["trunk_dense_1"]["kernel"] = thin[0] @ thin[1] / 8
    compressor, obs = packing("low_rank", agent), seen(agent)
    network, packed, _ = packed_by(compressor, policy, obs)
    full = compact.of(agent.about.networks["policy"].spec, policy, ("policy",))
    shapes = {name: arrays["kernel"].shape for name, arrays in network.params.items()}
    assert shapes == {
        "trunk_dense_0": (24, 4), "trunk_dense_0_second": (4, 32),
        "trunk_dense_1": (32, 4), "trunk_dense_1_second": (4, 32), "policy": (32, 4),
    }  # fmt: skip
    counts = 24 * 32, 32 * 32, 32 * 4
    assert packed.compressed == pytest.approx(1 - (4 * (24 + 32) + 4 * 64 + counts[2]) / sum(counts))
    part = packed_by(packing("low_rank", agent, share=0.5), policy, obs)[0]
    assert part.params["trunk_dense_0"]["kernel"].shape == (24, 32), "16 (24 + 32) is more than 24 * 32: it stays"
    probe = seen(agent, 5, seed=4)
    policy.params["trunk_dense_0"]["kernel"][:, 4:] = 0.0
    exact = packed_by(compressor, policy, obs)[0]
    full = compact.of(agent.about.networks["policy"].spec, policy, ("policy",))
    np.testing.assert_allclose(run(exact, probe), run(full, probe), rtol=1e-4, atol=1e-4)


def test_what_low_rank_simulates_is_what_it_makes():
    agent = agent_for((24,), hidden=(32, 32))
    policy, rng = policy_for(agent), np.random.default_rng(0)
    for name, m in (("trunk_dense_0", 24), ("trunk_dense_1", 32)):
        policy.params[name]["kernel"] = decaying(rng, m, 32, half=1.0)
    compressor, probe = packing("low_rank", agent), seen(agent, 5, seed=4)
    simulated = jax.device_get(jax.jit(compressor.simulate)(policy, jax.random.key(0)))
    network, _, _ = packed_by(compressor, policy, seen(agent))
    masked = compact.of(agent.about.networks["policy"].spec, simulated, ("policy",))
    np.testing.assert_allclose(run(masked, probe), run(network, probe), atol=5e-3)
    assert np.linalg.matrix_rank(simulated.params["trunk_dense_1"]["kernel"], tol=1e-4) == 4


def test_low_rank_says_what_it_cannot_do():
    assert "rank below one" in packing("low_rank", agent_for(hidden=(3,))).refuses
    assert "no hidden dense layer" in packing("low_rank", agent_for(hidden=())).refuses
    assert packing("low_rank", agent_for(hidden=(16,), lstm=4)).refuses == ""


# ------------------------------------------------------------------------------------------------ all of them


@pytest.mark.parametrize("name", ["quantise", "prune", "low_rank"])
def test_a_policy_whose_observations_are_shifted_is_compressed_behind_that(name):
    agent = conftest.build_agent(
        conftest.env_spec((4,), choices=4), network={"hidden": (32, 32)}, algorithm={"normalise_observations": True}
    )
    policy = policy_for(agent)
    network, _, _ = packed_by(packing(name, agent), policy, seen(agent))
    assert kinds(network)["normalise"] == "normalise"
    assert network.params["normalise"]["mean"].shape == (4,)


def test_rows_are_always_as_many():
    for count, expected in ((1, [0] * 4), (2, [0, 0, 1, 1]), (4, [0, 1, 2, 3]), (8, [0, 2, 4, 6])):
        np.testing.assert_array_equal(_structure.rows(np.arange(count), 4), expected)


@pytest.mark.parametrize("name", ["identity", "quantise"])
def test_what_is_compiled_for_a_network_is_compiled_once(name):
    agent = agent_for(hidden=(8,))
    compressor, pack = packing(name, agent), functools.partial(packed_by, obs=seen(agent, 100))
    pack(compressor, policy_for(agent))
    before = in_jax.watched.cache_info()
    for seed, count in enumerate((3, 50, 300)):
        packed_by(compressor, policy_for(agent, seed), seen(agent, count))
    assert in_jax.watched.cache_info().misses == before.misses
