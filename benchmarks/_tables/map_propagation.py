"""Teams of units: speed, the published table, the tasks of one step, the cost of an update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _tables import show


def map_propagation(results: Mapping[str, Any]) -> str:
    """Speed, the published table, the tasks of one step, the cost of an update."""
    return "\n\n".join([map_speed(results), map_table(results), map_one_step(results), map_cost(results)])


def map_speed(results: Mapping[str, Any]) -> str:
    """Steps per second against the author's loop."""
    sides = {
        "the author's loop in NumPy, float64": ("numpy_steps_per_s", None),
        "Shoal `map_propagation`, 1 seed": ("steps_per_s_1", "ratio_numpy_1"),
        "Shoal `map_propagation`, 10 seeds together": ("steps_per_s_10", "ratio_numpy_10"),
        "Shoal, the author's control flow, 1 seed": ("paper_steps_per_s_1", "ratio_numpy_paper_1"),
    }
    rows = [
        [side, show.spread(results, key), show.spread(results, ratio, "x") if ratio else ""]
        for side, (key, ratio) in sides.items()
    ]
    return show.grid(["CartPole-v1, one core", "env steps/s", "over NumPy"], rows)


def map_table(results: Mapping[str, Any]) -> str:
    """The average return of all training episodes, ours over what was published."""
    methods = dict.fromkeys(method for one in results["table"].values() for method in one["methods"])
    rows = []
    for method in methods:
        cells = [f"`{method}`"]
        for one in results["table"].values():
            found = one["methods"].get(method)
            cells.append(beside(found) if found else "")
        rows.append(cells)
    return show.grid(["mean (deviation) over seeds; *published*", *results["table"]], rows)


def beside(found: Mapping[str, Any]) -> str:
    """E.g. `459 (13.9) *460 (13.9)*`; the seeds where there are fewer than ten."""
    ours = "–" if found["mean"] is None else f"{show.number(found['mean'])} ({show.number(found['std'])})"
    ours += f" [{found['of']} seeds]" if 0 < found["of"] < 10 else ""
    known = found["published_mean"]
    return ours if known is None else f"{ours} *{show.number(known)} ({show.number(found['published_std'])})*"


def map_one_step(results: Mapping[str, Any]) -> str:
    """Multiplexer and regression at the end."""
    parts = {
        "multiplexer": ("multiplexer, mean reward", "last_mean"),
        "regression": ("regression, error", "last_error"),
    }
    rows = [
        [f"{name}: `{method}`", show.number(one[key]), show.number(one["published"]), str(one["of"])]
        for part, (name, key) in parts.items()
        for method, one in results[part].items()
    ]
    return show.grid(["mean of the last 1,000 batches", "Shoal", "published, about", "seeds"], rows)


def map_cost(results: Mapping[str, Any]) -> str:
    """One update beside back-propagation."""
    rows = [
        [
            f"hidden layers, {shape}",
            show.spread(one["map_propagation"], "update_ms"),
            show.spread(one["backprop_det"], "update_ms"),
            show.spread(one, "time_ratio", "x"),
            show.number(one["map_propagation"]["temporary_kb"]),
            show.number(one["backprop_det"]["temporary_kb"]),
        ]
        for shape, one in results["cost"].items()
    ]
    head = ["one update", "MAP, ms", "back-propagation, ms", "ratio", "MAP, kB", "back-propagation, kB"]
    return show.grid(head, rows)
