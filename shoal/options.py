"""Settings of parts: bounds beside the field, and checked construction from plain data.

Part configs are frozen dataclasses; their field docstrings are the `--help`. The command line builds them with tyro;
files and keyword arguments come through `build`. Both end in `check`, so a wrong name, type or value is refused with
the same one line wherever it came from.
"""

from __future__ import annotations

import dataclasses
import math
import types as python_types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from shoal import errors

C = TypeVar("C")


def number(default: Any, low: float = -math.inf, high: float = math.inf) -> Any:
    """A dataclass field with inclusive bounds.

    Args:
        default: Its default value.
        low: Smallest value allowed.
        high: Largest value allowed.
    """
    return dataclasses.field(default=default, metadata={"low": low, "high": high})


def build(cls: type[C], given: Mapping[str, Any], path: str, base: C | None = None) -> C:
    """A config from plain data (JSON, keyword arguments).

    Args:
        cls: The config's dataclass.
        given: Field values; lists stand for tuples.
        path: How the config is called in messages, e.g. ``"algorithm"``.
        base: Values of the fields not given; the class's defaults when None.

    Raises:
        Refused: An unknown key, a wrong type, or a value out of bounds.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {}
    for name, value in given.items():
        if name not in fields:
            raise errors.unknown("config key", f"{path}.{name}", [f"{path}.{field}" for field in fields])
        values[name] = _coerce(hints[name], value, f"{path}.{name}")
    config = dataclasses.replace(base, **values) if base is not None else cls(**values)  # type: ignore[type-var]
    check(config, path)
    return config


def check(config: Any, path: str) -> None:
    """Refuse values out of the bounds their fields declare.

    Raises:
        Refused: Names the value and what is allowed.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        low, high = field.metadata.get("low", -math.inf), field.metadata.get("high", math.inf)
        items = value if isinstance(value, tuple) else (value,)
        for item in items:
            if isinstance(item, float) and math.isnan(item):
                raise errors.Refused(f"{path}.{field.name}={value} is not a number")
            if isinstance(item, int | float) and not low <= item <= high:
                allowed = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
                raise errors.Refused(f"{path}.{field.name}={value} is out of range; it must be {allowed}")


def _coerce(hint: Any, value: Any, path: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        if value not in inner:
            raise errors.unknown(f"value of {path}", str(value), map(str, inner))
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise errors.Refused(f"{path}={value!r} is not a list; give values of type {inner[0].__name__}")
        return tuple(_coerce(inner[0], item, path) for item in value)
    if origin in (typing.Union, python_types.UnionType):
        return None if value is None else _coerce(inner[0], value, path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise errors.Refused(f"{path}={value!r} has the wrong type; it must be of type {hint.__name__}")
    return value
