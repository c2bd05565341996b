"""Whole neurons and channels: which to keep, a smaller network without the others, and the same by zeros.

score_j = ‖W_l[:, j]‖₁ · ‖W_{l+1}[j, :]‖₁, the second factor over all layers that read layer l. Of what goes, the mean
output goes into the biases of its readers: b_{l+1} += Σ_j mean_x(h_j(x)) W_{l+1}[j, :].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from etils import epy

from shoal.compress import _structure
from shoal.core import types
from shoal.networks import compact

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np

Kept = Mapping[str, Any]  # by name of layer: the units that stay, ascending


def count(size: int, share: float) -> int:
    """Of so many units, those that stay when a share of them goes."""
    return math.floor((1.0 - share) * size + 1e-9)


def refuses(spec: types.NetworkSpec, share: float, setting: str) -> str:
    """Why a share of every hidden layer cannot go, "" if it can.

    Args:
        spec: The network.
        share: Of the units.
        setting: How it was given.
    """
    found = _structure.links(spec)
    if not found:
        return "there is no hidden layer whose units could go"
    for link in found:
        if count(link.layer.size, share) < 1:
            return (
                f"{setting} leaves less than one unit of the {link.layer.size} of {link.layer.name}; "
                "give less, or a wider network"
            )
    return ""


def kept(spec: types.NetworkSpec, params: Mapping[str, Any], share: float) -> dict[str, np.ndarray]:
    """The units of each hidden layer that stay, by their scores.

    Args:
        spec: The network.
        params: Its arrays.
        share: Of each layer's units that go.
    """
    found = {}
    for link in _structure.links(spec):
        best = np.argsort(-np.asarray(scores(link, params)), kind="stable")[: count(link.layer.size, share)]
        found[link.layer.name] = np.sort(best)
    return found


def scores(link: _structure.Link, params: Mapping[str, Any]) -> Any:
    """Of each unit of a layer, ``[units]``; NumPy or JAX."""
    kernel, size = params[link.layer.name]["kernel"], link.layer.size
    coming = abs(kernel).reshape(-1, size).sum(axis=0)
    going = 0.0
    for reader in link.readers:
        read = _read(reader.layer, params)
        going = going + abs(read).reshape(-1, size, read.shape[-1]).sum(axis=(0, 2))
    return coming * going


def _read(reader: types.Layer, params: Mapping[str, Any]) -> Any:
    """The weights that a layer reads others with ``[..., in, out]``; of a whole network's or of a compact one's."""
    arrays = params[reader.name]
    if reader.kind == "dueling":  # V + A - mean A, of (V, A)
        merge = np.concatenate([np.ones((1, reader.size)), np.eye(reader.size) - 1.0 / reader.size])
        return arrays["kernel"] @ merge.astype(np.float32)
    if reader.kind == "lstm" and "input" not in arrays:
        return jnp.concatenate([arrays[f"i{gate}"]["kernel"] for gate in "ifgo"], axis=1)
    return arrays["input" if reader.kind == "lstm" else "kernel"]


def masked(spec: types.NetworkSpec, params: types.Params, share: float) -> types.Params:
    """The units that go are held at what they give for zeros: their incoming weights are 0; inside `jit`.

    That is what a smaller network computes whose means were taken without observations (`removed`).
    """
    changed = dict(params)
    for link in _structure.links(spec):
        given = params[link.layer.name]
        keep = count(link.layer.size, share)
        order = jnp.argsort(-scores(link, params), stable=True)
        stays = jnp.zeros(link.layer.size, bool).at[order[:keep]].set(True)
        changed[link.layer.name] = {**given, "kernel": jnp.where(stays, given["kernel"], 0.0)}
    return changed


def removed(network: compact.Compact, keep: Kept, obs: types.Obs) -> compact.Compact:
    """A smaller network, without the units that are not kept.

    Args:
        network: In full precision.
        keep: By name of layer.
        obs: ``[N, *obs]`` that the mean outputs are taken over; N = 0: the outputs are those for inputs of 0.
    """
    spec, found = network.spec, _structure.links(network.spec)
    seen = _structure.inputs(network, obs) if len(obs) else {}
    params = {name: dict(arrays) for name, arrays in network.params.items()}
    for link in found:
        name, size = link.layer.name, link.layer.size
        stays = np.asarray(keep[name])
        goes = np.setdiff1d(np.arange(size), stays)
        constant = network.params[name]["bias"]  # as it was: nothing folded into it yet
        for reader in link.readers:
            _fold(reader, params[reader.layer.name], (size, stays, goes), _means(reader, seen, constant))
        params[name] |= {"kernel": params[name]["kernel"][..., stays], "bias": params[name]["bias"][stays]}
    sizes = {link.layer.name: len(keep[link.layer.name]) for link in found}
    smaller = compact.replaced(spec, lambda layer: (layer._replace(size=sizes.get(layer.name, layer.size)),))
    plain = {name: {of: np.ascontiguousarray(array) for of, array in held.items()} for name, held in params.items()}
    return compact.Compact(smaller, plain)


def _means(reader: _structure.Reader, seen: Mapping[str, np.ndarray], bias: np.ndarray) -> np.ndarray:
    """Mean output of each unit as a reader sees it, ``[units]`` or ``[places * units]``."""
    if not seen:
        at_zero = jnp.asarray(bias)
        kinds = {"tanh": jnp.tanh, "relu": jax.nn.relu, "elu": jax.nn.elu, "softplus": jax.nn.softplus}
        for layer in reader.between:
            at_zero = kinds[layer.kind](at_zero) if layer.kind in kinds else at_zero
        return np.asarray(at_zero, np.float64)
    x = np.asarray(seen[reader.layer.name], np.float64)
    over = tuple(range(x.ndim - 1)) if reader.layer.kind == "conv" else 0
    return x.mean(axis=over).reshape(-1)


def _fold(
    reader: _structure.Reader, arrays: dict[str, Any], units: tuple[int, np.ndarray, np.ndarray], means: np.ndarray
) -> None:
    """Take units out of what a layer reads, their means into its bias."""
    size, stays, goes = units
    name = "input" if reader.layer.kind == "lstm" else "kernel"
    read = arrays[name]
    if reader.layer.kind == "conv":
        parts = read.astype(np.float64).sum(axis=(0, 1))  # no padding: every place sees all of the kernel
        arrays[name] = read[:, :, stays]
        shift = means[goes] @ parts[goes]
    else:  # after convolutions the rows are in the order height, width, channels
        parts = read.reshape(-1, size, read.shape[-1])
        arrays[name] = parts[:, stays].reshape(-1, read.shape[-1])
        each = np.broadcast_to(means.reshape(-1, size), parts.shape[:2])
        shift = each[:, goes].reshape(-1) @ parts[:, goes].reshape(-1, read.shape[-1]).astype(np.float64)
    arrays["bias"] = (arrays["bias"] + shift).astype(np.float32)
