"""Forms of networks, of which a part is everybody's and a part an owner's; and whose a parameter is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import algorithms, environments, experiment, networks
from shoal.core import errors, options, registry, tree, types
from shoal.experiment import wiring
from shoal.formulas import optimise
from shoal.networks import scopes

FORMS = ("A", "B", "C", "D", "E", "F")
HEADS = {"policy": networks.Head(3, 1.0), "value": networks.Head(1, 1.0)}
ENVS = {"discrete": "probe:match", "multi_discrete": "probe:pair", "continuous": "probe:target"}


def vector(size=4):
    return types.ObservationSpec((size,), "float32", False)


def image():
    return types.ObservationSpec((36, 36, 2), "uint8", True)


def built(form, observation=None, heads=HEADS, **config):
    given = {"hidden": (8, 6), "adapter": 5, **config}
    return networks.build(networks.Config(form=form, **given), observation or vector(), heads)


def shapes(network):
    return jax.eval_shape(network.init, jax.random.key(0))


def drawn(network, seed=0):
    """Parameters with no zeros among them."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes(network))


def layers(spec):
    rows = [*spec.trunks.values(), *(row for _, row in spec.heads.values())]
    rows += [row for terms in spec.terms.values() for _, row in terms]
    return [layer for row in rows for layer in row] + list(spec.vectors.values())


def owners(params):
    """Names of the layers of everybody's, and of an owner's."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    of_all = {path[0].key for path in paths if networks.is_global(path)}
    return of_all, {path[0].key for path in paths if not networks.is_global(path)}


# ---------------------------------------------------------------------------------------------- what the forms are


def test_what_is_everybodys_and_what_an_owners():
    trunk, heads = {"trunk_dense_0", "trunk_dense_1"}, {"policy", "value"}
    own = lambda names: {f"own_{name}" for name in names}  # noqa: E731
    expected = {
        "none": (trunk | heads, set()),
        "A": (trunk, own(heads)),
        "B": (trunk | heads, {"own_trunk_adapter"}),
        "C": (trunk, own(heads) | {"own_trunk_adapter"}),
        "D": (trunk | heads, own(trunk | heads)),
        "E": (trunk, own(trunk | heads)),
        "F": (trunk | heads, {"own_embedding"}),
    }
    assert {form: owners(shapes(built(form))) for form in expected} == expected
    assert owners(shapes(built("none", heads={"value": (1, 1.0)}, critic_form="local")))[0] == set()


@pytest.mark.parametrize("form", ["none", *FORMS])
@pytest.mark.parametrize("settings", [{}, {"shared": False}, {"lstm": 3}, {"hidden": (8,), "dueling": True}])
def test_names_tell_the_scope_of_every_layer_and_of_every_parameter(form, settings):
    heads = {"q": networks.Head(3, 1.0, "values")} if "dueling" in settings else HEADS
    network = built(form, heads=heads, **settings)
    made = {layer.name: layer.scope for layer in layers(network.spec) if layer.name}
    assert all((scope == "local") == name.startswith(scopes.LOCAL) for name, scope in made.items())
    of_all, own = owners(shapes(network))
    assert not of_all & own
    assert {name.removesuffix("_free") for name in of_all | own} == set(made)
    assert {name for name, scope in made.items() if scope == "global"} == of_all


def test_the_formulas_of_the_forms():
    """On numbers: h, g, e and l by hand."""
    obs = np.array([0.3, -0.2, 0.5, 1.0], np.float32)
    config = {"hidden": (8,), "adapter": 5, "heads": {"policy": networks.Head(3, 1.0)}}

    def dense(params, name, x):
        return np.asarray(x, np.float64) @ params[name]["kernel"] + params[name]["bias"]

    def hidden(params, name, x):
        return np.tanh(dense(params, name, x))

    def of(p):
        return {
            "A": lambda: dense(p, "own_policy", hidden(p, "trunk_dense_0", obs)),
            "B": lambda: dense(p, "policy", hidden(p, "trunk_dense_0", hidden(p, "own_trunk_adapter", obs))),
            "C": lambda: dense(p, "own_policy", hidden(p, "trunk_dense_0", hidden(p, "own_trunk_adapter", obs))),
            "D": lambda: (
                dense(p, "policy", hidden(p, "trunk_dense_0", obs))
                + dense(p, "own_policy", hidden(p, "own_trunk_dense_0", obs))
            ),
            "E": lambda: dense(
                p, "own_policy", [*hidden(p, "trunk_dense_0", obs), *hidden(p, "own_trunk_dense_0", obs)]
            ),
            "F": lambda: dense(p, "policy", hidden(p, "trunk_dense_0", [*p["own_embedding"]["bias"], *obs])),
        }

    for form in FORMS:
        network = built(form, **config)
        params = drawn(network)
        found = network.apply(params, jnp.asarray(obs), ())[0]["policy"]
        np.testing.assert_allclose(found, of(params)[form](), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("initialiser", ["orthogonal", "fan_in", "glorot"])
def test_a_sum_begins_as_the_network_that_everybody_shares(initialiser):
    heads = {"policy": networks.Head(4, 1.0, "gaussian"), "value": (1, 1.0)}
    whole, shared = (built(form, heads=heads, initialiser=initialiser) for form in ("D", "none"))
    params = jax.jit(whole.init)(jax.random.key(3))
    assert all(not leaf.any() for name in ("own_policy", "own_value") for leaf in jax.tree.leaves(params[name]))
    assert params["own_trunk_dense_0"]["kernel"].any(), "or it could never learn"
    everybodys = {name: held for name, held in params.items() if not name.startswith(scopes.LOCAL)}
    obs = jnp.array([0.3, -0.2, 0.5, 1.0])
    found, wanted = whole.apply(params, obs, ())[0], shared.apply(everybodys, obs, ())[0]
    assert {name: leaf.tolist() for name, leaf in found.items()} == {n: leaf.tolist() for n, leaf in wanted.items()}


def test_an_embedding_is_uniform_between_minus_one_and_one():
    network = built("F", embedding=2000, hidden=(2,), initialiser="fan_in")
    drawn = [np.asarray(network.init(jax.random.key(i))["own_embedding"]["bias"]) for i in range(2)]
    assert drawn[0].shape == (2000,)
    assert (drawn[0] != drawn[1]).any()
    assert -1.0 <= drawn[0].min() < -0.99
    assert 0.99 < drawn[0].max() <= 1.0
    quantiles = np.quantile(drawn[0], [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quantiles, [-0.5, 0.0, 0.5], atol=0.06)


def layout(form, observation, outputs):
    heads = {"policy": networks.Head(outputs, 1.0), "value": (1, 1.0)}
    return scopes.layout(shapes(built(form, vector(observation), heads)))


def test_who_may_differ_in_what():
    """CartPole, Acrobot and MountainCar see 4, 6 and 2 numbers and choose among 2, 3 and 3."""
    same = {
        form: (layout(form, 4, 3) == layout(form, 6, 3), layout(form, 4, 2) == layout(form, 4, 3)) for form in FORMS
    }  # observations, actions
    nothing, both = (False, False), (True, True)
    observations, actions = (True, False), (False, True)
    assert same == {"A": actions, "B": observations, "C": both, "D": nothing, "E": actions, "F": nothing}
    assert len({layout("C", *spaces) for spaces in ((4, 2), (6, 3), (2, 3))}) == 1
    assert layout("C", 4, 2) == (
        ("trunk_dense_0/bias", (8,)),
        ("trunk_dense_0/kernel", (5, 8)),
        ("trunk_dense_1/bias", (6,)),
        ("trunk_dense_1/kernel", (8, 6)),
    )


@pytest.mark.parametrize("torso", ["dqn_2013", "nature"])
def test_of_images_an_owner_keeps_the_convolutions(torso):
    convolutions = {"dqn_2013": 2, "nature": 3}[torso]
    for form in ("B", "C"):
        of_all, own = owners(shapes(built(form, image(), torso=torso)))
        assert {f"own_trunk_conv_{i}" for i in range(convolutions)} <= own
        assert "trunk_dense_0" in of_all
        assert not any("conv" in name for name in of_all)
        assert not any("adapter" in name for name in own), "the convolutions are the encoder"
    of_all, own = owners(shapes(built("F", image(), torso=torso, embedding=2)))
    assert own == {"own_embedding"}
    assert "trunk_conv_0" in of_all
    wide, narrow = (shapes(built(f, image(), torso=torso, embedding=2))["trunk_dense_0"]["kernel"] for f in "FA")
    assert wide.shape[0] == narrow.shape[0] + 2, "it joins what the convolutions make of an image"


@pytest.mark.parametrize("form", FORMS)
def test_gradients_flow_to_both_parts(form):
    network = built(form)
    params = drawn(network)

    def loss(params):
        outputs, _ = network.apply(params, jnp.array([0.3, -0.2, 0.5, 1.0]), ())
        return sum(jnp.sum(output**2) for output in outputs.values())

    for part in scopes.split(jax.jit(jax.grad(loss))(params)):
        assert jax.tree.leaves(part)
        assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(part))


@pytest.mark.parametrize("form", ["A", "C", "E"])
def test_a_form_that_would_share_nothing_is_refused(form):
    with pytest.raises(errors.Refused, match=f"network.form={form} shares hidden layers"):
        built(form, hidden=())
    assert scopes.layout(shapes(built("B", hidden=())))


def test_values_have_a_form_of_their_own_on_a_trunk_of_their_own():
    of_all, own = owners(shapes(built("A", shared=False, critic_form="local")))
    assert of_all == {"policy_trunk_dense_0", "policy_trunk_dense_1"}
    assert {"own_value", "own_value_trunk_dense_0", "own_policy"} <= own
    with pytest.raises(errors.Refused, match=r"network.shared to false"):
        built("A", critic_form="local")
    assert owners(shapes(built("A", critic_form="A"))) == owners(shapes(built("A")))


def test_settings_that_are_left_alone_are_not_written_down():
    assert not {"form", "critic_form", "adapter", "embedding"} & set(options.plain(networks.Config()))
    assert options.build(networks.Config, {"form": "C"}, "network").form == "C"
    with pytest.raises(errors.Refused, match=r"network\.form"):
        options.build(networks.Config, {"form": "G"}, "network")


# ---------------------------------------------------------------------------------------------- for every rule


def rules():
    """All that take a network."""
    for name in registry.names("algorithm"):
        module = registry.load("algorithm", name)
        takes = not module.fits(module.Config(), networks.Config(hidden=(8,)), opened(module).spec)
        if takes and experiment.traits(name).learns == "rollouts":
            yield name


def opened(module):
    kinds = module.traits(module.Config()).actions
    return environments.open(ENVS[kinds[0]], environments.Config()).device


def agent(name, **config):
    module = registry.load("algorithm", name)
    correct = registry.load("corrector", "none")
    small = {
        "capacity": 256,
        "batch": 8,
        "rollout_length": 8,
        "minibatches": 2,
        "policies": 2,
        "trained": 1,
        "elites": 1,
    }
    small = {k: v for k, v in small.items() if k in module.Config.__dataclass_fields__}
    network = networks.Config(hidden=(8,), adapter=4, **config)
    spec = opened(module).spec
    if reason := module.fits(options.build(module.Config, small, "algorithm"), network, spec):
        return reason
    given = algorithms.Ingredients(
        spec, network, optimise.local(optimise.Config(), 100), correct.build(correct.Config()), streams=2
    )
    return module.build(options.build(module.Config, small, "algorithm"), given)


@pytest.mark.parametrize("name", list(rules()))
def test_every_form_builds_for_every_rule_that_takes_a_network(name):
    for form in FORMS:
        made = agent(name, form=form)
        if name == "map_propagation" and form != "A":
            assert "set network.form to none or A" in made
            continue
        params = jax.eval_shape(made.init, jax.random.key(0)).params
        scoped = {
            layer.name: layer.scope
            for network in made.about.networks.values()
            for layer in layers(network.spec)
            if layer.name
        }
        assert set(scoped.values()) == {"global", "local"}
        for path, _ in jax.tree_util.tree_leaves_with_path(params):
            names = [jax.tree_util.keystr((key,), simple=True).removesuffix("_free") for key in path]
            scope = next((scoped[each] for each in reversed(names) if each in scoped), "of no layer")
            assert networks.is_global(path) == (scope == "global"), path


@pytest.mark.parametrize("name", ["sac", "td3"])
def test_critics_are_tagged_apart_and_numbers_of_no_layer_stay_home(name):
    params = jax.eval_shape(agent(name, form="A", critic_form="local").init, jax.random.key(0)).params
    shared, own = scopes.split(params)
    assert not jax.tree.leaves(shared["critics"])
    assert jax.tree.leaves(shared["policy"])
    if name == "sac":
        assert shared["log_alpha"] == ()
        assert own["log_alpha"].shape == ()
    same = jax.eval_shape(agent(name, form="A").init, jax.random.key(0)).params
    assert jax.tree.leaves(scopes.split(same)[0]["critics"])
    names = [name for name, _ in scopes.layout(same)]
    assert names == sorted(names)
    assert any(name.startswith("critics/0/trunk_dense_0/") for name in names)


# ---------------------------------------------------------------------------------------------- whose a parameter is


@pytest.mark.parametrize("form", ["none", *FORMS])
def test_split_and_join_and_vector_and_install_are_each_others_inverse(form):
    network = built(form, lstm=2)
    params = {"policy": drawn(network, 1), "critics": drawn(network, 2), "log_alpha": np.float32(0.3)}
    shared, own = scopes.split(params)
    assert tree.sha256(scopes.join(shared, own)) == tree.sha256(params)
    assert jax.tree.structure(scopes.join(shared, own)) == jax.tree.structure(params)
    assert len(jax.tree.leaves(shared)) + len(jax.tree.leaves(own)) == len(jax.tree.leaves(params))
    whole = scopes.vector(params)
    assert whole.dtype == jnp.float32
    assert whole.shape == (scopes.counts(params).shared,)
    assert tree.sha256(scopes.install(params, whole)) == tree.sha256(params)
    other = np.random.default_rng(0).normal(size=whole.shape).astype(np.float32)
    after = scopes.install(params, other)
    np.testing.assert_array_equal(scopes.vector(after), other)
    assert tree.sha256(scopes.split(after)[1]) == tree.sha256(own), "nothing of an owner's is touched"
    np.testing.assert_array_equal(scopes.vector(shared), whole)


def test_a_vector_is_laid_out_by_name_whatever_the_order():
    theta = {
        "trunk_dense_10": {"kernel": np.full((1, 2), 3.0, np.float32), "bias": np.full(2, 2.0, np.float32)},
        "trunk_dense_1": {"kernel": np.full((2, 1), 1.0, np.float32), "bias": np.full(1, 0.0, np.float32)},
        "own_policy": {"bias": np.full(3, 9.0, np.float32)},
    }
    backwards = {name: dict(reversed(held.items())) for name, held in reversed(theta.items())}
    for each in (theta, backwards):
        assert scopes.layout(each) == (
            ("trunk_dense_1/bias", (1,)),
            ("trunk_dense_1/kernel", (2, 1)),
            ("trunk_dense_10/bias", (2,)),
            ("trunk_dense_10/kernel", (1, 2)),
        )
        assert scopes.vector(each).tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    assert scopes.counts(theta) == (7, 3)


def test_parties_are_an_axis_of_it():
    network = built("C")
    each = [drawn(network, i) for i in range(3)]
    many = tree.stack(each)
    vectors = jax.jit(jax.vmap(scopes.vector))(many)
    np.testing.assert_array_equal(vectors[1], scopes.vector(each[1]))
    installed = jax.jit(jax.vmap(scopes.install, in_axes=(0, None)))(many, vectors[2])
    for i, own in enumerate(each):
        assert tree.sha256(tree.unstack(jax.device_get(installed))[i]) == tree.sha256(
            jax.device_get(scopes.install(own, vectors[2]))
        )


@pytest.mark.parametrize("more", [-1, 1])
def test_a_vector_of_another_size_is_refused(more):
    params = drawn(built("A"))
    size = scopes.counts(params).shared
    with pytest.raises(ValueError, match=rf"\[{size + more}\] was given, and there is place for \[{size}\]"):
        scopes.install(params, jnp.zeros(size + more))


def test_moments_and_targets_are_told_apart_by_their_paths():
    state = {"target": {"own_policy": {"bias": jnp.ones(1)}}, "mu": {"trunk_dense_0": {"kernel": jnp.ones(2)}}}
    shared, own = scopes.split(state)
    assert shared == {"target": {"own_policy": {"bias": ()}}, "mu": shared["mu"]}
    assert own["mu"] == {"trunk_dense_0": {"kernel": ()}}


def test_counts_at_the_reference_size():
    """The table of docs/federated.md: 64 - 64, adapter 64, 4 numbers seen and 2 choices, an actor with a value."""
    heads = {"policy": networks.Head(2, 0.01), "value": networks.Head(1, 1.0)}
    made = {form: networks.build(networks.Config(form=form), vector(4), heads) for form in ("none", *FORMS)}
    assert {form: tuple(scopes.counts(shapes(network))) for form, network in made.items()} == {
        "none": (4675, 0),
        "A": (4480, 195),
        "B": (8515, 320),
        "C": (8320, 515),
        "D": (4675, 4675),
        "E": (4480, 4867),
        "F": (4739, 1),
    }


# ---------------------------------------------------------------------------------------------- the seam


def test_a_runtime_says_where_the_gradient_is_applied():
    theta = {"dense": {"bias": jnp.ones(2)}, "own_dense": {"bias": jnp.ones(3)}}

    def kept(**ways):
        state = wiring._optimiser(optimise.Config(rule="rmsprop"), 10, types.Ways(**ways)).init(theta)
        return [len(jax.tree.leaves(part)) for part in (state.rule, state.gradient, state.anchor)]

    assert kept() == [1, 0, 0]
    assert kept(captures=True) == [0, 2, 0]
    assert kept(splits=True) == [1, 1, 0]
    assert kept(proximal=True) == [1, 0, 1]


def test_several_policies_each_keep_an_anchor():
    """DvD and CEM-RL have K policies in one optimiser."""
    made = wiring._optimiser(optimise.Config(rule="adam"), 10, types.Ways(proximal=True))
    several = registry.load("algorithm", "dvd")._several
    theta = {"dense": {"bias": jnp.arange(6.0).reshape(2, 3)}}
    state = several.starting(made, theta)
    assert state.mu.shape == ()
    assert state.anchor["dense"]["bias"].shape == (2, 3)
    after, same = several.climb(made, jax.tree.map(jnp.ones_like, theta), state, theta, jnp.int32(0))
    plain = wiring._optimiser(optimise.Config(rule="adam"), 10, types.Ways())
    wanted, _ = several.climb(plain, jax.tree.map(jnp.ones_like, theta), several.starting(plain, theta), theta, 0)
    assert tree.sha256(after) == tree.sha256(wanted)
    assert jax.tree.structure(same) == jax.tree.structure(state)
