"""What the presets learn: how many of ten seeds reach the score, after how many steps and seconds.

The presets are tuned on seeds from 1000 on; these are seeds 0 to 9. A part is one preset on one task; its runs are
kept in the JSON one by one, so a part that was stopped goes on where it was (if the commit is still the same).
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any, NamedTuple

import _common
import _seeds

from shoal.report import statistics as seeds_statistics


class Part(NamedTuple):
    """One claim."""

    words: tuple[Any, ...]  # of `shoal train`
    target: float  # mean return of the last 100 episodes that ends a run
    steps: int  # environment steps a run may take


PARTS = {
    "a3c": Part(("a3c", "--env", "CartPole-v1", "--workers", 2), 475.0, 300_000),
    "a2c_on_device": Part(("a2c", "--env", "gymnax:CartPole-v1", "--runtime", "on_device"), 475.0, 400_000),
    "a3c_lstm": Part(("a3c_lstm", "--workers", 2), 475.0, 800_000),  # its own environment hides the velocities
    "impala": Part(("impala", "--env", "CartPole-v1"), 475.0, 400_000),
    "accerl": Part(("accerl", "--env", "CartPole-v1"), 475.0, 300_000),  # 2 x 1024, pruned, distilled, in 8 bits
    "a3c_continuous": Part(("a3c_continuous", "--env", "Pendulum-v1", "--workers", 2), -250.0, 1_500_000),
}
QUICK = ("a3c", "a2c_on_device")
KEPT = ("status", "solved_at_step", "env_steps", "train_s", "startup_s", "wall_s", "return_mean", "eval_return_mean")
KEYS = tuple(f"parts.*.{key}" for key in ("complete", "solved", "of", "solved_at_step", "train_s", "wall_s", "runs"))


def main() -> None:
    """Measure what is missing, and print the record."""
    arguments = _seeds.arguments(__doc__, list(PARTS)).parse_args()
    arguments.seeds = 1 if arguments.quick else arguments.seeds or 10
    wanted = [arguments.only] if arguments.only else list(QUICK if arguments.quick else PARTS)
    kept = earlier(arguments, wanted)
    _seeds.gather(arguments, kept, dict.fromkeys(wanted, arguments.seeds), run, lambda: made(arguments, kept))
    _common.finish(arguments, made(arguments, kept))


def run(name: str, seed: int) -> dict[str, Any]:
    """One seed of one part."""
    part = PARTS[name]
    goal = f"--until={part.target}"  # in one word, for the sake of the minus
    summary = _common.train(*part.words, "--steps", part.steps, "--seed", seed, goal)
    return {key: summary.get(key) for key in KEPT} | {"command_s": summary["command_s"]}


def earlier(arguments: argparse.Namespace, wanted: list[str]) -> dict[str, _seeds.Runs]:
    """The runs already in the JSON: part -> seed -> run."""
    claims = {name: {"target": part.target, "steps": part.steps} for name, part in PARTS.items()}
    return _seeds.earlier(arguments, claims, wanted)


def made(arguments: argparse.Namespace, kept: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The record of what is there so far."""
    parts = {name: conclude(part, kept[name], arguments.seeds) for name, part in PARTS.items()}
    return _common.record("cartpole", arguments, {"parts": parts})


def conclude(part: Part, runs: dict[str, Any], seeds: int) -> dict[str, Any]:
    """A part's numbers. A run that did not reach the score counts with all its steps and seconds.

    Args:
        part: The claim.
        runs: Seed -> run.
        seeds: How many there are to be.
    """
    solved = [one["solved_at_step"] is not None for one in runs.values()]
    steps = [one["solved_at_step"] or one["env_steps"] for one in runs.values()]
    results = {"complete": len(runs) >= seeds, "solved": sum(solved), "of": len(runs)}
    results |= {
        "commits": sorted({str(one["commit"]) for one in runs.values()}),
        "target": part.target,
        "steps": part.steps,
        "command": "shoal train " + " ".join(map(str, part.words)),
    }
    series = {"solved_at_step": steps} | {key: [one[key] for one in runs.values()] for key in KEPT[3:]}
    for key, values in series.items():
        known = [value for value in values if value is not None]
        results[key] = statistics.median(known) if known else None
        results[f"{key}_iqm"] = seeds_statistics.iqm(known) if known else None
        results[f"{key}_interval"] = list(seeds_statistics.interval(known)) if len(known) > 1 else None
    return results | {"runs": _seeds.in_order(runs)}


if __name__ == "__main__":
    main()
