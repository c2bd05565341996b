"""The contract of every algorithm: pure functions on pytrees, compiled once, numbers that may change in the state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import algorithms, environments, networks, optimise, registry, types
from shoal.runtimes import _rollout
from tests import faults  # noqa: F401  its compilation cache

BATCH = 3
ENVS = ["probe:match", "probe:target"]  # one with choices, one with a bounded vector
MEMORY = {"none": 0, "lstm": 4}


def build(name: str, env: types.Env, lstm: int = 0, *, capture: bool = False) -> types.Agent:
    module, correct = registry.load("algorithm", name), registry.load("corrector", "none")
    optimiser = (optimise.capture if capture else optimise.local)(optimise.Config(), 1000)
    given = algorithms.Ingredients(
        env.spec, networks.Config(hidden=(8,), lstm=lstm), optimiser, correct.build(correct.Config())
    )
    return module.build(module.Config(), given)


@pytest.fixture(scope="module", params=registry.names("algorithm"))
def name(request):
    return request.param


@pytest.fixture(scope="module", params=ENVS)
def env(request):
    return environments.open(request.param, environments.Config()).device


@pytest.fixture(scope="module", params=MEMORY)
def agent(request, name, env):
    return build(name, env, MEMORY[request.param])


def experience(agent: types.Agent, env: types.Env, state: Any, key: Any) -> types.Rollout:
    actors = _rollout.start(agent, env, BATCH, key)
    return _rollout.collect(agent, env, agent.snapshot(state), actors, key)[1]


def shapes(given: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), given)


def test_the_state_is_arrays_and_has_the_fields_of_the_contract(agent):
    state = agent.init(jax.random.key(0))
    assert {"params", "optimiser", "normaliser", "env_steps"} <= set(state._fields)
    assert isinstance(state.optimiser, optimise.OptimiserState)
    for leaf in jax.tree.leaves(state):
        assert isinstance(leaf, jax.Array)
        assert not leaf.weak_type, "a weak type would compile twice"
        assert not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key), "keys are consumed, never stored"
    assert int(state.env_steps) == 0
    other = agent.init(jax.random.key(1))
    assert shapes(other) == shapes(state)
    assert any(
        (a != b).any() for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(other.params), strict=True)
    )


def test_it_acts_within_the_actions_and_by_the_key_alone(agent, env):
    policy = agent.snapshot(agent.init(jax.random.key(0)))
    _, obs = env.init(jax.random.key(1))
    act = jax.jit(agent.act)
    for i in range(5):
        action, extras, carry = act(policy, agent.carry, obs, jax.random.key(i))
        again = act(policy, agent.carry, obs, jax.random.key(i))[0]
        assert np.array_equal(action, again)
        assert shapes(carry) == shapes(agent.carry)
        for leaf in jax.tree.leaves(extras):
            assert np.isfinite(leaf).all()
        if env.spec.action.discrete:
            assert (action.shape, action.dtype) == ((), jnp.int32)
            assert 0 <= int(action) < env.spec.action.n
        else:
            assert (action.shape, action.dtype) == (env.spec.action.shape, jnp.float32)
    greedy = policy._replace(explore=jnp.float32(0.0))
    assert np.array_equal(
        act(greedy, agent.carry, obs, jax.random.key(0))[0], act(greedy, agent.carry, obs, jax.random.key(9))[0]
    ), "greedy actions do not depend on the key"


def test_an_update_keeps_shapes_counts_steps_and_is_compiled_once(agent, env):
    traces = []

    def counted(state, rollout, key):
        traces.append(1)
        return agent.update(state, rollout, key)

    update, state = jax.jit(counted), agent.init(jax.random.key(0))
    first = state
    for i in range(3):
        state, metrics = update(state, experience(agent, env, state, jax.random.key(i)), jax.random.key(10 + i))
    assert len(traces) == 1
    assert shapes(state) == shapes(first)
    assert int(state.env_steps) == 3 * BATCH * agent.rollout_length
    assert all(leaf.shape == () and np.isfinite(leaf) for leaf in metrics.values())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    moved = [(a != b).any() for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(first.params), strict=True)]
    assert any(moved)


def test_hyperparameters_are_leaves_that_change_the_update_without_compiling_again(agent, env):
    update, start = jax.jit(agent.update), agent.init(jax.random.key(0))
    rollout = experience(agent, env, start, jax.random.key(1))
    after = update(start, rollout, jax.random.key(2))[0]
    assert len(jax.tree.leaves(start.hyper)) == len(start.hyper), "each is one scalar"

    def with_rate(rate):
        hyper = start.optimiser.hyper._replace(learning_rate=jnp.float32(rate))
        return start._replace(optimiser=start.optimiser._replace(hyper=hyper))

    still = update(with_rate(0.0), rollout, jax.random.key(2))[0]
    assert all(np.array_equal(a, b) for a, b in _pairs(still.params, start.params)), "a rate of 0 moves nothing"
    felt = []
    for field in start.hyper._fields:
        changed = start._replace(hyper=start.hyper._replace(**{field: getattr(start.hyper, field) * 0.3}))
        other = update(changed, rollout, jax.random.key(2))[0]
        if not all(np.array_equal(a, b) for a, b in _pairs(other.params, after.params)):
            felt.append(field)
    assert felt, "none of them matters"
    assert update._cache_size() == 1


def _pairs(one, other):
    return zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)


def test_seeds_and_hyperparameters_are_swept_by_vmap(name, env):
    agent, keys = build(name, env), jax.random.split(jax.random.key(0), 4)

    def learn(key):
        state = agent.init(key)
        return agent.update(state, experience(agent, env, state, key), key)[0]

    together = jax.jit(jax.vmap(learn))(keys)
    for i in range(4):
        alone = jax.jit(learn)(keys[i])
        for swept, single in _pairs(jax.tree.map(lambda leaf, i=i: leaf[i], together.params), alone.params):
            np.testing.assert_allclose(swept, single, rtol=1e-4, atol=1e-6)


def test_the_gradient_can_be_left_to_somebody_else(name, env):
    agent = build(name, env, capture=True)
    start = agent.init(jax.random.key(0))
    state, metrics = jax.jit(agent.update)(start, experience(agent, env, start, jax.random.key(1)), jax.random.key(2))
    assert all(np.array_equal(a, b) for a, b in _pairs(state.params, start.params))
    norm = jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(state.optimiser.gradient)))
    assert 0 < norm <= optimise.Config().max_norm * 1.001
    assert metrics["gradient_norm"] > 0


def test_a_gradient_that_is_not_finite_changes_nothing_but_the_count(name, env):
    agent = build(name, env)
    start = agent.init(jax.random.key(0))
    rollout = experience(agent, env, start, jax.random.key(1))
    bad = rollout.transitions._replace(reward=rollout.transitions.reward.at[0, 0].set(jnp.nan))
    state, _ = jax.jit(agent.update)(start, rollout._replace(transitions=bad), jax.random.key(2))
    assert int(state.optimiser.skipped) == 1
    assert all(np.array_equal(a, b) for a, b in _pairs(state.params, start.params))
    assert all(np.array_equal(a, b) for a, b in _pairs(state.optimiser.rule, start.optimiser.rule))
