"""Settings of parts: bounds beside the field, and checked construction from plain data.

Part configs are frozen dataclasses; their field docstrings are the `--help`. The command line builds them with tyro;
files and keyword arguments come through `build`. Both end in `check`, so a wrong name, type or value is refused with
the same one line wherever it came from.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types as python_types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from shoal.core import aliases, errors

C = TypeVar("C")


def number(
    default: Any, low: float = -math.inf, high: float = math.inf, scale: str = "linear", *, new: bool = False
) -> Any:
    """A dataclass field with inclusive bounds.

    Args:
        default: Its default value.
        low: Smallest value allowed.
        high: Largest value allowed.
        scale: How it is searched: ``"linear"``, or ``"log"`` where factors count.
        new: Whether it came later (see `later`).
    """
    metadata = {"low": low, "high": high, "scale": scale, **({"later": True} if new else {})}
    return dataclasses.field(default=default, metadata=metadata)


def bounds(field: dataclasses.Field) -> tuple[float, float]:
    """The smallest and the largest value that a field allows; infinite where it says nothing."""
    return field.metadata.get("low", -math.inf), field.metadata.get("high", math.inf)


def scale(field: dataclasses.Field) -> str:
    """How a field is searched (see `number`)."""
    return str(field.metadata.get("scale", "linear"))


def later(default: Any) -> Any:
    """A dataclass field that came later: `plain` leaves it out at its default, so digests of older runs still hold.

    Args:
        default: Its default value.
    """
    return dataclasses.field(default=default, metadata={"later": True})


def keywords() -> str:
    """A dataclass field of keyword arguments, as the text of one JSON object; ``""`` gives none. A later one.

    A text, because it is typed, hashed and compared as it is; Python may give a mapping (see `build`).
    """
    made: str = dataclasses.field(default="", metadata={"later": True, "keywords": True})
    return made


def read_keywords(text: str, path: str) -> dict[str, object]:
    """The keyword arguments of a field of `keywords`.

    Args:
        text: Of the field.
        path: How the field is called in messages.

    Raises:
        Refused: It is not a JSON object.
    """
    try:
        given = json.loads(text) if text else {}
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise errors.Refused(f"{path}={text} is not a JSON object; give names and values, e.g. '{{\"size\": 8}}'")
    return given


def plain(config: Any) -> dict[str, Any]:
    """A config as plain data, as `build` takes it."""
    new = [field for field in dataclasses.fields(config) if field.metadata.get("later")]
    unset = {field.name for field in new if getattr(config, field.name) == field.default}
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in unset}


def build(cls: type[C], given: Mapping[str, Any], path: str, base: C | None = None) -> C:
    """A config from plain data (JSON, keyword arguments).

    Args:
        cls: The config's dataclass.
        given: Field values; lists stand for tuples, a mapping for a tuple of ``name=value`` or for `keywords`.
        path: How the config is called in messages, e.g. ``"algorithm"``.
        base: Values of the fields not given; the class's defaults when None.

    Raises:
        Refused: An unknown key, a wrong type, or a value out of bounds.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {}
    for name, value in given.items():
        if name not in fields:
            known = [f"{path}.{field}" for field in fields]
            here = aliases.setting(f"{path}.{name}", {one.replace("_", "-") for one in known} | {*known})
            remedy = f"Here {name} is {here.replace('-', '_')}." if here else ""
            raise errors.unknown("config key", f"{path}.{name}", known, remedy)
        named = isinstance(value, Mapping) and fields[name].metadata.get("keywords")
        plainly = _as_text(value, f"{path}.{name}") if named else value
        values[name] = _coerce(hints[name], plainly, f"{path}.{name}")
    config = dataclasses.replace(base, **values) if base is not None else cls(**values)  # type: ignore[type-var]
    check(config, path)
    return config


def _as_text(given: Mapping[str, Any], path: str) -> str:
    try:
        return json.dumps(dict(given), sort_keys=True) if given else ""
    except TypeError as problem:
        raise errors.Refused(f"{path} cannot be written down as JSON ({problem}); give plain values") from None


def check(config: Any, path: str) -> None:
    """Refuse values out of the bounds their fields declare.

    Raises:
        Refused: Names the value and what is allowed.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get("keywords"):
            read_keywords(value, f"{path}.{field.name}")
        low, high = bounds(field)
        items = value if isinstance(value, tuple) else (value,)
        for item in items:
            if isinstance(item, float) and math.isnan(item):
                raise errors.Refused(f"{path}.{field.name}={value} is not a number")
            if isinstance(item, int | float) and not low <= item <= high:
                allowed = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
                raise errors.Refused(f"{path}.{field.name}={value} is out of range; it must be {allowed}")


def has(cls: type, name: str, value: object) -> bool:
    """Whether a config has a field of this name and, where that is one of some choices, the choice.

    Args:
        cls: The config's dataclass.
        name: Of the field.
        value: What it would be.
    """
    hint = typing.get_type_hints(cls).get(name) if name in cls.__dataclass_fields__ else None  # type: ignore[attr-defined]
    return hint is not None and (typing.get_origin(hint) is not typing.Literal or value in typing.get_args(hint))


def _coerce(hint: Any, value: Any, path: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        if value not in inner:
            raise errors.unknown(f"value of {path}", str(value), map(str, inner))
        return value
    if origin is tuple:
        if isinstance(value, Mapping) and inner[0] is str:
            value = [f"{name}={item}" for name, item in value.items()]
        if not isinstance(value, list | tuple):
            raise errors.Refused(f"{path}={value!r} is not a list; give values of type {inner[0].__name__}")
        if inner[-1] is not Ellipsis and len(value) != len(inner):
            raise errors.Refused(f"{path}={list(value)} has {len(value)} values; give {len(inner)}")
        return tuple(_coerce(inner[0], item, path) for item in value)
    if origin in (typing.Union, python_types.UnionType):
        return None if value is None else _coerce(inner[0], value, path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise errors.Refused(f"{path}={value!r} has the wrong type; it must be of type {hint.__name__}")
    return value
