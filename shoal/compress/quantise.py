"""Quantisation after training: weights in 8 bits that the engine computes with, or fewer that are simulated.

Eight bits, of each output channel j: s_j = max_i |W_ij| / 127, q_ij = clip(round(W_ij / s_j), ±127); activations in 256
steps of a range that holds 0, of each call (dynamic) or of recent observations (static). Fewer bits, of each tensor, as
QuaRL has it (Krishnan et al. 2019, arXiv:1910.01055): Δ = (|min(W, 0)| + |max(W, 0)|) / 2^b, W_q = Δ round(W / Δ).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, Literal

from etils import epy

from shoal.compress import _transform
from shoal.core import errors, options, processor, types
from shoal.networks import compact

with epy.lazy_imports():
    import jax.numpy as jnp
    import numpy as np

    from shoal.compress import _structure

EIGHT = 127  # the largest weight in eight bits
REDUCED = 64  # 2 * 255 * 64 is below 2^15: two products fit the 16 bits that processors without VNNI add them in
KINDS = {"dense": "dense8", "conv": "conv8"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Weights of few bits."""

    bits: int = options.number(8, low=2, high=8)
    """Of a weight. 8: the engine computes in eight bits; fewer are simulated, and save nothing."""
    mode: Literal["dynamic", "static"] = "dynamic"
    """The range that activations are quantised in, with 8 bits: of each call, or of recent observations."""
    calibration: float = options.number(0.0, low=0.0, high=10.0)
    """Static: percent of the activations beyond each end of the range; 0 takes the smallest and the largest."""
    keep: Literal["auto", "none", "first", "last", "both"] = "auto"
    """Layers that stay in full precision: those that see the observation, those that give the outputs; auto, with 8
    bits: both where observations are vectors, whose numbers would share one range, the last of pictures; else none."""
    reduce_range: Literal["auto", "on", "off"] = "auto"
    """Weights in +-64 instead of +-127, so that sums of products cannot overflow where the processor adds them in 16
    bits; auto: where it lacks the instructions for eight bits (VNNI)."""
    engine: Literal["auto", "numba", "onnx", "numpy", "jax"] = "auto"
    """What runs the network: auto takes the fastest on this machine, by a short measurement."""


def transform(config: Config, agent: types.Agent) -> _transform.Transform:
    """See `_transform`.

    Raises:
        Refused: Settings that do not go together.
    """
    del agent
    static = config.mode == "static"
    if static and config.bits < 8:
        raise errors.Refused(
            f"compressor.mode=static is for 8 bits: {config.bits} are simulated, and activations stay as they are; "
            "drop one of the two"
        )
    return _transform.Transform(
        name="quantise",
        level=f"int8 {config.mode}" if config.bits == 8 else f"{config.bits} bits, simulated",
        apply=lambda memory, seen, network, key: (memory, apply(config, seen, network)),  # noqa: ARG005
        simulate=None if static else lambda spec, params, key: simulated(config, spec, params),  # noqa: ARG005
        needs_obs=static,
    )


def build(config: Config, agent: types.Agent) -> types.Compressor:
    """The compressor of an agent's policies."""
    return _transform.compressor(agent, "quantise", config.engine, transform(config, agent))


def apply(config: Config, seen: _transform.Seen, network: compact.Compact) -> compact.Compact:
    """See `_transform.Transform`; LSTM cells stay in full precision.

    Raises:
        Refused: Ranges of activations are wanted, and there are no observations.
    """
    chosen = [
        layer
        for layer in compact.layers(network)
        if layer.kind in KINDS and layer.name in _chosen(config, network.spec)
    ]
    params = {name: dict(arrays) for name, arrays in network.params.items()}
    if config.bits < 8:
        for layer in chosen:
            params[layer.name]["kernel"] = uniform(params[layer.name]["kernel"], config.bits, np)
        return network._replace(params=params)
    most = largest(config.reduce_range)
    ranges = _ranges(config, seen, network) if config.mode == "static" else {}
    for layer in chosen:
        kernel, step = eight(params[layer.name]["kernel"], most, np)
        params[layer.name] = {
            "kernel": kernel,
            "step": step,
            "bias": params[layer.name]["bias"],
            **ranges.get(layer.name, {}),
        }
    names = {layer.name for layer in chosen}

    def changed(layer: types.Layer) -> tuple[types.Layer, ...]:
        return (layer._replace(kind=KINDS[layer.kind]) if layer.name in names else layer,)

    return compact.Compact(compact.replaced(network.spec, changed), params)


def simulated(config: Config, spec: types.NetworkSpec, params: types.Params) -> types.Params:
    """Weights quantised and widened again, inside `jit`; activations as they are."""
    changed = dict(params)
    for name in _chosen(config, spec):
        if "kernel" in params[name]:
            kernel = params[name]["kernel"]
            if config.bits == 8:
                whole, step = eight(kernel, largest(config.reduce_range), jnp)
                kernel = whole.astype(jnp.float32) * step
            else:
                kernel = uniform(kernel, config.bits, jnp)
            changed[name] = {**params[name], "kernel": kernel}
    return changed


def _chosen(config: Config, spec: types.NetworkSpec) -> list[str]:
    """Names of the layers that are quantised."""
    (first, last), keep = _structure.ends(spec), config.keep
    if keep == "auto":
        keep = "none" if config.bits < 8 else "last" if spec.observation.image else "both"
    kept = (first if keep in ("first", "both") else set()) | (last if keep in ("last", "both") else set())
    kinds = (*KINDS, "gaussian", "dueling")
    return [layer.name for layer in compact.layers_of(spec) if layer.kind in kinds and layer.name not in kept]


def eight(kernel: Any, most: int, xp: Any) -> tuple[Any, Any]:
    """Weights as whole numbers of a step for each output channel: (int8 ``[..., out]``, f32 ``[out]``).

    Args:
        kernel: ``[..., out]`` f32.
        most: The largest whole number.
        xp: `numpy` or `jax.numpy`.
    """
    largest = abs(kernel).reshape(-1, kernel.shape[-1]).max(axis=0)
    step = xp.where(largest > 0, largest / most, xp.float32(1.0)).astype(xp.float32)
    return xp.clip(xp.round(kernel / step), -most, most).astype(xp.int8), step


def uniform(kernel: Any, bits: int, xp: Any) -> Any:
    """Weights rounded to whole numbers of one step for the tensor.

    Args:
        kernel: f32.
        bits: b.
        xp: `numpy` or `jax.numpy`.
    """
    low, high = xp.minimum(kernel.min(), 0.0), xp.maximum(kernel.max(), 0.0)
    step = (high - low) / 2**bits
    step = xp.where(step > 0, step, 1.0)
    return (step * xp.round(kernel / step)).astype(xp.float32)


def largest(reduce_range: str) -> int:
    """The largest whole number that a weight becomes."""
    if reduce_range == "auto":
        return REDUCED if processor.saturates() else EIGHT
    return REDUCED if reduce_range == "on" else EIGHT


def _ranges(config: Config, seen: _transform.Seen, network: compact.Compact) -> Mapping[str, Mapping[str, Any]]:
    """What comes into each layer on recent observations: ``low`` <= 0 <= ``high``."""
    if not len(seen.obs):
        raise errors.Refused("int8 static takes the ranges of activations from observations, and there are none")
    beyond, found = config.calibration, {}
    for name, x in _structure.inputs(network, seen.obs).items():
        low, high = np.percentile(x, [beyond, 100.0 - beyond]) if beyond else (x.min(), x.max())
        found[name] = {"low": np.float32(min(low, 0.0)), "high": np.float32(max(high, 0.0))}
    bounded = {"low": np.float32(-1.0), "high": np.float32(1.0)}  # what an LSTM gives, whatever it remembers
    bytes_ = {"low": np.float32(0.0), "high": np.float32(1.0)}
    before: dict[str, set[types.Layer | None]] = {}  # what a layer reads, on every way to it; None: nothing is before
    for layers in _structure.rows_of_layers(network.spec):
        for one, layer in itertools.pairwise((None, *(layer for layer in layers if layer.kind != "flatten"))):
            if layer is not None:
                before.setdefault(layer.name, set()).add(one)
    for name, ones in before.items():
        if all(one is not None and one.kind == "lstm" for one in ones):
            found[name] = bounded
        elif all(one is not None and (one.kind, one.low, one.high) == ("scale", (0.0,), (255.0,)) for one in ones):
            found[name] = bytes_  # so bytes are quantised to themselves
    return found
