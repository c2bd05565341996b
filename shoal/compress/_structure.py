"""Which layers of a network read which: what pruning, calibration and students need to know of its shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epy

from shoal.core import types
from shoal.networks import compact, walking

with epy.lazy_imports():
    import numpy as np

    from shoal.networks.engines import in_jax

ROWS = 256  # observations that statistics of activations are taken over
WEIGHTED = ("dense", "conv", "gaussian", "dueling", "lstm", "dense8", "conv8")
NARROWED = ("dense", "conv")  # kinds whose units may go
READS = ("dense", "conv", "gaussian", "dueling", "lstm")  # kinds that can do without some of their inputs


class Reader(NamedTuple):
    """A layer that reads the units of another."""

    layer: types.Layer
    between: tuple[types.Layer, ...]  # activations and the like on the way


class Link(NamedTuple):
    """A hidden layer and all that reads it."""

    layer: types.Layer
    readers: tuple[Reader, ...]


def links(spec: types.NetworkSpec) -> list[Link]:
    """The hidden layers whose units may go, from the observation on."""
    found, standing = [], [*spec.heads.values(), *(term for terms in spec.terms.values() for term in terms)]
    for trunk, layers in spec.trunks.items():
        joined = trunk in {name for sees in spec.inputs.values() for name in sees}  # read beside others: no unit may go
        found += list(_links(layers, [] if joined else [rest for stood_on, rest in standing if stood_on == trunk]))
    for _, layers in standing:
        found += list(_links(layers, []))
    return found


def _links(layers: Sequence[types.Layer], then: Sequence[Sequence[types.Layer]]) -> Iterator[Link]:
    for at, layer in enumerate(layers):
        if layer.kind in NARROWED:
            here = layers[at + 1 :]
            inside = _reader(here, ())
            readers = [inside] if inside else [_reader(head, tuple(here)) for head in then]
            known = [reader for reader in readers if reader is not None and reader.layer.kind in READS]
            # What a unit gives on average cannot go into the bias of a reader that sees zeros at the border.
            known = [reader for reader in known if not any(one.kind == "pad" for one in reader.between)]
            if known and len(known) == len(readers):
                yield Link(layer, tuple(known))


def _reader(layers: Sequence[types.Layer], before: tuple[types.Layer, ...]) -> Reader | None:
    """The first layer with weights."""
    for at, layer in enumerate(layers):
        if layer.kind in WEIGHTED:
            return Reader(layer, (*before, *layers[:at]))
    return None


def rows_of_layers(spec: types.NetworkSpec) -> list[tuple[types.Layer, ...]]:
    """All layers between the observation, or a learned vector, and a head's output, for each head and each way."""

    def joined(parts: Sequence[list[tuple[types.Layer, ...]]]) -> list[tuple[types.Layer, ...]]:
        return [way for part in parts for way in part]

    def through(layers: tuple[types.Layer, ...], ways: Any) -> list[tuple[types.Layer, ...]]:
        return [(*way, *layers) for way in ways]

    steps = walking.Ways(through, lambda layer: [()], joined, lambda one, other: one + other)  # noqa: ARG005
    return joined(list(walking.outputs(spec, [()], steps).values()))


def ends(spec: types.NetworkSpec) -> tuple[set[str], set[str]]:
    """Names of the layers with weights that see the observation, and of those that give a head's output."""
    first, last = set(), set()
    for layers in rows_of_layers(spec):
        weighted = [layer.name for layer in layers if layer.kind in WEIGHTED]
        first.update(weighted[:1])
        last.update(weighted[-1:])
    return first, last


def rows(obs: types.Obs, count: int) -> np.ndarray:
    """So many observations of those at hand, evenly; always as many, so that what is compiled for them stays.

    Args:
        obs: ``[N, *obs]``, N at least 1.
        count: How many.
    """
    obs = np.asarray(obs)
    return obs[np.arange(count) * len(obs) // count]


def inputs(network: compact.Compact, obs: types.Obs) -> Mapping[str, np.ndarray]:
    """What comes into each layer, ``[ROWS, ...]`` by its name.

    Args:
        network: Run layer by layer.
        obs: ``[N, *obs]``, N at least 1.
    """
    seen, _ = in_jax.watched(compact.frozen(network.spec))(_plain(network.params), rows(obs, ROWS))
    return {name: np.asarray(x) for name, x in seen.items()}


def outputs(network: compact.Compact, obs: types.Obs, count: int) -> Mapping[str, np.ndarray]:
    """What the heads give for some observations, ``[count, n]`` each."""
    _, given = in_jax.watched(compact.frozen(network.spec))(_plain(network.params), rows(obs, count))
    return {name: np.asarray(output) for name, output in given.items()}


def _plain(params: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: dict(arrays) for name, arrays in params.items()}
