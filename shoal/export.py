"""A policy as an ONNX file: what acting needs, readable without JAX and without Shoal.

The graph is written from the layers-as-data of a `types.NetworkSpec`: the observation normaliser, the trunks the heads
stand on, the heads, and the greedy action. Operators are those of opset 17 (2022), the recurrent cell is spelt out in
primitive ones, so that any runtime of the last years takes the file.

Inputs:  ``obs`` [batch, *obs], and for each LSTM ``carry_<layer>_c``, ``carry_<layer>_h`` [batch, cells].
Outputs: ``action`` (int64 [batch], or float32 [batch, d] within the bounds), ``logits`` [batch, n] or ``mean`` and
``variance`` [batch, d], ``value`` [batch] where the network has that head, and ``next_carry_<layer>_c``, ``_h``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epy

from shoal import distributions, errors, normalise, types

with epy.lazy_imports():
    import onnx

OPSET = 17
IR_VERSION = 8  # the file format that came with the opset; a newer one would shut out older runtimes for nothing
BATCH = "batch"  # the symbolic first dimension of everything that goes in or out


def onnx_model(
    network: types.NetworkSpec,
    policy: types.Policy,
    head: str,
    action: types.ActionSpec,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """The greedy policy as a checked ONNX model.

    Args:
        network: The layers.
        policy: Parameters and normaliser; NumPy leaves.
        head: How the head's output becomes an action: ``"categorical"`` or ``"gaussian"`` (`types.Agent.head`).
        action: The action space; bounds that are finite are kept to.
        metadata: Text entries of the model's ``metadata_props``, e.g. preset, environment, version.

    Returns:
        The model, which has passed ONNX's full check.

    Raises:
        Refused: The network has no policy head, or a head or a layer that this file does not know.
    """
    graph = _Graph()
    obs = _observe(graph, network.observation, policy.normaliser)
    outputs = _heads(graph, network, policy.params, obs)
    try:
        finish = _FINISHES[head]
    except KeyError:
        raise errors.unknown("policy head", head, _FINISHES) from None
    finish(graph, outputs["policy"], action)
    if "value" in outputs:
        last = graph.constant(np.array([1], np.int64))
        graph.output("value", graph.add("Squeeze", outputs["value"], last))
    graph.outputs += graph.carries
    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, "policy", graph.inputs, graph.outputs, graph.constants),
        producer_name="shoal",
        ir_version=IR_VERSION,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    )
    onnx.helper.set_model_props(model, {name: str(text) for name, text in (metadata or {}).items()})
    onnx.checker.check_model(model, full_check=True)
    return model


def write(path: str | Path, model: onnx.ModelProto) -> int:
    """Write a model so that the file is either whole or not there.

    Args:
        path: The file; one that exists is replaced.
        model: From `onnx_model`.

    Returns:
        Its size in bytes.

    Raises:
        Refused: The file cannot be written.
    """
    path, body = Path(path), model.SerializeToString()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise errors.Refused(f"cannot write {path} ({error.strerror or error}); choose another file") from error
    return len(body)


class _Signal(NamedTuple):
    """A tensor on its way through the layers."""

    name: str
    channels_first: bool = False  # ONNX convolves [batch, channels, height, width]; Shoal's images end in channels


class _Graph:
    """What a graph is made of, while it grows."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.carries: list[Any] = []  # outputs too, but the last ones

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """The result of one operator."""
        return self.split(op, 1, *inputs, **attributes)[0]

    def split(self, op: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """The results of an operator that has several."""
        names = [f"{op.lower()}_{len(self.nodes)}_{i}" for i in range(count)]
        self.nodes.append(onnx.helper.make_node(op, inputs, names, **attributes))
        return names

    def constant(self, array: Any) -> str:
        """An array in the file; floats become float32."""
        array = np.asarray(array)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        name = f"constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def input(self, name: str, dtype: str, shape: tuple[int, ...]) -> str:
        """Something the caller gives, ``[batch, *shape]``."""
        self.inputs.append(_declared(name, dtype, shape))
        return name

    def output(self, name: str, source: str, shape: tuple[int, ...] = (), dtype: str = "float32") -> None:
        """Something the caller gets, ``[batch, *shape]``."""
        self.nodes.append(onnx.helper.make_node("Identity", [source], [name]))
        (self.carries if name.startswith("next_carry") else self.outputs).append(_declared(name, dtype, shape))


def _declared(name: str, dtype: str, shape: tuple[int, ...]) -> Any:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return onnx.helper.make_tensor_value_info(name, kind, [BATCH, *shape])


def _observe(graph: _Graph, seen: types.ObservationSpec, statistics: Any) -> _Signal:
    """The observation as the trunks take it: float32, normalised as `normalise.apply` does."""
    name = graph.input("obs", seen.dtype, seen.shape)
    if seen.dtype != "float32":
        name = graph.add("Cast", name, to=onnx.TensorProto.FLOAT)
    if statistics:
        count, mean, m2 = (np.asarray(leaf, np.float32) for leaf in statistics)
        variance = m2 / count if count > 1 else np.ones_like(m2)
        centred = graph.add("Sub", name, graph.constant(mean))
        scaled = graph.add("Div", centred, graph.constant(np.sqrt(variance + np.float32(normalise.EPSILON))))
        bounds = graph.constant(np.float32(-normalise.CLIP)), graph.constant(np.float32(normalise.CLIP))
        name = graph.add("Clip", scaled, *bounds)
    return _Signal(name)


def _heads(graph: _Graph, network: types.NetworkSpec, params: types.Params, obs: _Signal) -> dict[str, str]:
    """The outputs ``[batch, size]`` of the policy head and, if there is one, the value head."""
    if "policy" not in network.heads:
        raise errors.Refused(f"a policy is exported from a network's policy head; this one has {sorted(network.heads)}")
    trunks: dict[str, _Signal] = {}
    outputs = {}
    for head in ("policy", "value"):
        if head in network.heads:
            trunk, layers = network.heads[head]
            if trunk not in trunks:
                trunks[trunk] = _run(graph, network.trunks[trunk], params, obs)
            outputs[head] = _run(graph, layers, params, trunks[trunk]).name
    return outputs


def _run(graph: _Graph, layers: tuple[types.Layer, ...], params: types.Params, x: _Signal) -> _Signal:
    for layer in layers:
        if layer.kind not in _LAYERS:
            raise errors.unknown("kind of layer", layer.kind, _LAYERS, "The ONNX export cannot write it.")
        x = _LAYERS[layer.kind](graph, layer, params.get(layer.name), x)
    return x


def _dense(graph: _Graph, layer: types.Layer, weights: Any, x: _Signal) -> _Signal:
    del layer
    return _Signal(graph.add("Gemm", x.name, graph.constant(weights["kernel"]), graph.constant(weights["bias"])))


def _conv(graph: _Graph, layer: types.Layer, weights: Any, x: _Signal) -> _Signal:
    name = x.name if x.channels_first else graph.add("Transpose", x.name, perm=[0, 3, 1, 2])
    kernel = np.transpose(np.asarray(weights["kernel"]), (3, 2, 0, 1))  # flax: height, width, in, out
    sides = {"kernel_shape": [layer.kernel] * 2, "strides": [layer.stride] * 2}
    out = graph.add("Conv", name, graph.constant(kernel), graph.constant(weights["bias"]), auto_pad="VALID", **sides)
    return _Signal(out, channels_first=True)


def _flatten(graph: _Graph, layer: types.Layer, weights: Any, x: _Signal) -> _Signal:
    del layer, weights
    # The dense layer's rows are in the order height, width, channels.
    name = graph.add("Transpose", x.name, perm=[0, 2, 3, 1]) if x.channels_first else x.name
    return x._replace(name=graph.add("Flatten", name, axis=1), channels_first=False)


def _scale(graph: _Graph, layer: types.Layer, weights: Any, x: _Signal) -> _Signal:
    del layer, weights
    return x._replace(name=graph.add("Div", x.name, graph.constant(np.float32(255.0))))


def _activation(graph: _Graph, layer: types.Layer, weights: Any, x: _Signal) -> _Signal:
    del weights
    return x._replace(name=graph.add({"tanh": "Tanh", "relu": "Relu"}[layer.kind], x.name))


def _lstm(graph: _Graph, layer: types.Layer, weights: Any, x: _Signal) -> _Signal:
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
    return _Signal(h)


_LAYERS: Mapping[str, Callable[..., _Signal]] = {
    "scale": _scale,
    "conv": _conv,
    "flatten": _flatten,
    "dense": _dense,
    "lstm": _lstm,
    "tanh": _activation,
    "relu": _activation,
}


def _categorical(graph: _Graph, logits: str, action: types.ActionSpec) -> None:
    graph.output("action", graph.add("ArgMax", logits, axis=1, keepdims=0), dtype="int64")
    graph.output("logits", logits, (action.n,))


def _gaussian(graph: _Graph, output: str, action: types.ActionSpec) -> None:
    size = int(np.prod(action.shape))
    mean, raw = graph.split("Split", 2, output, graph.constant(np.full(2, size, np.int64)), axis=1)
    floor = graph.constant(np.float32(distributions.MINIMUM_VARIANCE))
    variance = graph.add("Add", graph.add("Softplus", raw), floor)
    largest = np.finfo(np.float32).max  # an infinite bound bounds nothing
    low, high = (np.clip(np.asarray(bound, np.float64), -largest, largest) for bound in (action.low, action.high))
    bounded = graph.add("Min", graph.add("Max", mean, graph.constant(low)), graph.constant(high))
    graph.output("action", bounded, (size,))
    graph.output("mean", mean, (size,))
    graph.output("variance", variance, (size,))


_FINISHES: Mapping[str, Callable[[_Graph, str, types.ActionSpec], None]] = {
    "categorical": _categorical,
    "gaussian": _gaussian,
}
