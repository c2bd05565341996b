"""What every file `shoal/networks/engines/in_*.py` must do, held to `in_jax.forward`, and that one to the network."""

from __future__ import annotations

import functools
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from shoal import networks
from shoal.core import errors, types
from shoal.formulas import normalise
from shoal.networks import compact, engines
from shoal.networks.engines import choosing, in_jax

VECTOR = types.ObservationSpec((5,), "float32", False)
PICTURE = types.ObservationSpec((40, 37, 2), "uint8", True)
NETWORKS: dict[str, dict[str, Any]] = {
    "tanh": {},
    "relu": {"activation": "relu", "hidden": (16, 33)},
    "softplus": {"activation": "softplus", "hidden": (7,)},
    "elu": {"activation": "elu", "hidden": (7,)},
    "linear": {"hidden": ()},
    "apart": {"shared": False},
    "normalised": {"normalised": True},
    "one": {"obs": VECTOR._replace(shape=(1,)), "heads": {"policy": (1, 1.0)}},
    "bytes": {"obs": types.ObservationSpec((3, 4, 2), "uint8", True), "normalised": True},
    "bounds": {"obs": VECTOR._replace(dtype="uint8", low=(0.0, 1.0, 0.0, 2.0, 0.0), high=(1.0, 7.0, 5.0, 2.0, 255.0))},
    "gaussian": {"heads": {"policy": networks.Head(6, 1.0, "gaussian"), "value": (1, 1.0)}},
    "dueling": {"heads": {"q": networks.Head(4, 1.0, "values")}, "dueling": True},
    "nature": {"obs": PICTURE},
    "dqn_2013": {"obs": PICTURE._replace(dtype="float32"), "torso": "dqn_2013", "shared": False},
    "universe": {"obs": PICTURE._replace(dtype="float32"), "torso": "universe"},
    "lstm": {"lstm": 6, "hidden": (8,)},
}
STATIC = (-1.5, 4.0)  # the range of a layer's input
FORMS = ("f32", "dynamic", "static")
ENGINES = pytest.mark.parametrize("engine", choosing.NAMES)
EVERY = pytest.mark.parametrize("network", NETWORKS)


class Made(NamedTuple):
    network: compact.Compact
    whole: types.Network
    policy: types.Policy


@functools.cache
def made(name: str, form: str = "f32", seed: int = 0) -> Made:
    """A network with random numbers, biases too."""
    given = dict(NETWORKS[name])
    observed, heads = given.pop("obs", VECTOR), given.pop("heads", {"policy": (3, 1.0), "value": (1, 1.0)})
    normalised, rng = given.pop("normalised", False), np.random.default_rng(seed)
    whole = networks.build(networks.Config(**{"hidden": (16, 16), **given}), observed, heads)
    shapes = jax.eval_shape(whole.init, jax.random.key(0))

    def drawn(leaf):
        scale = 1.0 / np.sqrt(max(1, leaf.size // leaf.shape[-1])) if leaf.ndim > 1 else 0.3
        return rng.normal(0.0, scale, leaf.shape).astype(np.float32)

    statistics: Any = ()
    if normalised:
        m2 = rng.uniform(0, 50, observed.shape).astype(np.float32)
        statistics = normalise.Statistics(np.float32(10.0), drawn(np.zeros(observed.shape)), m2)
    policy = types.Policy(jax.tree.map(drawn, shapes), statistics, np.float32(1.0))
    return Made(eight(compact.of(whole.spec, policy, tuple(heads)), form), whole, policy)


def eight(network: compact.Compact, form: str) -> compact.Compact:
    """Dense layers and convolutions in eight bits."""
    if form == "f32":
        return network

    def layer(given):
        return given._replace(kind=f"{given.kind}8") if given.kind in ("dense", "conv") else given

    def arrays(held):
        if "kernel" not in held:
            return held
        step = np.abs(held["kernel"]).max(axis=tuple(range(held["kernel"].ndim - 1))) / np.float32(127.0)
        step = np.maximum(step, np.float32(1e-12))
        whole = np.rint(held["kernel"] / step).astype(np.int8)
        bounds = {"low": np.array(STATIC[0], np.float32), "high": np.array(STATIC[1], np.float32)}
        return {"kernel": whole, "step": step, "bias": held["bias"]} | (bounds if form == "static" else {})

    spec = network.spec._replace(
        trunks={name: tuple(map(layer, layers)) for name, layers in network.spec.trunks.items()},
        heads={name: (trunk, tuple(map(layer, layers))) for name, (trunk, layers) in network.spec.heads.items()},
    )
    return compact.Compact(spec, {name: arrays(held) for name, held in network.params.items()})


def copied(network: compact.Compact) -> compact.Compact:
    """Of memory of its own, which may be written over."""
    return network._replace(params=jax.tree.map(np.array, network.params))


def seen(network: compact.Compact, rows: int, seed: int = 1) -> np.ndarray:
    observed, rng = network.spec.observation, np.random.default_rng(seed)
    if observed.dtype == "uint8":
        most = np.array(observed.high or 255.0) + 1
        return rng.integers(np.array(observed.low or 0.0), most, (rows, *observed.shape)).astype(np.uint8)
    return rng.normal(0.0, 2.0, (rows, *observed.shape)).astype(np.float32)


NEAR = 1e-4  # of a step: two engines may round what is as near to the middle of two whole numbers either way


def clear(network: compact.Compact, rows: int, carry: Any, seed: int = 1) -> np.ndarray:
    """Observations with which nothing is quantised near the middle of two whole numbers."""
    kinds = {layer.kind for layer in compact.layers(network)}
    if "dense8" not in kinds or "conv8" in kinds:
        return seen(network, rows, seed)  # of pictures there are none; sums of whole numbers are the same anywhere
    for i in range(100):
        obs = seen(network, rows, seed + 1000 * i)
        if oracle(network, obs, carry)[1] > NEAR:
            return obs
    raise AssertionError("no such observations")


def oracle(network: compact.Compact, obs: np.ndarray, carry: Any) -> tuple[dict[str, np.ndarray], float]:
    """(outputs, distance from the middle of two whole numbers in steps) in f64, without convolutions."""
    away = [1.0]

    def quantised(held, x):
        low, high = (held["low"], held["high"]) if "low" in held else (min(x.min(), 0.0), max(x.max(), 0.0))
        step = max((high - low) / 255.0, 1e-30)
        zero = np.round(-low / step)
        numbers = x / step
        away.append(np.abs(numbers[(numbers > -zero) & (numbers < 255 - zero)] % 1.0 - 0.5).min(initial=1.0))
        return np.clip(np.round(x / step) + zero, 0, 255) - zero, step

    def through(layers, x):
        for layer in layers:
            held = {name: np.asarray(array, np.float64) for name, array in network.params.get(layer.name, {}).items()}
            if layer.kind == "normalise":
                x = np.clip((x - held["mean"]) / held["deviation"], -10.0, 10.0)
            elif layer.kind == "scale":
                low, high = (np.asarray(bound, np.float64) for bound in (layer.low, layer.high))
                x = (x - low) / np.where(high > low, high - low, 1.0)
            elif layer.kind == "flatten":
                x = x.reshape(len(x), -1)
            elif layer.kind == "dense":
                x = x.reshape(len(x), -1) @ held["kernel"] + held["bias"]
            elif layer.kind == "dense8":
                x, step = quantised(held, x.reshape(len(x), -1))
                x = x @ held["kernel"] * step * held["step"] + held["bias"]
            elif layer.kind == "lstm":
                c, h = carry[layer.name]
                gates = x @ held["input"] + h @ held["recurrent"] + held["bias"]
                i, f, g, o = np.split(gates, 4, axis=1)
                c = c / (1.0 + np.exp(-f)) + np.tanh(g) / (1.0 + np.exp(-i))
                x = np.tanh(c) / (1.0 + np.exp(-o))
            else:
                x = {
                    "tanh": np.tanh,
                    "relu": lambda x: np.maximum(x, 0),
                    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
                    "softplus": lambda x: np.logaddexp(x, 0),
                }[layer.kind](x)
        return x

    trunks = {name: through(layers, obs.astype(np.float64)) for name, layers in network.spec.trunks.items()}
    return {head: through(layers, trunks[trunk]) for head, (trunk, layers) in network.spec.heads.items()}, min(away)


@functools.cache
def reference(name: str, form: str) -> Any:
    return jax.jit(in_jax.forward(made(name, form).network.spec))


def expected(name: str, form: str, network: compact.Compact, obs: np.ndarray, carry: Any = None) -> Any:
    carry = choosing.start(network, len(obs)) if carry is None else carry
    return jax.device_get(reference(name, form)(network.params, obs, carry))


def opened(engine: str, network: compact.Compact, rows: int) -> engines.Engine:
    """An engine; skipped where it says why not, which some do for some networks only."""
    file = choosing.file(engine)
    if why := file.fits(network, rows):
        kinds = {layer.kind.rstrip("8") for layer in compact.layers(network)}
        assert (engine, *({"lstm", "conv"} & kinds)) in (("numba", "conv"), ("numba", "lstm"), ("numpy", "lstm"))
        assert next(iter({"lstm", "conv"} & kinds)) in why.lower()
        with pytest.raises(errors.Refused, match="cannot run this network"):
            choosing.make(engine, network, rows)
        pytest.skip(why)
    run = file.make(network, rows)
    assert run.name == engine
    return run


def agree(found, wanted, rtol=1e-5):
    """To 1e-5 of the largest number."""
    (outputs, carry), (wanted_outputs, wanted_carry) = found, wanted
    assert set(outputs) == set(wanted_outputs)
    for head, output in wanted_outputs.items():
        assert isinstance(outputs[head], np.ndarray)
        assert (outputs[head].shape, outputs[head].dtype.name) == (output.shape, "float32")
        np.testing.assert_allclose(outputs[head], output, rtol=rtol, atol=rtol * max(1.0, np.abs(output).max()))
    assert jax.tree.structure(carry) == jax.tree.structure(wanted_carry)
    for a, b in zip(jax.tree.leaves(carry), jax.tree.leaves(wanted_carry), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


def test_every_file_is_a_choice():
    folder = pathlib.Path(choosing.__file__).parent
    assert sorted(choosing.NAMES) == sorted(path.stem.removeprefix("in_") for path in folder.glob("in_*.py"))


@EVERY
def test_a_compact_network_computes_what_the_network_does(network):
    network, whole, policy = made(network)
    obs, carry = seen(network, 4), whole.carry

    def one(obs):
        inner = normalise.apply(policy.normaliser, obs.astype(np.float32)) if policy.normaliser else obs
        return whole.apply(policy.params, inner, carry)

    outputs, after = jax.jit(jax.vmap(one))(obs)
    found = jax.jit(in_jax.forward(network.spec))(network.params, obs, choosing.start(network, 4))
    agree(jax.device_get(found), jax.device_get(({head: outputs[head] for head in network.spec.heads}, after)))


DENSE = [name for name in NETWORKS if name not in ("nature", "dqn_2013", "universe")]


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("form", FORMS)
def test_what_engines_are_held_to_is_what_the_formulas_say(name, form):
    network = made(name, form).network
    carry = choosing.start(network, 3)
    obs = clear(network, 3, carry)
    found = expected(name, form, network, obs, carry)[0]
    for head, output in oracle(network, obs, carry)[0].items():
        np.testing.assert_allclose(found[head], output, rtol=1e-5, atol=1e-5)


@ENGINES
@EVERY
@pytest.mark.parametrize("form", FORMS)
def test_it_computes_what_the_network_does(engine, network, form):
    if network == "universe" and form != "f32":
        pytest.skip("four rounded layers in a row: of so many numbers, one lies on the border of two steps")
    name, network = network, made(network, form).network
    for rows in (1, 3):
        run = opened(engine, network, rows)
        carry = choosing.start(network, rows)
        for step in range(2):
            obs = clear(network, rows, carry, step)
            found, wanted = run(obs, carry), expected(name, form, network, obs, carry)
            agree(found, wanted)
            carry = wanted[1]


LARGE = 3e38
EXTREMES = {
    "zeros": lambda obs: 0 * obs,
    "one": lambda obs: np.where(np.arange(obs.size).reshape(obs.shape) == 1, obs, 0 * obs),
    "tiny": lambda obs: obs * np.float32(1e-42),  # denormal
    "huge": lambda obs: obs * np.float32(1e6),
    "overflow": lambda obs: np.clip(obs.astype(np.float64) * 1e38, -LARGE, LARGE).astype(np.float32),
}


@ENGINES
@pytest.mark.parametrize("network", ["tanh", "relu", "normalised", "lstm", "dqn_2013"])
@pytest.mark.parametrize("form", FORMS)
def test_extreme_observations_are_borne(engine, network, form):
    """Quantised, saturated units lie in the middle of two whole numbers: there they may differ by a step of 255."""
    name, network = network, made(network, form).network
    run, carry = opened(engine, network, 3), choosing.start(network, 3)
    for how, change in EXTREMES.items():
        obs = change(seen(network, 3))
        with np.errstate(all="ignore"):
            found, wanted = run(obs, carry)[0], expected(name, form, network, obs)[0]
        off = 0.02 if form != "f32" and how in ("huge", "overflow") else 1e-5
        for head, output in wanted.items():
            finite = np.isfinite(output)
            np.testing.assert_array_equal(np.isfinite(found[head]), finite)
            scale = np.abs(output[finite]).max(initial=1.0)
            np.testing.assert_allclose(found[head][finite] / scale, output[finite] / scale, atol=off, rtol=0)


@ENGINES
@EVERY
@pytest.mark.parametrize("form", FORMS)
def test_it_follows_arrays_that_are_written_over(engine, network, form):
    name, network = network, copied(made(network, form).network)
    run, carry = opened(engine, network, 2), choosing.start(network, 2)
    run(seen(network, 2), carry)
    other = made(name, form, seed=7).network
    jax.tree.map(np.copyto, network.params, other.params)
    run.refresh()
    obs = clear(other, 2, carry)
    agree(run(obs, carry), expected(name, form, other, obs))


@ENGINES
@pytest.mark.parametrize("network", ["tanh", "relu", "normalised", "gaussian", "lstm", "nature"])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_a_number_never_becomes_one(engine, network, form):
    name, network = network, copied(made(network, form).network)
    run, obs, carry = opened(engine, network, 2), seen(network, 2), choosing.start(network, 2)
    for held in network.params.values():
        for kept in held.values():
            if kept.dtype != np.float32:
                continue
            before = kept.copy()
            kept[(0,) * kept.ndim] = np.nan
            run.refresh()
            found, wanted = run(obs, carry)[0], expected(name, form, network, obs)[0]
            assert any(np.isnan(output).any() for output in wanted.values())
            for head, output in wanted.items():
                assert np.isnan(found[head][np.isnan(output)]).all()
            np.copyto(kept, before)
    run.refresh()
    assert all(np.isfinite(output).all() for output in run(obs, carry)[0].values())
    if obs.dtype == np.float32:
        obs[1].flat[0] = np.nan
        for head, output in expected(name, form, network, obs)[0].items():
            assert np.isnan(run(obs, carry)[0][head][np.isnan(output)]).all()
            assert np.isnan(output).any()


@ENGINES
@pytest.mark.parametrize("form", FORMS)
def test_layers_of_one_trunk_do_not_meet(engine, form):
    """Heads that change what they are given: each is given what the trunk left."""
    network = made("tanh", form).network
    layers = {"tanh": (types.Layer("tanh", ""),), "softplus": (types.Layer("softplus", ""),), "none": ()}
    heads = {name: ("trunk", (*row, types.Layer("relu", ""))) for name, row in layers.items()}
    network = network._replace(spec=network.spec._replace(heads=heads))
    obs = clear(network, 3, ())
    agree(opened(engine, network, 3)(obs, ()), jax.device_get(in_jax.forward(network.spec)(network.params, obs, ())))


@ENGINES
def test_observations_of_another_shape_or_memory(engine):
    network = made("tanh").network
    run, obs = opened(engine, network, 3), seen(network, 3)
    wanted = run(obs, ())[0]["policy"].copy()
    turned = np.asfortranarray(obs)
    fixed = obs.copy()
    fixed.flags.writeable = False
    for each in (turned, fixed, np.repeat(obs, 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(run(each, ())[0]["policy"], wanted)
    for wrong in (obs[:1], obs[0], obs[:, :1], np.zeros((4, 5), np.float32)):
        with pytest.raises(ValueError, match="observations"):
            run(wrong, ())
