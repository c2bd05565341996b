"""Bytes are scaled by their declared bounds, by every engine that runs a network."""

from __future__ import annotations

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from gymnasium import spaces

import shoal
from shoal import environments, experiment, networks
from shoal.command import cli
from shoal.core import types
from shoal.environments import _gymnasium_spaces, _spaces, gymnax
from shoal.experiment import presets
from shoal.networks import export, in_numpy, scaling
from shoal.runs import run_folder
from tests.conftest import build_agent, env_spec

CHANNELS = np.full((2, 6, 7), 255), np.array([[[1]], [[200]]]) * np.ones((2, 6, 7))


class Lit(gymnasium.Env):
    """Name the lit cell of a small picture of bytes whose declared bounds are 0 and 1."""

    observation_space = spaces.Box(0, 1, (5, 5, 2), np.uint8)
    action_space = spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        self.which = int(self.np_random.integers(4))
        picture = np.zeros((5, 5, 2), np.uint8)
        picture[self.which, 2, 0] = 1
        return picture, {}

    def step(self, action):
        return np.zeros((5, 5, 2), np.uint8), float(action == self.which), True, False, {}


gymnasium.register("Lit-v0", entry_point=Lit)


def bounds(space, observe=()):
    layout = _spaces.select(_gymnasium_spaces.layout("x", space), observe)
    return layout.spec.low, layout.spec.high


@pytest.mark.parametrize(
    ("space", "low", "high"),
    [
        (spaces.Box(0, 255, (84, 84, 4), np.uint8), (0,), (255,)),
        (spaces.Box(0, 1, (5, 5, 2), np.uint8), (0,), (1,)),
        (spaces.Box(3, 9, (5, 5), np.uint8), (3,), (9,)),
        (spaces.Box(np.zeros((2, 6, 7), np.uint8), CHANNELS[1].astype(np.uint8), dtype=np.uint8), (0, 0), (1, 200)),
        (spaces.Box(0, 255, (128,), np.uint8), (0,), (255,)),
        (spaces.Box(np.uint8([0, 5]), np.uint8([1, 5]), dtype=np.uint8), (0, 5), (1, 5)),
        (spaces.Box(0, 255, (3,), np.float32), (), ()),
        (spaces.Box(0, 1, (5, 5, 2), np.float32), (), ()),
        (spaces.Dict(a=spaces.Box(0, 9, (2,), np.uint8), b=spaces.Discrete(2)), (0,) * 4, (9, 9, 1, 1)),
        (spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Dict(x=spaces.Box(0, 255, (1, 1), np.uint8))]), (0,) * 3,
         (1, 1, 255)),
        (spaces.Dict(a=spaces.Box(-5, 5, (2,)), b=spaces.MultiBinary(2)), (), ()),
    ],
)  # fmt: skip
def test_adapters_keep_the_bounds_of_bytes_alone(space, low, high):
    assert bounds(space) == (low, high)


def test_features_that_are_picked_keep_their_own_bounds():
    space = spaces.Dict(a=spaces.Box(0, 9, (2,), np.uint8), b=spaces.Discrete(2))
    assert bounds(space, (3, 1)) == ((0, 0), (1, 9))
    assert bounds(spaces.Box(0, 255, (4,), np.uint8), (3,)) == ((0,), (255,))


def test_gymnax_keeps_them_too():
    space = type("Box", (gymnax._gymnax.spaces.Box,), {})(0, 7, (4, 5, 2), jnp.uint8)
    layout = gymnax._layout("gymnax:x", space)
    assert (layout.spec.low, layout.spec.high, layout.spec.dtype) == ((0,), (7,), "uint8")


SEEN = {
    "picture": types.ObservationSpec((5, 5, 2), "uint8", True, low=(0.0,), high=(1.0,)),
    "usual": types.ObservationSpec((5, 4, 3), "uint8", True),
    "channels": types.ObservationSpec((5, 4, 2), "uint8", True, low=(3.0, 0.0), high=(9.0, 200.0)),
    "convolved": types.ObservationSpec((36, 36, 1), "uint8", True, low=(10.0,), high=(60.0,)),
    "vector": types.ObservationSpec((6,), "float32", False, low=(0.0,), high=(255.0,)),
    "features": types.ObservationSpec((3,), "float32", False, low=(0.0, 4.0, 7.0), high=(1.0, 255.0, 7.0)),
}


def drawn(seen, count=40):
    low, high = (np.array(bound) for bound in (seen.low or (0.0,), seen.high or (255.0,)))
    return np.random.default_rng(0).integers(low, high + 1, (count, *seen.shape)).astype(seen.dtype)


@pytest.mark.parametrize("name", SEEN)
def test_every_engine_sees_zero_to_one(name):
    """Held against the same weights in a network that is shown what was scaled by hand."""
    seen = SEEN[name]
    heads = {"policy": networks.Head(3, 1.0)}
    network = networks.build(networks.Config(hidden=(4,)), seen, heads)
    plain = networks.build(
        networks.Config(hidden=(4,)), types.ObservationSpec(seen.shape, "float32", seen.image), heads
    )
    params = jax.tree.map(np.array, jax.jit(network.init)(jax.random.key(0)))
    obs = drawn(seen)
    low, high = (np.array(bound) for bound in (seen.low or (0.0,), seen.high or (255.0,)))
    by_hand = ((obs - low) / np.maximum(high - low, 1)).astype(np.float32)
    assert 0 <= by_hand.min() < by_hand.max() <= 1
    wanted = jax.vmap(lambda x: plain.apply(params, x, ())[0]["policy"])(by_hand)
    assert np.std(wanted, axis=0).max() > 1e-3, "a constant would agree with anything"
    found = jax.jit(jax.vmap(lambda x: network.apply(params, x, ())[0]["policy"]))(obs)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert in_numpy.fits(network.spec)
    run = in_numpy.forward(network.spec, params)
    np.testing.assert_allclose(np.stack([run(each).copy() for each in obs]), wanted, atol=1e-5)
    action = types.ActionSpec(True, 3, (), (), ())
    model = export.onnx_model(network.spec, types.Policy(params, (), np.float32(0.0)), "categorical", action)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(["logits"], {"obs": obs})[0], wanted, atol=1e-5)


def test_usual_pictures_have_the_bits_they_had():
    obs = np.arange(256, dtype=np.uint8)
    layer = scaling.layer(SEEN["usual"])
    found, before = (jax.jit(one) for one in (lambda x: scaling.apply(layer, x), lambda x: x.astype("float32") / 255.0))
    np.testing.assert_array_equal(found(obs), before(obs))
    spec = types.NetworkSpec(SEEN["usual"]._replace(shape=(256,)), {"trunk": (layer,)}, {"policy": ("trunk", ())})
    np.testing.assert_array_equal(in_numpy.forward(spec, {})(obs), np.float32(1.0 / 255.0) * obs)


def test_critics_scale_what_is_seen_and_not_what_is_done():
    spec = env_spec((3,), low=(-1.0,), high=(1.0,))
    seen = spec.observation._replace(low=(0.0,), high=(255.0,))
    critic = networks.critic(networks.Config(hidden=(4,)), spec._replace(observation=seen))
    layer = critic.spec.trunks["trunk"][0]
    np.testing.assert_allclose(scaling.apply(layer, np.float32([0, 51, 255, -0.5])), [0, 0.2, 1, -0.5], rtol=1e-6)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_teams_of_units_see_zero_to_one(asynchronous):
    spec = env_spec((4,), choices=3)
    seen = spec.observation._replace(low=(0.0,), high=(255.0,))
    settings = {"rule": "map_propagation", "algorithm": {"asynchronous": asynchronous}, "local": True}
    plain, scaled = (build_agent(one, **settings) for one in (spec, spec._replace(observation=seen)))
    state = plain.init(jax.random.key(0))
    policy, obs, key = plain.snapshot(state), np.float32([0, 100, 200, 255]), jax.random.key(3)
    shown = (plain, obs / 255), (scaled, obs)
    wanted, found = (jax.jit(agent.act)(policy, agent.about.carry, seen, key)[:2] for agent, seen in shown)
    np.testing.assert_allclose(found[1].hidden, wanted[1].hidden, atol=1e-5)
    assert found[0] == wanted[0]


def test_statistics_take_the_place_of_bounds():
    made, opened = presets.resolve(presets.Request("ppo", "tests.scripted:Bytes-v0"))
    assert opened.spec.observation.high == (255.0,)
    request = presets.Request(
        "ppo", "tests.scripted:Bytes-v0", settings={"algorithm": {"normalise_observations": True}}
    )
    found = [experiment.build(one).parts.agent.about.networks["policy"].spec.observation.high
             for one in (made, presets.resolve(request)[0])]  # fmt: skip
    assert found == [(255.0,), ()]


@pytest.mark.parametrize("env_id", ["Lit-v0", "tests.scripted:Bytes-v0"])
def test_a_run_of_an_older_schema_acts_and_is_written_as_it_was(env_id):
    made, opened = presets.resolve(presets.Request("ppo", env_id))
    data = made.to_json()
    assert data["schema"] == 2
    older = experiment.from_json({**data, "schema": 1})
    assert older.to_json() == {**data, "schema": 1}, "its digest must be the one in its folder"
    assert run_folder.digest(older) != run_folder.digest(made)
    now, then = (experiment.build(one, opened).parts.agent for one in (made, older))
    assert environments.open(env_id, made.configs["environment"]).spec == opened.spec
    policy = now.snapshot(now.init(jax.random.key(0)))._replace(explore=jnp.float32(0.0))
    obs = jnp.full(opened.spec.observation.shape, 1, opened.spec.observation.dtype)
    values = [float(agent.act(policy, (), obs, jax.random.key(0))[1].value) for agent in (now, then)]
    assert values[0] != pytest.approx(values[1], abs=1e-4)
    network = then.about.networks["policy"]
    first = network.spec.trunks["policy_trunk"][0]
    assert (first.kind, first.high) == (("scale", (255.0,)) if env_id == "Lit-v0" else ("dense", ()))


def test_check_env_tells_what_becomes_of_bytes(capsys):
    assert cli.main(["check-env", "tests.scripted:Bytes-v0", "--steps", "20"]) == 0
    assert "bytes from 0 to 255 brought to [0, 1]" in "".join(capsys.readouterr())


@pytest.mark.slow
def test_a_picture_of_zeros_and_ones_is_learned_from(tmp_path):
    run = shoal.train("ppo", "Lit-v0", steps=16_384, out=tmp_path / "run", quiet=True)
    assert run.summary["eval_return_mean"] > 0.9  # chance is 0.25
