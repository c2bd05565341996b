"""Layers-as-data as ONNX operators; the counterparts of `networks.build`, which tests hold them to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from shoal import errors, types
from shoal.export import _graph


def run(graph: _graph.Graph, layers: tuple[types.Layer, ...], params: types.Params, x: _graph.Signal) -> _graph.Signal:
    """What comes out of a row of layers.

    Raises:
        Refused: A kind of layer that this file does not know.
    """
    for layer in layers:
        if layer.kind not in _LAYERS:
            raise errors.unknown("kind of layer", layer.kind, _LAYERS, "The ONNX export cannot write it.")
        weights = params.get(layer.name)
        if layer.kind == "gaussian":
            weights = {**weights, "free": params[f"{layer.name}_free"]["bias"]}
        x = _LAYERS[layer.kind](graph, layer, weights, x)
    return x


def _dense(graph: _graph.Graph, layer: types.Layer, weights: Any, x: _graph.Signal) -> _graph.Signal:
    del layer
    return _graph.Signal(graph.add("Gemm", x.name, graph.constant(weights["kernel"]), graph.constant(weights["bias"])))


def _gaussian(graph: _graph.Graph, layer: types.Layer, weights: Any, x: _graph.Signal) -> _graph.Signal:
    """The mean, and behind it numbers that no observation changes: columns of zeros and a bias."""
    kernel = np.asarray(weights["kernel"])
    wide = np.concatenate([kernel, np.zeros((len(kernel), layer.size - layer.size // 2), np.float32)], axis=1)
    bias = np.concatenate([weights["bias"], weights["free"]])
    return _graph.Signal(graph.add("Gemm", x.name, graph.constant(wide), graph.constant(bias)))


def _dueling(graph: _graph.Graph, layer: types.Layer, weights: Any, x: _graph.Signal) -> _graph.Signal:
    """V + A - mean A is linear in (V, A): one matrix for both steps."""
    merge = np.concatenate([np.ones((1, layer.size)), np.eye(layer.size) - 1.0 / layer.size])
    kernel, bias = (np.asarray(weights[name], np.float64) @ merge for name in ("kernel", "bias"))
    return _graph.Signal(graph.add("Gemm", x.name, graph.constant(kernel), graph.constant(bias)))


def _conv(graph: _graph.Graph, layer: types.Layer, weights: Any, x: _graph.Signal) -> _graph.Signal:
    name = x.name if x.channels_first else graph.add("Transpose", x.name, perm=[0, 3, 1, 2])
    kernel = np.transpose(np.asarray(weights["kernel"]), (3, 2, 0, 1))  # flax: height, width, in, out
    sides = {"kernel_shape": [layer.kernel] * 2, "strides": [layer.stride] * 2}
    out = graph.add("Conv", name, graph.constant(kernel), graph.constant(weights["bias"]), auto_pad="VALID", **sides)
    return _graph.Signal(out, channels_first=True)


def _flatten(graph: _graph.Graph, layer: types.Layer, weights: Any, x: _graph.Signal) -> _graph.Signal:
    del layer, weights
    # The dense layer's rows are in the order height, width, channels.
    name = graph.add("Transpose", x.name, perm=[0, 2, 3, 1]) if x.channels_first else x.name
    return x._replace(name=graph.add("Flatten", name, axis=1), channels_first=False)


def _scale(graph: _graph.Graph, layer: types.Layer, weights: Any, x: _graph.Signal) -> _graph.Signal:
    del layer, weights
    return x._replace(name=graph.add("Div", x.name, graph.constant(np.float32(255.0))))


def _activation(graph: _graph.Graph, layer: types.Layer, weights: Any, x: _graph.Signal) -> _graph.Signal:
    del weights
    return x._replace(name=graph.add({"tanh": "Tanh", "relu": "Relu", "softplus": "Softplus"}[layer.kind], x.name))


def _lstm(graph: _graph.Graph, layer: types.Layer, weights: Any, x: _graph.Signal) -> _graph.Signal:
    """One step of flax's OptimizedLSTMCell: the input's projections have no bias, the state's have."""
    c = graph.input(f"carry_{layer.name}_c", "float32", (layer.size,))
    h = graph.input(f"carry_{layer.name}_h", "float32", (layer.size,))
    kernel = np.concatenate([weights[f"i{gate}"]["kernel"] for gate in "ifgo"], axis=1)
    recurrent = np.concatenate([weights[f"h{gate}"]["kernel"] for gate in "ifgo"], axis=1)
    bias = np.concatenate([weights[f"h{gate}"]["bias"] for gate in "ifgo"])
    from_state = graph.add("Gemm", h, graph.constant(recurrent), graph.constant(bias))
    gates = graph.add("Add", from_state, graph.add("MatMul", x.name, graph.constant(kernel)))
    sizes = graph.constant(np.full(4, layer.size, np.int64))
    i, f, g, o = graph.split("Split", 4, gates, sizes, axis=1)
    kept = graph.add("Mul", graph.add("Sigmoid", f), c)
    c = graph.add("Add", kept, graph.add("Mul", graph.add("Sigmoid", i), graph.add("Tanh", g)))
    h = graph.add("Mul", graph.add("Sigmoid", o), graph.add("Tanh", c))
    graph.output(f"next_carry_{layer.name}_c", c, (layer.size,))
    graph.output(f"next_carry_{layer.name}_h", h, (layer.size,))
    return _graph.Signal(h)


_LAYERS: Mapping[str, Callable[..., _graph.Signal]] = {
    "scale": _scale,
    "conv": _conv,
    "flatten": _flatten,
    "dense": _dense,
    "gaussian": _gaussian,
    "dueling": _dueling,
    "lstm": _lstm,
    "tanh": _activation,
    "relu": _activation,
    "softplus": _activation,
}
