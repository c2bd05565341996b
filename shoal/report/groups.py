"""Runs of one experiment belong together: they differ in nothing but the seed.

What the page and the picture draw comes from here: labels, learning curves, aggregates over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shoal.report import runs as run_folders
from shoal.report import statistics, words

WINDOW = 100  # episodes in a "mean of the last episodes", as in summary.json
GRID = 200  # points of an aggregated curve
ABOUT = {  # keys of config.json that say how a run came about, not what it is; any other makes another experiment
    "schema",
    "seed",
    "seeds",
    "experiment_sha256",
    "command",
    "versions",
    "machine",
    "evaluate_every",  # looking on changes nothing of what is learned
    "evaluate_episodes",
}
OVERSHOOT = 1.02  # runs of one budget end within a rollout of each other: their last value counts that much longer


class Group(NamedTuple):
    """The runs of one experiment."""

    preset: str
    env: str
    variant: str  # what sets it apart from other groups of this preset and environment, "" if nothing does
    runs: tuple[run_folders.Run, ...]
    place: int  # its colour, dash and marker

    @property
    def title(self) -> str:
        """E.g. ``a3c on CartPole-v1 (workers 2)``."""
        return f"{self.preset} on {self.env}" + (f" ({self.variant})" if self.variant else "")

    @property
    def called(self) -> str:
        """The title without the environment."""
        return self.preset + (f" ({self.variant})" if self.variant else "")

    @property
    def seeds(self) -> int:
        """How many different seeds there are; an unknown seed counts as one of its own."""
        known = {str(run.seed) for run in self.runs if run.seed is not None}
        return len(known) + sum(run.seed is None for run in self.runs)

    @property
    def goal(self) -> float | None:
        """The return that counts as solved, if the runs were given one."""
        return next((run.goal for run in self.runs if run.goal is not None), None)

    def values(self, key: str) -> list[float]:
        """A number of every run that measured it."""
        return [value for run in self.runs if (value := run.value(key)) is not None]

    def names(self) -> list[str]:
        """A label for each run: its seed, and a count where one seed was run more than once."""
        labels = [f"seed {'unknown' if run.seed is None else run.seed}" for run in self.runs]
        return [
            label if labels.count(label) == 1 else f"{label}, run {labels[: i + 1].count(label)}"
            for i, label in enumerate(labels)
        ]


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``{"runtime.workers": 2}``; lists are values, and a schedule is told in short."""
    if prefix == "schedule" and isinstance(tree, list):
        return {prefix: words.schedule(tree)}
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def split(found: Sequence[run_folders.Run]) -> list[Group]:
    """Sort runs into groups, in the order of their first run; seeds ascend within a group.

    Runs of one preset and environment with other settings, steps or goals are different experiments: an average over
    them would describe neither. Only the seed may differ.
    """
    families: dict[tuple[str, str], list[run_folders.Run]] = {}
    for run in found:
        families.setdefault((run.preset, run.env), []).append(run)
    groups: list[Group] = []
    for (preset, env), members in families.items():
        for variant, same in _variants(members).items():
            ordered = sorted(same, key=lambda run: (run.seed is None, run_folders.number(run.seed) or 0, str(run.seed)))
            groups.append(Group(preset, env, variant, tuple(ordered), len(groups)))
    return groups


def _variants(members: Sequence[run_folders.Run]) -> dict[str, list[run_folders.Run]]:
    settings = [_settings(run.config) for run in members]
    keys = {key: None for flat in settings for key in flat if key.rpartition(".")[2] != "seed"}
    differing = [key for key in keys if len({repr(flat.get(key)) for flat in settings}) > 1]
    short = [key.rpartition(".")[2] for key in differing]
    named = [
        last if short.count(last) == 1 and last != "name" else key for key, last in zip(differing, short, strict=True)
    ]
    variants: dict[str, list[run_folders.Run]] = {}
    for run, flat in zip(members, settings, strict=True):
        label = ", ".join(f"{name} {words.setting(flat.get(key))}" for name, key in zip(named, differing, strict=True))
        variants.setdefault(label, []).append(run)
    return variants


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is, its seed apart: ``{"steps": 40_000, "goal": "475", "runtime.workers": 2}``."""
    flat = flatten({key: value for key, value in config.items() if key not in {*ABOUT, "parts", "goal"}})
    return {**flat, "goal": _goal(config.get("goal")), **flatten(config.get("parts", {}))}


def _goal(given: Any) -> str:
    """E.g. ``475``; of another window than usual, ``475 over 10 episodes``."""
    if not isinstance(given, Mapping):
        return "none" if given is None else str(given)
    target, window = given.get("target"), given.get("window", WINDOW)
    shown = f"{target:g}" if isinstance(target, int | float) else str(target)
    return shown if window == WINDOW else f"{shown} over {window} episodes"


def learning(run: run_folders.Run, axis: str) -> statistics.Curve:
    """The learning curve: the mean return of the last 100 episodes, at every episode's end.

    Args:
        run: The run; without episodes its ``return_mean`` metric is used.
        axis: ``"step"``, ``"each"`` (environment steps of a party) or ``"wall_s"``.

    Returns:
        The curve; a run that met its goal counts with its last value for ever after.
    """
    x = run.episodes["wall_s" if axis == "wall_s" else "env_steps"] / share(run, axis)
    y = running_mean(run.episodes["episode_return"], WINDOW)
    if not np.isfinite(x).any():
        x, y = column(run, axis), column(run, "return_mean")
    known = np.isfinite(x) & np.isfinite(y)
    x, y = np.maximum.accumulate(x[known]), y[known]  # several workers may report a little out of order
    last = np.append(x[1:] != x[:-1], True) if len(x) else np.zeros(0, bool)
    solved = run.value("solved_at_step") is not None
    end = (run.value("wall_s" if axis == "wall_s" else "env_steps") or 0.0) / share(run, axis)
    return statistics.Curve(x[last], y[last], math.inf if solved else end * OVERSHOOT)


def steps_of(found: Sequence[Group]) -> str:
    """The axis that steps are shown on: of one party, once parties train together in some run."""
    return "each" if any(run.parties > 1 for group in found for run in group.runs) else "step"


def share(run: run_folders.Run, axis: str) -> int:
    """What environment steps of a run are divided by on an axis."""
    return run.parties if axis == "each" else 1


def column(run: run_folders.Run, name: str) -> np.ndarray:
    """A column of the metrics, empty when it was not logged; ``"each"`` is that of the steps of a party."""
    if name == "each":
        return column(run, "step") / run.parties
    rows = len(next(iter(run.metrics.values()), ()))
    return run.metrics.get(name, np.full(rows, np.nan))


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """``[n]``: the mean of the last `window` values up to each, of as many as there are at the start."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (total[ends] - total[starts]) / (ends - starts)


def band(group: Group, axis: str) -> statistics.Band | None:
    """The interquartile mean over the seeds with its interval; None with fewer than two seeds."""
    curves = [curve for run in group.runs if len((curve := learning(run, axis)).x)]
    if group.seeds < 2 or len(curves) < 2:
        return None
    ends = max(curve.x[-1] for curve in curves)
    starts = min(curve.x[0] for curve in curves)
    return statistics.curve(curves, np.linspace(starts, ends, GRID))
