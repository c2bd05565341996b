"""The tables of the documentation that are made from the code.

python docs/_tables.py            writes them
python docs/_tables.py --check    tells whether they are up to date (exit code 1 if not)
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shoal import experiment, presets, registry

DOCS = Path(__file__).parent
FAMILY = ("a2c", "a3c", "a3c_lstm", "a3c_continuous")
SYMBOLS = {
    "algorithm.rollout_length": "T = t_max",
    "algorithm.discount": "γ",
    "algorithm.entropy_cost": "β",
    "algorithm.value_cost": "c",
    "optimiser.learning_rate": "η₀",
    "optimiser.decay": "α",
    "optimiser.epsilon": "ε",
    "optimiser.max_norm": "m",
    "corrector.lambda_": "λ",
    "runtime.environments": "B",
}


def settings() -> str:
    """Every option, its default, and what the presets set."""
    rows = []
    for kind in ("algorithm", "network", "optimiser", "environment"):
        rows += _rows(kind, experiment.config_class(kind, "actor_critic"), FAMILY)
    rows += _rows("corrector", experiment.config_class("corrector", "none"), FAMILY)
    for name in registry.names("runtime"):
        users = [preset for preset in FAMILY if presets.PRESETS[preset].runtime in (name, None)]
        rows += _rows("runtime", experiment.config_class("runtime", name), users, f" ({name})")
    return _table(("symbol", "option", "default", *(f"`{name}`" for name in FAMILY)), rows)


def _rows(kind: str, cls: type, users: Iterable[str], which: str = "") -> Iterable[tuple[str, ...]]:
    for field in dataclasses.fields(cls):
        option = f"`--{kind}.{_flag(field.name)}`{which}"
        values = [_value(presets.PRESETS[p].settings.get(kind, {}), field.name) if p in users else "" for p in FAMILY]
        yield (SYMBOLS.get(f"{kind}.{field.name}", ""), option, show(field.default), *values)


def _flag(name: str) -> str:
    return name if name.endswith("_") else name.replace("_", "-")


def _value(given: Any, name: str) -> str:
    return show(given[name]) if name in given else ""


def show(value: Any) -> str:
    """A setting as it is typed, more or less."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "all"
    return f"{value:g}" if isinstance(value, float) else str(value)


def tuned() -> str:
    """What each preset sets for single environments, on top of the table above."""
    rows = []
    for name in FAMILY:
        preset = presets.PRESETS[name]
        rows.append((f"`{name}`", "any other", f"{preset.steps:,}", ""))
        for env, found in preset.tuned.items():
            given = [
                f"`--{kind}.{_flag(field)}` {show(value)}"
                for kind, values in found.settings.items()
                for field, value in values.items()
            ]
            rows.insert(len(rows) - 1, (f"`{name}`", f"`{env}`", f"{found.steps:,}", ", ".join(given)))
    return _table(("preset", "environment", "steps", "settings"), rows)


def facts() -> str:
    """Where each preset runs unless told otherwise."""
    rows = []
    for name in FAMILY:
        preset = presets.PRESETS[name]
        runtime = f"`{preset.runtime}`" if preset.runtime else "`on_device` (pure JAX), else `host`"
        rows.append((f"`{name}`", preset.summary, runtime, f"`{preset.env}`"))
    return _table(("preset", "what it is", "runtime", "environment if none is given"), rows)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [tuple(head), *map(tuple, rows)]
    lines.insert(1, ("---",) * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


TABLES = {"presets/actor_critic.md": {"facts": facts, "settings": settings, "tuned": tuned}}


def main() -> int:
    """Write the tables, or compare them."""
    stale = []
    for page, tables in TABLES.items():
        path = DOCS / page
        text = before = path.read_text()
        for name, make in tables.items():
            block = rf"(<!-- table:{name} -->\n).*?(<!-- /table:{name} -->)"
            text, found = re.subn(block, lambda m, make=make: f"{m[1]}{make()}\n{m[2]}", text, flags=re.DOTALL)
            if not found:
                raise SystemExit(f"docs/{page} has no place for the table {name!r}")
        if text != before:
            stale.append(page)
            if "--check" not in sys.argv:
                path.write_text(text)
    if stale and "--check" in sys.argv:
        print(f"out of date: {', '.join(stale)}; run: python docs/_tables.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
