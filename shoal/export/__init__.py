"""A policy as an ONNX file: what acting needs, readable without JAX and without Shoal.

The graph is written from the layers-as-data of a `types.NetworkSpec`: the observation normaliser, the trunks the heads
stand on, the heads, and the greedy action. Operators are those of opset 17 (2022), the recurrent cell is spelt out in
primitive ones, so that any runtime of the last years takes the file.

Inputs:  ``obs`` [batch, *obs], and for each LSTM ``carry_<layer>_c``, ``carry_<layer>_h`` [batch, cells].
Outputs: ``action`` (int64 [batch], or float32 [batch, d] within the bounds), and what it was made from:

| agent's head  | outputs                                                                                         |
|---------------|-------------------------------------------------------------------------------------------------|
| categorical   | ``logits`` [batch, n]                                                                           |
| greedy        | ``q`` [batch, n], the value of each action                                                      |
| gaussian      | ``mean`` and ``variance`` [batch, d]; the action is the mean, held within the bounds            |
| linear        | ``mean`` [batch, d] in the environment's units; the action is the mean, held within the bounds   |
| squashed      | ``mean`` and ``deviation`` [batch, d] before the tanh; the action is tanh(mean), stretched      |
| deterministic | nothing else                                                                                    |

``value`` [batch] where the network has that head; ``next_carry_<layer>_c``, ``_h``. Where rewards were divided by the
deviation of their return (`normalise.Returns`), the value is multiplied by it: it is in units of the reward again. Both
``value`` and ``q`` are of rewards as they were learned from: scaled and clipped if the algorithm's settings say so.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epy

from shoal import errors, normalise, types
from shoal.export import _actions, _graph, _layers

with epy.lazy_imports():
    import onnx

OPSET = 17
IR_VERSION = 8  # the file format that came with the opset; a newer one would shut out older runtimes for nothing


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
        policy: Parameters, normaliser and statistics of returns; NumPy leaves.
        head: How the head's output becomes an action (`types.Agent.head`).
        action: The action space; bounds that are finite are kept to.
        metadata: Text entries of the model's ``metadata_props``, e.g. preset, environment, version.

    Returns:
        The model, which has passed ONNX's full check.

    Raises:
        Refused: The network lacks the head that acts, or a head or a layer is none that can be written.
    """
    try:
        finish = _actions.FINISHES[head]
    except KeyError:
        raise errors.unknown("policy head", head, _actions.FINISHES) from None
    if finish.head not in network.heads:
        raise errors.Refused(
            f"a {head} policy is exported from a network's {finish.head} head; this one has {sorted(network.heads)}"
        )
    graph = _graph.Graph()
    obs = _observe(graph, network.observation, policy.normaliser)
    outputs = _heads(graph, network, policy.params, obs, (finish.head, "value"))
    finish.write(graph, outputs[finish.head], action)
    if "value" in outputs:
        value = graph.add("Squeeze", outputs["value"], graph.constant(np.array([1], np.int64)))
        if policy.returns:
            value = graph.add("Mul", value, graph.constant(np.sqrt(_variance(policy.returns))))
        graph.output("value", value)
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


def _observe(graph: _graph.Graph, seen: types.ObservationSpec, statistics: Any) -> _graph.Signal:
    """The observation as the trunks take it: float32, normalised as `normalise.apply` does."""
    name = graph.input("obs", seen.dtype, seen.shape)
    if seen.dtype != "float32":
        name = graph.add("Cast", name, to=onnx.TensorProto.FLOAT)
    if statistics:
        centred = graph.add("Sub", name, graph.constant(statistics.mean))
        scaled = graph.add("Div", centred, graph.constant(np.sqrt(_variance(statistics))))
        bounds = graph.constant(np.float32(-normalise.CLIP)), graph.constant(np.float32(normalise.CLIP))
        name = graph.add("Clip", scaled, *bounds)
    return _graph.Signal(name)


def _variance(statistics: Any) -> np.ndarray:
    """As `normalise.apply` and `normalise.deviation` have it: 1 of nothing, and never quite 0."""
    count, m2 = (np.asarray(leaf, np.float32) for leaf in (statistics.count, statistics.m2))
    return (m2 / count if count > 1 else np.ones_like(m2)) + np.float32(normalise.EPSILON)


def _heads(
    graph: _graph.Graph, network: types.NetworkSpec, params: types.Params, obs: _graph.Signal, wanted: tuple[str, ...]
) -> dict[str, str]:
    """The outputs ``[batch, size]`` of those heads wanted that there are."""
    trunks: dict[str, _graph.Signal] = {}
    outputs = {}
    for head in wanted:
        if head in network.heads:
            trunk, layers = network.heads[head]
            if trunk not in trunks:
                trunks[trunk] = _layers.run(graph, network.trunks[trunk], params, obs)
            outputs[head] = _layers.run(graph, layers, params, trunks[trunk]).name
    return outputs
