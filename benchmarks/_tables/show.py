"""Numbers as a table shows them, and the grid they stand in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def number(value: float | None) -> str:
    """Three digits that matter, thousands apart; a dash for what was not measured."""
    if value is None:
        return "–"
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"


def spread(results: Mapping[str, Any], key: str, unit: str = "") -> str:
    """The median with its minimum and maximum."""
    if results.get(key) is None:
        return "–"
    text = f"{number(results[key])}{unit}"
    low, high = results.get(f"{key}_min"), results.get(f"{key}_max")
    return text if low is None else f"{text} ({number(low)} to {number(high)})"


def grid(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are flush right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def with_interval(part: Mapping[str, Any], key: str) -> str:
    """The interquartile mean with its interval."""
    bounds = part[f"{key}_interval"]
    middle = number(part[f"{key}_iqm"])
    return f"{middle} [{number(bounds[0])}, {number(bounds[1])}]" if bounds else middle


def quartiles(results: Mapping[str, Any], key: str) -> str:
    """The median with its quartiles."""
    bounds = results[f"{key}_quartiles"]
    return number(results[key]) + (f" ({number(bounds[0])} to {number(bounds[1])})" if bounds else "")
