"""The engine that is XLA; and what a compact network computes, as a function that can be differentiated."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epy

from shoal.core import types
from shoal.networks import compact, engines, scaling, walking

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np

    from shoal.formulas import normalise

NAME = "jax"


def fits(network: compact.Compact, batch: int) -> str:
    """See `engines`: everything fits."""
    del network, batch
    return ""


def make(network: compact.Compact, batch: int) -> Jitted:
    """See `engines`."""
    return Jitted(network, batch)


class Jitted:
    """See `engines.Engine`."""

    name = NAME

    def __init__(self, network: compact.Compact, batch: int) -> None:
        self._network, self._run = network, jax.jit(forward(network.spec))
        self._shape = (batch, *network.spec.observation.shape)
        self.refresh()

    def refresh(self) -> None:
        """See `engines.Engine`; copied, for JAX may otherwise read memory that is written over.

        Weights of eight bits are widened here instead of at every call.
        """
        wide = jax.tree.map(lambda array: np.array(array, np.float32), dict(self._network.params))
        self._params = jax.device_put(wide)

    def __call__(self, obs: np.ndarray, carry: types.Carry) -> tuple[Mapping[str, np.ndarray], types.Carry]:
        """See `engines.Engine`."""
        if obs.shape != self._shape:
            raise engines.misshapen(obs, self._shape)
        outputs, carry = self._run(self._params, obs, carry)
        return {name: np.asarray(output) for name, output in outputs.items()}, carry


Params = Mapping[str, Mapping[str, Any]]


def forward(spec: types.NetworkSpec) -> Callable[[Params, Any, types.Carry], tuple[dict[str, Any], types.Carry]]:
    """What a network with these layers computes.

    Args:
        spec: Of a `compact.Compact`.

    Returns:
        ``(params, obs [B, *obs], carry [B, ...]) -> ({head: [B, n]}, carry)``.
    """

    def run(params: Params, obs: Any, carry: types.Carry) -> tuple[dict[str, Any], types.Carry]:
        _, outputs, carry = _walk(spec, params, obs, carry)
        return outputs, carry

    return run


@functools.lru_cache(maxsize=32)
def watched(key: compact.Frozen) -> Callable[[Params, Any], tuple[dict[str, Any], dict[str, Any]]]:
    """What comes into each layer of a network, and what its heads give; recurrent states are those of a start.

    Args:
        key: Its layers (`compact.frozen`).

    Returns:
        ``(params, obs [N, *obs]) -> ({layer: [N, ...]}, {head: [N, n]})``, compiled.
    """
    spec = compact.thawed(key)

    def run(params: Params, obs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return _walk(spec, params, obs, compact.start(spec, len(obs)))[:2]

    return jax.jit(run)


def _walk(
    spec: types.NetworkSpec, params: Params, obs: Any, carry: types.Carry
) -> tuple[dict[str, Any], dict[str, Any], types.Carry]:
    """(what comes into each layer that has arrays, what the heads give, the recurrent state)."""
    carry, inputs, rows = dict(carry) if carry else {}, {}, len(obs)

    def through(layers: Sequence[types.Layer], x: Any) -> Any:
        for layer in layers:
            if layer.name:
                inputs[layer.name] = x
            x = _apply(layer, params.get(layer.name, {}), x, carry)
        return x

    def learned(layer: types.Layer) -> Any:
        return jnp.broadcast_to(params[layer.name]["bias"], (rows, layer.size))

    outputs = walking.outputs(spec, jnp.asarray(obs), walking.Ways(through, learned, _joined, jnp.add))
    return inputs, outputs, carry or ()


def _joined(parts: Sequence[Any]) -> Any:
    return jnp.concatenate([part.reshape(len(part), -1).astype(jnp.float32) for part in parts], axis=1)


def _apply(layer: types.Layer, arrays: Mapping[str, Any], x: Any, carry: dict[str, Any]) -> Any:
    """What a layer gives; its recurrent state is replaced in `carry`."""
    if layer.kind == "lstm":
        c, h = carry[layer.name]
        gates = x @ arrays["input"] + (h @ arrays["recurrent"] + arrays["bias"])
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        carry[layer.name] = c, h
        return h
    if layer.kind == "scale":
        return scaling.apply(layer, x)
    return _KINDS[layer.kind](layer, arrays, x)


def _normalise(layer: types.Layer, arrays: Mapping[str, Any], x: Any) -> Any:
    del layer
    return jnp.clip((x - arrays["mean"]) / arrays["deviation"], -normalise.CLIP, normalise.CLIP)


def _dense(layer: types.Layer, arrays: Mapping[str, Any], x: Any) -> Any:
    del layer
    return x.reshape(len(x), -1) @ arrays["kernel"] + arrays["bias"]


def _conv(layer: types.Layer, arrays: Mapping[str, Any], x: Any) -> Any:
    return _convolved(layer, x, arrays["kernel"]) + arrays["bias"]


def _convolved(layer: types.Layer, x: Any, kernel: Any) -> Any:
    strides, order = (layer.stride, layer.stride), ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, strides, "VALID", dimension_numbers=order)


def quantised(arrays: Mapping[str, Any], x: Any) -> tuple[Any, Any]:
    """The input of a layer in 256 steps: (whole numbers from the zero point, f32; the step).

    lo <= 0 <= hi, s = (hi - lo) / 255, z = round(-lo / s), x_q = clip(round(x / s) + z, 0, 255); what is returned is
    x_q - z.
    """
    low = arrays["low"] if "low" in arrays else jnp.minimum(x.min(), 0.0)
    high = arrays["high"] if "high" in arrays else jnp.maximum(x.max(), 0.0)
    step = jnp.maximum((high - low) / 255.0, 1e-30)
    zero = jnp.round(-low / step)
    return jnp.clip(jnp.round(x / step) + zero, 0.0, 255.0) - zero, step


def _dense8(layer: types.Layer, arrays: Mapping[str, Any], x: Any) -> Any:
    del layer
    whole, step = quantised(arrays, x.reshape(len(x), -1))
    return whole @ arrays["kernel"].astype(jnp.float32) * (step * arrays["step"]) + arrays["bias"]


def _conv8(layer: types.Layer, arrays: Mapping[str, Any], x: Any) -> Any:
    whole, step = quantised(arrays, x)
    return _convolved(layer, whole, arrays["kernel"].astype(jnp.float32)) * (step * arrays["step"]) + arrays["bias"]


def _plainly(function: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda layer, arrays, x: function(x)  # noqa: ARG005


_KINDS: Mapping[str, Callable[..., Any]] = {
    "normalise": _normalise,
    "flatten": _plainly(lambda x: x.reshape(len(x), -1)),
    "dense": _dense,
    "dense8": _dense8,
    "conv": _conv,
    "conv8": _conv8,
    "tanh": _plainly(lambda x: jnp.tanh(x)),  # noqa: PLW0108  naming jnp.tanh here would import JAX with this file
    "relu": _plainly(lambda x: jnp.maximum(x, 0.0)),
    "elu": _plainly(lambda x: jax.nn.elu(x)),  # noqa: PLW0108
    "pad": lambda layer, arrays, x: jnp.pad(x, [(0, 0), *[(layer.size, layer.size)] * 2, (0, 0)]),  # noqa: ARG005
    "softplus": _plainly(lambda x: jax.nn.softplus(x)),  # noqa: PLW0108
}
