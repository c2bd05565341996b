"""A network for acting as ONNX operators: the layers of `networks.compact`, which tests hold to `engines.in_jax`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from shoal.core import types
from shoal.formulas import normalise
from shoal.networks import compact, scaling, walking
from shoal.networks.export import _graph

Arrays = Mapping[str, np.ndarray]
QUANTISED = "quantised"  # bytes that stand for other numbers; else a signal's dtype is NumPy's


def heads(graph: _graph.Graph, network: compact.Compact) -> dict[str, tuple[str, int]]:
    """The outputs ``[batch, size]`` of every head: (name, size). The graph's input ``obs`` is made here."""
    seen = network.spec.observation
    obs = _graph.Signal(graph.input("obs", seen.dtype, seen.shape), seen.shape, dtype=seen.dtype)

    def learned(layer: types.Layer) -> _graph.Signal:
        """The same vector for each observation."""
        batch = graph.add("Shape", obs.name, start=0, end=1)
        rows = graph.add("Concat", batch, graph.constant(np.array([layer.size], np.int64)), axis=0)
        name = graph.add("Expand", graph.weight(network.params[layer.name]["bias"]), rows)
        return _graph.Signal(name, (layer.size,))

    ways = walking.Ways(
        lambda layers, x: _through(graph, layers, network.params, x),
        learned,
        functools.partial(_joined, graph),
        functools.partial(_added, graph),
    )
    outputs = {head: _flat(graph, x) for head, x in walking.outputs(network.spec, obs, ways).items()}
    return {head: (output.name, output.shape[0]) for head, output in outputs.items()}


def _joined(graph: _graph.Graph, parts: Sequence[_graph.Signal]) -> _graph.Signal:
    flat = [_floats(graph, _flat(graph, part)) for part in parts]
    name = graph.add("Concat", *(part.name for part in flat), axis=1)
    return _graph.Signal(name, (sum(part.shape[0] for part in flat),))


def _added(graph: _graph.Graph, x: _graph.Signal, other: _graph.Signal) -> _graph.Signal:
    x, other = (_floats(graph, _flat(graph, each)) for each in (x, other))
    return x._replace(name=graph.add("Add", x.name, other.name))


def _through(
    graph: _graph.Graph, layers: tuple[types.Layer, ...], params: Mapping[str, Arrays], x: _graph.Signal
) -> _graph.Signal:
    """What comes out of a row of layers."""
    for i, layer in enumerate(layers):
        if layer.kind == "scale" and _taken_as_they_are(layer, layers[i + 1 :], params, x):
            x = x._replace(dtype=QUANTISED)
            continue
        x = _LAYERS[layer.kind](graph, layer, params.get(layer.name, {}), x)
    return x


def _taken_as_they_are(
    scale: types.Layer, rest: tuple[types.Layer, ...], params: Mapping[str, Arrays], x: _graph.Signal
) -> bool:
    """Whether bytes that are brought to [0, 1] are quantised to the same bytes again."""
    following = next((layer for layer in rest if layer.kind != "flatten"), None)
    if following is None or not following.kind.endswith("8") or x.dtype != "uint8":
        return False
    arrays = params[following.name]
    bounds = "low" in arrays and (float(arrays["low"]), float(arrays["high"]))
    return (scale.low, scale.high, bounds) == ((0.0,), (255.0,), (0.0, 1.0))


def _floats(graph: _graph.Graph, x: _graph.Signal) -> _graph.Signal:
    return x if x.dtype == "float32" else x._replace(name=graph.cast(x.name, "float32"), dtype="float32")


def _channels_last(graph: _graph.Graph, x: _graph.Signal) -> _graph.Signal:
    """The order of the rows of what follows a picture: height, width, channels."""
    name = graph.add("Transpose", x.name, perm=[0, 2, 3, 1]) if x.channels_first else x.name
    return x._replace(name=name, channels_first=False)


def _reshaped(graph: _graph.Graph, x: _graph.Signal, *shape: int) -> _graph.Signal:
    """As ``[-1, *shape]``."""
    return x._replace(name=graph.add("Reshape", x.name, graph.constant(np.array([-1, *shape], np.int64))))


def _flat(graph: _graph.Graph, x: _graph.Signal) -> _graph.Signal:
    if len(x.shape) == 1:
        return x
    size = math.prod(x.shape)
    return _reshaped(graph, _channels_last(graph, x), size)._replace(shape=(size,))


def _flatten(graph: _graph.Graph, layer: types.Layer, arrays: Arrays, x: _graph.Signal) -> _graph.Signal:
    del layer, arrays
    return _flat(graph, x)


def _normalise(graph: _graph.Graph, layer: types.Layer, arrays: Arrays, x: _graph.Signal) -> _graph.Signal:
    del layer
    x = _floats(graph, x)
    centred = graph.add("Sub", x.name, graph.weight(arrays["mean"]))
    scaled = graph.add("Div", centred, graph.weight(arrays["deviation"]))
    bounds = graph.constant(np.float32(-normalise.CLIP)), graph.constant(np.float32(normalise.CLIP))
    return x._replace(name=graph.add("Clip", scaled, *bounds))


def _scale(graph: _graph.Graph, layer: types.Layer, arrays: Arrays, x: _graph.Signal) -> _graph.Signal:
    del arrays
    low, width = scaling.span(layer)
    x = _floats(graph, x)
    name = graph.add("Sub", x.name, graph.constant(low)) if low.any() else x.name
    return x._replace(name=graph.add("Div", name, graph.constant(width)))


def _dense(graph: _graph.Graph, layer: types.Layer, arrays: Arrays, x: _graph.Signal) -> _graph.Signal:
    x = _floats(graph, _flat(graph, x))
    name = graph.add("Gemm", x.name, graph.weight(arrays["kernel"]), graph.weight(arrays["bias"]))
    return _graph.Signal(name, (layer.size,))


def _conv(graph: _graph.Graph, layer: types.Layer, arrays: Arrays, x: _graph.Signal) -> _graph.Signal:
    shape = _places(layer, x.shape)
    x = _floats(graph, x)
    name = x.name if x.channels_first else graph.add("Transpose", x.name, perm=[0, 3, 1, 2])
    kernel = np.transpose(arrays["kernel"], (3, 2, 0, 1))  # from height, width, in, out
    sides = {"kernel_shape": [layer.kernel] * 2, "strides": [layer.stride] * 2}
    out = graph.add("Conv", name, graph.constant(kernel), graph.constant(arrays["bias"]), auto_pad="VALID", **sides)
    return _graph.Signal(out, shape, channels_first=True)


def _places(layer: types.Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    rows, columns = ((side - layer.kernel) // layer.stride + 1 for side in shape[:2])
    return rows, columns, layer.size


def _dense8(graph: _graph.Graph, layer: types.Layer, arrays: Arrays, x: _graph.Signal) -> _graph.Signal:
    return _product(graph, arrays, arrays["kernel"], *_quantised(graph, arrays, _flat(graph, x)), (layer.size,))


def _conv8(graph: _graph.Graph, layer: types.Layer, arrays: Arrays, x: _graph.Signal) -> _graph.Signal:
    """A product of what lies under the kernel at each place, a row each, with the kernel.

    ONNX Runtime's own convolutions of whole numbers need the range of their output beforehand to be fast. Runs of a
    picture's row are copied, as long as strides allow: at least all channels of a place.
    """
    shape = _places(layer, x.shape)
    height, width, channels = x.shape
    x, step, zero = _quantised(graph, arrays, _channels_last(graph, x))
    run = math.gcd(layer.stride, layer.kernel)
    run = run if width % run == 0 else 1
    row = width // run  # runs in one
    r, c, ky, kx = np.ix_(*map(np.arange, (*shape[:2], layer.kernel, layer.kernel // run)))
    under = (r * layer.stride + ky) * row + c * layer.stride // run + kx  # [rows, columns, side, side / run]
    places = graph.constant(under.astype(np.int32).reshape(-1))
    name = graph.add("Gather", _reshaped(graph, x, height * row, run * channels).name, places, axis=1)
    patches = _reshaped(graph, x._replace(name=name), layer.kernel**2 * channels)
    kernel = arrays["kernel"].reshape(-1, layer.size)
    return _product(graph, arrays, kernel, patches, step, zero, shape)


def _quantised(graph: _graph.Graph, arrays: Arrays, x: _graph.Signal) -> tuple[_graph.Signal, str, str]:
    """See `in_jax.quantised`: (bytes, their step, their zero point)."""
    if "low" not in arrays:
        whole, step, zero = graph.split("DynamicQuantizeLinear", 3, _floats(graph, x).name)
        return x._replace(name=whole, dtype=QUANTISED), step, zero
    low, high = np.float32(arrays["low"]), np.float32(arrays["high"])
    unit = np.maximum((high - low) / np.float32(255.0), np.float32(1e-30))
    middle = np.clip(np.round(-low / unit), 0, 255) if np.isfinite(unit) else 0
    step, zero = graph.constant(unit), graph.constant(np.uint8(middle))
    if x.dtype != QUANTISED:
        x = x._replace(name=graph.add("QuantizeLinear", _floats(graph, x).name, step, zero), dtype=QUANTISED)
    return x, step, zero


def _product(
    graph: _graph.Graph, arrays: Arrays, kernel: np.ndarray, x: _graph.Signal, step: str, zero: str, shape: Any
) -> _graph.Signal:
    """(bytes - zero) @ kernel times both steps, and the bias."""
    whole, steps, bias = map(graph.constant, (kernel, arrays["step"], arrays["bias"]))
    if graph.runtime:  # what it makes of the operators below where it sees through them
        name = graph.add(
            "MatMulIntegerToFloat", x.name, whole, step, steps, zero, "", bias, domain=_graph.MICROSOFT
        )  # fmt: skip
    else:
        product = graph.cast(graph.add("MatMulInteger", x.name, whole, zero), "float32")
        name = graph.add("Add", graph.add("Mul", product, graph.add("Mul", step, steps)), bias)
    made = _graph.Signal(name, shape)
    return made if len(shape) == 1 else _reshaped(graph, made, *shape)


def _activation(graph: _graph.Graph, layer: types.Layer, arrays: Arrays, x: _graph.Signal) -> _graph.Signal:
    del arrays
    x = _floats(graph, x)
    return x._replace(
        name=graph.add({"tanh": "Tanh", "relu": "Relu", "elu": "Elu", "softplus": "Softplus"}[layer.kind], x.name)
    )


def _pad(graph: _graph.Graph, layer: types.Layer, arrays: Arrays, x: _graph.Signal) -> _graph.Signal:
    """Zeros around a picture."""
    del arrays
    x = _floats(graph, x)
    edge = layer.size
    height, width, channels = x.shape
    sides = [0, 0, edge, edge] if x.channels_first else [0, edge, edge, 0]
    name = graph.add("Pad", x.name, graph.constant(np.array(sides * 2, np.int64)))
    return x._replace(name=name, shape=(height + 2 * edge, width + 2 * edge, channels))


def _lstm(graph: _graph.Graph, layer: types.Layer, arrays: Arrays, x: _graph.Signal) -> _graph.Signal:
    """One step, in primitive operators."""
    x = _floats(graph, _flat(graph, x))
    c = graph.input(f"carry_{layer.name}_c", "float32", (layer.size,))
    h = graph.input(f"carry_{layer.name}_h", "float32", (layer.size,))
    from_state = graph.add("Gemm", h, graph.weight(arrays["recurrent"]), graph.weight(arrays["bias"]))
    gates = graph.add("Add", from_state, graph.add("MatMul", x.name, graph.weight(arrays["input"])))
    sizes = graph.constant(np.full(4, layer.size, np.int64))
    i, f, g, o = graph.split("Split", 4, gates, sizes, axis=1)
    kept = graph.add("Mul", graph.add("Sigmoid", f), c)
    c = graph.add("Add", kept, graph.add("Mul", graph.add("Sigmoid", i), graph.add("Tanh", g)))
    h = graph.add("Mul", graph.add("Sigmoid", o), graph.add("Tanh", c))
    graph.output(f"next_carry_{layer.name}_c", c, (layer.size,))
    graph.output(f"next_carry_{layer.name}_h", h, (layer.size,))
    return _graph.Signal(h, (layer.size,))


_LAYERS: Mapping[str, Callable[..., _graph.Signal]] = {
    "normalise": _normalise,
    "scale": _scale,
    "flatten": _flatten,
    "conv": _conv,
    "conv8": _conv8,
    "dense": _dense,
    "dense8": _dense8,
    "lstm": _lstm,
    "tanh": _activation,
    "relu": _activation,
    "elu": _activation,
    "pad": _pad,
    "softplus": _activation,
}
