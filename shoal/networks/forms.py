"""Forms A to F: what of a network is everybody's, and what an owner's, where several owners train together.

With observation s, global parameters θ_g, and local ones θ_i of owner i:

    A  shared base, local head      f_i(s) = h( g(s; θ_g); θ_i )
    B  local encoder, shared head   f_i(s) = h( e(s; θ_i); θ_g )
    C  sandwich                     f_i(s) = h( g( e(s; θ_i^in); θ_g ); θ_i^out )
    D  sum of two whole networks    f_i(s) = f_g(s; θ_g) + f_l(s; θ_i),   f_l = 0 at first
    E  parallel, local join         f_i(s) = h( [g(s; θ_g), l(s; θ_i^l)]; θ_i^h )
    F  private embedding            f_i(s) = g( [e_i, s]; θ_g ),   e_i ~ U(-1, 1) at first

Each is data: layers with a scope, in rows, that are joined or added up. Layers know nothing of who trains them, and no
rule knows of the forms.

Source: A as in FedPer (Arivazhagan et al. 2019, arXiv:1912.00818), B as in LG-FedAvg (Liang et al. 2020,
arXiv:2001.01523), C as in D'Eramo et al. 2020 (arXiv:2401.09561), F: Jin et al. 2022, arXiv:2204.02634.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from shoal.core import errors, types
from shoal.networks import scopes


class Row(NamedTuple):
    """A trunk before it is anybody's: three pieces, one after the other."""

    first: tuple[types.Layer, ...]  # to one vector: scale, convolutions, flatten; () where observations are vectors
    adapter: tuple[types.Layer, ...]  # only of an owner's encoder, where there are no convolutions
    hidden: tuple[types.Layer, ...]
    embedding: int  # numbers of form F's learned vector


class Part(NamedTuple):
    """A piece of a `types.NetworkSpec`, with the same fields."""

    trunks: Mapping[str, tuple[types.Layer, ...]]
    heads: Mapping[str, tuple[str, tuple[types.Layer, ...]]]
    inputs: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    terms: Mapping[str, tuple[tuple[str, tuple[types.Layer, ...]], ...]] = MappingProxyType({})
    vectors: Mapping[str, types.Layer] = MappingProxyType({})


def own(layer: types.Layer) -> types.Layer:
    """The same layer as an owner's."""
    name = scopes.LOCAL + layer.name if layer.name else ""
    return layer._replace(name=name, scope="local")


def compose(form: str, row: Row, trunk: str, heads: Mapping[str, types.Layer]) -> Part:
    """A trunk and what stands on it.

    Args:
        form: "none", "A" to "F", or "local": all of it is the owner's.
        row: The trunk's layers.
        trunk: Its name.
        heads: The last layer of each head.

    Raises:
        Refused: Nothing would be everybody's.
    """
    if form in ("A", "C", "E") and not _weighted(row.hidden) and not (form != "C" and _weighted(row.first)):
        raise errors.Refused(
            f"network.form={form} shares hidden layers, and there are none; give --network.hidden, or form B"
        )
    return _FORMS[form](row, trunk, heads)


def together(observation: types.ObservationSpec, parts: Sequence[Part]) -> types.NetworkSpec:
    """One network of several trunks and their heads."""
    return types.NetworkSpec(
        observation,
        _union(part.trunks for part in parts),
        _union(part.heads for part in parts),
        _union(part.inputs for part in parts),
        _union(part.terms for part in parts),
        _union(part.vectors for part in parts),
    )


T = TypeVar("T")


def _union(fields: Iterable[Mapping[str, T]]) -> dict[str, T]:
    return {name: value for field in fields for name, value in field.items()}


def _weighted(layers: Sequence[types.Layer]) -> bool:
    return any(layer.name for layer in layers)


def _owned(layers: Sequence[types.Layer]) -> tuple[types.Layer, ...]:
    return tuple(own(layer) for layer in layers)


def _on(
    trunk: str, heads: Mapping[str, types.Layer], own_heads: bool
) -> dict[str, tuple[str, tuple[types.Layer, ...]]]:
    return {name: (trunk, (own(layer) if own_heads else layer,)) for name, layer in heads.items()}


def _encoder(row: Row) -> tuple[types.Layer, ...]:
    """An owner's first layers: the convolutions, or one dense layer."""
    return _owned(row.first if _weighted(row.first) else row.first + row.adapter)


def _none(row: Row, trunk: str, heads: Mapping[str, types.Layer]) -> Part:
    return Part({trunk: row.first + row.hidden}, _on(trunk, heads, own_heads=False))


def _local(row: Row, trunk: str, heads: Mapping[str, types.Layer]) -> Part:
    return Part({trunk: _owned(row.first + row.hidden)}, _on(trunk, heads, own_heads=True))


def _head(row: Row, trunk: str, heads: Mapping[str, types.Layer]) -> Part:
    return Part({trunk: row.first + row.hidden}, _on(trunk, heads, own_heads=True))


def _first(row: Row, trunk: str, heads: Mapping[str, types.Layer]) -> Part:
    return Part({trunk: _encoder(row) + row.hidden}, _on(trunk, heads, own_heads=False))


def _sandwich(row: Row, trunk: str, heads: Mapping[str, types.Layer]) -> Part:
    return Part({trunk: _encoder(row) + row.hidden}, _on(trunk, heads, own_heads=True))


def _sum(row: Row, trunk: str, heads: Mapping[str, types.Layer]) -> Part:
    """The owner's outputs are 0 at first: it begins as the network that everybody shares."""
    second = scopes.LOCAL + trunk
    trunks = {trunk: row.first + row.hidden, second: _owned(row.first + row.hidden)}
    terms = {name: ((second, (own(layer)._replace(gain=0.0),)),) for name, layer in heads.items()}
    return Part(trunks, _on(trunk, heads, own_heads=False), terms=terms)


def _beside(row: Row, trunk: str, heads: Mapping[str, types.Layer]) -> Part:
    second, both = scopes.LOCAL + trunk, f"{trunk}_joined"
    trunks = {trunk: row.first + row.hidden, second: _owned(row.first + row.hidden), both: ()}
    return Part(trunks, _on(both, heads, own_heads=True), inputs={both: (trunk, second)})


def _embedding(row: Row, trunk: str, heads: Mapping[str, types.Layer]) -> Part:
    """Beside an image, the vector joins what convolutions make of it."""
    vector, seen = scopes.LOCAL + "embedding", f"{trunk}_seen"
    trunks = {seen: row.first, trunk: row.hidden}
    learned = types.Layer("vector", vector, row.embedding, scope="local")
    return Part(trunks, _on(trunk, heads, own_heads=False), {trunk: (vector, seen)}, {}, {vector: learned})


_FORMS: Mapping[str, Callable[[Row, str, Mapping[str, types.Layer]], Part]] = {
    "none": _none,
    "A": _head,
    "B": _first,
    "C": _sandwich,
    "D": _sum,
    "E": _beside,
    "F": _embedding,
    "local": _local,
}
