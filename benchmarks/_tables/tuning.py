"""What searches find, on fresh seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _tables import show

HEAD = [
    "method", "trials", "environment steps", "search, s", "load", "best score", "settings found: IQM [95 %]",
    "preset's own: IQM [95 %]", "better by [95 %]", "schedule alone: IQM [95 %]",
]  # fmt: skip


def tune(results: Mapping[str, Any]) -> str:
    """A row a method, and the settings of each."""
    rows = [_row(name, part) for name, part in results["methods"].items()]
    found = [
        f"* `{name}`: {', '.join(f'{key} {show.number(value)}' for key, value in part['settings'].items())}"
        for name, part in results["methods"].items()
    ]
    task = results["task"]
    said = (
        f"`shoal tune {task['preset']} --env {task['env']} --budget {task['budget']}`, {task['steps']:,} steps a trial"
    )
    return "\n\n".join([f"{said}:", show.grid(HEAD, rows), "Settings found:", "\n".join(found)])


def _row(name: str, part: Mapping[str, Any]) -> list[str]:
    bounds = [show.number(part[f"difference_{end}"]) for end in ("low", "high")]
    return [
        f"`{name}`",
        str(part["trials"]),
        f"{part['env_steps']:,}",
        show.number(part["search_s"]),
        show.number(part["load"]),
        show.number(part["score"]),
        _side(part["best"]),
        _side(part["default"]),
        f"{show.number(part['difference'])} [{', '.join(bounds)}]",
        _side(part["schedule"]),
    ]


def _side(side: Mapping[str, Any] | None) -> str:
    if not side or side["iqm"] is None:
        return "–"
    around = f" [{show.number(side['interval'][0])}, {show.number(side['interval'][1])}]" if side["interval"] else ""
    return f"{show.number(side['iqm'])}{around}"
