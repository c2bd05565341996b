"""Owners that train together without sharing a network: form G beside its paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _tables import show

ARMS = {
    "alone": "alone", "d2": "agree every 2 episodes", "d5": "every 5", "d20": "every 20", "d80": "every 80"
}  # fmt: skip


def consensus(results: Mapping[str, Any]) -> str:
    """One table; beside each number the published one."""
    rows = []
    for name, label in ARMS.items():
        arm, paper = results["arms"][name], results["published"][name]
        pairs = [f"{show.number(arm[key])} ({paper[key]:.0f})" for key in ("area", "last", "worst")]
        ratio = results.get(f"auc_ratio_{name}") if name != "alone" else 1.0
        published = paper["area"] / results["published"]["alone"]["area"]
        rows.append(
            [label, *pairs, f"{show.number(ratio)} ({published:.2f})", show.number(arm["area_steps"]), len(arm["runs"])]
        )
    head = [
        "ten owners with ten networks (published)", "mean of all episodes", "last 100", "worst owner's last 100",
        "over alone, median of seeds", "mean at equal steps", "seeds",
    ]  # fmt: skip
    return show.grid(head, [[str(cell) for cell in row] for row in rows])
