"""One decision and one publish of an actor: networks of several sizes, in full and in eight bits, by every engine.

One core, one thread, NumPy in and NumPy out, random weights, 24 inputs and 8 outputs (pictures of 84 x 84 x 4 for the
convolutions of Mnih et al. 2015). A publish is from the packed snapshot to the first action made with it: digest, copy,
engine, one decision. The peer is ONNX Runtime's own `run`. What compressing costs in quality is not measured here.
"""

from __future__ import annotations

import os

from shoal.runtimes.crew import supervise

if __name__ == "__main__":
    os.environ.update(supervise.SINGLE_THREADED)  # as actors, before anything computes

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import _common
import numpy as np
import onnxruntime

from shoal.compress import _payload, _transform
from shoal.core import compilation, types
from shoal.networks import compact, export, in_numpy
from shoal.networks.engines import choosing, in_onnx
from shoal.networks.export import _graph, _layers

ROWS = (1, 16)
PEER = "ort_run"
KEYS = (
    *(f"nets.*.*.{key}" for key in ("us_1", "us_16", "publish_us")),
    "chosen.*.1",
    "chosen.*.16",
    "chosen_within",
    "ratio_ort_run_2x64",
    "ratio_numpy_2x64",
)
VECTOR = types.ObservationSpec((24,), "float32", False)
PICTURE = types.ObservationSpec((84, 84, 4), "uint8", True)
OUTPUTS = 8


class Net(NamedTuple):
    """What is measured."""

    hidden: tuple[int, ...]
    convolutions: tuple[tuple[int, int, int], ...] = ()  # (channels, side, stride)
    form: str = "f32"  # or int8 "dynamic", "static"
    activation: str = "relu"


NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
NETS = {
    "2x64": Net((64, 64)),
    "2x64_tanh": Net((64, 64), activation="tanh"),
    "2x128": Net((128, 128)),
    "2x256": Net((256, 256)),
    "2x256_dynamic": Net((256, 256), form="dynamic"),
    "2x1024": Net((1024, 1024)),
    "2x1024_dynamic": Net((1024, 1024), form="dynamic"),
    "2x1024_static": Net((1024, 1024), form="static"),
    "2x1024_structured_75": Net((256, 256)),
    "3x2048": Net((2048, 2048, 2048)),
    "3x2048_dynamic": Net((2048, 2048, 2048), form="dynamic"),
    "3x2048_static": Net((2048, 2048, 2048), form="static"),
    "3x2048_structured_75": Net((512, 512, 512)),
    "3x2048_structured_75_static": Net((512, 512, 512), form="static"),
    "nature": Net((512,), NATURE),
    "nature_dynamic": Net((512,), NATURE, "dynamic"),
    "nature_static": Net((512,), NATURE, "static"),
    "nature_structured_75": Net((128,), tuple((channels // 4, *rest) for channels, *rest in NATURE)),
}


def main() -> None:
    """Measure, and print the record."""
    arguments = _common.parser(__doc__).parse_args()
    compilation.call_here()
    compilation.share()
    results: dict[str, Any] = {"nets": {}, "chosen": {}}
    within = []
    for name, net in NETS.items():
        results["nets"][name], results["chosen"][name] = measured(net, 3 if arguments.quick else 15)
        told = results["chosen"][name]
        within += [told[f"within_{rows}"] for rows in ROWS]
        _common.say(f"{name:28} {told['1']:6} {told['16']:6}")
        if name == "2x64":
            results |= _ratios(results["nets"][name], told["1"], decision(net, 3 if arguments.quick else 15))
    results["chosen_within"] = max(within)
    _common.finish(arguments, _common.record("engines_actor", arguments, results))


def measured(net: Net, repeats: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """By engine what was measured; and which engine was chosen, and how it compares."""
    table: dict[str, Any] = {name: {} for name in (*choosing.NAMES, PEER)}
    told: dict[str, Any] = {}
    for rows in ROWS:
        network = made(net)
        obs = choosing.seen(network, rows)
        sides: dict[str, Callable[[], Any]] = {PEER: by_the_runtimes_own(network, obs)}
        for name in choosing.NAMES:
            if why := choosing.file(name).fits(network, rows):
                table[name] |= {f"us_{rows}": None, "why": why}
            else:
                engine = choosing.file(name).make(network, rows)
                sides[name] = lambda engine=engine, obs=obs: engine(obs, ())
        each = microseconds(sides, repeats, 0.02)
        for name, values in each.items():
            table[name] |= _common.spread(f"us_{rows}", values)
        chosen = choosing.make("auto", network, rows)[0].name
        fastest = min(statistics.median(each[name]) for name in each if name != PEER)
        told |= {f"{rows}": chosen, f"within_{rows}": statistics.median(each[chosen]) / fastest}
    publishes = {name: publish(net, name) for name in choosing.NAMES if "why" not in table[name]}
    for name, values in microseconds(publishes, repeats, 0.05).items():
        table[name] |= _common.spread("publish_us", values)
    for one in table.values():
        one.setdefault("publish_us", None)
    return table, told


def microseconds(sides: Mapping[str, Callable[[], Any]], repeats: int, seconds: float) -> dict[str, list[float]]:
    """Of a call, one value a round in which all sides take turns."""
    calls = {}
    for name, call in sides.items():
        call()
        began = time.perf_counter()
        call()
        call()
        calls[name] = max(1, int(seconds * 2 / (time.perf_counter() - began)))
    values: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, call in sides.items():
            began = time.perf_counter()
            for _ in range(calls[name]):
                call()
            values[name].append(1e6 * (time.perf_counter() - began) / calls[name])
    return values


def _ratios(table: Mapping[str, Any], chosen: str, decided: Mapping[str, list[float]]) -> dict[str, Any]:
    """How much faster the chosen engine is than ONNX Runtime's `run`, and than a decision in NumPy."""
    ours = table[chosen]["us_1_repeats"]
    return {
        **_common.spread("ratio_ort_run_2x64", _common.ratios(table[PEER]["us_1_repeats"], ours)),
        **_common.spread("ratio_numpy_2x64", _common.ratios(decided["forward"], ours)),
        **_common.spread("numpy_forward_us_2x64", decided["forward"]),
        **_common.spread("numpy_decision_us_2x64", decided["decision"]),
    }


def decision(net: Net, repeats: int) -> dict[str, list[float]]:
    """What hogwild's workers do at every step: the network alone, and with the draw of an action."""
    network = made(net)
    spec = network.spec
    forward = in_numpy.forward(spec, network.params)
    decide = in_numpy.Sampler("categorical", np.random.default_rng(0)).decide
    obs = choosing.seen(network, 1)[0]
    return microseconds({"forward": lambda: forward(obs), "decision": lambda: decide(forward(obs))}, repeats, 0.02)


def by_the_runtimes_own(network: compact.Compact, obs: np.ndarray) -> Callable[[], Any]:
    """`InferenceSession.run` with weights as constants, one thread."""
    graph = _graph.Graph()
    for name, (output, size) in _layers.heads(graph, network).items():
        graph.output(name, output, (size,))
    model = graph.model("policy", export.OPSET, export.IR_VERSION)
    options = in_onnx.options()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"obs": obs})


def publish(net: Net, engine: str) -> Callable[[], Any]:
    """Load one snapshot after the other into a live runner, and decide once."""
    policy = types.Policy(params=(), normaliser=(), explore=np.float32(1.0))
    snapshots = [_payload.packed(_payload.dumps(made(net, seed), policy), 0.0, "") for seed in range(2)]
    runner = _transform.Runner(policy, snapshots[0], 1, engine)
    obs = choosing.seen(made(net), 1)
    turn = [0]

    def load() -> None:
        turn[0] ^= 1
        runner.load(snapshots[turn[0]])
        runner(obs, ())

    return load


def made(net: Net, seed: int = 0) -> compact.Compact:
    """A network with random weights."""
    rng, eight = np.random.default_rng(seed), "" if net.form == "f32" else "8"
    observed = PICTURE if net.convolutions else VECTOR
    params: dict[str, dict[str, np.ndarray]] = {}
    layers: list[types.Layer] = []
    side, width = observed.shape[0], observed.shape[-1]
    if net.convolutions:
        layers.append(types.Layer("scale", "", low=(0.0,), high=(255.0,)))
    for i, (channels, kernel, stride) in enumerate(net.convolutions):
        layers += [types.Layer(f"conv{eight}", f"conv_{i}", channels, kernel, stride), types.Layer("relu", "")]
        params[f"conv_{i}"] = arrays((kernel, kernel, width, channels), net.form, rng)
        side, width = (side - kernel) // stride + 1, channels
    if net.convolutions:
        layers.append(types.Layer("flatten", ""))
        width *= side**2
    for i, units in enumerate(net.hidden):
        layers += [types.Layer(f"dense{eight}", f"dense_{i}", units), types.Layer(net.activation, "")]
        params[f"dense_{i}"] = arrays((width, units), net.form, rng)
        width = units
    params["policy"] = arrays((width, OUTPUTS), net.form, rng)
    head = types.Layer(f"dense{eight}", "policy", OUTPUTS)
    return compact.Compact(
        types.NetworkSpec(observed, {"trunk": tuple(layers)}, {"policy": ("trunk", (head,))}), params
    )


def arrays(shape: tuple[int, ...], form: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Of a layer."""
    kernel = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)
    bias = (0.1 * rng.standard_normal(shape[-1])).astype(np.float32)
    if form == "f32":
        return {"kernel": kernel, "bias": bias}
    step = np.abs(kernel).reshape(-1, shape[-1]).max(axis=0) / np.float32(127.0)
    held = {"kernel": np.rint(kernel / step).astype(np.int8), "step": step, "bias": bias}
    if form == "static":  # of bytes in [0, 1]; of others about what random numbers reach
        low, high = (0.0, 1.0) if len(shape) == 4 and shape[2] == 4 else (-4.0, 4.0)
        held |= {"low": np.array(low, np.float32), "high": np.array(high, np.float32)}
    return held


if __name__ == "__main__":
    main()
