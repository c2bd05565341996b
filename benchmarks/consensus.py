"""Form G beside its paper: ten owners with ten networks agree on decisions every d episodes, or each learns alone.

Kong et al. 2025, arXiv:2502.00870 (FedHPD), CartPole-v1, K = 10, 2,000 episodes of each owner, 5 seeds: the mean return
of all episodes ("area"), the last 100, and the owner whose last 100 are worst. Owners have the paper's layers,
activations and rates (`parties.SPREAD`) and its rule: REINFORCE, an update of one episode, returns whitened, no critic.
What differs: public states are recorded from an owner's random actions, where they take those of a trained agent;
owners agree once in a round, where they send their chances anew before each step of distillation; rates fall linearly,
where theirs fall by a twentieth every 100 episodes. Episodes are told as the paper counts them; `area_steps` is the
same at equal environment steps of an owner. Arms alternate; runs that are in the JSON already are not done again.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import _common
import _seeds
import numpy as np

ENV, OWNERS, EPISODES, LIMIT = "gymnax:CartPole-v1", 10, 2_000, 500
LAST = 100  # episodes
QUICK = ("alone", "d5")  # arms, of so many owners and episodes of each
FEW, SHORT = 4, 20
ARMS = {"alone": 0, "d2": 2, "d5": 5, "d20": 20, "d80": 80}  # episodes between two agreements; 0: there are none
PUBLISHED = {  # area, last 100, worst owner's last 100; from the authors' stored results
    "alone": (257.0, 370.0, 90.0),
    "d2": (373.0, 477.0, 425.0),
    "d5": (343.0, 456.0, 363.0),
    "d20": (285.0, 410.0, 176.0),
    "d80": (268.0, 383.0, 124.0),
}
RULE = (
    "--network.no-shared", "--algorithm.rollout-length", LIMIT, "--algorithm.entropy-cost", 0.0,
    "--algorithm.value-cost", 0.0, "--algorithm.normalise-advantages",
    "--algorithm.discount", 0.99, "--optimiser.rule", "adam", "--optimiser.anneal", "--optimiser.max-norm", 0.0,
    "--optimiser.epsilon", 1e-8, "--optimiser.decay", 0.999,
)  # fmt: skip
AGREE = ("--runtime.public", 500, "--runtime.distil-steps", 10)
KEYS = (
    *(f"arms.{name}.{key}" for name in ARMS for key in ("area", "last", "worst", "area_steps", "bytes_up")),
    "auc_ratio_d2",
    "auc_ratio_d5",
    "worst",
    "monotone",
)


def main() -> None:
    """Measure what is missing, and print the record."""
    parser = _seeds.arguments(__doc__, ARMS)
    arguments = parser.parse_args()
    wanted = [arguments.only] if arguments.only else list(ARMS)
    seeds = 1 if arguments.quick else arguments.seeds or 5
    claims = {name: {"command": command(name, arguments.quick)} for name in ARMS}
    kept = earlier(arguments, claims, wanted)
    if arguments.quick:
        wanted = [name for name in wanted if name in QUICK]
    for seed in range(seeds):  # the outer loop, so that arms alternate on the machine
        for name in wanted:
            if str(seed) not in kept[name]:
                kept[name][str(seed)] = run(name, seed, arguments.quick) | {"commit": _common.commit()}
                told = {key: value for key, value in kept[name][str(seed)].items() if key != "owners"}
                _common.say(f"{name} seed {seed}: {told}")
                if arguments.json:
                    _common.save(arguments.json, record(arguments, kept, seeds))
    _common.finish(arguments, record(arguments, kept, seeds))


def earlier(
    arguments: argparse.Namespace, claims: Mapping[str, Mapping[str, Any]], wanted: Sequence[str]
) -> dict[str, _seeds.Runs]:
    """The runs already in the JSON, of the same commands: arm -> seed -> run."""
    kept: dict[str, _seeds.Runs] = {name: {} for name in claims}
    if arguments.quick or not (arguments.json and arguments.json.exists()):
        return kept
    arms = json.loads(arguments.json.read_text(encoding="utf-8"))["results"]["arms"]
    for name, claim in claims.items():
        if name in arms and arms[name]["command"] == claim["command"] and not (arguments.fresh and name in wanted):
            kept[name] = arms[name]["runs"]
    return kept


def words(arm: str, quick: bool = False) -> tuple[Any, ...]:
    """What is typed after `shoal train`, but for the seed."""
    count, episodes = (FEW, SHORT) if quick else (OWNERS, EPISODES)
    d = ARMS[arm]
    exchange = ("outputs", "--runtime.distil-every", d, *AGREE) if d else ("none",)
    owners = ("--runtime", "federated", "--parties", count, "--runtime.environments", 1, "--runtime.spread")
    where = ("--runtime.segment", "episode", "--runtime.placement", "turns", "--runtime.exchange", *exchange)
    # Every owner has as many episodes as steps allow at most: how many there are ends the run.
    return (
        "a2c", "--env", ENV, *owners, *where, *RULE, "--steps", count * episodes * LIMIT,
        "--episodes", count * episodes,
    )  # fmt: skip


def command(arm: str, quick: bool = False) -> str:
    """What is typed, but for the seed."""
    return "shoal train " + " ".join(map(str, words(arm, quick)))


def run(arm: str, seed: int, quick: bool) -> dict[str, Any]:
    """One arm of one seed."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        out = Path(folder) / "run"
        tail = ("--seed", seed, "--eval-episodes", 0, "--json", "--out", out)
        told = json.loads(_common.shoal("train", *words(arm, quick), *tail)[0])
        found = owners(out / "episodes.csv")
    federation = told["federation"]
    return {
        **numbers(found),
        "owners": [_decimated(one) for one in found],
        "bytes_up": federation["bytes_up"],
        "bytes_down": federation["bytes_down"],
        "rounds": federation["version"],
        "failed_rounds": federation["failed_rounds"],
        "env_steps": told["env_steps"],
        "train_s": told["train_s"],
        "startup_s": told["startup_s"],
    }


def owners(path: Path) -> list[np.ndarray]:
    """Returns of every owner's episodes, in their order; all of one length."""
    each: dict[int, list[float]] = {}
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            each.setdefault(int(row["worker"]), []).append(float(row["episode_return"]))
    count = min(map(len, each.values()))
    return [np.array(one[:count]) for _, one in sorted(each.items())]


def numbers(found: Sequence[np.ndarray]) -> dict[str, Any]:
    """The paper's numbers; on CartPole a return is a length.

    Args:
        found: Returns of every owner's episodes.
    """
    last = [float(one[-LAST:].mean()) for one in found]
    return {
        "episodes": len(found[0]),
        "area": float(np.mean([one.mean() for one in found])),
        "last": float(np.mean(last)),
        "worst": min(last),
        "steps_each": min(float(one.sum()) for one in found),
    }


def area_at(runs: Sequence[Mapping[str, Any]], steps: float) -> list[float]:
    """Mean return until so many environment steps of an owner, over owners; one a run."""
    found = []
    for one in runs:
        curves = [np.array(owner) for owner in one["owners"]]  # [[steps, mean return until then], ..]
        found.append(float(np.mean([np.interp(steps, curve[:, 0], curve[:, 1]) for curve in curves])))
    return found


def _decimated(returns: np.ndarray, points: int = 50) -> list[list[float]]:
    """(environment steps, mean return of the episodes until then), at so many places."""
    at = np.unique(np.linspace(1, len(returns), min(points, len(returns))).astype(int))
    total = np.cumsum(returns)
    return [[float(total[i - 1]), round(float(total[i - 1] / i), 2)] for i in at]


def record(arguments: argparse.Namespace, kept: Mapping[str, _seeds.Runs], seeds: int) -> dict[str, Any]:
    """What is there so far."""
    return _common.record("consensus", arguments, conclude(kept, seeds, arguments.quick))


def conclude(kept: Mapping[str, _seeds.Runs], seeds: int, quick: bool = False) -> dict[str, Any]:
    """The numbers of all arms, and their ratios to being alone, seed by seed."""
    least = min((one["steps_each"] for runs in kept.values() for one in runs.values()), default=None)
    arms = {name: _arm(name, runs, seeds, least, quick) for name, runs in kept.items()}
    ratios = {name: _ratios(kept[name], kept["alone"]) for name in ARMS if name != "alone"}
    areas = [arms[name]["area"] for name in ("d2", "d5", "d20", "d80", "alone")]
    whole = all(area is not None for area in areas)
    return {
        "arms": arms,
        **{f"auc_ratio_{name}": statistics.median(found) if found else None for name, found in ratios.items()},
        **{f"auc_ratio_{name}_each": found for name, found in ratios.items()},
        "worst": arms["d5"]["worst"],
        "monotone": areas == sorted(areas, reverse=True) if whole else None,
        "steps_of_area_steps": least,
        "episodes": EPISODES,
        "published": {name: dict(zip(("area", "last", "worst"), of, strict=True)) for name, of in PUBLISHED.items()},
    }


def _arm(name: str, runs: _seeds.Runs, seeds: int, least: float | None, quick: bool) -> dict[str, Any]:
    every = list(_seeds.in_order(runs).values())

    def mean(key: str) -> float | None:
        return statistics.fmean(one[key] for one in every) if every else None

    at = area_at(every, least) if every and least is not None else []
    return {
        **{key: mean(key) for key in ("area", "last", "worst", "bytes_up")},
        "area_steps": statistics.fmean(at) if at else None,
        "command": command(name, quick),
        "complete": len(every) >= seeds,
        "runs": _seeds.in_order(runs),
    }


def _ratios(runs: _seeds.Runs, alone: _seeds.Runs) -> list[float]:
    return [runs[seed]["area"] / alone[seed]["area"] for seed in sorted(runs, key=int) if seed in alone]


if __name__ == "__main__":
    main()
