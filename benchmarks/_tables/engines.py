"""Engines of actors: a decision, a publish, and what compressing gains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _tables import show

COLUMNS = {"numba": "numba", "onnx": "onnx", "numpy": "NumPy", "jax": "JAX", "ort_run": "ORT `run`"}
FULL = ("2x1024", "3x2048", "nature")


def engines_actor(results: Mapping[str, Any]) -> str:
    """Microseconds by network and engine; the chosen one in bold."""
    tables = [
        _grid(results, "us_1", "one decision, µs", "1"),
        _grid(results, "us_16", "16 observations in a call, µs", "16"),
        _grid(results, "publish_us", "publish to first action, µs", "1"),
        gains(results),
    ]
    numpy, drawn = (show.spread(results, f"numpy_{key}_us_2x64") for key in ("forward", "decision"))
    over = {key: show.spread(results, f"ratio_{key}_2x64", "x") for key in ("ort_run", "numpy")}
    notes = [
        f"Of 2x64 the chosen engine is {over['ort_run']} ORT's `run`, and {over['numpy']} the network in NumPy as",
        f"`hogwild` runs it ({numpy} µs; with the draw of an action {drawn} µs).",
        f"The chosen engine is at most {show.number(results['chosen_within'])}x the fastest.",
    ]
    return "\n\n".join([*tables, " ".join(notes)])


def _grid(results: Mapping[str, Any], key: str, head: str, rows: str) -> str:
    lines = []
    for name, engines in results["nets"].items():
        chosen = results["chosen"][name][rows]
        cells = [show.number(engines[engine][key]) for engine in COLUMNS]
        lines.append(
            [
                name.replace("_", " "),
                *(f"**{cell}**" if engine == chosen else cell for engine, cell in zip(COLUMNS, cells, strict=True)),
            ]
        )
    return show.grid([head, *COLUMNS.values()], lines)


def gains(results: Mapping[str, Any]) -> str:
    """How much faster than the same network in full precision, each on its fastest engine."""
    lines = []
    for name in results["nets"]:
        full = next((full for full in FULL if name.startswith(f"{full}_")), None)
        if full:
            ratios = [fastest(results, full, key) / fastest(results, name, key) for key in ("us_1", "us_16")]
            lines.append([name.replace("_", " "), *(f"{show.number(ratio)}x" for ratio in ratios)])
    return show.grid(["over full precision, fastest engine each", "one decision", "16 observations"], lines)


def fastest(results: Mapping[str, Any], name: str, key: str) -> float:
    """Microseconds of a network's fastest engine; the peer is none."""
    engines = results["nets"][name].items()
    return min(one[key] for engine, one in engines if engine != "ort_run" and one[key] is not None)
