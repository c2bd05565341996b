"""What differential privacy of owners costs: area under the curve against epsilon, for 8 and for 100 owners.

Central noise on the sum of clipped changes, all owners in the same environment, form A with one small global layer (the
noise of a mean grows with the root of its size). Epsilon is that of the whole run at delta 1e-5; for each the noise is
found that spends it in the rounds there are. Beside it the same owners without noise, with the clip alone (it slows
what it bounds) and without, and independent ones of the same number of parameters. The seeds are the outer loop; runs
that are there already are kept.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import _common
import numpy as np

from shoal.runtimes.federated import accounting

ENV, FORM, HIDDEN = "owners:CartPole-same", "A", 16
STEPS, LOCAL, STREAMS, SEGMENT = 20_000, 10, 4, 10  # environment steps of an owner; local updates; of an update
ROUNDS = STEPS // (LOCAL * STREAMS * SEGMENT)
RATE = 0.01  # of the area of independent owners the best of 0.003, 0.01 and 0.03, on seed 1000
CLIP, DELTA, EVERY, EPISODES = 0.2, 1e-5, 2_000, 3
EPSILONS = {"n8": (8.0, 64.0, 512.0), "n100": (1.0, 8.0, 64.0)}
PLAIN = ("independent", "no noise", "clipped")  # without noise, and so without an epsilon
RANDOM, SOLVED = 22.0, 475.0  # returns of random actions, and of a solved task: what area is counted between
KEYS = ("n8.runs", "n100.runs", "n8.area", "n100.area", "n8.falls_to_independent", "n100.falls_to_independent")


def main() -> None:
    """Measure what is missing, and print the record."""
    parser = _common.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=2, help="seeds 0 to K-1")
    arguments = parser.parse_args()
    arguments.seeds = 1 if arguments.quick else arguments.seeds
    kept = earlier(arguments)
    for seed in range(arguments.seeds):
        for group, arm in due(arguments.quick):
            if str(seed) not in kept[group][arm]:
                kept[group][arm][str(seed)] = run(group, arm, seed, arguments.quick)
                _common.say(f"{group} {arm}, seed {seed}: area {kept[group][arm][str(seed)]['area']:.3f}")
                if arguments.json:
                    _common.save(arguments.json, _common.record("dp_utility", arguments, conclude(kept)))
    _common.finish(arguments, _common.record("dp_utility", arguments, conclude(kept)))


def arms(group: str) -> list[str]:
    """Of a number of owners."""
    return [*PLAIN, *(f"{epsilon:g}" for epsilon in EPSILONS[group])]


def due(quick: bool) -> list[tuple[str, str]]:
    """(group, arm) in the order in which they are run."""
    every = [(group, arm) for group in EPSILONS for arm in arms(group)]
    return [one for one in every if not quick or one[0] == "n8"][: 3 if quick else None]


def earlier(arguments: argparse.Namespace) -> dict[str, dict[str, dict[str, Any]]]:
    """The runs already in the JSON: group -> arm -> seed -> run; of the same commands only."""
    kept: dict[str, dict[str, dict[str, Any]]] = {group: {arm: {} for arm in arms(group)} for group in EPSILONS}
    if arguments.quick or not (arguments.json and arguments.json.exists()):
        return kept
    results = json.loads(arguments.json.read_text(encoding="utf-8"))["results"]
    for group, found in kept.items():
        for arm in found:
            if results[group]["commands"].get(arm) == command(group, arm):
                found[arm] = results[group]["runs"].get(arm, {})
    return kept


@functools.cache
def noise(epsilon: float) -> float:
    """The smallest z, to three digits, that spends at most epsilon (Rényi) in the rounds of a run."""
    low, high = 1e-2, 1e3
    while high / low > 1.0005:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if accounting.epsilon({middle: ROUNDS}, DELTA) <= epsilon else (middle, high)
    return float(f"{1.0005 * high:.4g}")


def words(group: str, arm: str, steps: int = STEPS) -> list[Any]:
    """Of `shoal train`, but for the seed."""
    owners = int(group[1:])
    said: list[Any] = [
        "a2c", "--env", ENV, "--runtime", "federated", "--runtime.parties", owners, "--runtime.environments", STREAMS,
        "--algorithm.rollout-length", SEGMENT, "--network.form", FORM, "--network.hidden", HIDDEN,
        "--optimiser.learning-rate", RATE, "--steps", steps * owners, "--runtime.evaluate-every", EVERY,
        "--runtime.episodes", EPISODES, "--eval-episodes", 0,
    ]  # fmt: skip
    if arm == "independent":
        return [*said, "--runtime.exchange", "none"]
    said += ["--runtime.exchange", "delta", "--runtime.local-updates", LOCAL]
    if arm in PLAIN:
        return [*said, "--runtime.clip", CLIP] if arm == "clipped" else said
    z = noise(float(arm))
    return [
        *said, "--runtime.privacy", "central", "--runtime.clip", CLIP, "--runtime.noise", z, "--runtime.max-epsilon",
        arm, "--runtime.delta", DELTA,
    ]  # fmt: skip


def command(group: str, arm: str) -> str:
    """What is typed, but for the seed."""
    return "shoal train " + " ".join(map(str, words(group, arm)))


def run(group: str, arm: str, seed: int, quick: bool) -> dict[str, Any]:
    """One run: its area, how it ended, and what was spent."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        out = Path(folder) / "run"
        typed = words(group, arm, 2_000 if quick else STEPS)
        told = json.loads(_common.shoal("train", *typed, "--seed", seed, "--out", out, "--json")[0])
        lines = [json.loads(line) for line in (out / "parties.jsonl").read_text(encoding="utf-8").splitlines()]
    curve = [[line["env_steps"], statistics.mean(line["returns"])] for line in lines]
    federation = told["federation"]
    return {
        "commit": _common.commit(),
        "area": area([value for _, value in curve]),
        "final": curve[-1][1],
        "curve": curve,
        "rounds": federation["rounds"],
        "clip_fraction": federation["clip_fraction"],
        **{key: federation[key] for key in ("epsilon", "epsilon_rdp", "update_norm_median")},
        "train_s": told["train_s"],
    }


def area(returns: list[float]) -> float:
    """Of evaluations at equal distances: 0 is random, 1 solved all along."""
    return float(np.mean((np.array(returns) - RANDOM) / (SOLVED - RANDOM)))


def conclude(kept: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Of each number of owners the area by arm, and the largest epsilon at which it is no better than independent."""
    return {
        group: {
            "commands": {arm: command(group, arm) for arm in found},
            "noise": {arm: noise(float(arm)) for arm in found if arm not in PLAIN},
            "area": {
                arm: _common.spread("area", [one["area"] for one in runs.values()]) for arm, runs in found.items()
            },
            "falls_to_independent": falls(found),
            "runs": found,
        }
        for group, found in kept.items()
    }


def falls(found: dict[str, dict[str, Any]]) -> float | None:
    """The largest epsilon whose median area is not above that of independent owners; None: none is, or not measured."""
    middle = {arm: statistics.median(one["area"] for one in runs.values()) for arm, runs in found.items() if runs}
    if "independent" not in middle:
        return None
    below = [float(arm) for arm in middle if arm not in PLAIN and middle[arm] <= middle["independent"]]
    return max(below, default=None)


if __name__ == "__main__":
    main()
