"""Compressed actors: what they save, and what it does to learning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _tables import show

HEAD = [
    "compressor, corrector", "seeds", "inference, ratio", "actor time, ratio", "whole training less by", "predicted",
    "publishing", "return", "packed", "difference [95 %]", "of areas [95 %]", "not inferior, by area",
]  # fmt: skip

VERDICT = {True: "yes", False: "no", None: "–"}


def accerl(results: Mapping[str, Any]) -> str:
    """One table a task, the full-precision baseline first."""
    tables = []
    for name, task in results["tasks"].items():
        measured = any(one.get("inference_ratio") is not None for one in task["parts"].values())
        judged = task["judged"]
        rows = [_row(part, one, judged) if measured else _area(part, one) for part, one in task["parts"].items()]
        head = (
            HEAD if measured else ["compressor, corrector", "seeds", "mean return of all training episodes, IQM [95 %]"]
        )
        tables.append(f"**{name}** ({task['why']}): `{task['command']}`\n\n{show.grid(head, rows)}")
    best = show.number(results["best_actor_time_ratio"]), _percent(results["best_train_time_reduction"])
    tables.append(f"Best of what did not learn worse: actor time {best[0]} times less, whole training {best[1]} less.")
    return "\n\n".join(tables)


def _row(name: str, part: Mapping[str, Any], judged: str) -> list[str]:
    seeds = [name, str(len(part["runs"]))]
    if part.get("inference_ratio") is None:
        return [*seeds, *["–"] * (len(HEAD) - 2)]
    return [
        *seeds,
        show.spread(part, "inference_ratio"),
        show.spread(part, "actor_time_ratio"),
        _spread(part, "train_time_reduction"),
        _percent(part["predicted_reduction"]),
        _percent(part["publish_share"]),
        show.number(part[judged]),
        show.number(part["return_compressed"] if judged == "return_full" else None),
        _difference(part),
        _difference(part, "area_"),
        f"{VERDICT[part['not_inferior']]}, {VERDICT[part['area_not_inferior']]}",
    ]


def _area(name: str, part: Mapping[str, Any]) -> list[str]:
    bounds = part["area_interval"]
    around = f" [{show.number(bounds[0])}, {show.number(bounds[1])}]" if bounds else ""
    return [name, str(len(part["runs"])), f"{show.number(part['area'])}{around}"]


def _difference(part: Mapping[str, Any], of: str = "") -> str:
    if part[f"{of}difference"] is None:
        return "–"
    bounds = ", ".join(show.number(part[f"{of}difference_{end}"]) for end in ("low", "high"))
    return f"{show.number(part[f'{of}difference'])} [{bounds}]"


def _spread(part: Mapping[str, Any], key: str) -> str:
    return f"{_percent(part[key])} ({_percent(part[f'{key}_min'])} to {_percent(part[f'{key}_max'])})"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
