"""The engine that is NumPy: a list of array operations on memory of its own, gone through at every call.

Weights are read where they lie, so even without `Engine.refresh` it follows those that are written over; only those of
eight bits are widened, which `refresh` does again. Their products are exact in f32 up to sums of 2^24, more than 500
inputs of 255 times 127 come to, and rounded beyond as any sum in f32 is. Eight bits save no time here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from shoal.core import types
from shoal.formulas import normalise
from shoal.networks import compact, engines, scaling, walking

NAME = "numpy"

Step = Callable[[], Any]


def fits(network: compact.Compact, batch: int) -> str:
    """See `engines`."""
    del batch
    recurrent = any(layer.kind == "lstm" for layer in compact.layers(network))
    return "it has no LSTM; onnx and jax have" if recurrent else ""


def make(network: compact.Compact, batch: int) -> Listed:
    """See `engines`."""
    return Listed(network, batch)


class Listed:
    """See `engines.Engine`."""

    name = NAME

    def __init__(self, network: compact.Compact, batch: int) -> None:
        self._shape = (batch, *network.spec.observation.shape)
        self._enter: list[Callable[[np.ndarray], Any]] = []
        self._steps: list[Step] = []
        self._widened: list[tuple[np.ndarray, np.ndarray]] = []  # (f32, the int8 it is made of)
        self._params = network.params
        ways = walking.Ways(self._row, lambda layer: network.params[layer.name]["bias"], self._joined, self._added)
        self.outputs: Mapping[str, np.ndarray] = walking.outputs(network.spec, None, ways)
        self.run = _through(self._enter, self._steps)
        self.refresh()

    def refresh(self) -> None:
        """See `engines.Engine`."""
        for wide, narrow in self._widened:
            np.copyto(wide, narrow)

    def __call__(self, obs: np.ndarray, carry: types.Carry) -> tuple[Mapping[str, np.ndarray], types.Carry]:
        """See `engines.Engine`."""
        if obs.shape != self._shape:
            raise engines.misshapen(obs, self._shape)
        self.run(obs)
        return self.outputs, carry

    def _row(self, layers: tuple[types.Layer, ...], x: np.ndarray | None) -> np.ndarray:
        """List what a row of layers does.

        Args:
            layers: In their order.
            x: What goes in, which others may read too; None: the observations.

        Returns:
            What comes out, ``[B, ...]``.
        """
        own = False  # whether `x` may be written over
        for layer in layers:
            arrays = self._params.get(layer.name, {})
            if layer.kind == "flatten":
                x = x if x is None else x.reshape(len(x), -1)
            elif layer.kind.startswith("dense"):
                x, own = self._dense(layer, arrays, x), True
            elif layer.kind.startswith("conv"):
                x, own = self._conv(layer, arrays, self._entered() if x is None else x), True
            elif layer.kind == "pad":
                x, own = self._padded(layer, self._entered() if x is None else x), True
            elif layer.kind in _ELEMENTWISE:
                out = np.empty(self._shape if x is None else x.shape, np.float32) if x is None or not own else x
                for ufunc, other in _ELEMENTWISE[layer.kind](layer, arrays, out.shape):
                    self._elementwise(ufunc, x, other, out)
                    x = out
                own = True
        return self._entered() if x is None else x

    def _joined(self, parts: Sequence[np.ndarray | None]) -> np.ndarray:
        """One vector a row; of what is learned, the same in each, and what it is at the call."""
        rows = self._shape[0]
        each = [self._entered() if part is None else part for part in parts]
        flat = [part if part.ndim == 1 else part.reshape(rows, -1) for part in each]
        ends = np.cumsum([part.shape[-1] for part in flat])
        out = np.empty((rows, ends[-1]), np.float32)
        for part, end in zip(flat, ends, strict=True):
            self._steps.append(functools.partial(np.copyto, out[:, end - part.shape[-1] : end], part))
        return out

    def _added(self, x: np.ndarray, other: np.ndarray) -> np.ndarray:
        out = np.empty(x.shape, np.float32)
        self._steps.append(functools.partial(np.add, x, other, out))
        return out

    def _entered(self) -> np.ndarray:
        x = np.empty(self._shape, np.float32)
        self._enter.append(functools.partial(np.copyto, x))
        return x

    def _elementwise(self, ufunc: np.ufunc, x: np.ndarray | None, other: np.ndarray | None, out: np.ndarray) -> None:
        """Of operands of one shape where that can be: NumPy takes twice as long to find out how others fit."""
        shape, in_place = out.shape, x is out
        if len(out) == 1 and (other is None or other.shape in (shape, shape[1:])):
            out = out.reshape(-1)
            x, other = (None if each is None else each.reshape(-1) for each in (x, other))
        x = out if in_place else x  # the very object, or NumPy asks how the two overlap
        others = () if other is None else (other,)
        if x is None:
            shape = out.shape
            self._enter.append(lambda obs: ufunc(obs.reshape(shape), *others, out=out))
        elif ufunc in (np.maximum, np.minimum):  # NumPy wants the name there, which takes longer
            self._steps.append(functools.partial(ufunc, x, *others, out=out))
        else:
            self._steps.append(functools.partial(ufunc, x, *others, out))

    def _dense(self, layer: types.Layer, arrays: Mapping[str, np.ndarray], x: np.ndarray | None) -> np.ndarray:
        out, kernel = np.empty((self._shape[0], layer.size), np.float32), arrays["kernel"]
        if layer.kind == "dense8":
            x = self._entered() if x is None else x
            whole, scale = self._quantised(arrays, x.reshape(len(x), -1))
            self._product(arrays, whole, scale, out)
            return out
        shape = (len(out), -1) if len(out) > 1 else (-1,)
        to, dot = out.reshape(shape), np.dot
        if x is None:
            ndim = len(shape)
            self._enter.append(lambda obs: dot(obs if obs.ndim == ndim else obs.reshape(shape), kernel, to))
        else:
            self._steps.append(functools.partial(dot, x.reshape(shape), kernel, to))
        self._elementwise(np.add, out, arrays["bias"], out)
        return out

    def _conv(self, layer: types.Layer, arrays: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        """A product of what lies under the kernel at each place, a row each, with the kernel."""
        if layer.kind == "conv8":
            x, scale = self._quantised(arrays, x)
        under = np.lib.stride_tricks.sliding_window_view(x, (layer.kernel, layer.kernel), axis=(1, 2))
        under = under[:, :: layer.stride, :: layer.stride].transpose(0, 1, 2, 4, 5, 3)  # [B, rows, columns, s, s, in]
        patches = np.empty(under.shape, np.float32)
        rows = patches.reshape(math.prod(under.shape[:3]), -1)
        out = np.empty((len(rows), layer.size), np.float32)
        self._steps.append(functools.partial(np.copyto, patches, under))
        if layer.kind == "conv8":
            self._product(arrays, rows, scale, out)
        else:
            self._steps.append(functools.partial(np.dot, rows, arrays["kernel"].reshape(-1, layer.size), out))
            self._steps.append(functools.partial(np.add, out, arrays["bias"], out))
        return out.reshape(*under.shape[:3], layer.size)

    def _padded(self, layer: types.Layer, x: np.ndarray) -> np.ndarray:
        """The same with zeros around, which are written once."""
        edge, (batch, height, width, channels) = layer.size, x.shape
        out = np.zeros((batch, height + 2 * edge, width + 2 * edge, channels), np.float32)
        self._steps.append(functools.partial(np.copyto, out[:, edge:-edge, edge:-edge], x))
        return out

    def _product(self, arrays: Mapping[str, np.ndarray], whole: np.ndarray, scale: np.ndarray, out: np.ndarray) -> None:
        """(whole numbers @ kernel) times the steps of both, and the bias."""
        kernel, size = arrays["kernel"], out.shape[1]
        wide, factor = np.empty((kernel.size // size, size), np.float32), np.empty(size, np.float32)
        self._widened.append((wide, kernel.reshape(-1, size)))
        self._steps += [
            functools.partial(np.dot, whole, wide, out),
            functools.partial(np.multiply, arrays["step"], scale, out=factor),
            functools.partial(np.multiply, out, factor, out=out),
            functools.partial(np.add, out, arrays["bias"], out),
        ]

    def _quantised(self, arrays: Mapping[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `in_jax.quantised`: (whole numbers from the zero point, their step ``[1]``), written at every call."""
        whole, scale = np.empty_like(x), np.empty(1, np.float32)
        steps, least = np.float32(255.0), np.float32(1e-30)

        def quantise() -> None:
            # What is not a number comes first, for Python's min and max keep their first argument then.
            low = arrays["low"][()] if "low" in arrays else min(x.min(), np.float32(0.0))
            high = arrays["high"][()] if "high" in arrays else max(x.max(), np.float32(0.0))
            scale[0] = step = max((high - low) / steps, least)
            zero = np.rint(-low / step)
            np.rint(np.divide(x, step, out=whole), out=whole)
            np.add(whole, zero, out=whole)
            np.minimum(np.maximum(whole, np.float32(0.0), out=whole), steps, out=whole)
            np.subtract(whole, zero, out=whole)

        self._steps.append(quantise)
        return whole, scale


def _through(enter: list[Callable[[np.ndarray], Any]], steps: list[Step]) -> Callable[[np.ndarray], None]:
    """What computes the outputs, given as many numbers as there should be."""

    def run(obs: np.ndarray) -> None:
        for each in enter:
            each(obs)
        for step in steps:
            step()

    return run


Operation = tuple[Any, np.ndarray | None]  # a ufunc, or a function that is called like one
Shape = tuple[int, ...]


def _normalise(layer: types.Layer, arrays: Mapping[str, np.ndarray], shape: Shape) -> list[Operation]:
    del layer
    shifted = [(np.subtract, arrays["mean"]), (np.divide, arrays["deviation"])]
    return [*shifted, (np.maximum, _full(shape, -normalise.CLIP)), (np.minimum, _full(shape, normalise.CLIP))]


def _scale(layer: types.Layer, arrays: Mapping[str, np.ndarray], shape: Shape) -> list[Operation]:
    del arrays, shape
    low, width = scaling.span(layer)
    factor = (1.0 / width.astype(np.float64)).astype(np.float32)
    factor = factor[0] if len(factor) == 1 else factor  # a scalar is quicker
    return [*([(np.subtract, low)] if low.any() else []), (np.multiply, factor)]


def _elu(x: np.ndarray, out: np.ndarray) -> None:
    """X where it is positive, else e^x - 1: the sum of both parts, one of which is 0."""
    below = np.minimum(x, np.float32(0.0))
    np.expm1(below, below)
    np.add(np.maximum(x, np.float32(0.0)), below, out)


def _full(shape: Shape, value: float) -> np.ndarray:
    return np.full(shape, value, np.float32)


_ELEMENTWISE: Mapping[str, Callable[[types.Layer, Mapping[str, np.ndarray], Shape], list[Operation]]] = {
    "normalise": _normalise,
    "scale": _scale,
    "tanh": lambda layer, arrays, shape: [(np.tanh, None)],  # noqa: ARG005
    "relu": lambda layer, arrays, shape: [(np.maximum, _full(shape, 0.0))],  # noqa: ARG005
    "elu": lambda layer, arrays, shape: [(_elu, None)],  # noqa: ARG005
    "softplus": lambda layer, arrays, shape: [(np.logaddexp, _full(shape, 0.0))],  # noqa: ARG005
}
