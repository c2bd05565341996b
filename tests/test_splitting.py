"""Owners that train together: the optimiser that tells what is everybody's from what is an owner's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import algorithms, networks
from shoal.core import errors, registry, tree
from shoal.experiment import presets
from shoal.formulas import optimise, rules, splitting
from shoal.networks import scopes

RULES = tuple(rules.RULES)
STEPS = 100


def params(key=0):
    """Two layers of everybody's, one of an owner's, and a number of no layer."""
    keys = jax.random.split(jax.random.key(key), 6)
    return {
        "trunk_dense_0": {"kernel": jax.random.normal(keys[0], (3, 4)), "bias": jax.random.normal(keys[1], (4,))},
        "own_policy": {"kernel": jax.random.normal(keys[2], (4, 2)), "bias": jax.random.normal(keys[3], (2,))},
        "log_alpha": jax.random.normal(keys[4], ()),
    }


def served(config):
    """As an owner and a server do it together: the local part at home, the global one by the same rule elsewhere."""
    home = splitting.split(config, STEPS, networks.is_global)
    server = optimise.local(dataclasses.replace(config, max_norm=0.0), STEPS)

    def init(theta):
        return home.init(theta), server.init(scopes.split(theta)[0])

    @jax.jit
    def step(gradient, states, theta, env_steps, ask=optimise.PLAIN):
        theta, at_home, norm = home.update(gradient, states[0], theta, env_steps, ask)
        shared, own = scopes.split(theta)
        ask = ask._replace(rates=at_home.rates)
        shared, at_server, _ = server.update(at_home.gradient, states[1], shared, env_steps, ask)
        return scopes.join(shared, own), (at_home, at_server), norm

    return init, step


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("max_norm", [0.0, 0.5])
def test_split_and_the_same_rule_for_what_is_everybodys_give_the_bits_of_local(rule, max_norm):
    config = optimise.Config(rule=rule, max_norm=max_norm)
    alone = optimise.local(config, STEPS)
    update = jax.jit(alone.update)
    init, step = served(config)
    theta, state = params(), alone.init(params())
    both, states = params(), init(params())
    for i in range(4):
        gradient = jax.tree.map(lambda leaf: 3.0 * leaf, params(i + 1))
        theta, state, norm = update(gradient, state, theta, jnp.int32(i))
        both, states, same = step(gradient, states, both, jnp.int32(i))
        assert tree.sha256(both) == tree.sha256(theta)
        assert float(norm) == float(same)
    assert tree.sha256(theta) != tree.sha256(params())


def test_global_parameters_stay_and_their_clipped_gradient_is_left():
    config = optimise.Config(max_norm=1.0)
    home = splitting.split(config, STEPS, networks.is_global)
    theta, gradient = params(), params(1)
    after, state, norm = home.update(gradient, home.init(theta), theta, jnp.int32(0))
    assert after["trunk_dense_0"] is not None
    np.testing.assert_array_equal(after["trunk_dense_0"]["kernel"], theta["trunk_dense_0"]["kernel"])
    assert (after["own_policy"]["kernel"] != theta["own_policy"]["kernel"]).all()
    assert after["log_alpha"] != theta["log_alpha"], "what is of no layer is an owner's"
    left = state.gradient
    assert left["own_policy"] == {"kernel": (), "bias": ()}
    assert left["log_alpha"] == ()
    np.testing.assert_allclose(left["trunk_dense_0"]["bias"], gradient["trunk_dense_0"]["bias"] / norm, rtol=1e-6)
    everything = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])
    np.testing.assert_allclose(norm, np.linalg.norm(everything), rtol=1e-6)
    assert jax.tree.structure(home.init(theta)) == jax.tree.structure(state), "the state keeps its form"


@pytest.mark.parametrize("layer", ["trunk_dense_0", "own_policy"])
def test_a_gradient_that_is_not_finite_moves_nothing_at_home_and_is_counted(layer):
    home = splitting.split(optimise.Config(rule="adam"), STEPS, networks.is_global)
    theta, gradient = params(), params(1)
    gradient[layer]["bias"] = gradient[layer]["bias"].at[0].set(jnp.inf)
    after, state, norm = home.update(gradient, home.init(theta), theta, jnp.int32(0))
    assert tree.sha256(after) == tree.sha256(theta)
    assert int(state.skipped) == 1
    assert int(state.rule.count) == 0
    assert not np.isfinite(norm)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(state.gradient)), "nobody takes it for a step"


def test_rates_of_layers_are_kept_with_the_gradient_and_at_home():
    config = optimise.Config(rule="momentum", decay=0.0, anneal=False, learning_rate=0.1, max_norm=0.0)
    theta = {"trunk_dense_0": {"bias": jnp.zeros(2)}, "own_policy": {"bias": jnp.zeros(2)}}
    ask = optimise.Step(rates=jax.tree.map(lambda _: jnp.float32(3.0), theta))
    home = splitting.split(config, STEPS, networks.is_global)
    ones = jax.tree.map(jnp.ones_like, theta)
    after, state, _ = home.update(ones, home.init(theta, ask.rates), theta, jnp.int32(0), ask)
    np.testing.assert_allclose(after["own_policy"]["bias"], -0.3, rtol=1e-6)
    assert state.rates == {"trunk_dense_0": {"bias": 3.0}, "own_policy": {"bias": ()}}


def test_without_an_owners_part_or_everybodys_split_is_capture_or_local():
    config = optimise.Config()
    everybodys, own = {"dense": {"bias": jnp.ones(2)}}, {"own_dense": {"bias": jnp.ones(2)}}
    for theta, leaves in ((everybodys, 1), (own, 0)):
        home = splitting.split(config, STEPS, networks.is_global)
        after, state, _ = home.update(theta, home.init(theta), theta, jnp.int32(0))
        assert len(jax.tree.leaves(state.gradient)) == leaves
        moved = optimise.local(config, STEPS)
        wanted = theta if leaves else moved.update(theta, moved.init(theta), theta, jnp.int32(0))[0]
        assert tree.sha256(after) == tree.sha256(wanted)


def test_proximal_draws_what_is_everybodys_to_the_anchor():
    config = optimise.Config(rule="momentum", decay=0.0, anneal=False, learning_rate=0.1, max_norm=0.0)
    near = splitting.proximal(optimise.local(config, STEPS), networks.is_global)
    theta = {"dense": {"bias": jnp.array([1.0, 2.0])}, "own_dense": {"bias": jnp.array([1.0, 2.0])}}
    state = splitting.anchored(near.init(theta), theta, networks.is_global, 0.5)
    theta = jax.tree.map(lambda leaf: leaf + 4.0, theta)
    nothing = jax.tree.map(jnp.zeros_like, theta)
    after, same, _ = jax.jit(near.update)(nothing, state, theta, jnp.int32(0))
    np.testing.assert_allclose(after["dense"]["bias"], [5.0 - 0.1 * 0.5 * 4.0, 6.0 - 0.1 * 0.5 * 4.0], rtol=1e-6)
    np.testing.assert_array_equal(after["own_dense"]["bias"], theta["own_dense"]["bias"])
    assert jax.tree.structure(same) == jax.tree.structure(near.init(theta))
    np.testing.assert_array_equal(same.anchor["dense"]["bias"], [1.0, 2.0])


def test_proximal_without_strength_gives_the_bits_of_what_it_wraps():
    plain = optimise.local(optimise.Config(rule="adam"), STEPS)
    near = splitting.proximal(plain, networks.is_global)
    theta, gradient = params(), params(1)
    after = [made.update(gradient, made.init(theta), theta, jnp.int32(0))[0] for made in (plain, near)]
    assert tree.sha256(after[0]) == tree.sha256(after[1])


@pytest.mark.parametrize("make", ["split", "local"])
def test_an_owners_own_layers_may_have_a_pace_of_their_own(make):
    config = optimise.Config(rule="momentum", decay=0.0, anneal=False, learning_rate=0.1, max_norm=0.0, local_rate=5.0)
    theta = {"dense": {"bias": jnp.zeros(2)}, "own_dense": {"bias": jnp.zeros(2)}}
    ones = jax.tree.map(jnp.ones_like, theta)
    for rates, times in (((), 1.0), (jax.tree.map(lambda _: jnp.float32(2.0), theta), 2.0)):
        ask = optimise.Step(rates=rates)
        made = splitting.split(config, STEPS, networks.is_global)
        if make == "local":
            made = splitting.paced(optimise.local(config, STEPS), networks.is_global, config.local_rate)
        after, _, _ = made.update(ones, made.init(theta, rates), theta, jnp.int32(0), ask)
        np.testing.assert_allclose(after["own_dense"]["bias"], -0.5 * times, rtol=1e-6)
        wanted = 0.0 if make == "split" else -0.1 * times
        np.testing.assert_allclose(after["dense"]["bias"], wanted, rtol=1e-6)
    assert splitting.paced(made, networks.is_global, 1.0) is made


def test_a_pace_of_its_own_is_refused_where_all_gradients_meet_one_set_of_parameters():
    settings = {"optimiser": {"local_rate": 2.0}}
    with pytest.raises(errors.Refused, match=r"optimiser\.local_rate=2 is for parties"):
        presets.resolve(presets.Request("a3c", "CartPole-v1", 100, settings=settings))
    made, _ = presets.resolve(presets.Request("a2c", "probe:match", 100, settings=settings))
    assert made.configs["optimiser"].local_rate == 2.0


def test_a_rule_that_is_split_learns_what_it_learns_alone(env_spec, rollout):
    """One owner, and a server that steps by the same rule at the count that the learner had: the same bits."""
    spec, config = env_spec((4,), choices=2), optimise.Config(rule="adam")
    module, correct = registry.load("algorithm", "actor_critic"), registry.load("corrector", "none")

    def agent(optimiser):
        network = networks.Config(hidden=(8,), form="D")
        given = algorithms.Ingredients(spec, network, optimiser, correct.build(correct.Config()), streams=4)
        return module.build(module.Config(), given)

    alone = agent(optimise.local(config, STEPS))
    owner = agent(splitting.split(config, STEPS, networks.is_global))
    state, mine = (jax.jit(each.init)(jax.random.key(0)) for each in (alone, owner))
    server = optimise.local(dataclasses.replace(config, max_norm=0.0), STEPS)
    kept = server.init(scopes.split(mine.params)[0])

    @jax.jit
    def serve(state, kept, env_steps):
        shared, own = scopes.split(state.params)
        shared, kept, _ = server.update(state.optimiser.gradient, kept, shared, env_steps)
        return state._replace(params=scopes.join(shared, own)), kept

    updates = [jax.jit(each.update) for each in (alone, owner)]
    for i in range(2):
        lesson, before = rollout(spec, alone.about.rollout_length, 4, seed=i), mine.env_steps
        state, _ = updates[0](state, lesson, jax.random.key(i))
        mine, _ = updates[1](mine, lesson, jax.random.key(i))
        mine, kept = serve(mine, kept, before)
        assert tree.sha256(mine.params) == tree.sha256(state.params)
