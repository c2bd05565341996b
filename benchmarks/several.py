"""Several policies with shared critics: does CEM-RL's mean policy beat its start, does DvD keep its policies apart?

CEM-RL: the same 20 greedy episodes with the mean policy before the first iteration and at the end, seed by seed. DvD:
the smallest distance between two policies with the weights of its schedule and with weights of 0, seed by seed, at
equal steps. The seeds are the outer loop, so that parts alternate on the machine; runs that are there already are kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import _common
import numpy as np

ENV = ("--env", "gymnax:Pendulum-v1")
EPISODES = ("--eval-episodes", 20)
MARGIN = 300.0  # by which the mean policy is to beat its start; a policy that does nothing useful gets about -1200


class Part(NamedTuple):
    """What is trained."""

    words: tuple[Any, ...]  # of `shoal train`, but for the seed
    curves: tuple[str, ...]  # metrics that are kept over the steps
    steps: int


PARTS = {
    "cem_rl": Part(("cem_rl", *ENV), ("fitness_mean", "min_distance", "deviation"), 20_000),
    "cem_rl_start": Part(("cem_rl", *ENV), (), 10),  # one step of every policy: the mean is as it began
    "dvd": Part(("dvd", *ENV, "--algorithm.horizon", 10_000), ("min_distance", "return_mean"), 10_000),
    "dvd_without": Part(
        ("dvd", *ENV, "--algorithm.horizon", 10_000, "--algorithm.diversity", 0.0), ("min_distance", "return_mean"),
        10_000,
    ),
}  # fmt: skip
POINTS = 10  # of a curve
LATE = 0.5  # of the steps: distances are compared after it
KEYS = (
    "cem_rl.better", "cem_rl.of", "cem_rl.margin", "cem_rl.gain", "cem_rl.curves", "dvd.further", "dvd.of", "dvd.ratio",
    "dvd.curves", "dvd_without.curves",
)  # fmt: skip


def main() -> None:
    """Measure what is missing, and print the record."""
    parser = _common.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to K-1")
    arguments = parser.parse_args()
    arguments.seeds = 1 if arguments.quick else arguments.seeds
    kept = earlier(arguments)
    for seed in range(arguments.seeds):
        for name in PARTS:
            if str(seed) not in kept[name]:
                kept[name][str(seed)] = run(name, seed, arguments.quick)
                _common.say(f"{name}, seed {seed}: {kept[name][str(seed)]['eval_return_mean']:,.0f}")
                if arguments.json:
                    _common.save(arguments.json, _common.record("several", arguments, conclude(kept)))
    _common.finish(arguments, _common.record("several", arguments, conclude(kept)))


def earlier(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The runs already in the JSON: part -> seed -> run; of the same commands only."""
    kept: dict[str, dict[str, Any]] = {name: {} for name in PARTS}
    if arguments.quick or not (arguments.json and arguments.json.exists()):
        return kept
    for name, part in json.loads(arguments.json.read_text(encoding="utf-8"))["results"].items():
        if name in kept and part["command"] == command(name):
            kept[name] = part["runs"]
    return kept


def command(name: str) -> str:
    """What is typed, but for the seed."""
    part = PARTS[name]
    return "shoal train " + " ".join(map(str, (*part.words, "--steps", part.steps)))


def run(name: str, seed: int, quick: bool) -> dict[str, Any]:
    """One run: what it reached, and its curves."""
    part = PARTS[name]
    steps = min(part.steps, 2_500) if quick else part.steps
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        out = Path(folder) / "run"
        words = (*part.words, "--steps", steps, "--seed", seed, *EPISODES, "--out", out, "--json")
        told = json.loads(_common.shoal("train", *words)[0])
        lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "commit": _common.commit(),
        **{key: told[key] for key in ("env_steps", "train_s", "return_mean", "eval_return_mean")},
        "curves": {key: curve([json.loads(line) for line in lines], key, steps) for key in part.curves},
    }


def curve(lines: list[dict[str, Any]], key: str, steps: int) -> list[list[float]]:
    """A metric at equal distances: [[step, value], ...], straight lines between what was written."""
    known = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    at = np.linspace(steps / POINTS, steps, POINTS)
    return [[float(x), float(y)] for x, y in zip(at, np.interp(at, *np.array(known).T), strict=True)]


def conclude(kept: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What is there so far: every part, and what is told of its runs beside those it is held against."""
    made = {name: {"command": command(name), "runs": runs, "curves": middle(runs)} for name, runs in kept.items()}
    made["cem_rl"] |= above_start(kept["cem_rl"], kept["cem_rl_start"])
    made["dvd"] |= apart(kept["dvd"], kept["dvd_without"])
    return made


def middle(runs: dict[str, Any]) -> dict[str, list[list[float]]]:
    """The curves of a part, medians over its seeds."""
    names = sorted({key for one in runs.values() for key in one["curves"]})
    return {key: np.median([one["curves"][key] for one in runs.values()], axis=0).tolist() for key in names}


def above_start(ours: dict[str, Any], start: dict[str, Any]) -> dict[str, Any]:
    """The mean policy at the end less at the beginning."""
    both = [seed for seed in ours if seed in start]
    gain = [ours[seed]["eval_return_mean"] - start[seed]["eval_return_mean"] for seed in both]
    return {
        **_common.spread("gain", gain),
        **_common.spread("start", [start[seed]["eval_return_mean"] for seed in both]),
        **_common.spread("end", [ours[seed]["eval_return_mean"] for seed in both]),
        "margin": MARGIN,
        "better": sum(one > MARGIN for one in gain),
        "of": len(both),
    }


def late_distance(one: dict[str, Any]) -> float:
    """The smallest distance between two policies, a mean over the second half of the steps."""
    points = one["curves"]["min_distance"]
    return statistics.mean(value for step, value in points if step > LATE * points[-1][0])


def apart(ours: dict[str, Any], without: dict[str, Any]) -> dict[str, Any]:
    """Distances with diversity and without."""
    both = [seed for seed in ours if seed in without]
    pairs = [(late_distance(ours[seed]), late_distance(without[seed])) for seed in both]
    return {
        **_common.spread("distance", [a for a, _ in pairs]),
        **_common.spread("distance_without", [b for _, b in pairs]),
        **_common.spread("ratio", [a / b for a, b in pairs]),
        **_common.spread("end", [ours[seed]["eval_return_mean"] for seed in both]),
        **_common.spread("end_without", [without[seed]["eval_return_mean"] for seed in both]),
        "further": sum(a > b for a, b in pairs),
        "of": len(both),
    }


if __name__ == "__main__":
    main()
