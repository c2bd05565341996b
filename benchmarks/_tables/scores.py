"""What the presets reach, and what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _tables import show


def presets(results: Mapping[str, Any]) -> str:
    """What was learned, part by part, beside the first published figure; parts without a run are left out."""
    rows = []
    for part in results["parts"].values():
        if not part["of"]:
            continue
        seeds = f"{part['of']}" + ("" if part["complete"] else f" of {part['seeds']}")
        scores = [show.with_interval(part, key) for key in ("eval_return_mean", "return_mean")]
        told = published(part["references"][0]) if part["references"] else "–"
        rows.append(
            [
                f"`{part['preset']}` on {part['env']}",
                show.number(part["steps"]),
                seeds,
                *scores,
                show.number(part["train_s"]),
                told,
            ]
        )
    head = ["", "steps", "seeds", "evaluation, IQM [95 %]", "training, IQM [95 %]", "training, s", "published"]
    waiting = [f"`{name}`" for name, part in results["parts"].items() if not part["of"]]
    return show.grid(head, rows) + (f"\n\nNot measured yet: {', '.join(waiting)}." if waiting else "")


def published(reference: Mapping[str, Any]) -> str:
    """A published figure with its steps and a link."""
    spread_of = f" ± {show.number(reference['spread'])}" if reference["spread"] is not None else ""
    version = f" on {reference['env']}" if reference["env"] else ""
    link = f"[{reference['source']}]({reference['url']})"
    return f"{show.number(reference['value'])}{spread_of} at {show.number(reference['steps'])}{version} ({link})"


def cartpole(results: Mapping[str, Any]) -> str:
    """What was learned, part by part."""
    rows = []
    for name, part in results["parts"].items():
        cells = [f"{part['solved']} of {part['of']}" + ("" if part["complete"] else " (incomplete)")]
        for key in ("solved_at_step", "train_s", "wall_s"):
            interval = part.get(f"{key}_interval")
            iqm = show.number(part.get(f"{key}_iqm"))
            cells += [
                show.number(part[key]),
                f"{iqm} [{show.number(interval[0])}, {show.number(interval[1])}]" if interval else iqm,
            ]
        rows.append([f"`{name}` to {part['target']:g}", *cells[:5], cells[5]])
    return show.grid(["preset", "reached", "steps", "IQM [95 %]", "training, s", "IQM [95 %]", "whole run, s"], rows)


def pong(results: Mapping[str, Any]) -> str:
    """How far it came, and when."""
    reached = "not reached"
    if results["reached_at_step"] is not None:
        reached = (
            f"{show.number(results['reached_at_step'])} steps, {show.number(results['reached_at_s'] / 60)} minutes"
        )
    rows = [
        [
            f"`{results['preset']}`, seed {results['seed']}",
            show.number(results["env_steps"]),
            show.number(results["wall_s"] / 60),
            show.number(results["frames_per_s"]),
            reached,
            show.number(results["best_mean"]),
            show.number(results["last_mean"]),
        ]
    ]
    means = ["mean of 0", "best mean", "last mean"]
    return show.grid(["Pong, 100 training episodes a mean", "steps", "minutes", "frames/s", *means], rows)
