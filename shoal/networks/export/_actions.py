"""From a head's output to the greedy action, as ONNX operators; one function for each `types.About.head`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from shoal.core import types
from shoal.formulas import distributions
from shoal.networks.export import _graph


class Finish(NamedTuple):
    """How acting ends."""

    head: str  # the network's head that it reads
    write: Callable[[_graph.Graph, str, types.ActionSpec], None]


def _categorical(graph: _graph.Graph, logits: str, action: types.ActionSpec) -> None:
    _choose(graph, logits, action)
    graph.output("logits", logits, (action.n,))


def _multi_categorical(graph: _graph.Graph, logits: str, action: types.ActionSpec) -> None:
    """The best of each choice, by the simulator's numbers of them, in its shape."""
    sizes = np.array(action.sizes, np.int64)
    parts = graph.split("Split", len(sizes), logits, graph.constant(sizes), axis=1)
    best = graph.add("Concat", *(graph.add("ArgMax", part, axis=1, keepdims=1) for part in parts), axis=1)
    numbered = graph.add("Add", best, graph.constant(np.array(action.starts, np.int64))) if any(action.starts) else best
    _give(graph, numbered, "int64", action)
    graph.output("logits", logits, (int(sizes.sum()),))


def _greedy(graph: _graph.Graph, q: str, action: types.ActionSpec) -> None:
    _choose(graph, q, action)
    graph.output("q", q, (action.n,))


def _gaussian(graph: _graph.Graph, output: str, action: types.ActionSpec) -> None:
    _moments(graph, output, action, None)


def _stretched(graph: _graph.Graph, output: str, action: types.ActionSpec) -> None:
    _moments(graph, output, action, distributions.reach(action))


def _moments(graph: _graph.Graph, output: str, action: types.ActionSpec, box: distributions.Bounds | None) -> None:
    mean, raw, size = _halves(graph, output, action)
    floor = graph.constant(np.float32(distributions.MINIMUM_VARIANCE))
    variance = graph.add("Add", graph.add("Softplus", raw), floor)
    _act(graph, mean if box is None else _to_box(graph, mean, box), action)
    graph.output("mean", mean, (size,))
    graph.output("variance", variance, (size,))


def _linear(graph: _graph.Graph, mean: str, action: types.ActionSpec) -> None:
    size = int(np.prod(action.shape))
    _act(graph, mean, action)
    graph.output("mean", mean, (size,))


def _squashed(graph: _graph.Graph, output: str, action: types.ActionSpec) -> None:
    mean, raw, size = _halves(graph, output, action)
    bounds = (graph.constant(np.float32(bound)) for bound in distributions.LOG_DEVIATION)
    _act(graph, _to_box(graph, graph.add("Tanh", mean), distributions.bounds(action, np)), action)
    graph.output("mean", mean, (size,))
    graph.output("deviation", graph.add("Exp", graph.add("Clip", raw, *bounds)), (size,))


def _deterministic(graph: _graph.Graph, output: str, action: types.ActionSpec) -> None:
    _act(graph, _to_box(graph, graph.add("Tanh", output), distributions.bounds(action, np)), action)


def _choose(graph: _graph.Graph, scores: str, action: types.ActionSpec) -> None:
    """The best choice, by the simulator's number of it."""
    best = graph.add("ArgMax", scores, axis=1, keepdims=0)
    numbered = graph.add("Add", best, graph.constant(np.int64(action.start))) if action.start else best
    graph.output("action", numbered, dtype="int64")


def _act(graph: _graph.Graph, vector: str, action: types.ActionSpec) -> None:
    """The vector as the simulator takes it: whole where it holds whole numbers, within its bounds, in its shape."""
    whole = np.dtype(action.own_dtype).kind in "iub"
    _give(graph, _within(graph, graph.add("Round", vector) if whole else vector, action), "float32", action)


def _give(graph: _graph.Graph, taken: str, dtype: str, action: types.ActionSpec) -> None:
    """The action of the graph, from numbers ``[batch, *shape]`` of a dtype: in the simulator's own dtype and shape."""
    shape = action.shape if action.own_shape is None else action.own_shape
    if action.own_dtype != dtype:
        taken = graph.cast(taken, action.own_dtype)
    if shape != action.shape:
        taken = graph.add("Reshape", taken, graph.constant(np.array([-1, *shape], np.int64)))
    graph.output("action", taken, shape, action.own_dtype)


def _halves(graph: _graph.Graph, output: str, action: types.ActionSpec) -> tuple[str, str, int]:
    size = int(np.prod(action.shape))
    mean, raw = graph.split("Split", 2, output, graph.constant(np.full(2, size, np.int64)), axis=1)
    return mean, raw, size


def _within(graph: _graph.Graph, vector: str, action: types.ActionSpec) -> str:
    """Held within the bounds."""
    largest = np.finfo(np.float32).max  # an infinite bound bounds nothing
    low, high = (np.clip(np.asarray(bound, np.float64), -largest, largest) for bound in (action.low, action.high))
    return graph.add("Min", graph.add("Max", vector, graph.constant(low)), graph.constant(high))


def _to_box(graph: _graph.Graph, vector: str, box: distributions.Bounds) -> str:
    """From [-1, 1] to the box of actions."""
    return graph.add("Add", graph.constant(box.middle), graph.add("Mul", graph.constant(box.half), vector))


FINISHES: Mapping[str, Finish] = {
    "categorical": Finish("policy", _categorical),
    "multi_categorical": Finish("policy", _multi_categorical),
    "gaussian": Finish("policy", _gaussian),
    "stretched": Finish("policy", _stretched),
    "linear": Finish("policy", _linear),
    "greedy": Finish("q", _greedy),
    "squashed": Finish("policy", _squashed),
    "deterministic": Finish("policy", _deterministic),
}
