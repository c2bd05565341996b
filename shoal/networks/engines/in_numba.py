"""The engine that is one compiled kernel (`_kernels`), for small networks without convolutions; numba is an extra.

Weights are copied into one vector when they are refreshed, which takes a few microseconds with two layers of 64 units.
Those of eight bits are multiplied as such where the processor has AVX-512 VNNI (`_bytes`), and of any number; elsewhere
they are widened: the products are those of eight bits, the speed is that of f32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from etils import epy

from shoal.core import types
from shoal.networks import compact, engines, scaling, walking

with epy.lazy_imports():
    from shoal.networks.engines import _bytes, _kernels

NAME = "numba"
LARGEST = 2**19  # weights; beyond, they come from far memory, which libraries of matrix products read ahead
KINDS = ("dense", "dense8", "normalise", "scale", "flatten", "tanh", "relu", "elu", "softplus")


def fits(network: compact.Compact, batch: int) -> str:
    """See `engines`."""
    del batch
    if not walking.plain(network.spec):
        return (
            "its kernel goes through rows of layers, and this network joins or adds some; numpy, onnx and jax do that"
        )
    if unknown := sorted({layer.kind for layer in compact.layers(network)} - {*KINDS}):
        return f"its kernel knows no {', no '.join(unknown)}"
    try:
        in_bytes = _bytes.here()  # imported now
    except ImportError as error:
        return f"numba cannot be imported ({error}): pip install 'shoal-rl[actors]'"
    kernels = [arrays["kernel"] for arrays in network.params.values() if "kernel" in arrays]
    size = sum(kernel.size for kernel in kernels if not (in_bytes and kernel.dtype == np.int8))
    if size > LARGEST:
        return f"it is for networks of up to {LARGEST:,} weights, and this one has {size:,}"
    return ""


def make(network: compact.Compact, batch: int) -> Kernel:
    """See `engines`."""
    return Kernel(network, batch)


class Kernel:
    """See `engines.Engine`."""

    name = NAME

    def __init__(self, network: compact.Compact, batch: int) -> None:
        plan = _Plan(network, batch)
        table = np.array(plan.table, np.uint64).reshape(-1, _kernels.COLUMNS)
        weights, work = np.zeros(plan.weights, np.float32), np.zeros(plan.work, np.float32)
        self._copies = [(place.of(weights), source) for place, source in plan.sources]
        self._packs = []  # (weights, where they lie as bytes, their sums)
        self._run, room = _kernels.run, [table, weights, work]
        if plan.bytes:
            packed = np.zeros(plan.packed, np.int8)
            room += [packed, np.zeros(plan.inputs + 4, np.uint8), np.zeros(plan.outputs_most, np.int32)]
            self._run = _bytes.run
            self._packs = [(source, packed[at:], total.of(weights)[0]) for source, at, total in plan.bytes]
        self._room = tuple(room)
        self._shape = (batch, *network.spec.observation.shape)
        self._obs = work[: math.prod(self._shape)].reshape(self._shape)
        self._outputs = {name: rows.of(work) for name, rows in plan.outputs.items()}
        self.refresh()
        self._run(*self._room)  # compiled, or found where it is kept

    def refresh(self) -> None:
        """See `engines.Engine`."""
        for to, source in self._copies:
            np.copyto(to, source)
        for source, packed, total in self._packs:
            _bytes.pack(source.flatten(), packed, total, *source.shape)

    def __call__(self, obs: np.ndarray, carry: types.Carry) -> tuple[Mapping[str, np.ndarray], types.Carry]:
        """See `engines.Engine`."""
        if obs.shape != self._shape:
            raise engines.misshapen(obs, self._shape)
        np.copyto(self._obs, obs)
        self._run(*self._room)
        return self._outputs, carry


class _Rows(NamedTuple):
    """Where numbers ``[rows, size]`` lie within a vector."""

    at: int
    rows: int
    size: int
    stride: int

    def of(self, vector: np.ndarray) -> np.ndarray:
        """A view of them."""
        whole = vector[self.at : self.at + self.rows * self.stride]
        return whole.reshape(self.rows, self.stride)[:, : self.size]


class _Plan:
    """Where everything lies, and the table of `_kernels`."""

    def __init__(self, network: compact.Compact, batch: int) -> None:
        self.weights = self.work = 0  # numbers
        self.table: list[tuple[int, ...]] = []
        self.sources: list[tuple[_Rows, np.ndarray]] = []  # of the weights
        self.bytes: list[tuple[np.ndarray, int, _Rows]] = []  # (weights, where they are packed, their sums)
        self.packed = self.inputs = self.outputs_most = 0  # bytes; the most inputs and outputs of a layer of these
        self._params, self._batch = network.params, batch
        seen = network.spec.observation.shape
        size = math.prod(seen)
        obs = self._more_work(size, size)
        trunks = {name: self._through(layers, obs, seen) for name, layers in network.spec.trunks.items()}
        self.outputs = {
            head: self._through(layers, trunks[trunk], (trunks[trunk].size,))
            for head, (trunk, layers) in network.spec.heads.items()
        }

    def _more_work(self, size: int, stride: int) -> _Rows:
        self.work += self._batch * stride
        return _Rows(self.work - self._batch * stride, self._batch, size, stride)

    def _keep(self, source: np.ndarray, stride: int) -> None:
        source = source.reshape(-1, source.shape[-1] if source.ndim else 1)
        self.sources.append((_Rows(self.weights, *source.shape, stride), source))
        self.weights += len(source) * stride

    def _through(self, layers: tuple[types.Layer, ...], x: _Rows, shape: tuple[int, ...]) -> _Rows:
        """Plan a row of layers; `shape` is that of what goes in, without the batch."""
        for layer in layers:
            if layer.kind == "flatten":
                continue
            arrays, at, aside = self._params.get(layer.name, {}), self.weights, self.work
            if layer.kind == "dense8" and _bytes.here():
                kind, aside = _bytes.STATIC if "low" in arrays else _bytes.DYNAMIC, self.packed
                to = self._in_bytes(layer, arrays, x)
            elif layer.kind in ("dense", "dense8"):
                kind = _kernels.DENSE
                if layer.kind == "dense8":
                    kind = _kernels.STATIC if "low" in arrays else _kernels.DYNAMIC
                    self._more_work(x.size, x.size)
                to = self._more_work(layer.size, _whole(layer.size, _kernels.WIDE))
                self._keep_all(arrays, ("kernel", "bias", "step", "low", "high"), to.stride)
            else:
                kind = _kernels.SIMPLE[layer.kind]
                to = self._more_work(x.size, x.stride)
                given = scaling.span(layer) if layer.kind == "scale" else [arrays[n] for n in compact.KINDS[layer.kind]]
                for each in given:
                    self._keep(_over(each, shape), x.size)
            self.table.append((kind, x.rows, x.at, x.stride, x.size, to.at, to.stride, at, aside))
            x, shape = to, shape if layer.kind in _kernels.SIMPLE else (layer.size,)
        return x

    def _keep_all(self, arrays: Mapping[str, np.ndarray], names: tuple[str, ...], stride: int) -> None:
        for name in names:
            if name in arrays:
                self._keep(arrays[name], stride if arrays[name].ndim else 1)

    def _in_bytes(self, layer: types.Layer, arrays: Mapping[str, np.ndarray], x: _Rows) -> _Rows:
        to = self._more_work(layer.size, _whole(layer.size, _bytes.BLOCK))
        self._keep_all(arrays, ("bias", "step"), to.stride)
        total = _Rows(self.weights, 1, layer.size, to.stride)
        self.weights += to.stride
        self._keep_all(arrays, ("low", "high"), 1)
        self.bytes.append((arrays["kernel"], self.packed, total))
        self.packed += _whole(x.size, 4) * to.stride
        self.inputs, self.outputs_most = max(self.inputs, x.size), max(self.outputs_most, to.stride)
        return to


def _whole(size: int, vector: int) -> int:
    """The next multiple."""
    return -(-size // vector) * vector


def _over(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A view, flat and of one number for each that goes in, so that it follows what it is a view of."""
    return array.reshape(-1) if array.shape == shape else np.broadcast_to(array, shape).reshape(-1)
