"""The contract of every algorithm: pure functions on pytrees, compiled once, numbers that may change in the state."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import algorithms, checkpoint, environments, experiment, networks, optimise, options, registry, types
from shoal.runtimes import _rollout
from tests import faults  # noqa: F401  its compilation cache

BATCH = 3
ENVS = {"discrete": "probe:match", "continuous": "probe:target"}
MEMORY = {"none": 0, "lstm": 4}
SMALL = {  # what a config has of these is set to them
    "rollout_length": 8, "minibatches": BATCH, "capacity": 256, "batch": 8, "learning_starts": 0,
}  # fmt: skip
ONE_STEP = {"epochs": 1, "minibatches": 1}  # settings with which an update is one gradient step


def small(module: Any, **settings: Any) -> Any:
    given = {name: value for name, value in (SMALL | settings).items() if name in module.Config.__dataclass_fields__}
    return options.build(module.Config, given, "algorithm")


def opened(kind: str) -> types.Env:
    return environments.open(ENVS[kind], environments.Config()).device


def suits(name: str, kind: str, memory: str) -> bool:
    module = registry.load("algorithm", name)
    return kind in module.ACTIONS and not module.fits(small(module), network(memory), opened(kind).spec)


def network(memory: str) -> networks.Config:
    return networks.Config(hidden=(8,), lstm=MEMORY[memory])


def one_step(name: str) -> Any:
    """The rule's config with which its gradient can be left to somebody else, None if there is none."""
    module = registry.load("algorithm", name)
    tried = (small(module, **ONE_STEP), small(module, **ONE_STEP, rollout_length=1))  # some learn at every step
    return next((config for config in tried if not module.shareable(config)), None)


ROLLOUTS = [name for name in registry.names("algorithm") if experiment.learns("algorithm", name) == "rollouts"]
OTHERS = sorted({*registry.names("algorithm")} - {*ROLLOUTS})  # they learn as their runtime's contract says
ALL = [(n, k, m) for n in ROLLOUTS for k in ENVS for m in MEMORY if suits(n, k, m)]
SHARED = [each for each in ALL if one_step(each[0]) and each[2] == "none"]


def build(case: tuple[str, str, str], *, capture: bool = False) -> types.Agent:
    name, kind, memory = case
    module, correct = registry.load("algorithm", name), registry.load("corrector", "none")
    optimiser = (optimise.capture if capture else optimise.local)(optimise.Config(), 1000)
    config = one_step(name) if capture else small(module)
    given = algorithms.Ingredients(
        opened(kind).spec, network(memory), optimiser, correct.build(correct.Config()), streams=BATCH
    )
    return module.build(config, given)


class Case:
    """An agent in an environment, and its functions compiled."""

    def __init__(self, case: tuple[str, str, str], *, capture: bool = False) -> None:
        experiment.cache()
        self.agent, self.env, self.traces = build(case, capture=capture), opened(case[1]), 0
        self.init, self.update = jax.jit(self.agent.init), jax.jit(self._update)
        self.experience = jax.jit(functools.partial(experience, self.agent, self.env))

    def _update(self, state: Any, rollout: types.Rollout, key: Any) -> Any:
        self.traces += 1
        return self.agent.update(state, rollout, key)


@functools.cache
def made(case: tuple[str, str, str], capture: bool = False) -> Case:
    return Case(case, capture=capture)


@pytest.fixture(scope="module", params=ALL, ids="-".join)
def case(request):
    return made(request.param)


def experience(agent: types.Agent, env: types.Env, state: Any, key: Any) -> types.Rollout:
    actors = _rollout.start(agent, env, BATCH, key)
    return _rollout.collect(agent, env, agent.snapshot(state), actors, key)[1]


def shapes(given: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name, leaf.weak_type), given)


def pairs(one: Any, other: Any) -> Any:
    return zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)


def equal(one: Any, other: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in pairs(one, other))


def optimisers(state: Any) -> list[optimise.OptimiserState]:
    """All that a state holds; some rules have one for each of their networks."""
    leaves = jax.tree.leaves(state, is_leaf=lambda leaf: isinstance(leaf, optimise.OptimiserState))
    return [leaf for leaf in leaves if isinstance(leaf, optimise.OptimiserState)]


def at_rate(state: Any, rate: Any) -> Any:
    """The state with the step size of every optimiser changed."""

    def change(leaf: Any) -> Any:
        if not isinstance(leaf, optimise.OptimiserState):
            return leaf
        return leaf._replace(hyper=leaf.hyper._replace(learning_rate=jnp.asarray(rate, jnp.float32)))

    return jax.tree.map(change, state, is_leaf=lambda leaf: isinstance(leaf, optimise.OptimiserState))


@pytest.mark.parametrize("name", registry.names("algorithm"))
def test_it_declares_what_the_wiring_reads(name):
    module = registry.load("algorithm", name)
    assert set(module.ACTIONS) <= set(ENVS)
    assert module.ACTIONS, "it learns something"
    assert name in OTHERS or any(each[0] == name for each in ALL), "and in one of the environments of these tests"
    assert module.Config.__doc__
    assert isinstance(module.shareable(small(module)), str)
    for kind in module.ACTIONS:
        for memory in MEMORY:
            assert isinstance(module.fits(small(module), network(memory), opened(kind).spec), str)


RANGES = {"low": (-1.0,), "high": (1.0,)}  # of what the probes show, for rules that need to know


@pytest.mark.parametrize("name", OTHERS)
def test_one_that_does_not_learn_from_rollouts_says_how_and_has_a_runtime(name):
    how, module = experiment.learns("algorithm", name), registry.load("algorithm", name)
    assert how in {experiment.learns("runtime", runtime) for runtime in registry.names("runtime")}
    assert module.METRICS
    assert module.shareable(small(module)), "it leaves no gradient"
    config, spec = small(module, **RANGES), opened(module.ACTIONS[0]).spec
    assert module.fits(config, networks.Config(), spec) == ""
    assert "--network" in module.fits(config, networks.Config(hidden=(3,)), spec), "a network would change nothing"
    given = algorithms.Ingredients(spec, networks.Config(), optimise.local(optimise.Config(), 1000), None)
    agent = module.build(config, given)
    assert getattr(agent, how) is not None
    state = agent.init(jax.random.key(0))
    assert {"params", "optimiser", "normaliser", "env_steps"} <= set(state._fields)
    with pytest.raises(TypeError, match=how):
        agent.update(state, None, jax.random.key(0))


@pytest.mark.parametrize("name", OTHERS)
def test_its_policy_is_compiled_and_greedy_when_it_is_to_be(name):
    module, spec = registry.load("algorithm", name), opened("discrete").spec
    config = small(module, **RANGES, epsilon=0.5)
    given = algorithms.Ingredients(spec, networks.Config(), optimise.local(optimise.Config(), 1000), None)
    agent = module.build(config, given)
    policy, act = (
        agent.snapshot(agent.init(jax.random.key(0))),
        jax.jit(jax.vmap(agent.act, in_axes=(None, None, 0, 0))),
    )
    obs, keys = jnp.ones((32, *spec.observation.shape)), jax.random.split(jax.random.key(1), 32)
    actions = act(policy, (), obs, keys)[0]
    assert actions.dtype == jnp.int32
    assert set(actions.tolist()) <= set(range(spec.action.n))
    greedy = act(policy._replace(explore=jnp.float32(0.0)), (), obs, keys)[0]
    assert len(set(greedy.tolist())) == 1


def test_the_state_is_arrays_and_has_the_fields_of_the_contract(case):
    state = case.agent.init(jax.random.key(0))
    assert {"params", "optimiser", "normaliser", "env_steps", "hyper"} <= set(state._fields)
    assert isinstance(state.optimiser, optimise.OptimiserState)
    for leaf in jax.tree.leaves(state):
        assert isinstance(leaf, jax.Array)
        assert not leaf.weak_type, "a weak type would compile twice"
        assert not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key), "keys are consumed, never stored"
    assert int(state.env_steps) == 0
    other = case.agent.init(jax.random.key(1))
    assert shapes(other) == shapes(state)
    assert not equal(state.params, other.params)


def test_it_acts_within_the_actions_and_by_the_key_alone(case):
    agent, env = case.agent, case.env
    policy = agent.snapshot(case.init(jax.random.key(0)))
    _, obs = env.init(jax.random.key(1))
    act = jax.jit(agent.act)
    for i in range(5):
        action, extras, carry = act(policy, agent.carry, obs, jax.random.key(i))
        again = act(policy, agent.carry, obs, jax.random.key(i))[0]
        assert np.array_equal(action, again)
        assert jax.tree.map(jnp.shape, carry) == jax.tree.map(jnp.shape, agent.carry)
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


def test_an_update_keeps_shapes_counts_steps_and_is_compiled_once(case):
    traces = []

    def counted(state, rollout, key):
        traces.append(1)
        return case.agent.update(state, rollout, key)

    update, state = jax.jit(counted, donate_argnums=0), case.init(jax.random.key(0))  # as runtimes do
    first, params = shapes(state), jax.device_get(state.params)
    for i in range(3):
        state, metrics = update(state, case.experience(state, jax.random.key(i)), jax.random.key(10 + i))
    assert (len(traces), update._cache_size()) == (1, 1)
    assert shapes(state) == first
    assert int(state.env_steps) == 3 * BATCH * case.agent.rollout_length
    assert all(leaf.shape == () and np.isfinite(leaf) for leaf in metrics.values())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert not equal(state.params, params)
    assert int(optimise.skipped(state)) == 0


def test_hyperparameters_are_leaves_that_change_the_update_without_compiling_again(case):
    start = case.init(jax.random.key(0))
    rollout, key = case.experience(start, jax.random.key(1)), jax.random.key(2)
    after = case.update(start, rollout, key)[0]
    assert len(jax.tree.leaves(start.hyper)) == len(start.hyper), "each is one scalar"
    assert {(leaf.shape, leaf.dtype.name) for leaf in start.hyper} == {((), "float32")}
    still = case.update(at_rate(start, 0.0), rollout, key)[0]
    assert equal(still.params, start.params), "a rate of 0 moves nothing"
    felt = []
    for field in start.hyper._fields:
        changed = start._replace(hyper=start.hyper._replace(**{field: getattr(start.hyper, field) * 0.3}))
        other = case.update(changed, rollout, key)[0]
        if not equal(other.params, after.params):
            felt.append(field)
    assert felt, "none of them matters"
    assert case.traces == 1


def test_seeds_and_hyperparameters_are_swept_by_vmap(case):
    if case.agent.carry:
        return  # the sweep of the network without memory says it all
    keys, rates = jax.random.split(jax.random.key(0), 4), jnp.array([1e-2, 1e-3, 1e-3, 1e-4])

    def prepared(key, rate):
        state = case.init(key)
        state = at_rate(state, rate)._replace(hyper=state.hyper._replace(discount=rate * 50.0))
        return state, case.experience(state, key)

    states, rollouts = jax.device_get(jax.jit(jax.vmap(prepared))(keys, rates))
    together = jax.device_get(jax.jit(jax.vmap(case.agent.update))(states, rollouts, keys)[0])
    for i in range(4):
        state, rollout, found = (jax.tree.map(lambda leaf, i=i: leaf[i], each) for each in (states, rollouts, together))
        alone = case.update(state, rollout, keys[i])[0]
        assert not equal(alone.params, state.params)
        for swept, each in pairs(found.params, alone.params):
            np.testing.assert_allclose(swept, each, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shared", SHARED, ids="-".join)
def test_the_gradient_can_be_left_to_somebody_else(shared):
    case = made(shared, True)
    start = case.init(jax.random.key(0))
    state, metrics = case.update(start, case.experience(start, jax.random.key(1)), jax.random.key(2))
    assert equal(state.params, start.params)
    norm = jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(state.optimiser.gradient)))
    assert 0 < norm <= optimise.Config().max_norm * 1.001
    assert metrics["gradient_norm"] > 0


def test_a_gradient_that_is_not_finite_changes_nothing_but_the_count(case):
    start = case.init(jax.random.key(0))
    rollout = case.experience(start, jax.random.key(1))
    steps = rollout.transitions
    bad = {name: jnp.full_like(getattr(steps, name), jnp.nan) for name in ("reward", "obs", "next_obs")}
    state, _ = case.update(start, rollout._replace(transitions=steps._replace(**bad)), jax.random.key(2))
    assert int(optimise.skipped(state)) >= 1
    assert equal(state.params, start.params)
    for after, before in zip(optimisers(state), optimisers(start), strict=True):
        assert equal(after.rule, before.rule)
    assert equal(getattr(state, "target", ()), getattr(start, "target", ()))
    assert int(state.env_steps) == BATCH * case.agent.rollout_length, "what was seen is counted all the same"


def test_one_reward_that_is_not_finite_leaves_no_trace_in_the_parameters(case, tmp_path):
    start = case.init(jax.random.key(0))
    rollout = case.experience(start, jax.random.key(1))
    bad = rollout.transitions._replace(reward=rollout.transitions.reward.at[0, 0].set(jnp.nan))
    state, _ = case.update(start, rollout._replace(transitions=bad), jax.random.key(2))
    checkpoint.save(tmp_path, 1, state, {})  # nor does a memory that holds it keep the run from being saved
    for i in range(3, 6):  # nor later, should a memory keep it
        state, _ = case.update(state, case.experience(state, jax.random.key(i)), jax.random.key(i))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert not equal(state.params, start.params)
