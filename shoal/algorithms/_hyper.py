"""Numbers of a rule that may change during training: as leaves of its state, and as data for whoever changes them."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from etils import epy

from shoal.core import options, types

with epy.lazy_imports():
    import jax.numpy as jnp

    from shoal.core import tree
    from shoal.formulas import optimise

H = TypeVar("H")


def scalars(cls: type[H], config: Any, off: Sequence[str] = ()) -> H:
    """The settings that a rule's ``Hyper`` names, as f32 scalars.

    Args:
        cls: The rule's ``Hyper``.
        config: Its settings; a flag becomes 1 or 0.
        off: Settings that 0 turns off: they become `optimise.LARGEST`, for checkpoints hold no infinity.
    """
    values = {name: float(vars(config)[name]) for name in _names(cls)}
    values |= {name: values[name] or optimise.LARGEST for name in off}
    return cls(**{name: jnp.float32(value) for name, value in values.items()})


def leaves(cls: type, config: type, fields: types.Fields = types.Fields()) -> Mapping[str, types.Leaf]:  # noqa: B008
    """What of a learner's state may change, by the option that sets it: its ``hyper``, and those of its optimisers.

    Args:
        cls: The rule's ``Hyper``, which is the field ``hyper`` of the state.
        config: The rule's settings, which say what each may be.
        fields: Where the state keeps its optimisers.
    """
    found = {f"algorithm.{name}": _leaf(("hyper", name), config, name) for name in _names(cls)}
    for field in fields.optimisers:
        for name in ("learning_rate", "decay", "epsilon", "max_norm"):
            found[f"{field}.{name}"] = _leaf((field, "hyper", name), optimise.Config, name)
    return found


def _names(cls: type) -> tuple[str, ...]:
    return tuple(typing.get_type_hints(cls))


def _leaf(path: tuple[str, ...], config: type, name: str) -> types.Leaf:
    declared = next(field for field in dataclasses.fields(config) if field.name == name)
    whole = typing.get_type_hints(config)[name] is int
    low, high = options.bounds(declared)
    scale = "integer" if whole else options.scale(declared)
    return types.Leaf(
        get=functools.partial(_get, path),
        put=functools.partial(_put, path),
        low=low if math.isfinite(low) else -optimise.LARGEST,
        high=high if math.isfinite(high) else optimise.LARGEST,
        scale=scale,
    )


def _get(path: tuple[str, ...], state: Any) -> Any:
    return functools.reduce(tree.field, path, state)


def _put(path: tuple[str, ...], state: Any, value: Any) -> Any:
    if not path:
        return jnp.asarray(value, jnp.float32)
    name, *rest = path
    return tree.replaced(state, name, _put(tuple(rest), tree.field(state, name), value))
