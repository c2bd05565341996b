"""The engine that is ONNX Runtime: one thread, memory of ours bound to what goes in and out.

Where weights are inputs of the graph, they are bound where they lie and a publish is nothing. The runtime lays out
weights that it knows to be constant before it runs, which makes them faster to use; then newer ones cost a new session.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from etils import epy

from shoal.core import types
from shoal.networks import compact, engines, export
from shoal.networks.export import _graph, _layers

with epy.lazy_imports():
    import onnxruntime

NAME = "onnx"
LARGE = 2**16  # weights of dense layers from which constants pay with several rows


def fits(network: compact.Compact, batch: int) -> str:
    """See `engines`: everything fits."""
    del network, batch
    return ""


def make(network: compact.Compact, batch: int) -> Session:
    """See `engines`."""
    return Session(network, batch)


def options() -> onnxruntime.SessionOptions:
    """Of a session: one thread, one operator after the other."""
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = made.inter_op_num_threads = 1
    made.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    made.log_severity_level = 3  # errors
    return made


class Session:
    """See `engines.Engine`."""

    name = NAME

    def __init__(self, network: compact.Compact, batch: int) -> None:
        self._network, self._many_rows = network, batch > 1
        layers, seen = compact.layers(network), network.spec.observation
        self._eight = any(layer.kind.endswith("8") for layer in layers)
        self._obs = np.zeros((batch, *seen.shape), seen.dtype)
        cells = {layer.name: layer.size for layer in layers if layer.kind == "lstm"}
        self._carry, self._next = (
            {name: tuple(np.zeros((batch, size), np.float32) for _ in "ch") for name, size in cells.items()}
            for _ in range(2)
        )
        self._outputs: dict[str, np.ndarray] = {}
        self._open()

    def _open(self) -> None:
        """Make the session and bind memory to what goes in and out."""
        graph = _Following(self._network, self._many_rows)
        for name, (output, size) in _layers.heads(graph, self._network).items():
            graph.output(name, output, (size,))
            self._outputs.setdefault(name, np.zeros((len(self._obs), size), np.float32))
        model = graph.model("policy", export.OPSET, export.IR_VERSION).SerializeToString()
        session = onnxruntime.InferenceSession(model, options(), providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        into = {"obs": self._obs, **_named("carry", self._carry), **graph.followed}
        out = {**self._outputs, **_named("next_carry", self._next)}
        for bind, arrays in ((binding.bind_ortvalue_input, into), (binding.bind_ortvalue_output, out)):
            for name, array in arrays.items():
                bind(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))  # of its very memory
        self._run, self._binding, self._fixed = session.run_with_iobinding, binding, graph.fixed
        self._bound = into  # kept alive
        self._sound = not (self._eight and _any_nan(self._network))

    def refresh(self) -> None:
        """See `engines.Engine`."""
        if self._fixed:
            self._open()
        else:
            self._sound = not (self._eight and _any_nan(self._network))

    def __call__(self, obs: np.ndarray, carry: types.Carry) -> tuple[Mapping[str, np.ndarray], types.Carry]:
        """See `engines.Engine`."""
        if obs.shape != self._obs.shape:
            raise engines.misshapen(obs, self._obs.shape)
        np.copyto(self._obs, obs)
        for name, cell in self._carry.items():
            for to, part in zip(cell, carry[name], strict=True):
                np.copyto(to, part)
        self._run(self._binding)
        if self._eight and not (self._sound and obs.max() == obs.max()):
            # Quantised, what is not a number would become one.
            for output in self._outputs.values():
                output.fill(np.nan)
        return self._outputs, self._next or ()


class _Following(_graph.Graph):
    """A graph whose weights are inputs where that pays."""

    runtime = True

    def __init__(self, network: compact.Compact, many_rows: bool) -> None:
        super().__init__()
        kernels = [held["kernel"] for held in network.params.values() if "kernel" in held]
        large = sum(kernel.size for kernel in kernels if kernel.ndim == 2) >= LARGE
        self._follows = not (many_rows and large)
        self.fixed = any(layer.kind in ("conv", "conv8", "dense8") for layer in compact.layers(network))
        self.followed: dict[str, np.ndarray] = {}  # by name of the input

    def weight(self, array: np.ndarray) -> str:
        """See `_graph.Graph`."""
        if not (self._follows and array.dtype == np.float32 and array.flags.c_contiguous and array.flags.aligned):
            self.fixed = True
            return self.constant(array)
        name = f"weight_{len(self.followed)}"
        self.inputs.append(_graph.declared(name, "float32", array.shape))
        self.followed[name] = array
        return name


def _named(prefix: str, carry: Mapping[str, tuple[np.ndarray, ...]]) -> dict[str, np.ndarray]:
    """Recurrent states by the names that they have in the graph."""
    return {
        f"{prefix}_{name}_{part}": array for name, cell in carry.items() for part, array in zip("ch", cell, strict=True)
    }


def _any_nan(network: compact.Compact) -> bool:
    floats = (a for held in network.params.values() for a in held.values() if a.dtype == np.float32)
    return any(np.isnan(array.max()) for array in floats)
