"""The contract of every algorithm: pure functions on pytrees, compiled once, numbers that may change in the state."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import algorithms, environments, experiment, networks
from shoal.algorithms import _memory, ppo
from shoal.core import errors, options, registry, tree, types
from shoal.experiment import counting, presets
from shoal.formulas import optimise
from shoal.runs import checkpoint, training
from shoal.runtimes.experience import rollouts
from tests import conftest

BATCH = 3
ENVS = {"discrete": "probe:match", "multi_discrete": "probe:pair", "continuous": "probe:target"}
MEMORY = {"none": 0, "lstm": 4}
SMALL = {  # what a config has of these is set to them
    "rollout_length": 8, "minibatches": BATCH, "capacity": 256, "batch": 8, "learning_starts": 0, "steps": 4,
    "policies": 2, "trained": 1, "elites": 1,
}  # fmt: skip
ONE_STEP = {"epochs": 1, "minibatches": 1}  # settings with which an update is one gradient step


def small(module: Any, **settings: Any) -> Any:
    given = {name: value for name, value in (SMALL | settings).items() if name in module.Config.__dataclass_fields__}
    return options.build(module.Config, given, "algorithm")


def opened(kind: str) -> types.Env:
    return environments.open(ENVS[kind], environments.Config()).device


def suits(name: str, kind: str, memory: str) -> bool:
    module = registry.load("algorithm", name)
    suited = kind in experiment.traits(name).actions
    return suited and not module.fits(small(module), network(memory), opened(kind).spec)


def network(memory: str) -> networks.Config:
    return networks.Config(hidden=(8,), lstm=MEMORY[memory])


def one_step(name: str) -> Any:
    """The rule's config with which its gradient can be left to somebody else, None if there is none."""
    module = registry.load("algorithm", name)
    tried = (small(module, **ONE_STEP), small(module, **ONE_STEP, rollout_length=1))  # some learn at every step
    return next((config for config in tried if not experiment.traits(name, config).unshareable), None)


ROLLOUTS = [name for name in registry.names("algorithm") if experiment.traits(name).learns == "rollouts"]
OTHERS = sorted({*registry.names("algorithm")} - {*ROLLOUTS})  # they learn as their runtime's contract says
SETTINGS = {name: registry.load("algorithm", name).Config.__dataclass_fields__ for name in ROLLOUTS}
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
        self.name, self.traces = case[0], 0
        self.agent, self.env = build(case, capture=capture), opened(case[1])
        self.first: list[Any] = []  # the leaves of what its `init` returned, before JAX made arrays of them
        self.init = jax.jit(self._init)
        self.compiled = jax.jit(self._update, donate_argnums=0)  # as runtimes do
        self.experience = jax.jit(functools.partial(experience, self.agent, self.env))

    def _init(self, key: Any) -> Any:
        state = self.agent.init(key)
        self.first = jax.tree.leaves(state)
        return state

    def _update(self, state: Any, rollout: types.Rollout, key: Any) -> Any:
        self.traces += 1
        return self.agent.update(state, rollout, key)

    def update(self, state: Any, rollout: types.Rollout, key: Any) -> Any:
        """By the same program, but the state that is given stays."""
        return self.compiled(jax.device_put(state, may_alias=False), rollout, key)


@functools.cache
def made(case: tuple[str, str, str], capture: bool = False) -> Case:
    return Case(case, capture=capture)


def plain(case: tuple[str, str, str]) -> Any:
    """Several choices with a memory tell least beyond each of the two: they are left to `make test-slow`."""
    return pytest.param(case, marks=pytest.mark.slow if case[1:] == ("multi_discrete", "lstm") else ())


@pytest.fixture(scope="module", params=[plain(each) for each in ALL], ids="-".join)
def case(request):
    yield made(request.param)
    conftest.give_back_memory()  # the programs of a case are of no use to the next


def experience(agent: types.Agent, env: types.Env, state: Any, key: Any) -> types.Rollout:
    actors = rollouts.start(agent, env, BATCH, key)
    return rollouts.collect(agent, env, agent.snapshot(state), actors, key)[1]


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
    declared = experiment.traits(name, small(module))
    assert set(declared.actions) <= set(ENVS)
    assert declared.actions, "it learns something"
    assert name in OTHERS or any(each[0] == name for each in ALL), "and in one of the environments of these tests"
    assert module.Config.__doc__
    assert isinstance(declared.unshareable, str)
    assert declared.samples(BATCH) >= 1, "rows of its largest product"
    for kind in declared.actions:
        for memory in MEMORY:
            assert isinstance(module.fits(small(module), network(memory), opened(kind).spec), str)


@pytest.mark.parametrize("name", registry.names("algorithm"))
def test_a_run_longer_than_it_can_count_is_refused(name):
    preset = next(each for each, found in presets.PRESETS.items() if found.algorithm == name)
    with pytest.raises(errors.Refused, match=r"steps=2,000,000,001.*at most 2,000,000,000"):
        presets.resolve(presets.Request(preset, steps=counting.MOST + 1))
    assert presets.resolve(presets.Request(preset, steps=counting.MOST))[0].steps == counting.MOST
    assert experiment.traits(name, small(registry.load("algorithm", name))).gradients >= 1


@pytest.mark.parametrize("name", registry.names("algorithm"))
def test_a_rule_declares_how_long_its_rollouts_are(name):
    config = small(registry.load("algorithm", name))
    declared = experiment.traits(name, config)
    assert declared.rollout == getattr(config, "rollout_length", 1)


def test_so_is_one_with_more_gradient_steps_than_it_can_count():
    counting.check_gradients(counting.MOST, 32, 32)
    with pytest.raises(errors.Refused, match=r"more gradient steps than 32 bits count; give at most 2,000,000,000 "):
        counting.check_gradients(counting.MOST + 64, 32, 32)
    config = options.build(ppo.Config, {"epochs": 20, "minibatches": 8, "rollout_length": 8}, "algorithm")
    made = presets.resolve(presets.Request("ppo", steps=counting.MOST))[0]
    made = dataclasses.replace(made, configs={**made.configs, "algorithm": config})
    agent = types.Agent(*[None] * 4, about=types.About(8, head="categorical", networks={}))
    with pytest.raises(errors.Refused, match="steps=2,000,000,000 with 160 gradient steps for every 64 environment"):
        training.checked(made, agent, None, 1)


RANGES = {"low": (-1.0,), "high": (1.0,)}  # of what the probes show, for rules that need to know


@pytest.mark.parametrize("name", OTHERS)
def test_one_that_does_not_learn_from_rollouts_says_how_and_has_a_runtime(name):
    module = registry.load("algorithm", name)
    declared = experiment.traits(name, small(module))
    how = declared.learns
    assert how in {experiment.ways(runtime).learns for runtime in registry.names("runtime")}
    assert declared.metrics
    assert declared.unshareable, "it leaves no gradient"
    config, spec = small(module, **RANGES), opened(declared.actions[0]).spec
    assert module.fits(config, networks.Config(), spec) == ""
    assert "--network" in module.fits(config, networks.Config(hidden=(3,)), spec), "a network would change nothing"
    given = algorithms.Ingredients(spec, networks.Config(), optimise.local(optimise.Config(), 1000), None)
    agent = module.build(config, given)
    assert tree.field(agent.about, how) is not None
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


def test_what_it_counts_holds_the_longest_run(case):
    state = case.init(jax.random.key(0))
    rollout = case.experience(state, jax.random.key(1))
    late = state._replace(env_steps=jnp.int32(counting.MOST))
    after, metrics = case.update(late, rollout, jax.random.key(2))
    assert int(after.env_steps) == counting.MOST + rollout.transitions.reward.size, "and the last update, beyond it"
    counts = [leaf for leaf in jax.tree.leaves(after) if jnp.issubdtype(leaf.dtype, jnp.integer) and leaf.ndim == 0]
    assert all(leaf.dtype.itemsize >= 4 and leaf >= 0 for leaf in counts)
    assert all(np.isfinite(value) for value in metrics.values())
    assert 0 <= metrics.get("epsilon", 0.0) <= 1
    assert 0 <= optimise.rate(after.optimiser.hyper, after.env_steps.astype(jnp.float32)) <= 1


def test_the_state_is_arrays_and_has_the_fields_of_the_contract(case):
    state = case.init(jax.random.key(0))
    assert {"params", "optimiser", "normaliser", "env_steps", "hyper"} <= set(state._fields)
    assert isinstance(state.optimiser, optimise.OptimiserState)
    assert case.first
    assert all(isinstance(leaf, jax.Array) for leaf in case.first), "as it returns them"
    for leaf in jax.tree.leaves(state):
        assert not leaf.weak_type, "a weak type would compile twice"
        assert not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key), "keys are consumed, never stored"
    assert int(state.env_steps) == 0
    other = case.init(jax.random.key(1))
    assert shapes(other) == shapes(state)
    assert not equal(state.params, other.params)


def test_it_acts_within_the_actions_and_by_the_key_alone(case):
    agent, env = case.agent, case.env
    policy = agent.snapshot(case.init(jax.random.key(0)))
    _, obs = env.init(jax.random.key(1))
    act = jax.jit(agent.act)
    for i in range(5):
        action, extras, carry = act(policy, agent.about.carry, obs, jax.random.key(i))
        again = act(policy, agent.about.carry, obs, jax.random.key(i))[0]
        assert np.array_equal(action, again)
        assert jax.tree.map(jnp.shape, carry) == jax.tree.map(jnp.shape, agent.about.carry)
        for leaf in jax.tree.leaves(extras):
            assert np.isfinite(leaf).all()
        if env.spec.action.discrete:
            assert (action.shape, action.dtype) == (env.spec.action.shape, jnp.int32)
            assert (action >= 0).all()
            assert (action < np.array(env.spec.action.sizes or env.spec.action.n)).all()
        else:
            assert (action.shape, action.dtype) == (env.spec.action.shape, jnp.float32)
    greedy = policy._replace(explore=jnp.float32(0.0))
    assert np.array_equal(
        act(greedy, agent.about.carry, obs, jax.random.key(0))[0],
        act(greedy, agent.about.carry, obs, jax.random.key(9))[0],
    ), "greedy actions do not depend on the key"


def test_every_number_that_may_change_is_told(case):
    """Each is read and written where it lies, and nothing else is touched."""
    about, state = case.agent.about, case.init(jax.random.key(0))
    before = tree.host(state)
    assert about.hyper, "something may change"
    hyper = {f"algorithm.{name}" for name in state.hyper._fields}
    assert {name for name in about.hyper if name.startswith("algorithm.")} == hyper, "all that the state holds"
    config = registry.load("algorithm", case.name).Config.__dataclass_fields__
    for name, leaf in about.hyper.items():
        part, _, field = name.partition(".")
        known = config if part == "algorithm" else optimise.Config.__dataclass_fields__
        assert field in known, "an option"
        assert part == "algorithm" or part in about.fields.optimisers
        value = np.asarray(leaf.get(state))
        assert (value.shape, value.dtype) == ((), np.float32)
        assert np.isfinite([leaf.low, leaf.high]).all()
        assert leaf.low <= float(value) <= leaf.high, name
        assert leaf.scale in ("linear", "log", "integer")
        assert leaf.scale != "log" or leaf.low >= 0.0
        other = float(np.float32(value * 0.5 + 0.125))
        changed = leaf.put(state, other)
        assert shapes(changed) == shapes(state)
        assert float(leaf.get(changed)) == other
        after = tree.host(changed)
        moved = [path for path in before if not np.array_equal(before[path], after[path])]
        assert len(moved) == 1, name
        assert moved[0].endswith(f".{field}")
        assert equal(leaf.put(changed, value), state), "there and back"


def test_every_optimiser_of_the_state_is_named(case):
    state = case.init(jax.random.key(0))
    named = [tree.field(state, field) for field in case.agent.about.fields.optimisers]
    assert len(named) == len(optimisers(state))
    assert all(isinstance(each, optimise.OptimiserState) for each in named)


def test_an_update_from_memory_is_its_practice_with_a_memory_that_somebody_else_keeps(case):
    practice, field = case.agent.about.practice, case.agent.about.fields.memory
    assert practice is None or field is not None
    if practice is None:  # it has no memory, or one that it learns from at times of its own (CEM-RL)
        return
    state, memory = case.init(jax.random.key(0)), _memory.build(practice.plan, case.env.spec)
    rollout, key = case.experience(state, jax.random.key(1)), jax.random.key(2)
    expected = case.update(state, rollout, key)[0]

    def step(bare, kept):
        assert tree.field(bare, field) == ()
        bare, steps = practice.prepare(bare, rollout)
        kept = memory.add(kept, steps)
        drawn = memory.sample(kept, *practice.drawing(bare), jax.random.split(key)[0])
        after, errors, metrics = practice.learn(bare, drawn, jax.random.split(key)[1])
        return after, errors, metrics, practice.ready(bare)

    after, errors, metrics, ready = jax.jit(step)(tree.replaced(state, field, ()), tree.field(state, field))
    assert practice.updates == 1
    assert ready
    assert tree.field(after, field) == ()
    assert errors.shape == (practice.plan.batch,)
    assert np.isfinite(metrics["loss"])
    for found, wanted in pairs(after, tree.replaced(expected, field, ())):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    not_yet = tree.replaced(state, "hyper", state.hyper._replace(learning_starts=jnp.float32(1e9)))
    assert not practice.ready(not_yet)


def test_an_update_keeps_shapes_counts_steps_and_is_compiled_once(case):
    state, sizes = case.init(jax.random.key(0)), []
    first, params = shapes(state), jax.device_get(state.params)
    for i in range(3):
        state, metrics = case.compiled(state, case.experience(state, jax.random.key(i)), jax.random.key(10 + i))
        sizes.append(case.compiled._cache_size())
    assert (case.traces, sizes) == (1, [sizes[0]] * 3), "what it returns is given to the same program"
    assert shapes(state) == first
    assert int(state.env_steps) == 3 * BATCH * case.agent.about.rollout_length
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
    if case.agent.about.carry:
        return  # the sweep of the network without memory says it all
    keys, rates = jax.random.split(jax.random.key(0), 4), jnp.array([1e-2, 1e-3, 1e-3, 1e-4])

    def prepared(key, rate):
        state = case.init(key)
        state = at_rate(state, rate)._replace(hyper=state.hyper._replace(discount=rate * 50.0))
        return state, case.experience(state, key)

    several = jax.eval_shape(jax.vmap(prepared), keys, rates)  # these can be swept too
    each = [prepared(*given) for given in zip(keys, rates, strict=True)]
    states, rollouts = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    assert jax.tree.map(np.shape, (states, rollouts)) == jax.tree.map(np.shape, several)
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
    assert int(state.env_steps) == BATCH * case.agent.about.rollout_length, "what was seen is counted all the same"


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
