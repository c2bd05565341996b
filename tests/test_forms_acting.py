"""Whoever runs, exports or compresses a network of form A to F computes what the network does, or refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest

from shoal import networks
from shoal.compress import _payload, _structure, _units
from shoal.core import registry, types
from shoal.formulas import normalise
from shoal.networks import compact, export, in_numpy
from shoal.networks.engines import choosing, in_jax, in_numba
from tests import conftest

FORMS = ("A", "B", "C", "D", "E", "F")
JOINED = ("D", "E", "F")  # that are not rows of layers alone
HEADS = {"policy": networks.Head(3, 1.0), "value": networks.Head(1, 1.0)}
VECTOR = types.ObservationSpec((4,), "float32", False)
BYTES = types.ObservationSpec((5, 4, 3), "uint8", True)
CASES = {  # what an engine may stumble over: statistics of observations, bytes, several trunks, memory
    "normalised": {"normalised": True},
    "bytes": {"observation": BYTES},
    "lstm": {"lstm": 3, "shared": False, "critic_form": "local"},
    "gaussian": {"heads": {"policy": networks.Head(4, 1.0, "gaussian")}},
}
EVERY = [(form, "normalised") for form in FORMS] + [(form, name) for form in JOINED for name in CASES if name[0] != "n"]


@functools.cache
def made(form, name="normalised", seed=0):
    """(network, policy, the same for acting); no number is 0."""
    config = dict(CASES[name])
    observed, heads = config.pop("observation", VECTOR), config.pop("heads", HEADS)
    normalised, rng = config.pop("normalised", False), np.random.default_rng(seed)
    config = {"hidden": (8, 6), "adapter": 6, "embedding": 2, **config}
    network = networks.build(networks.Config(form=form, **config), observed, heads)

    def draw(leaf):
        return rng.normal(0, 0.5, leaf.shape).astype(np.float32)

    params = jax.tree.map(draw, jax.eval_shape(network.init, jax.random.key(0)))
    statistics = ()
    if normalised:
        spread = rng.uniform(5, 50, observed.shape).astype(np.float32)
        statistics = normalise.Statistics(np.float32(10.0), draw(spread), spread)
    policy = types.Policy(params, statistics, np.float32(1.0))
    return network, policy, compact.of(network.spec, policy, tuple(heads))


def seen(network, rows=6, seed=1):
    observed, rng = network.spec.observation, np.random.default_rng(seed)
    if observed.dtype == "uint8":
        return rng.integers(0, 256, (rows, *observed.shape)).astype(np.uint8)
    return rng.normal(0, 1, (rows, *observed.shape)).astype(np.float32)


def memory(network, rows):
    rng = np.random.default_rng(5)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.5, (rows, *leaf.shape)).astype(np.float32), network.carry)


def wanted(network, policy, obs, carry):
    """By the network itself."""

    def one(obs, carry):
        x = normalise.apply(policy.normaliser, obs) if policy.normaliser else obs
        return network.apply(policy.params, x, carry)

    return jax.jit(jax.vmap(one))(obs, carry)


@pytest.mark.parametrize(("form", "name"), EVERY)
def test_every_engine_and_the_exported_file_give_what_the_network_gives(form, name):
    network, policy, small = made(form, name)
    obs, carry = seen(network), memory(network, 6)
    outputs, after = wanted(network, policy, obs, carry)
    rows = len(obs)
    for engine in choosing.NAMES:
        if why := choosing.file(engine).fits(small, rows):
            assert (engine, form in JOINED) == ("numba", True) or network.carry, why
            continue
        run = choosing.file(engine).make(small, rows)
        for _ in range(2):  # what the first call left must not matter
            found, following = run(obs, jax.tree.map(np.copy, carry))
        for head, output in outputs.items():
            np.testing.assert_allclose(found[head], output, rtol=1e-4, atol=1e-5, err_msg=f"{engine} {head}")
        for left, right in zip(jax.tree.leaves(following), jax.tree.leaves(after), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)
    if "gaussian" not in name:
        exported(small, obs, carry, outputs, after)


def exported(small, obs, carry, outputs, after):
    model = export.compact_model(small, "categorical", types.ActionSpec(True, 3, (), (), ()))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    cells = (carry or {}).items()
    given = {f"carry_{cell}_{part}": leaf for cell, pair in cells for part, leaf in zip("ch", pair, strict=True)}
    found = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"obs": obs, **given}), strict=True))
    np.testing.assert_allclose(found["logits"], outputs["policy"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["value"], outputs["value"][:, 0], rtol=1e-4, atol=1e-5)
    for cell, pair in (after or {}).items():
        np.testing.assert_allclose(found[f"next_carry_{cell}_h"], pair[1], rtol=1e-4, atol=1e-5)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    one = session.run(["logits"], {"obs": obs[:1], **{cell: leaf[:1] for cell, leaf in given.items()}})[0]
    np.testing.assert_allclose(one, outputs["policy"][:1], rtol=1e-4, atol=1e-5)


def test_observations_may_be_joined_as_they_are():
    """No form does so, but a network may; it is normalised first, and only once."""
    network, policy, small = made("F")
    direct = network.spec._replace(
        trunks={"trunk": network.spec.trunks["trunk"]}, inputs={"trunk": ("own_embedding", "obs")}
    )
    same = compact.of(direct, policy, tuple(HEADS))
    assert "normalise" in {layer.kind for layer in compact.layers(same)}
    obs = seen(network)
    for engine in ("numpy", "onnx", "jax"):
        run = [choosing.file(engine).make(each, len(obs))(obs, ())[0] for each in (small, same)]
        for head in HEADS:
            np.testing.assert_allclose(run[1][head], run[0][head], rtol=1e-5, atol=1e-6)
    plainly = [compact.of(spec, policy._replace(normaliser=()), ("policy",)) for spec in (network.spec, direct)]
    run = [choosing.file("numpy").make(each, len(obs))(obs, ())[0]["policy"] for each in plainly]
    np.testing.assert_allclose(run[1], run[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_one_decision_in_numpy_follows_parameters_that_are_written_over(form):
    network, policy, _ = made(form)
    other = made(form, seed=1)[1]
    assert in_numpy.fits(network.spec)
    params, obs = jax.tree.map(np.array, policy.params), seen(network, 1)[0]
    run = in_numpy.forward(network.spec, params)
    for theta in (policy.params, other.params):
        jax.tree.map(np.copyto, params, theta)
        found = run(obs).copy()
        np.testing.assert_allclose(found, network.apply(theta, jnp.asarray(obs), ())[0]["policy"], rtol=1e-4, atol=1e-5)


def test_what_is_too_wide_for_numpy_is_counted_on_every_way():
    for form in ("none", *FORMS):
        for hidden, fits in (((128, 128), form != "E"), ((129, 129), False)):
            spec = networks.specify(networks.Config(form=form, hidden=hidden), VECTOR, {"policy": (65, 1.0)})
            assert in_numpy.fits(spec) == fits, (form, hidden)


def test_numba_says_why_it_cannot():
    assert "joins or adds" in in_numba.fits(made("E")[2], 1)
    assert not in_numba.fits(made("C")[2], 1)


def test_what_a_head_does_not_need_is_left_out():
    network, _, _ = made("D")
    part = compact.part(network.spec, ("policy",))
    assert list(part.heads) == list(part.terms) == ["policy"]
    assert set(part.trunks) == {"trunk", "own_trunk"}
    spec = networks.specify(networks.Config(form="E", shared=False, critic_form="F"), VECTOR, HEADS)
    part = compact.part(spec, ("policy",))
    assert set(part.trunks) == {"policy_trunk", "own_policy_trunk", "policy_trunk_joined"}
    assert not part.vectors
    assert set(compact.part(spec, ("value",)).vectors) == {"own_embedding"}


@pytest.mark.parametrize("form", FORMS)
def test_a_payload_and_a_key_hold_the_whole_network(form):
    spec = made(form)[2].spec
    assert _payload._spec_from_json(_payload._spec_to_json(spec)) == spec
    assert compact.thawed(compact.frozen(spec)) == spec
    assert hash(compact.frozen(spec)) is not None


@pytest.mark.parametrize("form", FORMS)
def test_units_that_never_change_go_without_a_trace(form):
    network, policy, _ = made(form, seed=3)
    spec = compact.part(network.spec, ("policy",))
    links = {link.layer.name: link for link in _structure.links(spec)}
    hidden = [layer.name for row in spec.trunks.values() for layer in row if layer.name]
    read_beside_others = {"trunk_dense_1", "own_trunk_dense_1"} if form == "E" else set()
    assert set(links) == set(hidden) - read_beside_others
    params = jax.tree.map(np.array, policy.params)
    for name, link in links.items():
        params[name]["kernel"][:, : link.layer.size // 2] = 0.0
    full = compact.of(spec, policy._replace(params=params), ("policy",))
    obs = seen(network)
    smaller = _units.removed(full, _units.kept(full.spec, full.params, 0.5), obs[:0])
    run = [in_jax.forward(each.spec)(each.params, obs, ())[0]["policy"] for each in (full, smaller)]
    np.testing.assert_allclose(run[1], run[0], rtol=1e-4, atol=1e-5)
    sizes = [sum(compact.multiply_adds(each).values()) for each in (smaller, full)]
    assert sizes[0] < 0.75 * sizes[1]


@pytest.mark.parametrize(
    ("form", "name"), [("D", "prune"), ("D", "quantise"), ("E", "distil"), ("F", "quantise"), ("F", "low_rank")]
)
def test_compressors_pack_it_and_an_engine_runs_the_rest(form, name):
    spec = conftest.env_spec((4,), choices=3)
    agent = conftest.build_agent(spec, network={"hidden": (16, 16), "form": form, "embedding": 2})
    module = registry.load("compressor", name)
    compressor = module.build(module.Config(), agent)
    assert not compressor.refuses
    policy = jax.device_get(jax.jit(lambda key: agent.snapshot(agent.init(key)))(jax.random.key(0)))
    obs = seen(made("A")[0], 64)
    _, packed = compressor.compress(compressor.init(policy, jax.random.key(1)), policy, obs, jax.random.key(2))
    found, _ = compressor.runner(packed, 4, "numpy")(obs[:4], ())
    outputs, _ = jax.vmap(agent.about.networks["policy"].apply, in_axes=(None, 0, None))(policy.params, obs[:4], ())
    if name in ("quantise", "low_rank"):  # the others leave less of it
        np.testing.assert_allclose(found["policy"], outputs["policy"], atol=0.05)
    assert packed.bytes < 16 * sum(leaf.nbytes for leaf in jax.tree.leaves(policy.params))


def test_a_vector_beside_bytes_is_not_held_to_their_range():
    """Static ranges are known where bytes are brought to [0, 1], but not where they are joined to something."""
    network, policy, small = made("F", "bytes")
    policy.params["own_embedding"]["bias"][:] = [-1.0, 1.0]
    module = registry.load("compressor", "quantise")
    given = module._transform.Seen(small, seen(network, 32), "categorical")
    ranges = module._ranges(module.Config(mode="static", calibration=0.0), given, small)
    assert float(ranges["trunk_dense_0"]["low"]) <= -1.0
