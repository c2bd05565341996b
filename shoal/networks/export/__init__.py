"""A policy as an ONNX file: what acting needs, readable without JAX and without Shoal.

The graph is written from the layers-as-data of a `types.NetworkSpec`: the observation normaliser, the trunks the heads
stand on, the heads, and the greedy action. Operators are those of opset 17 (2022), the recurrent cell is spelt out in
primitive ones, so that any runtime of the last years takes the file.

Inputs:  ``obs`` [batch, *obs], and for each LSTM ``carry_<layer>_c``, ``carry_<layer>_h`` [batch, cells].
Outputs: ``action``, the environment's own (int64 [batch] counted from its start, of several choices [batch, *shape] of
its type, or of vectors [batch, *shape] within its bounds, of its type and rounded where that is whole), and what it was
made from, vectors flat:

| agent's head      | outputs                                                                                       |
|-------------------|-----------------------------------------------------------------------------------------------|
| categorical       | ``logits`` [batch, n]                                                                         |
| multi_categorical | ``logits`` [batch, Σ n], those of one choice after the other                                  |
| greedy            | ``q`` [batch, n], the value of each action                                                    |
| gaussian          | ``mean`` and ``variance`` [batch, d]; the action is the mean, held within the bounds          |
| stretched         | the same before they are stretched from [-1, 1] to the box; the action is the mean, stretched |
| linear            | ``mean`` [batch, d] in the environment's units; the action is it, held within the bounds     |
| squashed          | ``mean`` and ``deviation`` [batch, d] before the tanh; the action is tanh(mean), stretched    |
| deterministic     | nothing else                                                                                  |

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

from shoal.core import errors, types
from shoal.formulas import normalise
from shoal.networks import compact
from shoal.networks.export import _actions, _graph, _layers
from shoal.networks.export._use import facts, lines, signature

with epy.lazy_imports():
    import onnx

__all__ = ["IR_VERSION", "OPSET", "facts", "lines", "onnx_model", "signature", "write"]

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
        head: How the head's output becomes an action (`types.About.head`).
        action: The action space; bounds that are finite are kept to.
        metadata: Text entries of the model's ``metadata_props``, e.g. preset, environment, version.

    Returns:
        The model, which has passed ONNX's full check.

    Raises:
        Refused: The network lacks the head that acts, or a head or a layer is none that can be written.
    """
    wanted = tuple(name for name in (_finish(head, network).head, "value") if name in network.heads)
    return compact_model(compact.of(network, policy, wanted), head, action, metadata, policy.returns)


def _finish(head: str, network: types.NetworkSpec) -> _actions.Finish:
    try:
        finish = _actions.FINISHES[head]
    except KeyError:
        raise errors.unknown("policy head", head, _actions.FINISHES) from None
    if finish.head not in network.heads:
        raise errors.Refused(
            f"a {head} policy is exported from a network's {finish.head} head; this one has {sorted(network.heads)}"
        )
    return finish


def compact_model(
    network: compact.Compact,
    head: str,
    action: types.ActionSpec,
    metadata: Mapping[str, str] | None = None,
    returns: Any = (),
) -> onnx.ModelProto:
    """The same of a network for acting, as a compressor may leave it: the greedy policy as a checked ONNX model.

    Args:
        network: Its heads are among the outputs.
        head: As in `onnx_model`, and the others too.
        action: The action space.
        metadata: Text entries.
        returns: Statistics that rewards were divided by, () where there are none.

    Raises:
        Refused: As `onnx_model`.
    """
    finish, graph = _finish(head, network.spec), _graph.Graph()
    outputs = {name: out for name, (out, _) in _layers.heads(graph, network).items()}
    finish.write(graph, outputs[finish.head], action)
    if "value" in outputs:
        value = graph.add("Squeeze", outputs["value"], graph.constant(np.array([1], np.int64)))
        if returns:
            value = graph.add("Mul", value, graph.constant(_deviation(returns)))
        graph.output("value", value)
    model = graph.model("policy", OPSET, IR_VERSION)
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


def _deviation(statistics: Any) -> np.ndarray:
    """As `normalise.deviation` has it: 1 of nothing, and never quite 0."""
    count, m2 = (np.asarray(leaf, np.float32) for leaf in (statistics.count, statistics.m2))
    return np.sqrt((m2 / count if count > 1 else np.ones_like(m2)) + np.float32(normalise.EPSILON))
