"""Which engine is chosen, and what each has of its own."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time

import numpy as np
import onnxruntime
import pytest

from shoal.compress import _payload, _transform
from shoal.core import errors, processor, types
from shoal.networks import compact
from shoal.networks.engines import _bytes, _kernels, choosing, in_numba, in_onnx
from tests.conformance import test_engines as engines


class Slow:
    """An engine that takes so long."""

    def __init__(self, name, seconds):
        self.name, self._seconds, self.calls = name, seconds, 0

    def __call__(self, _obs, carry):
        self.calls += 1
        time.sleep(self._seconds)
        return {}, carry


def files(monkeypatch, **seconds):
    """Engines that take so many seconds; None: it does not fit."""
    made = {name: Slow(name, taken) for name, taken in seconds.items()}

    class File:
        def __init__(self, name):
            self.fits = lambda network, batch: "" if seconds[name] is not None else "it is too small"  # noqa: ARG005
            self.make = lambda network, batch: made[name]  # noqa: ARG005

    monkeypatch.setattr(choosing, "file", File)
    monkeypatch.setattr(choosing, "NAMES", tuple(seconds))
    return made


def test_the_fastest_that_fits_is_chosen_and_what_was_measured_is_told(monkeypatch):
    made = files(monkeypatch, numba=None, onnx=0.004, numpy=0.0005, jax=0.002)
    network = engines.made("tanh").network
    began = time.perf_counter()
    engine, measured = choosing.make("auto", network, 1)
    assert time.perf_counter() - began < 3 * 5 * choosing.SECONDS, "tens of milliseconds each"
    assert engine is made["numpy"]
    assert set(measured) == {"onnx", "numpy", "jax"}
    assert measured["numpy"] < measured["jax"] < measured["onnx"]
    assert measured["jax"] == pytest.approx(2000, rel=0.5)


def test_one_that_was_asked_for_is_not_measured(monkeypatch):
    made = files(monkeypatch, numba=None, onnx=0.004)
    assert choosing.make("onnx", engines.made("tanh").network, 1) == (made["onnx"], {})
    assert made["onnx"].calls == 0
    with pytest.raises(errors.Refused, match="numba cannot run this network: it is too small") as told:
        choosing.make("numba", engines.made("tanh").network, 1)
    assert "\n" not in str(told.value)


def test_an_engine_that_is_none_is_refused():
    with pytest.raises(errors.Refused, match="unknown engine 'onyx'; did you mean 'onnx'"):
        choosing.make("onyx", engines.made("tanh").network, 1)


def test_one_of_the_real_ones_is_chosen_for_any_network():
    for name in ("tanh", "lstm"):
        network = engines.made(name).network
        engine, measured = choosing.make("auto", network, 1)
        fit = {each for each in choosing.NAMES if not choosing.file(each).fits(network, 1)}
        assert set(measured) == fit
        assert engine.name == min(measured, key=measured.get)
        assert all(0 < taken < math.inf for taken in measured.values())


def test_the_kernels_tanh_is_off_by_less_than_a_millionth():
    x = np.concatenate([np.linspace(-12, 12, 200_001), [0.0, 1e-30, 30.0, -1e30, np.inf, -np.inf]]).astype(np.float32)
    found = np.empty_like(x)
    _kernels._tanhs(x, found)
    assert np.abs(found - np.tanh(x.astype(np.float64))).max() < 4e-7
    assert np.abs(found).max() == 1.0
    assert (found[np.abs(x) >= 10] == np.sign(x[np.abs(x) >= 10])).all()
    small = (np.abs(x) < 0.1) & (x != 0)
    np.testing.assert_allclose(found[small], np.tanh(x[small].astype(np.float64)), rtol=4e-7)
    _kernels._tanhs(np.full(3, np.nan, np.float32), found)
    assert np.isnan(found[:3]).all()


def test_numba_compiles_once_for_all_networks():
    for name in ("tanh", "softplus", "normalised"):
        for form in engines.FORMS:
            for rows in (1, 3):
                network = engines.made(name, form).network
                in_numba.make(network, rows)(engines.seen(network, rows), ())
    assert len(_kernels.run.signatures) == 1
    assert len(_bytes.run.signatures) == _bytes.here()


def test_numba_is_for_small_networks():
    wide = types.ObservationSpec((2, in_numba.LARGEST // 2), "float32", False)
    spec = types.NetworkSpec(wide, {"trunk": ()}, {"policy": ("trunk", (types.Layer("dense", "policy", 1),))})
    kernel = np.zeros((in_numba.LARGEST, 1), np.float32)
    assert not in_numba.fits(compact.Compact(spec, {"policy": {"kernel": kernel}}), 1)
    larger = compact.Compact(spec, {"policy": {"kernel": np.zeros((in_numba.LARGEST + 1, 1), np.float32)}})
    assert "up to 524,288 weights, and this one has 524,289" in in_numba.fits(larger, 1)


@pytest.mark.parametrize("form", ["dynamic", "static"])
def test_eight_bits_are_widened_where_the_processor_multiplies_no_bytes(monkeypatch, form):
    monkeypatch.setattr(_bytes, "here", lambda: False)
    for name in ("tanh", "relu", "normalised"):
        network = engines.copied(engines.made(name, form).network)
        obs = engines.clear(network, 3, ())
        run = in_numba.make(network, 3)
        assert run._run is _kernels.run
        engines.agree(run(obs, ()), engines.expected(name, form, network, obs))
        other = engines.made(name, form, seed=7).network
        for layer, held in other.params.items():
            for array, numbers in held.items():
                np.copyto(network.params[layer][array], numbers)
        run.refresh()
        obs = engines.clear(other, 3, ())
        engines.agree(run(obs, ()), engines.expected(name, form, other, obs))
        obs[1, 2] = np.nan
        assert np.isnan(run(obs, ())[0]["policy"][1]).all()


@pytest.mark.skipif(not _bytes.here(), reason="this processor multiplies no bytes")
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (3, 64), (4, 65), (130, 129), (513, 7)])
def test_products_of_bytes_are_exact(inputs, outputs):
    rng = np.random.default_rng(inputs)
    kernel = rng.integers(-128, 128, (inputs, outputs)).astype(np.int8)
    width, groups = -(-outputs // _bytes.BLOCK) * _bytes.BLOCK, -(-inputs // 4)
    packed, totals, sums = np.zeros(4 * groups * width, np.int8), np.zeros(width, np.float32), np.zeros(width, np.int32)
    _bytes.pack(kernel.reshape(-1), packed, totals[:outputs], inputs, outputs)
    np.testing.assert_array_equal(totals[:outputs], kernel.sum(axis=0, dtype=np.int64))
    numbers = np.zeros(4 * groups, np.uint8)
    for fill in (rng.integers(0, 256, inputs), np.full(inputs, 255)):
        numbers[:inputs] = fill
        _bytes._products(numbers, packed, sums, np.uint64(groups), np.uint64(width))
        np.testing.assert_array_equal(sums[:outputs], fill @ kernel.astype(np.int64))


def test_weights_of_eight_bits_may_be_any_number_where_the_processor_multiplies_them(monkeypatch):
    network = engines.made("tanh", "static").network
    monkeypatch.setattr(in_numba, "LARGEST", 10)
    for here in (True, False):
        monkeypatch.setattr(_bytes, "here", lambda here=here: here)
        assert bool(in_numba.fits(network, 1)) is not here


WITHOUT = """
import sys
sys.modules["numba"] = None
from shoal.networks.engines import choosing, in_numba
from tests.conformance import test_engines as engines
network = engines.made("tanh").network
print(in_numba.fits(network, 1))
engine, measured = choosing.make("auto", network, 1)
assert "numba" not in measured and engine.name in measured, measured
"""
KERNEL = """
import numpy as np
from shoal.networks.engines import _kernels
layer = _kernels.RELU, 1, 0, 1, 1, 1, 1, 0, 0
_kernels.run(np.array([layer], np.uint64), np.zeros(1, np.float32), work := np.array([3.0, 0.0], np.float32))
assert work[1] == 3.0
"""


def python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_numba_the_others_serve():
    said = python(WITHOUT)
    assert "numba cannot be imported" in said
    assert "pip install 'shoal-rl[actors]'" in said


def test_what_numba_compiled_is_kept_beside_xlas(tmp_path):
    python(KERNEL, SHOAL_CACHE_DIR=str(tmp_path))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "numba").rglob("*.nbc")}
    assert any("run" in path.name for path in kept)
    python(KERNEL, SHOAL_CACHE_DIR=str(tmp_path))
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "numba").rglob("*.nbc")}, "compiled again"


def test_where_nothing_can_be_kept_it_is_compiled_all_the_same(monkeypatch):
    compiled = _kernels.numba.njit

    def njit(cache=False, **settings):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compiled(**settings)

    monkeypatch.setattr(_kernels.numba, "njit", njit)
    before = _kernels.numba.config.CACHE_DIR
    assert _kernels.compiled(lambda x: x + 1)(2) == 3
    assert before == _kernels.numba.config.CACHE_DIR


def test_a_publish_of_the_same_shapes_makes_no_session_where_weights_are_inputs(monkeypatch):
    network = engines.copied(engines.made("normalised").network)
    run = in_onnx.make(network, 1)
    monkeypatch.setattr(onnxruntime, "InferenceSession", None)  # would fail
    other = engines.made("normalised", seed=7).network
    for name, held in other.params.items():
        for array, numbers in held.items():
            np.copyto(network.params[name][array], numbers)
    obs = engines.seen(network, 1)
    found = run(obs, ())
    engines.agree(found, engines.expected("normalised", "f32", other, obs))  # bound where they lie: followed at once
    run.refresh()
    engines.agree(run(obs, ()), engines.expected("normalised", "f32", other, obs))


def test_bytes_that_are_scaled_and_quantised_again_are_taken_as_they_are():
    network = engines.copied(engines.made("nature", "static").network)
    for low, high, nodes in ((0.0, 1.0, 1), (0.0, 0.5, 2)):
        network.params["trunk_conv_0"]["low"][()], network.params["trunk_conv_0"]["high"][()] = low, high
        graph = in_onnx._Following(network, False)
        in_onnx._layers.heads(graph, network)
        quantised = [node.op_type for node in graph.nodes[: graph_index(graph)]]
        assert quantised.count("Cast") + quantised.count("QuantizeLinear") == 2 * (nodes - 1)
        run, obs = in_onnx.make(network, 2), engines.seen(network, 2)
        engines.agree(run(obs, ()), engines.expected("nature", "static", network, obs))


def graph_index(graph):
    """Where the first convolution's patches are gathered."""
    return next(i for i, node in enumerate(graph.nodes) if node.op_type == "Gather")


def test_a_runner_takes_a_snapshot_and_acts_with_it():
    """Of the same shapes into the live engine, of others into a new one."""
    policy = types.Policy(params=(), normaliser=(), explore=np.float32(1.0))
    first, second, other = (
        engines.made("tanh").network, engines.made("tanh", seed=3).network, engines.made("relu").network
    )  # fmt: skip
    packed = [_payload.packed(_payload.dumps(each, policy), 0.0, "") for each in (first, second, other)]
    obs = engines.seen(first, 1)
    for engine in choosing.NAMES:
        run = _transform.Runner(policy, packed[0], 1, engine)
        live = run._engine
        for i, name in ((0, "tanh"), (1, "tanh"), (0, "tanh"), (2, "relu")):
            run.load(packed[i]._replace(version=i))
            network = (first, second, other)[i]
            engines.agree(run(obs, ()), engines.expected(name, "f32", network, obs))
            assert (run._engine is live, run.version) == (i < 2, i)


@pytest.mark.parametrize(
    ("machine", "flags", "may"),
    [
        ("x86_64", "flags : avx2 fma\n", True),
        ("x86_64", "flags : avx2 avx512f avx512_vnni\n", False),
        ("AMD64", "flags : avx2 avx_vnni\n", False),
        ("x86_64", "flags : avx2 avx_vnni\nflags : avx2\n", True),  # of every processor
        ("x86_64", "", True),
        ("arm64", "", False),
    ],
)
def test_sums_of_bytes_may_saturate_where_nothing_adds_them_in_32_bits(monkeypatch, machine, flags, may):
    monkeypatch.setattr(processor.platform, "machine", lambda: machine)
    monkeypatch.setattr(processor, "told", lambda: flags)
    assert processor.saturates() is may
