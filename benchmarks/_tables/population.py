"""Populations: what an update step of many members costs, and what exchanges are worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _tables import show

SIDES = {
    "auto": "Shoal, `auto`",
    "jax_sequential": "JAX in turn, one step a call",
    "jax_sequential_k": "JAX in turn, as many steps a call",
    "jax_processes": "JAX processes",
    "torch_sequential": "PyTorch in turn",
    "torch_batched": "PyTorch at once",
}
RATIOS = {
    "ratio_sequential": "JAX in turn",
    "ratio_sequential_k": "with as many steps a call",
    "ratio_torch": "PyTorch in turn",
    "ratio_torch_batched": "PyTorch at once",
}
METHODS = {"pbt": "PBT", "mf_pbt": "MF-PBT", "random": "random search", "schedule_alone": "PBT's schedule, alone"}


def population(results: Mapping[str, Any]) -> str:
    """One table of ratios at 80 members, then one of times a part."""
    parts = {
        (rule, width): part
        for rule, of in results.items()
        for width, part in of.items()
        if isinstance(part, Mapping) and any(_measured(at) for at in _members(part).values())
    }
    tables = [_ratios(parts), *(_times(*name, part) for name, part in parts.items())]
    same = [f"{rule.upper()} {value:.1g}" for rule, value in results["same"].items() if value is not None]
    tables.append(
        "Parameters that PyTorch reaches from the same numbers, off Shoal's by at most this share of the largest "
        f"change: {', '.join(same) or '–'}."
    )
    return "\n\n".join(tables)


def _ratios(parts: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    head = [
        "80 members, time over Shoal's", *RATIOS.values(), "t(80) / t(1)", "`auto` over the best way, worst",
        "choosing with a warm cache, s",
    ]  # fmt: skip
    rows = []
    for (rule, width), part in parts.items():
        numbers = [part[ratio] for ratio in RATIOS]
        numbers += [part["t80_over_t1"], part["within"], part["choosing_warm_s"]]
        rows.append([f"{rule.upper()}, {width[1:]} wide", *map(show.number, numbers)])
    return show.grid(head, rows)


def _times(rule: str, width: str, part: Mapping[str, Any]) -> str:
    cells = {int(key[1:]): at for key, at in _members(part).items() if _measured(at)}
    head = [f"{rule.upper()}, {width[1:]} wide, ms a step of", *map(str, sorted(cells))]
    rows = [[label, *(_quartiles(cells[n], side) for n in sorted(cells))] for side, label in SIDES.items()]
    for updates in (1, 50):
        row = [_quartiles(cells[n].get(f"k{updates}", {}), "auto") for n in sorted(cells)]
        rows.append([f"Shoal, {updates} step{'s' if updates > 1 else ''} a call", *row])
    ways = dict.fromkeys(way for at in cells.values() for way in at["ways"])
    for way in ways:
        rows.append([f"Shoal, {way}", *(_way(cells[n], way) for n in sorted(cells))])
    return show.grid(head, rows)


def _members(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: at for key, at in part.items() if key[0] == "n" and key[1:].isdigit()}


def _measured(at: Mapping[str, Any]) -> bool:
    return at.get("auto_ms") is not None


def _quartiles(at: Mapping[str, Any], side: str) -> str:
    return "–" if at.get(f"{side}_ms") is None else show.quartiles(at, f"{side}_ms")


def _way(at: Mapping[str, Any], way: str) -> str:
    if way not in at["ways"]:
        return "–"
    time = show.number(at["ways"][way]["ms"])
    return f"**{time}**" if way == at["chosen"] else time


def _within(part: Mapping[str, Any]) -> str:
    bounds = f" [{show.number(part['low'])}, {show.number(part['high'])}]" if part["low"] is not None else ""
    return f"{show.number(part['iqm'])}{bounds}"


def pbt(results: Mapping[str, Any]) -> str:
    """One table; populations that are missing are told."""
    rows = []
    for env, found in results["envs"].items():
        row = [env]
        for method in METHODS:
            part = found[method]
            bias = "" if part["bias"] is None else f"; fitness {part['bias']:+.3g}"
            row.append(f"{_within(part)} ({len(part['runs'])}{bias})")
        row += [_within(found[f"{method}_over_random"]) for method in ("pbt", "mf_pbt")]
        apart = [{True: "yes", False: "no", None: "–"}[found[f"{method}_beats_random"]] for method in ("pbt", "mf_pbt")]
        rows.append([*row, ", ".join(apart)])
    less = ["PBT less random search", "MF-PBT less random search", "PBT, MF-PBT above it, intervals apart"]
    head = ["environment", *METHODS.values(), *less]
    return show.grid(head, rows)
