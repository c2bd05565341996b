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
    """How many seeds came to each mean and what it took them; then every run by itself."""
    goals = results["goals"]
    rows = []
    for name, part in results["presets"].items():
        cells = [[f"{part[f'reached_{goal}']} of {part['seeds']}", *_took(part, goal)] for goal in goals]
        rows.append([f"`{name}`", *(cell for of in cells for cell in of)])
    head = [f"Pong, mean of {results['window']} training episodes"]
    head += [text for goal in goals for text in (f"reach {goal}", "steps, median", "minutes, median")]
    ran = [
        [
            f"`{name}`, seed {seed}", run["status"], show.number(run["env_steps"]), show.number(run["wall_s"] / 60),
            show.number(run["frames_per_s"]), *(cell for goal in goals for cell in _took(run, goal)),
            show.number(run["best_mean"]), show.number(run["last_mean"]), limit(run),
        ]
        for name, part in results["presets"].items() for seed, run in part["runs"].items()
    ]  # fmt: skip
    took = [text for goal in goals for text in (f"steps to {goal}", "minutes")]
    means = ["best mean", "last mean", "cores, wall limit"]
    return show.grid(head, rows) + "\n\n" + show.grid(["run", "", "steps", "minutes", "frames/s", *took, *means], ran)


def _took(found: Mapping[str, Any], goal: int) -> list[str]:
    """Steps and minutes to a mean."""
    return [show.number(found[f"steps_to_{goal}"]), show.number(found[f"minutes_to_{goal}"])]


def limit(run: Mapping[str, Any]) -> str:
    """Whether a run had the cores to itself, and the hours it was given."""
    cores = {True: "shared", False: "its own", None: "not told"}[run["shared"]]
    return cores + (f", {run['hours']:g} h" if run["hours"] is not None else "")
