"""Population based training and MF-PBT against random search, at equal environment steps of all members together.

Every method trains the same members with the same wide priors; they differ in the exchange alone: the lowest quarter
takes over from the others and perturbs (PBT, Jaderberg et al. 2017, arXiv:1711.09846), sub-populations that evolve
every 1, 10, 25 and 50 rounds (MF-PBT, Doulazmi et al. 2025, arXiv:2506.03225), nobody (random search). In the first
tenth of the rounds nobody takes over. What counts is a
fresh evaluation of the member with the highest fitness, whose own fitness is too good: it was selected by it. How much
too good is told (`bias`). Then one learner alone is trained with the schedule that won, for as many steps as a member
had: whether the schedule or the selection earned the score. A run's seed is the population's, and with the same seed
all methods begin with the same members. Fitness is measured after every interval by all methods alike, by random search
too; its episodes are not among the steps. Populations are the outer loop, so that methods alternate on the machine. The
record is written after every run; runs that are in it already are not done again, so environments (`--only`) and
methods (`--arms`) can be measured one at a time into the same file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _common

from shoal.log import wording
from shoal.report import statistics as statistics_of_seeds

ROUNDS = 200
INTERVALS = (1, 10, 25, 50)
EPISODES = 100  # of the fresh evaluation
PRIOR = (
    "optimiser.learning_rate=log_uniform(1e-5,1e-1)",
    "algorithm.entropy_cost=log_uniform(1e-5,1e-1)",
    "algorithm.discount=uniform(0.8,0.9999)",
    "algorithm.clip=uniform(0.05,0.5)",
)
BURN_IN = 20  # a tenth of the rounds; without it a lucky first update was copied to all on one seed of three
TAKEN = ("--runtime.copy", "all", "--runtime.explore", "perturb", "--runtime.burn-in", BURN_IN)
METHODS: dict[str, tuple[Any, ...]] = {  # name -> words, of which the preset is the first
    "pbt": ("pbt_ppo", "--runtime.fraction", 0.25, *TAKEN),
    "mf_pbt": ("mf_pbt", "--runtime.intervals", *INTERVALS, *TAKEN),
    "random": ("random_search",),
}
ALONE = "alone"  # one learner, with the schedule that won under PBT


class Task(NamedTuple):
    """An environment, and what all methods are given there."""

    members: int
    interval: int  # environment steps of a member between two exchanges
    words: tuple[Any, ...]
    episodes: int = 10  # of a fitness
    prior: tuple[str, ...] = PRIOR


SMALL = (
    "--runtime.environments", 8, "--algorithm.rollout-length", 64, "--algorithm.epochs", 4,
    "--algorithm.minibatches", 4, "--optimiser.no-anneal",
)  # fmt: skip
PIXELS = (  # planes of ten by ten, flattened: convolutions would take ten times as long
    "--runtime.environments", 16, "--algorithm.rollout-length", 32, "--algorithm.epochs", 2,
    "--algorithm.minibatches", 4, "--optimiser.no-anneal", "--network.torso", "mlp", "--network.hidden", 64, 64,
)  # fmt: skip
TASKS = {
    "gymnax:Pendulum-v1": Task(16, 512, SMALL),
    "gymnax:Acrobot-v1": Task(16, 512, SMALL),  # easy: some member begins with settings that solve it
    "gymnax:Breakout-MinAtar": Task(8, 1024, PIXELS, 5),
    "gymnax:SpaceInvaders-MinAtar": Task(8, 1024, PIXELS, 5),
}
KEYS = (
    *(f"envs.*.{method}.{key}" for method in METHODS for key in ("iqm", "low", "high", "bias")),
    "envs.*.schedule_alone.iqm",
    "envs.*.pbt_over_random.iqm",
    "envs.*.mf_pbt_over_random.iqm",
    "envs.*.pbt_beats_random",
    "envs.*.mf_pbt_beats_random",
    "schedule_alone",
)

BEATS = ("pbt_beats_random", "mf_pbt_beats_random")

Runs = dict[str, dict[str, Any]]  # seed -> run


def main() -> None:
    """Measure what is missing, and print the record."""
    parser = _common.parser(__doc__)
    parser.add_argument("--only", choices=TASKS, help="this environment alone")
    parser.add_argument("--arms", choices=METHODS, nargs="+", help="these methods alone")
    parser.add_argument("--seeds", type=int, default=5, help="populations 0 to K-1")
    arguments = parser.parse_args()
    kept = earlier(arguments)
    wanted = [arguments.only] if arguments.only else list(TASKS)[: 1 if arguments.quick else None]
    work = [
        (env, *one) for env in wanted for one in due(kept[env], _seeds(arguments), arguments.arms or tuple(METHODS))
    ]
    for at, (env, method, seed) in enumerate(work):
        left = wording.duration(remaining(kept, work[at:]))
        _common.say(f"{env}, {method}, population {seed}: run {at + 1} of {len(work)}, {left} left")
        for name, found in run(env, method, seed, arguments.quick):
            kept[env][name][str(seed)] = found | {"commit": _common.commit()}
            _common.say(f"{env}, {name}, population {seed}: {found}")
            if arguments.json:
                _common.save(arguments.json, record(arguments, kept))
    _common.finish(arguments, record(arguments, kept))


def _seeds(arguments: argparse.Namespace) -> int:
    return 1 if arguments.quick else arguments.seeds


def due(runs: Mapping[str, Runs], seeds: int, methods: Sequence[str] = tuple(METHODS)) -> Iterator[tuple[str, int]]:
    """What is missing; PBT's own run leads to that of its schedule."""
    for seed in range(seeds):
        for method in methods:
            names = (method, ALONE) if method == "pbt" else (method,)
            if any(str(seed) not in runs[name] for name in names):
                yield method, seed


def remaining(kept: Mapping[str, Mapping[str, Runs]], work: Sequence[tuple[str, str, int]]) -> float | None:
    """Seconds that what is to be done will take, by what was done of the same environment; None where nothing was."""

    def mean(env: str, name: str) -> float | None:
        took = [one["command_s"] for one in kept[env][name].values() if "command_s" in one]
        return statistics.mean(took) if took else None

    whole = 0.0
    for env, method, _ in work:
        usual = [took for name in METHODS if (took := mean(env, name)) is not None]
        if not usual:
            return None
        known = mean(env, method)
        whole += statistics.mean(usual) if known is None else known
        whole += (mean(env, ALONE) or 0.0) if method == "pbt" else 0.0
    return whole


def earlier(arguments: argparse.Namespace) -> dict[str, dict[str, Runs]]:
    """The runs already in the JSON, of the same commands: environment -> method -> seed -> run."""
    kept: dict[str, dict[str, Runs]] = {env: {name: {} for name in (*METHODS, ALONE)} for env in TASKS}
    if arguments.quick or not (arguments.json and arguments.json.exists()):
        return kept
    for env, found in json.loads(arguments.json.read_text(encoding="utf-8"))["results"]["envs"].items():
        if env in kept and found["commands"] == commands(env):
            kept[env] |= {name: found[_key(name)]["runs"] for name in kept[env]}
    return kept


def words(env: str, method: str, quick: bool = False) -> tuple[Any, ...]:
    """What is typed after `shoal train`, but for the seed."""
    task = TASKS[env]
    each = task.interval * (6 if quick else ROUNDS + 1)  # nothing is exchanged after the last interval
    if method == ALONE:
        return ("ppo", "--env", env, *task.words, "--steps", each)
    preset, *more = METHODS[method]
    given = ("--members", task.members, "--runtime.interval", task.interval, "--runtime.episodes", task.episodes,
        "--runtime.dispatch", "vmap")  # what `auto` finds for networks of this size, every time anew  # fmt: skip
    return (
        preset,
        "--env",
        env,
        *task.words,
        *given,
        "--runtime.prior",
        *task.prior,
        *more,
        "--steps",
        each * task.members,
    )


def commands(env: str) -> dict[str, str]:
    """Method -> what is typed, but for the seed."""
    return {name: "shoal train " + " ".join(map(str, words(env, name))) for name in (*METHODS, ALONE)}


def run(env: str, method: str, seed: int, quick: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """One population; after PBT one learner alone with the schedule that won. Yields (method, run)."""
    episodes = 10 if quick else EPISODES
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        out = Path(folder) / "run"
        tail = ("--seed", seed, "--eval-episodes", episodes, "--json")
        said, seconds = _common.shoal("train", *words(env, method, quick), *tail, "--out", out)
        told = json.loads(said)
        yield method, _told(told, seconds) | _population(told["population"])
        if method == "pbt":
            alone = (*words(env, ALONE, quick), "--from-schedule", out, *tail, "--out", Path(folder) / "alone")
            said, seconds = _common.shoal("train", *alone)
            yield ALONE, _told(json.loads(said), seconds)


def _told(summary: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    return {
        "score": summary["eval_return_mean"],
        "env_steps": summary["env_steps"],
        "train_s": summary["train_s"],
        "startup_s": summary["startup_s"],
        "command_s": seconds,
    }


def _population(told: Mapping[str, Any]) -> dict[str, Any]:
    best = told["best"]
    return {
        "fitness": best["fitness"] if best else None,
        "fitness_mean": told["mean"],
        "exchanges": told["exchanges"],
        "dispatch": told["dispatch"]["mode"],
        "measuring_s": told["measuring_s"],
        "compilations_after_first_exchange": told["compilations_after_first_exchange"],
    }


def record(arguments: argparse.Namespace, kept: Mapping[str, Mapping[str, Runs]]) -> dict[str, Any]:
    """What is there so far."""
    seeds = _seeds(arguments)
    envs = {env: conclude(env, runs, seeds) for env, runs in kept.items() if any(runs.values())}
    alone = {env: one["schedule_alone"]["iqm"] for env, one in envs.items()}
    beaten = {f"{name}_on": sum(bool(one[name]) for one in envs.values()) for name in BEATS}
    results = {"envs": envs, "schedule_alone": alone, **beaten, "of": len(TASKS)}
    return _common.record("pbt", arguments, results)


def conclude(env: str, runs: Mapping[str, Runs], seeds: int) -> dict[str, Any]:
    """An environment's numbers."""
    found: dict[str, Any] = {_key(name): aggregate(of, seeds) for name, of in runs.items()}
    ends = {name: (found[name.removesuffix("_beats_random")]["low"], found["random"]["high"]) for name in BEATS}
    return {
        **found,
        **{f"{name}_over_random": over(runs[name], runs["random"]) for name in METHODS if name != "random"},
        "commands": commands(env),
        "rounds": ROUNDS,
        "members": TASKS[env].members,
        **{name: low > high if None not in (low, high) else None for name, (low, high) in ends.items()},
        "complete": all(one["complete"] for one in found.values()),
    }


def over(ours: Runs, theirs: Runs) -> dict[str, Any]:
    """The difference of the interquartile means with its bootstrap interval."""
    pair = [[one["score"] for one in runs.values()] for runs in (ours, theirs)]
    low, high = statistics_of_seeds.difference(*pair) if min(map(len, pair)) > 1 else (None, None)
    middle = [statistics_of_seeds.iqm(scores) for scores in pair] if all(pair) else None
    return {"iqm": middle[0] - middle[1] if middle else None, "low": low, "high": high}


def aggregate(runs: Runs, seeds: int) -> dict[str, Any]:
    """The interquartile mean of fresh evaluations with its interval; the fitness that selected, less them."""
    scores = [one["score"] for one in runs.values()]
    bias = [one["fitness"] - one["score"] for one in runs.values() if one.get("fitness") is not None]
    low, high = statistics_of_seeds.interval(scores) if len(scores) > 1 else (None, None)
    return {
        "iqm": statistics_of_seeds.iqm(scores) if scores else None,
        "low": low,
        "high": high,
        "bias": sum(bias) / len(bias) if bias else None,
        "complete": len(runs) >= seeds,
        "runs": dict(sorted(runs.items(), key=lambda item: int(item[0]))),
    }


def _key(name: str) -> str:
    return "schedule_alone" if name == ALONE else name


if __name__ == "__main__":
    main()
