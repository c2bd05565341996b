"""What it costs that a run can be replayed: updates per second of two workers, racing and with tickets.

A3C with two layers of 64 units and segments of five steps, where applies are as frequent as they come; then the
preset's own segments of 32. Both sides take turns. `cost` is the time of an update with lock and record over its time
without. The record's size counts the whole file.

`scores`: whether racing learns worse than taking turns: environment steps of the preset to a mean return of 475 in
100 training episodes, seeds 0 to 9 of both, and the two-sided Mann-Whitney test of their difference. A run that does
not get there counts with all its steps.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _common
from scipy import stats

TARGET = 475.0  # mean return of the last 100 training episodes
LENGTHS = {"segments_5": 5, "segments_32": 32}  # steps of a segment
KEYS = (
    *(f"{name}.{key}" for name in LENGTHS for key in ("racing_updates_per_s", "replayable_updates_per_s", "cost")),
    *("bytes_per_update", "replay_updates_per_s", "replay_equal"),
    *(f"scores.{key}" for key in ("racing", "replayable", "p_value", "reached")),
)


def main() -> None:
    """Measure, and print the record."""
    arguments = _common.parser(__doc__).parse_args()
    repeats, seconds = (2, 1) if arguments.quick else (5, 8)
    results: dict[str, Any] = {}
    for name, length in LENGTHS.items():
        train(length, 2_000)  # fills the compilation cache
        steps = 25_000 * seconds
        sides = {
            f"{name}, racing": lambda length=length, steps=steps: train(length, steps),
            f"{name}, replayable": lambda length=length, steps=steps: train(length, steps, "--replayable"),
        }
        racing, tickets = _common.alternate(sides, repeats).values()
        results[name] = _common.spread("racing_updates_per_s", racing)
        results[name] |= _common.spread("replayable_updates_per_s", tickets)
        results[name] |= _common.spread("cost", _common.ratios(racing, tickets)) | {"env_steps": steps}
    results |= replay(10_000 * seconds)
    results["scores"] = scores(2 if arguments.quick else 10)
    _common.finish(arguments, _common.record("asynchrony", arguments, results))


def scores(seeds: int) -> dict[str, Any]:
    """Steps to the score of every seed, racing and with tickets."""
    steps: dict[str, list[int]] = {"racing": [], "replayable": []}
    reached = dict.fromkeys(steps, 0)
    for seed in range(seeds):
        for name, more in (("racing", ()), ("replayable", ("--replayable",))):
            asked = ("--env", "CartPole-v1", "--workers", 2, "--seed", seed, "--until", TARGET, *more, *_common.SHORT)
            summary = _common.train("a3c", *asked)
            solved = summary["solved_at_step"]
            reached[name] += solved is not None
            steps[name].append(solved or summary["env_steps"])
            _common.say(f"seed {seed}, {name}: {steps[name][-1]:,} steps to {TARGET:g}")
    return steps | {"reached": reached, "p_value": difference(*steps.values())}


def difference(a: Sequence[float], b: Sequence[float]) -> float:
    """The p-value of the two-sided Mann-Whitney test."""
    return float(stats.mannwhitneyu(a, b).pvalue)


def words(length: int, steps: int) -> tuple[Any, ...]:
    """Of `shoal train`."""
    return (
        *("a3c", "--env", "CartPole-v1", "--workers", 2, "--steps", steps, "--seed", 0),
        *("--algorithm.rollout-length", length, *_common.SHORT),
    )


def train(length: int, steps: int, *more: Any) -> float:
    """Updates per second of training."""
    summary = _common.train(*words(length, steps), *more)
    return summary["updates"] / summary["train_s"]


def replay(steps: int) -> dict[str, Any]:
    """A replayable run, and its replay."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        run = Path(folder) / "run"
        out, _ = _common.shoal("train", *words(5, steps), "--replayable", "--out", run, "--json")
        summary = json.loads(out)
        again = json.loads(_common.shoal("replay", run, "--json")[0])
        size = (run / "asynchrony.npz").stat().st_size
    return {
        "bytes_per_update": size / again["tickets"],
        "replay_updates_per_s": again["tickets"] / again["seconds"],
        "replay_equal": again["equal"] and again["params_sha256"] == summary["params_sha256"],
    }


if __name__ == "__main__":
    main()
