"""What the presets learn within a number of steps: the evaluation at the end, over seeds, beside published figures.

The parts are listed in `_preset_parts.py`. Presets are tuned on seeds from 1000 on; these are seeds 0 to 9, or 0 to 2
where a run takes an hour. Every run is `shoal train PRESET --env ENV --steps N --seed S` as it comes, with 20
evaluation episodes. The runs are kept in the JSON one by one, so a part that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from typing import Any

import _common
import _seeds
from _preset_parts import PARTS, Part

from shoal.report import statistics as seeds_statistics

QUICK = {"ppo/gymnax:CartPole-v1": 50_000}  # all that --quick measures, and its steps
KEPT = ("status", "eval_return_mean", "eval_episodes", "return_mean", "env_steps", "train_s", "wall_s")
SCORES = ("eval_return_mean", "return_mean")
KEYS = tuple(
    f"parts.*.{key}"
    for key in (
        *("complete", "of", "seeds", "steps", "command", "references"),
        *("eval_return_mean_iqm", "eval_return_mean_interval", "return_mean_iqm", "train_s", "wall_s", "runs"),
    )
)


def main() -> None:
    """Measure what is missing, and print the record."""
    arguments = _seeds.arguments(__doc__, list(PARTS)).parse_args()
    names = [arguments.only] if arguments.only else list(QUICK if arguments.quick else PARTS)
    wanted = {name: 1 if arguments.quick else arguments.seeds or PARTS[name].seeds for name in names}
    parts = {
        name: part._replace(steps=QUICK.get(name, 50_000)) if arguments.quick else part for name, part in PARTS.items()
    }
    kept = earlier(arguments, names)
    _seeds.gather(
        arguments, kept, wanted, lambda name, seed: run(parts[name], seed), lambda: made(arguments, kept, parts)
    )
    _common.finish(arguments, made(arguments, kept, parts))


def run(part: Part, seed: int) -> dict[str, Any]:
    """One seed of one part."""
    summary = _common.train(part.preset, *words(part), "--seed", seed, "--eval-episodes", 20)
    return {key: summary.get(key) for key in KEPT} | {"command_s": summary["command_s"]}


def words(part: Part) -> tuple[Any, ...]:
    """The words of a part's command after the preset."""
    return ("--env", part.env, "--steps", part.steps, *part.words)


def earlier(arguments: argparse.Namespace, wanted: list[str]) -> dict[str, _seeds.Runs]:
    """The runs already in the JSON: part -> seed -> run."""
    return _seeds.earlier(arguments, {name: {"command": command(part)} for name, part in PARTS.items()}, wanted)


def command(part: Part) -> str:
    """What was run, but for the seed."""
    return " ".join(["shoal train", part.preset, *map(str, words(part))])


def made(
    arguments: argparse.Namespace, kept: dict[str, _seeds.Runs], parts: Mapping[str, Part] = PARTS
) -> dict[str, Any]:
    """The record of what is there so far."""
    return _common.record(
        "presets", arguments, {"parts": {name: conclude(part, kept[name]) for name, part in parts.items()}}
    )


def conclude(part: Part, runs: _seeds.Runs) -> dict[str, Any]:
    """A part's numbers.

    Args:
        part: The claim.
        runs: Seed -> run.
    """
    results: dict[str, Any] = {
        "complete": len(runs) >= part.seeds,
        "of": len(runs),
        "seeds": part.seeds,
        "commits": sorted({str(one["commit"]) for one in runs.values()}),
        "preset": part.preset,
        "env": part.env,
        "steps": part.steps,
        "command": command(part),
        "references": [reference._asdict() for reference in part.references],
    }
    for key in SCORES:
        known = [one[key] for one in runs.values() if one[key] is not None]
        results[f"{key}_iqm"] = seeds_statistics.iqm(known) if known else None
        results[f"{key}_interval"] = list(seeds_statistics.interval(known)) if len(known) > 1 else None
    for key in ("train_s", "wall_s"):
        results[key] = statistics.median(one[key] for one in runs.values()) if runs else None
    return results | {"runs": _seeds.in_order(runs)}


if __name__ == "__main__":
    main()
