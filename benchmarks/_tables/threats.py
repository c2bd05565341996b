"""Federations under attack: what gets through the wire, what the rules cost, what is left of the return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _tables import show

LABELS = {
    "sign_flip": "sign flip", "scaling": "scaling, 1e6", "noise": "noise, 10 norms", "nan": "NaN", "zero": "zero",
    "alie": "A Little Is Enough", "ipm": "inner product manipulation", "false_counts": "false counts",
}  # fmt: skip


def federation_threats(results: Mapping[str, Any]) -> str:
    """Two tables and two sentences."""
    rows = [
        [LABELS.get(attack, attack), _fraction(found, "robust_"), _fraction(found, "mean_")]
        for attack, found in results["attacks"].items()
    ]
    head = [f"{results['hostile']} of {results['parties']} attack, share of the return without them"]
    attacks = show.grid([*head, "nearest mixing (default)", "plain mean"], rows)
    cost = results["cost"]["rules"] if results["cost"] else {}
    every = {"mean": {"fraction": 1.0, "fractions": []}, **results["rules"]}
    rules = show.grid(
        ["rule, nobody hostile", "share of the mean's return", "ms a party and round, 10 x 100,000 floats"],
        [
            [rule.replace("_", " "), _fraction(found, ""), show.spread(cost.get(rule, {}), "ms")]
            for rule, found in every.items()
        ],
    )
    clean = show.spread(results["clean"], "score")
    return "\n\n".join([f"Return without attackers: {clean}.", attacks, rules, _cost(results["cost"]), _wire(results)])


def _fraction(found: Mapping[str, Any], prefix: str) -> str:
    value, each = found[f"{prefix}fraction"], found[f"{prefix}fractions"]
    if value is None:
        return "–"
    return f"{value:.0%}" + (f" ({min(each):.0%} to {max(each):.0%})" if len(each) > 1 else "")


def _cost(cost: Mapping[str, Any] | None) -> str:
    if cost is None or cost["default_ms"] is None:
        return f"Times: {cost['told'] if cost else 'not measured yet'}."
    default = show.spread(cost, "default_ms")
    return (
        f"Guard and default rule together: {default} ms a party and round; the guard alone {cost['guard_ms']:.2g} ms."
    )


def _wire(results: Mapping[str, Any]) -> str:
    wire = results["wire"]
    if wire is None:
        return "Messages: not measured yet."
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in wire["reasons"].items())
    return (
        f"Of {wire['of']:,} mutated messages and {len(wire['faults'])} faults by name {wire['turned_away']:,} were "
        f"turned away ({reasons}), {wire['accepted']} got in and {wire['crashes']} crashed the server."
    )
