"""An ONNX graph while it grows: names are made here, constants become float32."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from etils import epy

with epy.lazy_imports():
    import onnx

BATCH = "batch"  # the symbolic first dimension of everything that goes in or out


class Signal(NamedTuple):
    """A tensor on its way through the layers."""

    name: str
    channels_first: bool = False  # ONNX convolves [batch, channels, height, width]; Shoal's images end in channels


class Graph:
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
        self.inputs.append(declared(name, dtype, shape))
        return name

    def output(self, name: str, source: str, shape: tuple[int, ...] = (), dtype: str = "float32") -> None:
        """Something the caller gets, ``[batch, *shape]``."""
        self.nodes.append(onnx.helper.make_node("Identity", [source], [name]))
        (self.carries if name.startswith("next_carry") else self.outputs).append(declared(name, dtype, shape))


def declared(name: str, dtype: str, shape: tuple[int, ...]) -> Any:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return onnx.helper.make_tensor_value_info(name, kind, [BATCH, *shape])
