"""Bytes as numbers in [0, 1], by the bounds they were declared with: (x - low) / (high - low).

A picture whose bytes are 0 or 1 would nearly vanish if it were divided by 255, and a vector of bytes would drown the
first layer if it were not scaled at all. The layer ``scale`` of a `types.NetworkSpec` holds the bounds; each engine
that runs a network reads them there.
"""

from __future__ import annotations

from typing import Any

from etils import epy

from shoal.core import types

with epy.lazy_imports():
    import jax.numpy as jnp
    import numpy as np


def layer(observation: types.ObservationSpec) -> types.Layer | None:
    """What stands first in a trunk; None where observations are taken as they are."""
    if observation.low:
        return types.Layer("scale", "", low=observation.low, high=observation.high)
    return types.Layer("scale", "", low=(0.0,), high=(255.0,)) if observation.dtype == "uint8" else None


def span(layer: types.Layer) -> tuple[np.ndarray, np.ndarray]:
    """Of a scaling layer, what is subtracted and what is divided by, ``[1]`` or ``[last axis]`` f32."""
    low, high = (np.asarray(bound, np.float32) for bound in (layer.low, layer.high))
    return low, np.where(high > low, high - low, np.float32(1.0))  # what cannot vary is not divided by 0


def apply(layer: types.Layer, x: Any) -> Any:
    """The layer in JAX, of one observation ``[*obs]`` or with leading axes."""
    low, width = span(layer)
    x = jnp.asarray(x, jnp.float32)
    if len(layer.low) == 1:
        return (x - low.item() if low.any() else x) / width.item()
    last = (1,) * (x.ndim - 1) + (-1,)
    return (x - low.reshape(last) if low.any() else x) / width.reshape(last)
