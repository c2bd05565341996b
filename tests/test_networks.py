from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import linen

from shoal import networks
from shoal.core import errors, types
from shoal.formulas import distributions
from shoal.networks import convolution, initialising

HEADS = {"policy": (3, 0.01), "value": (1, 1.0)}


def vector(size=4):
    return types.ObservationSpec((size,), "float32", False)


def image(*shape):
    return types.ObservationSpec(shape, "uint8", True)


def kinds(config, observation):
    return [layer.kind for layer in networks.specify(config, observation, HEADS).trunks["trunk"]]


def shapes(network):
    found = jax.eval_shape(network.init, jax.random.key(0))
    return {name: found[name]["kernel"].shape for name in found if "kernel" in found[name]}


@pytest.mark.parametrize(
    ("config", "observation"),
    [
        ({}, vector()),
        ({"hidden": ()}, vector()),
        ({"shared": False}, vector()),
        ({"lstm": 5}, vector()),
        ({"lstm": 5, "shared": False}, vector()),
        ({}, image(5, 4, 2)),
        ({"torso": "dqn_2013"}, image(36, 44, 1)),
        ({"torso": "nature"}, image(44, 36, 1)),
        ({"torso": "universe", "lstm": 5}, image(42, 42, 1)),
    ],
)
def test_outputs_and_recurrent_state_have_the_shapes_promised(config, observation):
    network = networks.build(networks.Config(**config), observation, HEADS)
    obs = jnp.zeros(observation.shape, observation.dtype)
    params = jax.eval_shape(network.init, jax.random.key(0))
    outputs, carry = jax.eval_shape(network.apply, params, obs, network.carry)
    assert {name: (leaf.shape, leaf.dtype.name) for name, leaf in outputs.items()} == {
        "policy": ((3,), "float32"),
        "value": ((1,), "float32"),
    }
    assert jax.tree.structure(carry) == jax.tree.structure(network.carry)
    assert [leaf.shape for leaf in jax.tree.leaves(carry)] == [leaf.shape for leaf in jax.tree.leaves(network.carry)]
    assert bool(network.carry) == ("lstm" in config)
    assert set(params) == {
        layer.name
        for layers in (*network.spec.trunks.values(), *(head for _, head in network.spec.heads.values()))
        for layer in layers
        if layer.name
    }


def test_the_atari_networks_are_those_of_the_papers():
    stack = image(84, 84, 4)
    assert shapes(networks.build(networks.Config(torso="dqn_2013"), stack, HEADS)) == {
        "trunk_conv_0": (8, 8, 4, 16),
        "trunk_conv_1": (4, 4, 16, 32),
        "trunk_dense_0": (9 * 9 * 32, 256),
        "policy": (256, 3),
        "value": (256, 1),
    }
    assert shapes(networks.build(networks.Config(torso="nature"), stack, HEADS)) == {
        "trunk_conv_0": (8, 8, 4, 32),
        "trunk_conv_1": (4, 4, 32, 64),
        "trunk_conv_2": (3, 3, 64, 64),
        "trunk_dense_0": (7 * 7 * 64, 512),
        "policy": (512, 3),
        "value": (512, 1),
    }


def test_layers_follow_the_observation():
    auto = networks.Config(hidden=(8,))
    assert kinds(auto, vector()) == ["dense", "tanh"]
    assert kinds(auto, image(35, 84, 1)) == ["scale", "flatten", "dense", "tanh"]
    assert kinds(auto, image(36, 36, 1)) == ["scale", *["conv", "relu"] * 3, "flatten", "dense", "relu"]
    assert kinds(networks.Config(hidden=(8, 8), activation="relu", lstm=3), vector()) == ["dense", "relu"] * 2 + [
        "lstm"
    ]


def test_bytes_are_scaled_to_the_unit_interval():
    network = networks.build(networks.Config(hidden=()), image(1, 1, 2), {"policy": (2, 1.0)})
    params = {"policy": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}}
    outputs, _ = network.apply(params, jnp.array([[[255, 51]]], jnp.uint8), ())
    np.testing.assert_allclose(outputs["policy"], [1.0, 0.2], rtol=1e-6)


def test_a_trunk_each_shares_nothing():
    network = networks.build(networks.Config(hidden=(8,), shared=False), vector(), HEADS)
    params, obs = jax.jit(network.init)(jax.random.key(0)), jnp.ones(4)
    gradient = jax.grad(lambda params: network.apply(params, obs, ())[0]["policy"].sum())(params)
    assert not np.any(gradient["value_trunk_dense_0"]["kernel"])
    assert np.any(gradient["policy_trunk_dense_0"]["kernel"])
    assert [trunk for trunk, _ in network.spec.heads.values()] == ["policy_trunk", "value_trunk"]


def test_an_lstm_remembers_and_the_zero_state_begins():
    network = networks.build(networks.Config(hidden=(8,), lstm=5), vector(), HEADS)
    params = jax.jit(network.init)(jax.random.key(0))
    apply = jax.jit(network.apply)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(network.carry))
    one, carry = apply(params, jnp.ones(4), network.carry)
    two, _ = apply(params, jnp.ones(4), carry)
    assert np.any(one["value"] != two["value"])


@pytest.mark.parametrize("shape", [(64, 16), (16, 64)])
def test_orthogonal_kernels_are_orthogonal_with_their_gain(shape):
    rows, columns = shape
    network = networks.build(networks.Config(hidden=(columns,)), vector(rows), HEADS)
    params = jax.jit(network.init)(jax.random.key(0))
    kernel = np.asarray(params["trunk_dense_0"]["kernel"], np.float64) / math.sqrt(2.0)
    product = kernel.T @ kernel if rows >= columns else kernel @ kernel.T
    np.testing.assert_allclose(product, np.eye(min(shape)), atol=1e-5)
    for name, gain in (("policy", 0.01), ("value", 1.0)):
        norms = np.linalg.norm(params[name]["kernel"], axis=0)
        np.testing.assert_allclose(norms, gain, rtol=1e-4)
    assert not any(np.any(layer["bias"]) for layer in params.values())


def test_fan_in_draws_weights_and_biases_within_one_over_the_root():
    config = networks.Config(torso="dqn_2013", initialiser="fan_in")
    params = jax.jit(networks.build(config, image(36, 36, 4), HEADS).init)(jax.random.key(0))
    for layer in params.values():
        fan_in = layer["kernel"][..., 0].size
        bound = 1.0 / math.sqrt(fan_in)
        assert np.abs(layer["kernel"]).max() <= bound
        assert np.abs(layer["bias"]).max() <= bound
        assert np.any(layer["bias"])
    kernel = np.asarray(params["trunk_dense_0"]["kernel"])  # large enough to look like a uniform law
    bound = 1.0 / math.sqrt(kernel.shape[0])
    assert kernel.std() == pytest.approx(bound / math.sqrt(3.0), rel=0.02)
    assert np.abs(kernel).max() > 0.99 * bound


def test_keys_decide_the_parameters():
    network = networks.build(networks.Config(hidden=(4,)), vector(), HEADS)
    one, two, other = (jax.jit(network.init)(jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert np.any(one["policy"]["kernel"] != other["policy"]["kernel"])


def test_the_network_of_universe_has_nothing_between_four_small_convolutions_and_its_cells():
    network = networks.build(networks.Config(torso="universe", lstm=8), image(42, 42, 1), HEADS)
    params = jax.jit(network.init)(jax.random.key(0))
    sides = [params[f"trunk_conv_{i}"]["kernel"].shape for i in range(4)]
    assert sides == [(3, 3, 1, 32), *[(3, 3, 32, 32)] * 3]
    assert params["trunk_lstm"]["ii"]["kernel"].shape == (3 * 3 * 32, 8)  # 42, 21, 11, 6, 3
    pictures = jax.random.uniform(jax.random.key(1), (42, 42, 1))
    x = jnp.asarray(pictures)[None] / 255.0
    for i in range(4):
        layer = params[f"trunk_conv_{i}"]
        x = jax.lax.conv_general_dilated(
            x, layer["kernel"], (2, 2), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.elu(x + layer["bias"][None, None, None])
    plain = networks.build(networks.Config(torso="universe"), image(42, 42, 1), HEADS)
    outputs, _ = plain.apply(
        {name: params[name] for name in params if "conv" in name}
        | {
            "policy": {"kernel": jnp.eye(288, 3), "bias": jnp.zeros(3)},
            "value": {"kernel": jnp.eye(288, 1), "bias": jnp.zeros(1)},
        },
        pictures,
        (),
    )
    np.testing.assert_allclose(outputs["policy"], x.reshape(-1)[:3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("torso", ["dqn_2013", "nature", "universe"])
@pytest.mark.parametrize("observation", [vector(), image(35, 84, 4), image(84, 35, 4)])
def test_convolutions_that_do_not_fit_are_refused(torso, observation):
    with pytest.raises(errors.Refused, match=f"network.torso={torso}.*36x36.*use network.torso=mlp") as caught:
        networks.specify(networks.Config(torso=torso), observation, HEADS)
    assert str(list(observation.shape)) in str(caught.value)


def test_a_network_is_data_that_compares():
    one, two = (networks.specify(networks.Config(), vector(), HEADS) for _ in range(2))
    assert one == two
    assert one != networks.specify(networks.Config(hidden=(64,)), vector(), HEADS)


@pytest.mark.parametrize("shared", [True, False])
def test_the_deviation_of_a_gaussian_head_depends_on_no_observation(shared):
    heads = {"policy": networks.Head(4, 0.01, "gaussian"), "value": networks.Head(1, 1.0)}
    network = networks.build(networks.Config(hidden=(8,), shared=shared), vector(), heads)
    params = jax.jit(network.init)(jax.random.key(0))
    apply = jax.jit(jax.vmap(lambda params, obs: network.apply(params, obs, ())[0]["policy"], in_axes=(None, 0)))
    obs = jax.random.normal(jax.random.key(1), (20, 4))
    output = apply(params, obs)
    assert output.shape == (20, 4)
    np.testing.assert_array_equal(output[:, 2:], np.tile(output[:1, 2:], (20, 1)))
    mean, variance = distributions.moments(output)
    np.testing.assert_allclose(variance, 1.0, rtol=2e-4)  # at the start
    assert np.std(mean, axis=0).min() > 0
    params["policy_free"]["bias"] = jnp.array([0.3, -2.0])
    laws = [scipy.stats.norm(0.0, np.sqrt(np.log1p(np.exp(raw)) + 1e-4)) for raw in (0.3, -2.0)]
    action = jnp.array([0.4, -0.2])
    found = jax.vmap(distributions.GAUSSIAN.log_prob, in_axes=(0, 0))(apply(params, obs), mean + action[None])
    expected = sum(law.logpdf(float(a)) for law, a in zip(laws, action, strict=True))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    gradient = jax.grad(lambda params: apply(params, obs)[:, 2:].sum())(params)
    assert {name for name, layer in gradient.items() if any(np.any(leaf) for leaf in jax.tree.leaves(layer))} == {
        "policy_free"
    }


def test_dueling_values_are_the_states_plus_advantages_of_mean_zero():
    heads = {"q": networks.Head(3, 1.0, "values")}
    network = networks.build(networks.Config(hidden=(), dueling=True), vector(2), heads)
    kernel, bias = jnp.array([[1.0, 2.0, 0.0, -1.0], [0.0, 1.0, 1.0, 4.0]]), jnp.array([10.0, 0.0, 1.0, 2.0])
    outputs, _ = network.apply({"q": {"kernel": kernel, "bias": bias}}, jnp.array([1.0, 1.0]), ())
    # V = 11; A = (3, 2, 5), of mean 10/3.
    np.testing.assert_allclose(outputs["q"], 11.0 + np.array([3.0, 2.0, 5.0]) - 10.0 / 3.0, rtol=1e-6)
    plain = networks.specify(networks.Config(hidden=()), vector(2), heads)
    assert [layer.kind for layer in plain.heads["q"][1]] == ["dense"]


def test_dueling_without_action_values_is_refused():
    with pytest.raises(errors.Refused, match=r"dueling.*drop it, or use dqn"):
        networks.specify(networks.Config(dueling=True), vector(), HEADS)


def test_a_critic_sees_the_observation_and_the_action():
    action = types.ActionSpec(False, 0, (2,), (-1.0,) * 2, (1.0,) * 2)
    spec = types.EnvSpec("test:spec", vector(3), action, None, None, False)
    network = networks.critic(networks.Config(hidden=(4,)), spec)
    assert network.spec.observation.shape == (5,)
    params = jax.jit(network.init)(jax.random.key(0))
    assert network.apply(params, jnp.ones(5), ())[0]["q"].shape == (1,)


@pytest.mark.parametrize("shape", [(64, 64), (4, 64), (64, 2), (8, 8, 4, 32)])
def test_orthogonal_weights_are_orthonormal_uniform_and_the_same_under_vmap(shape):
    """One network is made as many are: the batched factorisation that could wait for ever is not there."""
    draw = jax.jit(lambda key: initialising.orthogonal(2.0)(key, shape))
    keys = jax.random.split(jax.random.key(0), 50)
    many = np.asarray(jax.jit(jax.vmap(draw))(keys))
    flat = many.reshape(50, -1, shape[-1]) / 2.0
    flat = flat if flat.shape[1] >= flat.shape[2] else flat.transpose(0, 2, 1)
    np.testing.assert_allclose(
        flat.transpose(0, 2, 1) @ flat, np.broadcast_to(np.eye(flat.shape[2]), (50, *[flat.shape[2]] * 2)), atol=2e-6
    )
    np.testing.assert_allclose(many[7], draw(keys[7]), atol=1e-6)
    assert abs(many.mean()) < 6 * many.std() / np.sqrt(many.size)
    assert "while" in str(jax.make_jaxpr(draw)(keys[0])), "made of products"
    assert "geqrf" not in jax.jit(draw).lower(keys[0]).as_text()


@pytest.mark.parametrize("shape", [(48, 48), (80, 48), (48, 80)])
def test_large_orthogonal_weights_are_made_panel_by_panel_and_as_uniform(shape, monkeypatch):
    """Sixteen columns at a time: the last panel has no more directions left than it has columns."""
    monkeypatch.setattr(initialising, "AT_ONCE", 32)
    monkeypatch.setattr(initialising, "PANELS", (8, 17))
    monkeypatch.setattr(initialising, "_polar", whole := Counted(initialising._polar))
    draw = jax.jit(jax.vmap(lambda key: initialising.orthogonal(2.0)(key, shape)))
    many = np.asarray(draw(jax.random.split(jax.random.key(0), 400))) / 2.0
    assert {start.shape for start in whole.given} == {(max(shape), 16)}
    tall = many if shape[0] >= shape[1] else many.transpose(0, 2, 1)
    product = tall.transpose(0, 2, 1) @ tall
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(48), product.shape), atol=3e-6)
    for panel in range(0, 48, 16):
        some = tall[:, :, panel : panel + 16]
        assert some.var() == pytest.approx(1 / max(shape), rel=1e-3)
        assert abs(some.mean()) < 6 * some.std() / np.sqrt(some.size)
        fourth = 3 / (max(shape) * (max(shape) + 2))  # of a number of a uniform unit vector
        assert (some**4).mean() == pytest.approx(fourth, rel=0.03)


def test_widths_that_no_panel_divides_are_made_at_once():
    panels = {64: 0, 1024: 0, 2048: 256, 3072: 256, 2047: 89, 1031: 0}
    assert {wide: initialising._panel(wide) for wide in panels} == panels


@pytest.mark.parametrize("cells", [0, 5])
def test_weights_are_traced_once_whoever_builds_the_network_and_its_state_is_ones_own(cells, monkeypatch):
    config = networks.Config(hidden=(13,), lstm=cells)
    monkeypatch.setattr(initialising, "_polar", counted := Counted(initialising._polar))
    first, second = (networks.build(config, vector(7), HEADS) for _ in range(2))
    shapes = jax.eval_shape(lambda key: {"mine": first.init(key)}, jax.random.key(0))
    traced = len(counted.given)
    assert traced
    assert jax.eval_shape(lambda key: {"mine": second.init(key)}, jax.random.key(0)) == shapes
    assert len(counted.given) == traced
    for leaf in jax.tree.leaves(first.carry):
        leaf.delete()  # as a call does that is given it
    third = networks.build(config, vector(7), HEADS)
    for leaf in jax.tree.leaves((second.carry, third.carry)):
        assert not np.any(leaf)


class Counted:
    """Calls through, and keeps what it was given."""

    def __init__(self, function):
        self.given, self._function = [], function

    def __call__(self, start):
        self.given.append(start)
        return self._function(start)


# ------------------------------------------------------------------------------------------------ convolutions


def slid(module):
    """A loss of a convolution over [T, B] images, and its parameters."""
    images = jax.random.normal(jax.random.key(0), (3, 2, 13, 12, 4))
    params = module.init(jax.random.key(1), images[0, 0])
    return images, params, lambda p, x: jnp.sin(jax.vmap(jax.vmap(lambda one: module.apply(p, one)))(x)).sum()


def same(one, other):
    return jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one, other))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_convolution_is_linens_bit_for_bit(stride):
    kernel, bias = linen.initializers.lecun_normal(), linen.initializers.zeros
    images, params, ours = slid(convolution.module()(5, 4, stride, kernel, bias))
    _, given, theirs = slid(linen.Conv(5, (4, 4), (stride, stride), padding="VALID"))
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    for of in (
        lambda loss: loss(params, images),
        lambda loss: jax.grad(loss, (0, 1))(params, images),
        lambda loss: jax.jit(jax.grad(loss))(params, images),
        lambda loss: jax.jvp(lambda p: loss(p, images), (params,), (params,)),
        lambda loss: jax.vmap(jax.grad(loss), (0, None))(several, images),
        lambda loss: jax.vmap(jax.grad(loss))(several, jnp.stack([images, images + 1])),
    ):
        assert same(of(ours), of(theirs))
    assert same(params, given)


def test_convolutions_in_loops_and_branches_stand_as_xlas_library_takes_them():
    """But for the outermost computation XLA leaves the order of dimensions as it is, and others are slow."""
    network = networks.build(networks.Config(torso="dqn_2013"), image(84, 84, 4), HEADS)
    params, seen = network.init(jax.random.key(0)), jnp.zeros((2, 6, 84, 84, 4), jnp.uint8)

    def step(params, seen):
        def loss(params):
            heads = jax.vmap(lambda obs: network.apply(params, obs, ())[0])(seen)
            return sum((leaf**2).mean() for leaf in heads.values())

        return jax.tree.map(lambda p, g: p - g, params, jax.grad(loss)(params)), None

    def learn(params, seen, ready):
        params = jax.lax.scan(step, params, seen)[0]
        return jax.lax.cond(ready, lambda: step(params, seen[0])[0], lambda: params)

    compiled = jax.jit(learn).lower(params, seen, True).compile().as_text()
    found = re.findall(r"convolution\(.*dim_labels=(\w+->\w+)", compiled)
    assert len(found) == 2 * 5, "two layers, forwards and back; nothing is asked of the pictures"
    assert set(found) == {"b01f_01io->b01f"}
