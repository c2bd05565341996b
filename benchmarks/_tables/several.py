"""Several policies with shared critics: what the mean policy gained, how far apart policies stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _tables import show

NAMES = {"cem_rl": "CEM-RL", "dvd": "DvD", "dvd_without": "DvD, weights of 0"}
SHOWN = {  # metric -> as the head of a row
    "fitness_mean": "mean fitness", "min_distance": "smallest distance", "deviation": "deviation of parameters",
    "return_mean": "mean return of training episodes",
}  # fmt: skip


def several(results: Mapping[str, Any]) -> str:
    """Two tables and the curves."""
    evolved, diverse = results["cem_rl"], results["dvd"]
    first = show.grid(
        ["CEM-RL", "seeds", "at the start", "at the end", "gain", f"gain above {show.number(evolved['margin'])}"],
        [["mean policy", str(evolved["of"]), *(show.spread(evolved, key) for key in ("start", "end", "gain")),
          f"{evolved['better']} of {evolved['of']}"]],
    )  # fmt: skip
    second = show.grid(
        ["DvD", "seeds", "smallest distance", "with weights of 0", "ratio", "further apart", "return at the end",
         "with weights of 0"],
        [["five policies", str(diverse["of"]),
          *(show.spread(diverse, key) for key in ("distance", "distance_without", "ratio")),
          f"{diverse['further']} of {diverse['of']}",
          *(show.spread(diverse, key) for key in ("end", "end_without"))]],
    )  # fmt: skip
    commands = "\n".join(f"* {name}: `{results[part]['command']}`" for part, name in NAMES.items())
    return "\n\n".join([commands, first, second, *map(_curves, _of_one_length(results))])


def _of_one_length(results: Mapping[str, Any]) -> list[dict[str, list[list[float]]]]:
    """The curves, by "part: metric", those at the same steps together."""
    groups: dict[tuple[float, ...], dict[str, list[list[float]]]] = {}
    for part, name in NAMES.items():
        for key, points in results[part]["curves"].items():
            groups.setdefault(tuple(step for step, _ in points), {})[f"{name}: {SHOWN[key]}"] = points
    return list(groups.values())


def _curves(curves: Mapping[str, list[list[float]]]) -> str:
    steps = [show.number(step) for step, _ in next(iter(curves.values()))]
    rows = [[name, *(show.number(value) for _, value in points)] for name, points in curves.items()]
    return show.grid(["after steps", *steps], rows)
