"""What can be read off an owner's update, and what hiding it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _tables import show

DEFENCES = {"open": "none", "clipped": "clipped"}


def inversion(results: Mapping[str, Any]) -> str:
    """The two numbers that count, then every kind of message."""
    said = [
        f"Undefended, form A, one step of one owner: cosine {show.number(results['open_cosine'])}, error "
        f"{show.number(results['open_error'])} of the variance (guessing the mean: 1).",
        f"Private mode ({results['private_mode']}): cosine {show.number(results['private_cosine'])}, "
        f"chance {show.number(results['chance_cosine'])}.",
    ]
    rows = [
        [row["form"], f"{row['batch']} x {row['updates']}", DEFENCES.get(row["defence"], f"clipped, {row['defence']}"),
         str(row["owners"]), row["attack"], show.number(row["cosine"]), show.number(row["chance"]),
         show.number(row["error"]), show.number(row["guess"]), show.number(row["features"])]
        for row in results["rows"].values()
    ]  # fmt: skip
    head = [
        "form", "steps x updates", "defence", "owners in the sum", "best attack", "cosine", "chance",
        "error / variance", "guessing the mean", "cosine of features",
    ]  # fmt: skip
    return "\n\n".join([*said, show.grid(head, rows)])


def inversion_line(results: Mapping[str, Any]) -> str:
    """With defences and without."""
    return (
        f"an observation read off one undefended gradient has cosine {show.number(results['open_cosine'])} with the "
        f"true one; in the private mode {show.number(results['private_cosine'])}, where chance is "
        f"{show.number(results['chance_cosine'])}"
    )


def membership(results: Mapping[str, Any]) -> str:
    """Whether it works undefended, what the private mode leaves, then every kind of message."""
    said = (
        f"Undefended, form A, one update of one owner: area {show.number(results['open_insider_auc'])} for an insider, "
        f"{show.number(results['open_auc'])} for an outsider. Private mode ({results['private_mode']}), the best "
        f"attack of either: area {show.number(results['private_auc'])} ± {show.number(results['private_spread'])}, "
        f"{show.number(100 * results['private_found'])} % found at most."
    )
    rows = [
        [row["form"], f"{row['batch']} x {row['updates']}", DEFENCES.get(row["defence"], f"clipped, {row['defence']}"),
         str(row["owners"]), *_attacker(row["insider"]), *_attacker(row["outsider"])]
        for row in results["rows"].values()
    ]  # fmt: skip
    head = [
        "form", "steps x updates", "defence", "owners in the sum", "insider: attack", "area", "found at 1 % false",
        "outsider: attack", "area", "found at 1 % false",
    ]  # fmt: skip
    return f"{said}\n\n{show.grid(head, rows)}"


def _attacker(told: Mapping[str, Any]) -> list[str]:
    return [told["attack"], f"{show.number(told['auc'])} ± {show.number(told['spread'])}", show.number(told["found"])]


def membership_line(results: Mapping[str, Any]) -> str:
    """Without defences and with."""
    return (
        "whether a segment was behind an undefended gradient is told with an area of "
        f"{show.number(results['open_auc'])} by whoever takes part and {show.number(results['open_insider_auc'])} by "
        "who has the owner's layers (guessing: 0.5); in the private mode "
        f"{show.number(results['private_auc'])} ± {show.number(results['private_spread'])} at most"
    )


def dp_utility(results: Mapping[str, Any]) -> str:
    """Area by epsilon, for each number of owners."""
    rows = []
    for group, found in results.items():
        for arm, told in found["area"].items():
            runs = len(found["runs"][arm])
            epsilon = arm if arm in found["noise"] else "–"
            rows.append([
                f"{group[1:]} owners, {arm if epsilon == '–' else 'central noise'}", epsilon,
                show.number(found["noise"].get(arm)), str(runs), show.spread(told, "area"),
            ])  # fmt: skip
    falls = [
        f"{group[1:]} owners: {show.number(found['falls_to_independent'])}" for group, found in results.items()
    ]  # fmt: skip
    head = ["arm", "epsilon", "z", "seeds", "area (0 random, 1 solved)"]
    said = f"The largest epsilon that was tried whose area is not above that of independent owners: {'; '.join(falls)}."
    return f"{show.grid(head, rows)}\n\n{said}"


FEW = 5  # seeds below which nothing is claimed


def dp_line(results: Mapping[str, Any]) -> str:
    """For each number of owners the area without noise and with it."""
    told: list[str] = []
    seeds = min(len(one["area_repeats"]) for found in results.values() for one in found["area"].values())
    for group, found in results.items():
        areas = {arm: one["area"] for arm, one in found["area"].items()}
        told.append(f"{group[1:]} owners " + ", ".join(f"{arm} {show.number(area)}" for arm, area in areas.items()))
    few = f", of {seeds} seeds and one clip: no trend can be read off" if seeds < FEW else ""
    return f"area under the curve of owners under central noise by epsilon{few}: {'; '.join(told)}"
