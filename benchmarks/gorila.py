"""Gorila with 1, 2 and 4 bundles: time and steps to a score on CartPole-v1, the server's load, what guards rejected.

`score_B`: B bundles, three shards, until the mean return of the last 100 training episodes reaches 195, on seeds 0 to
9. A run that does not get there counts with all its steps and seconds. `load_B_K`: B bundles and K shards for a fixed
number of steps: updates a second, microseconds a shard spends on an update, the share of the time it is busy, and how
many versions old gradients were when they were offered (the guard for staleness is off). Bundles and shards are
processes: where they are more than the cores, times tell of the machine as well, steps do not.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import _common
import _seeds

TARGET = 195.0  # mean return of the last 100 training episodes
BUNDLES = (1, 2, 4)


class Part(NamedTuple):
    """One claim."""

    bundles: int
    shards: int
    steps: int  # environment steps a run may take
    target: float | None  # None: run to the end
    words: tuple[Any, ...] = ()


PARTS = {f"score_{bundles}": Part(bundles, 3, 100_000, TARGET) for bundles in BUNDLES}
PARTS |= {
    f"load_{bundles}_{shards}": Part(bundles, shards, 20_000, None, ("--runtime.max-lag", 0))
    for bundles in BUNDLES
    for shards in (1, 2)
}
QUICK = ("load_2_2",)
MEASURED = (
    *("solved_at_step", "train_s", "updates_per_s", "update_us", "utilisation", "lag_mean", "lag_max"),
    *("stale", "outlier", "non_finite"),
)
KEYS = tuple(f"parts.*.{key}" for key in ("complete", "of", "solved", "offered_by_lag", "runs", *MEASURED))


def main() -> None:
    """Measure what is missing, and print the record."""
    arguments = _seeds.arguments(__doc__, list(PARTS)).parse_args()
    arguments.seeds = 1 if arguments.quick else arguments.seeds or 10
    wanted = [arguments.only] if arguments.only else list(QUICK if arguments.quick else PARTS)
    claims = {name: {"steps": part.steps, "target": part.target} for name, part in PARTS.items()}
    kept = _seeds.earlier(arguments, claims, wanted)
    _seeds.gather(arguments, kept, dict.fromkeys(wanted, arguments.seeds), run, lambda: made(arguments, kept))
    _common.finish(arguments, made(arguments, kept))


def run(name: str, seed: int) -> dict[str, Any]:
    """One seed of one part."""
    part = PARTS[name]
    goal = () if part.target is None else ("--until", part.target)
    summary = _common.train(
        "gorila", "--env", "CartPole-v1", "--workers", part.bundles, "--runtime.shards", part.shards,
        "--steps", part.steps, "--seed", seed, *goal, *part.words, *_common.SHORT,
    )  # fmt: skip
    return told(summary)


def told(summary: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run's summary."""
    server, workers = summary["server"], summary["workers"]
    busy = [value for value in server["update_us"] if value is not None]
    return {
        "env_steps": summary["env_steps"],
        "solved_at_step": summary["solved_at_step"],
        "train_s": summary["train_s"],
        "updates_per_s": summary["updates"] / summary["train_s"],
        "update_us": statistics.mean(busy) if busy else None,
        "utilisation": statistics.mean(server["utilisation"]),
        "lag_mean": workers["lag_mean"],
        "lag_max": workers["lag_max"],
        "offered_by_lag": server["offered_by_lag"],
        **{reason: summary["faults"][reason] for reason in ("stale", "outlier", "non_finite")},
    }


def conclude(part: Part, runs: _seeds.Runs, seeds: int) -> dict[str, Any]:
    """A part's numbers: of each the median and the quartiles over seeds.

    Args:
        part: The claim.
        runs: Seed -> run.
        seeds: How many there are to be.
    """
    results: dict[str, Any] = {"complete": len(runs) >= seeds, "of": len(runs), **part._asdict()}
    results["solved"] = sum(one["solved_at_step"] is not None for one in runs.values())
    for key in MEASURED:
        values = [one[key] for one in runs.values()]
        if key == "solved_at_step":
            values = [one["solved_at_step"] or one["env_steps"] for one in runs.values()] if part.target else []
        results |= quartiles(key, [value for value in values if value is not None])
    lags = [one["offered_by_lag"] for one in runs.values()]
    results["offered_by_lag"] = {lag: sum(one[lag] for one in lags) for lag in (lags[0] if lags else ())}
    return results | {"runs": _seeds.in_order(runs)}


def quartiles(key: str, values: Sequence[float]) -> dict[str, Any]:
    """The median under `key`, and `key`_quartiles; null where nothing was measured."""
    if not values:
        return {key: None, f"{key}_quartiles": None}
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {key: middle, f"{key}_quartiles": [low, high]}


def made(arguments: argparse.Namespace, kept: dict[str, _seeds.Runs]) -> dict[str, Any]:
    """The record of what is there so far."""
    parts = {name: conclude(part, kept[name], arguments.seeds) for name, part in PARTS.items()}
    return _common.record("gorila", arguments, {"parts": parts})


if __name__ == "__main__":
    main()
