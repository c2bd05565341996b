"""From a head's output to the greedy action, as ONNX operators; one function for each `types.Agent.head`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from shoal import distributions, types
from shoal.export import _graph


class Finish(NamedTuple):
    """How acting ends."""

    head: str  # the network's head that it reads
    write: Callable[[_graph.Graph, str, types.ActionSpec], None]


def _categorical(graph: _graph.Graph, logits: str, action: types.ActionSpec) -> None:
    graph.output("action", graph.add("ArgMax", logits, axis=1, keepdims=0), dtype="int64")
    graph.output("logits", logits, (action.n,))


def _greedy(graph: _graph.Graph, q: str, action: types.ActionSpec) -> None:
    graph.output("action", graph.add("ArgMax", q, axis=1, keepdims=0), dtype="int64")
    graph.output("q", q, (action.n,))


def _gaussian(graph: _graph.Graph, output: str, action: types.ActionSpec) -> None:
    mean, raw, size = _halves(graph, output, action)
    floor = graph.constant(np.float32(distributions.MINIMUM_VARIANCE))
    variance = graph.add("Add", graph.add("Softplus", raw), floor)
    largest = np.finfo(np.float32).max  # an infinite bound bounds nothing
    low, high = (np.clip(np.asarray(bound, np.float64), -largest, largest) for bound in (action.low, action.high))
    bounded = graph.add("Min", graph.add("Max", mean, graph.constant(low)), graph.constant(high))
    graph.output("action", bounded, (size,))
    graph.output("mean", mean, (size,))
    graph.output("variance", variance, (size,))


def _linear(graph: _graph.Graph, mean: str, action: types.ActionSpec) -> None:
    largest = np.finfo(np.float32).max  # an infinite bound bounds nothing
    low, high = (np.clip(np.asarray(bound, np.float64), -largest, largest) for bound in (action.low, action.high))
    bounded = graph.add("Min", graph.add("Max", mean, graph.constant(low)), graph.constant(high))
    size = int(np.prod(action.shape))
    graph.output("action", bounded, (size,))
    graph.output("mean", mean, (size,))


def _squashed(graph: _graph.Graph, output: str, action: types.ActionSpec) -> None:
    mean, raw, size = _halves(graph, output, action)
    bounds = (graph.constant(np.float32(bound)) for bound in distributions.LOG_DEVIATION)
    graph.output("action", _stretched(graph, mean, action), (size,))
    graph.output("mean", mean, (size,))
    graph.output("deviation", graph.add("Exp", graph.add("Clip", raw, *bounds)), (size,))


def _deterministic(graph: _graph.Graph, output: str, action: types.ActionSpec) -> None:
    graph.output("action", _stretched(graph, output, action), (int(np.prod(action.shape)),))


def _halves(graph: _graph.Graph, output: str, action: types.ActionSpec) -> tuple[str, str, int]:
    size = int(np.prod(action.shape))
    mean, raw = graph.split("Split", 2, output, graph.constant(np.full(2, size, np.int64)), axis=1)
    return mean, raw, size


def _stretched(graph: _graph.Graph, output: str, action: types.ActionSpec) -> str:
    """The tanh of the output, stretched from [-1, 1] to the box of actions."""
    low, high = (np.asarray(bound, np.float32) for bound in (action.low, action.high))
    middle, half = graph.constant((low + high) / 2), graph.constant((high - low) / 2)
    return graph.add("Add", middle, graph.add("Mul", half, graph.add("Tanh", output)))


FINISHES: Mapping[str, Finish] = {
    "categorical": Finish("policy", _categorical),
    "gaussian": Finish("policy", _gaussian),
    "linear": Finish("policy", _linear),
    "greedy": Finish("q", _greedy),
    "squashed": Finish("policy", _squashed),
    "deterministic": Finish("policy", _deterministic),
}
