"""A policy's network as an actor runs it: what deciding needs and no more, in few kinds of layers, as NumPy arrays.

The value head that nobody asks for is left out, the normaliser of observations becomes the first layer, and heads that
are linear in disguise (gaussian, dueling) become dense ones. Compressors turn one `Compact` into a smaller one; the
engines of `networks/engines` run any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epy

from shoal.core import errors, types
from shoal.formulas import normalise
from shoal.networks import walking

with epy.lazy_imports():
    import numpy as np

# What the layers of a compact network may be; arrays of a layer by name.
KINDS = {
    "normalise": ("mean", "deviation"),  # (x - mean) / deviation, held in +-`normalise.CLIP`; [*obs] f32 each
    "scale": (),  # `networks.scaling`; bounds in the layer
    "flatten": (),
    "conv": ("kernel", "bias"),  # [side, side, in, out], [out] f32; no padding, channels last
    "conv8": ("kernel", "step", "bias"),  # the same with kernel int8 and step [out] f32: kernel x step is the weight
    "dense": ("kernel", "bias"),  # [in, out], [out] f32
    "dense8": ("kernel", "step", "bias"),
    "tanh": (),
    "relu": (),
    "elu": (),
    "pad": (),  # zeros around a picture, as many rows and columns as the layer's size
    "softplus": (),
    "lstm": ("input", "recurrent", "bias"),  # [in, 4 n], [n, 4 n], [4 n] f32, gates in the order i f g o
}
SEEN = "seen"  # the trunk that observations go through before they are joined to something
# conv8 and dense8 may also hold "low" and "high", f32 scalars: the range that their input is quantised in (static);
# without them the range is that of each input at hand (dynamic).


class Compact(NamedTuple):
    """A network for acting."""

    spec: types.NetworkSpec  # layers of `KINDS`; heads in the order they are wanted
    params: Mapping[str, Mapping[str, np.ndarray]]  # by name of layer, then of array; a learned vector is a "bias"


def of(spec: types.NetworkSpec, policy: types.Policy, heads: Sequence[str]) -> Compact:
    """The part of a policy's network that these heads need.

    Args:
        spec: Of the whole network.
        policy: Parameters and normaliser; NumPy leaves.
        heads: That deciding needs (`types.Acting.heads`).

    Raises:
        Refused: A kind of layer that no engine knows.
    """
    needed = part(spec, heads)
    params: dict[str, dict[str, np.ndarray]] = {}
    made = replaced(needed, lambda layer: (_plain(layer, policy.params, params),))
    for name in needed.vectors:
        params[name] = {"bias": np.asarray(policy.params[name]["bias"], np.float32)}
    if policy.normaliser:
        params["normalise"] = _moments(policy.normaliser)
        made = _behind(made, types.Layer("normalise", "normalise"))
    return Compact(made, params)


def _behind(spec: types.NetworkSpec, first: types.Layer) -> types.NetworkSpec:
    """The network with a layer between it and the observation."""
    inputs: dict[str, tuple[str, ...]] = {}
    trunks: dict[str, tuple[types.Layer, ...]] = {}
    for trunk, layers in spec.trunks.items():
        sees = spec.inputs.get(trunk, walking.SEES_OBS)
        if len(sees) > 1 and walking.OBS in sees:
            trunks[SEEN] = (first,)
            sees = tuple(SEEN if name == walking.OBS else name for name in sees)
        trunks[trunk] = (first, *layers) if sees == walking.SEES_OBS else layers
        inputs[trunk] = sees
    return spec._replace(trunks=trunks, inputs=inputs if spec.inputs else spec.inputs)


def _moments(statistics: normalise.Statistics) -> dict[str, np.ndarray]:
    count, mean, m2 = (np.asarray(leaf, np.float32) for leaf in statistics)
    variance = m2 / count if count > 1 else np.ones_like(m2)
    return {"mean": mean, "deviation": np.sqrt(variance + np.float32(normalise.EPSILON))}


def _plain(layer: types.Layer, given: types.Params, params: dict[str, dict[str, np.ndarray]]) -> types.Layer:
    """A layer as one of `KINDS`; its arrays are added to `params`."""
    kind = layer.kind
    if kind in ("dense", "conv"):
        params[layer.name] = {name: np.asarray(given[layer.name][name], np.float32) for name in ("kernel", "bias")}
        return layer
    if kind == "gaussian":  # behind the mean, numbers that no observation changes
        kernel = np.asarray(given[layer.name]["kernel"], np.float32)
        free = np.asarray(given[f"{layer.name}_free"]["bias"], np.float32)
        params[layer.name] = {
            "kernel": np.concatenate([kernel, np.zeros((len(kernel), len(free)), np.float32)], axis=1),
            "bias": np.concatenate([np.asarray(given[layer.name]["bias"], np.float32), free]),
        }
        return layer._replace(kind="dense")
    if kind == "dueling":  # V + A - mean A is linear in (V, A)
        merge = np.concatenate([np.ones((1, layer.size)), np.eye(layer.size) - 1.0 / layer.size])
        both = {name: np.asarray(given[layer.name][name], np.float64) @ merge for name in ("kernel", "bias")}
        params[layer.name] = {name: array.astype(np.float32) for name, array in both.items()}
        return layer._replace(kind="dense")
    if kind == "lstm":
        cell = given[layer.name]
        params[layer.name] = {
            "input": np.concatenate([np.asarray(cell[f"i{gate}"]["kernel"], np.float32) for gate in "ifgo"], axis=1),
            "recurrent": np.concatenate(
                [np.asarray(cell[f"h{gate}"]["kernel"], np.float32) for gate in "ifgo"], axis=1
            ),
            "bias": np.concatenate([np.asarray(cell[f"h{gate}"]["bias"], np.float32) for gate in "ifgo"]),
        }
        return layer
    if kind in KINDS:
        return layer
    raise errors.unknown("kind of layer", kind, KINDS, "No engine of an actor runs it.")


def layers(compact: Compact) -> list[types.Layer]:
    """All of them, trunks first."""
    return layers_of(compact.spec)


def layers_of(spec: types.NetworkSpec) -> list[types.Layer]:
    """All layers of a network in their rows, trunks first; learned vectors are none."""
    trunks = [layer for trunk in spec.trunks.values() for layer in trunk]
    heads = [layer for _, head in spec.heads.values() for layer in head]
    return trunks + heads + [layer for terms in spec.terms.values() for _, term in terms for layer in term]


def multiply_adds(compact: Compact) -> dict[str, int]:
    """Products that one observation costs, by name of layer."""
    counts: dict[str, int] = {}
    for trunk in compact.spec.trunks.values():
        shape: tuple[int, ...] = compact.spec.observation.shape
        for layer in trunk:
            if layer.kind == "pad":
                shape = (*(side + 2 * layer.size for side in shape[:2]), *shape[2:])
            if layer.kind.startswith("conv"):
                places = [(side - layer.kernel) // layer.stride + 1 for side in shape[:2]]
                shape = (*places, layer.size)
                counts[layer.name] = places[0] * places[1] * compact.params[layer.name]["kernel"].size
    for layer in layers(compact):
        if layer.kind.startswith("dense"):
            counts[layer.name] = compact.params[layer.name]["kernel"].size
        elif layer.kind == "lstm":
            counts[layer.name] = sum(compact.params[layer.name][name].size for name in ("input", "recurrent"))
    return counts


Frozen = tuple[types.ObservationSpec, tuple[tuple[Any, ...], ...]]


def frozen(spec: types.NetworkSpec) -> Frozen:
    """A network's layers as a value that can be hashed, so that what is compiled for them is compiled once."""
    return spec.observation, tuple(tuple(field.items()) for field in spec[1:])


def thawed(key: Frozen) -> types.NetworkSpec:
    """The layers again."""
    return types.NetworkSpec(key[0], *map(dict, key[1]))


def part(spec: types.NetworkSpec, heads: Sequence[str]) -> types.NetworkSpec:
    """The layers of a network that these heads need."""
    needed = walking.needed(spec, heads)

    def kept(given: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        return {name: value for name, value in given.items() if name in names}

    return types.NetworkSpec(
        spec.observation,
        kept(spec.trunks, needed),
        {head: spec.heads[head] for head in heads},
        kept(spec.inputs, needed),
        kept(spec.terms, heads),
        kept(spec.vectors, needed),
    )


def replaced(spec: types.NetworkSpec, change: Callable[[types.Layer], Sequence[types.Layer]]) -> types.NetworkSpec:
    """A network in which each layer became one or several others.

    Args:
        spec: The network.
        change: A layer -> what stands in its place.
    """

    def row(layers: Sequence[types.Layer]) -> tuple[types.Layer, ...]:
        return tuple(new for layer in layers for new in change(layer))

    return spec._replace(
        trunks={name: row(layers) for name, layers in spec.trunks.items()},
        heads={head: (trunk, row(layers)) for head, (trunk, layers) in spec.heads.items()},
        terms={head: tuple((trunk, row(layers)) for trunk, layers in terms) for head, terms in spec.terms.items()},
    )


def start(spec: types.NetworkSpec, batch: int) -> types.Carry:
    """The recurrent state at the start of an episode, ``[batch, n]`` each; () where there is none."""
    cells = {layer.name: layer.size for trunk in spec.trunks.values() for layer in trunk if layer.kind == "lstm"}
    return {name: tuple(np.zeros((batch, size), np.float32) for _ in "ch") for name, size in cells.items()} or ()
