"""How an exported policy is used: what its graph leaves to the caller, its names and shapes, and lines that run it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from etils import epy

from shoal.core import types

with epy.lazy_imports():
    import onnx

CARRIED = "an episode begins with zeros; what next_carry_* gives is carry_* of the next step"


def facts(spec: types.EnvSpec, *, recurrent: bool) -> dict[str, str]:
    """Metadata of a model: what to do before the graph, and what its action is.

    Args:
        spec: The environment it was trained in.
        recurrent: Whether it has a memory.
    """
    seen = "; ".join(spec.shown) or "as the environment gives it"
    taken = f"as the environment takes it: {_taken(spec.action)}"
    return {"observation": seen, "action": taken, **({"carry": CARRIED} if recurrent else {})}


def _taken(action: types.ActionSpec) -> str:
    if action.sizes:
        each = [f"{start} to {start + n - 1}" for start, n in zip(action.starts, action.sizes, strict=True)]
        told = f"each from {each[0]}" if len({*each}) == 1 else f"from {', '.join(each)}"
        return f"{len(each)} whole numbers, {told}"
    if action.discrete:
        return f"a number from {action.start} to {action.start + action.n - 1}"
    return f"within its bounds, {action.own_dtype}"


def signature(model: onnx.ModelProto) -> dict[str, dict[str, str]]:
    """``{"inputs": {name: "float32 [batch, 4]"}, "outputs": ...}``."""
    return {"inputs": dict(map(_told, model.graph.input)), "outputs": dict(map(_told, model.graph.output))}


def _told(value: Any) -> tuple[str, str]:
    tensor = value.type.tensor_type
    shape = ", ".join(dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)
    return value.name, f"{onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name} [{shape}]"


def lines(model: onnx.ModelProto, path: str | Path) -> list[str]:
    """Five lines of Python that act with the file: from `obs`, one observation, to `action`, one action.

    Args:
        model: From `onnx_model`.
        path: Where it was written.
    """
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)).name
    begin = ["import numpy as np, onnxruntime", f"policy = onnxruntime.InferenceSession({str(path)!r})"]
    seen = f'{{"obs": np.asarray(obs, "{dtype}")[None]'
    if len(model.graph.input) == 1:
        return [
            *begin,
            f"seen = {seen}}}",
            'action = policy.run(["action"], seen)[0][0]',
            "# env.step(action); its next observation is the next obs",
        ]
    return [
        *begin,
        'carry = {i.name: np.zeros((1, *i.shape[1:]), "float32") for i in policy.get_inputs()[1:]}',
        f'action, *after = policy.run(["action", *(f"next_{{name}}" for name in carry)], {seen}, **carry}})',
        "action, carry = action[0], dict(zip(carry, after))",
    ]
