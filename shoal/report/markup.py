"""HTML and SVG built from values: every text is escaped unless it was built here.

A run's environment id, command and settings are user input. A string becomes part of the page only through `tag`,
which escapes it; a forgotten escape therefore shows as visible markup, never as a working one.
"""

from __future__ import annotations

import html
import json
from typing import Any

VOID = frozenset({"br", "hr", "input", "link", "meta"})


class Markup(str):
    """Text that is already HTML."""

    __slots__ = ()


def text(child: Any) -> Markup:
    """A child as HTML: `Markup` as it is, None as nothing, anything else escaped."""
    if child is None:
        return Markup()
    return child if isinstance(child, Markup) else Markup(html.escape(str(child)))


def join(*children: Any) -> Markup:
    """Children one after the other."""
    return Markup("".join(map(text, children)))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """One element.

    Args:
        name: Its tag.
        *children: Its content, escaped unless `Markup`.
        **attributes: ``class_`` stands for ``class``, ``data_x`` for ``data-x``; None and False are left out, True is
            written without a value.

    Returns:
        The element, always with its closing tag unless HTML forbids one.
    """
    written = [name]
    for key, value in attributes.items():
        attribute = key.rstrip("_").replace("_", "-")
        if value is True:
            written.append(attribute)
        elif value is not None and value is not False:
            written.append(f'{attribute}="{html.escape(str(value))}"')
    opening = f"<{' '.join(written)}>"
    return Markup(opening if name in VOID else f"{opening}{join(*children)}</{name}>")


def data(value: Any) -> Markup:
    """A value as JSON inside a script element that is read, never run."""
    # "<" is the one character that could end the element; JSON has an escape for it.
    written = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return tag("script", Markup(written), type="application/json")
