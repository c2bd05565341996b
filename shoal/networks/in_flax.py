"""One layer of a network in flax; modules are made at the first call, so that importing this does not import flax."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from etils import epy

from shoal.core import types
from shoal.networks import convolution, initialising, scaling

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    from flax import linen


UNIT_VARIANCE = math.log(math.e - 1.0)  # softplus of this is 1


def apply(layer: types.Layer, x: Any, carry: dict[str, Any], initialiser: str) -> Any:
    """What a layer gives; within a module of flax.

    Args:
        layer: The layer as data.
        x: What comes in, of one observation.
        carry: Recurrent states by name of layer; the layer's own is replaced.
        initialiser: Of its weights (`layers.Config`).
    """
    if layer.kind == "dense":
        kernel, bias = initialising.of(initialiser, layer.gain, x.shape[-1])
        x = linen.Dense(layer.size, kernel_init=kernel, bias_init=bias, name=layer.name)(x)
    elif layer.kind == "gaussian":
        kernel, bias = initialising.of(initialiser, layer.gain, x.shape[-1])
        mean = linen.Dense(layer.size // 2, kernel_init=kernel, bias_init=bias, name=layer.name)(x)
        start = UNIT_VARIANCE if layer.gain else 0.0
        x = jnp.concatenate([mean, free()(layer.size // 2, start, name=f"{layer.name}_free")()])
    elif layer.kind == "dueling":
        kernel, bias = initialising.of(initialiser, layer.gain, x.shape[-1])
        both = linen.Dense(layer.size + 1, kernel_init=kernel, bias_init=bias, name=layer.name)(x)
        x = both[:1] + both[1:] - jnp.mean(both[1:], keepdims=True)
    elif layer.kind == "conv":
        kernel, bias = initialising.of(initialiser, layer.gain, layer.kernel**2 * x.shape[-1])
        convolution_of = convolution.module()
        x = convolution_of(layer.size, layer.kernel, layer.stride, kernel, bias, name=layer.name)(x)
    elif layer.kind == "lstm":
        carry[layer.name], x = linen.OptimizedLSTMCell(layer.size, name=layer.name)(carry[layer.name], x)
    elif layer.kind == "scale":
        x = scaling.apply(layer, x)
    elif layer.kind == "pad":
        x = jnp.pad(x, [(layer.size, layer.size)] * 2 + [(0, 0)])
    else:
        x = ACTIVATIONS[layer.kind](x)
    return x


@functools.cache
def free() -> Any:
    """A module of learned numbers that depend on no observation; made here so that importing this imports no flax."""

    class Free(linen.Module):
        size: int
        start: float

        @linen.compact
        def __call__(self) -> Any:
            return self.param("bias", linen.initializers.constant(self.start), (self.size,), jnp.float32)

    return Free


@functools.cache
def vector() -> Any:
    """A module of learned numbers from -1 to 1 at first, beside an observation (Jin et al. 2022, arXiv:2204.02634)."""

    class Vector(linen.Module):
        size: int

        @linen.compact
        def __call__(self) -> Any:
            def drawn(key: types.Key, shape: tuple[int, ...]) -> Any:
                return jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0)

            return self.param("bias", drawn, (self.size,))

    return Vector


def joined(parts: Sequence[Any]) -> Any:
    """Several inputs of a trunk as one vector."""
    return jnp.concatenate([jnp.asarray(part, jnp.float32).reshape(-1) for part in parts])


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "tanh": lambda x: jnp.tanh(x),  # noqa: PLW0108 - naming jnp.tanh here would import JAX with this file
    "relu": lambda x: jax.nn.relu(x),  # noqa: PLW0108
    "elu": lambda x: jax.nn.elu(x),  # noqa: PLW0108
    "softplus": lambda x: jax.nn.softplus(x),  # noqa: PLW0108
    "flatten": lambda x: x.reshape(-1),
}
