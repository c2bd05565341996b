"""What every file of `shoal/compress` must do, found through the registry."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from shoal import registry, tree, types

EVERY = pytest.mark.parametrize("name", registry.names("compressor"))
KINDS = {
    "categorical": {"choices": 3},
    "gaussian": {"low": (-1.0, -1.0), "high": (1.0, 1.0)},
}


@pytest.fixture(params=["categorical", "gaussian", "lstm"])
def given(request, env_spec, build_agent, observations):
    """(agent, policy, observations)"""
    network = {"lstm": 4} if request.param == "lstm" else {}
    spec = env_spec((4,), **KINDS.get(request.param, KINDS["categorical"]))
    agent = build_agent(spec, network={"hidden": (8,), **network})
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(agent.network.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)
    return agent, types.Policy(params, (), np.float32(1.0)), observations(spec.observation, 20)


def made(name, agent):
    module = registry.load("compressor", name)
    return module.build(module.Config(), agent)


def pack(compressor, given):
    agent, policy, obs = given
    return compressor.compress(policy, agent.network.spec, obs, jax.random.key(0))


@EVERY
def test_it_says_what_it_is(name):
    module = registry.load("compressor", name)
    assert module.__doc__
    assert dataclasses.is_dataclass(module.Config)
    assert module.Config.__dataclass_params__.frozen


@EVERY
def test_a_packed_policy_tells_its_size_and_cost(name, given):
    packed = pack(made(name, given[0]), given)
    assert isinstance(packed, types.Packed)
    assert 0 < packed.bytes <= 2 * tree.bytes(given[1])
    assert packed.seconds >= 0


@EVERY
def test_its_runner_acts_as_the_agent_does_in_kind(name, given):
    agent, policy, obs = given
    compressor = made(name, agent)
    run, carry, expected_carry = compressor.runner(pack(compressor, given)), agent.carry, agent.carry
    act = jax.jit(agent.act)
    for i, each in enumerate(obs):
        key = jax.random.key(i)
        action, extras, carry = run(carry, each, key)
        expected, expected_extras, expected_carry = act(policy, expected_carry, each, key)
        assert jax.tree.structure((extras, carry)) == jax.tree.structure((expected_extras, expected_carry))
        assert (np.shape(action), np.asarray(action).dtype) == (expected.shape, expected.dtype)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((action, extras, carry)))
        if name == "identity":
            jax.tree.map(
                np.testing.assert_array_equal, (action, extras, carry), (expected, expected_extras, expected_carry)
            )


@EVERY
def test_it_leaves_the_policy_alone(name, given):
    before = tree.sha256(given[1])
    compressor = made(name, given[0])
    compressor.runner(pack(compressor, given))(given[0].carry, given[2][0], jax.random.key(0))
    assert tree.sha256(given[1]) == before


@EVERY
def test_a_frozen_greedy_policy_stays_greedy(name, given):
    agent, policy, obs = given
    compressor = made(name, agent)
    greedy = policy._replace(explore=np.float32(0.0))
    run = compressor.runner(pack(compressor, (agent, greedy, obs)))
    actions = [np.asarray(run(agent.carry, obs[0], jax.random.key(i))[0]) for i in range(10)]
    for action in actions:
        np.testing.assert_array_equal(action, actions[0])
