"""Compressed actors against actors in full precision on the fastest engine: actor time, whole time, what is learned.

Every part is a task, a compressor and a corrector; only these differ. The seeds are the outer loop, so that parts
alternate on the machine. `identity` on the engine that is fastest here is the baseline, with the same correctors;
`jitted` is the same under XLA. The reduction of the training time is held against what the baseline's own f, a and l
predict (docs/presets/accerl.md). Parts that were stopped go on where they were.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any, NamedTuple

import _common
import numpy as np

from shoal.monitor import timing
from shoal.report import statistics as statistics_of_seeds


class Task(NamedTuple):
    """What is trained."""

    words: tuple[Any, ...]  # of `shoal train`
    steps: int
    random: float | None  # return of the random policy; None: too short a run to judge what is learned
    why: str
    judged: str = "return_full"  # by what a run returned: greedy evaluation, or the last 100 episodes of training


DEEP = ("--network.hidden", 2048, 2048, 2048, "--network.activation", "relu")
DEEPER = ("--network.hidden", 3072, 3072, 3072, "--network.activation", "relu")
WIDE = ("--network.hidden", 1024, 1024, "--network.activation", "relu")
ADAM = (
    "--optimiser.rule",
    "adam",
    "--optimiser.learning-rate",
    3e-4,
    "--optimiser.decay",
    0.999,
    "--optimiser.epsilon",
    1e-8,
)
SLOWER = (*ADAM[:3], 1e-4, *ADAM[4:])  # a rate at which what was learned stays (seed 1000)
ALONE = ("--runtime.workers", 1, "--runtime.environments", 1)
SWEPT = ("impala", "--env", "CartPole-v1", *DEEP, *ALONE, *ADAM, "--algorithm.rollout-length", 128,
         "--runtime.publish-every", 4)  # fmt: skip
TASKS = {
    "cartpole_3x2048": Task(
        ("impala", "--env", "CartPole-v1", *DEEP, *ALONE, *ADAM, "--algorithm.rollout-length", 128,
         "--runtime.publish-every", 4), 12_000, 22.0, "deciding takes most of the time",
    ),
    "cartpole_3x2048_long": Task(
        ("impala", "--env", "CartPole-v1", *DEEP, *ALONE, *ADAM, "--algorithm.rollout-length", 256,
         "--runtime.publish-every", 4),
        12_000, 22.0, "the same with updates from twice as many steps: the learner is quicker a step",
    ),
    "cartpole_3x2048_learned": Task(
        ("impala", "--env", "CartPole-v1", *DEEP, *ALONE, *SLOWER, "--algorithm.rollout-length", 128,
         "--runtime.publish-every", 4),
        50_000, 22.0, "the same for as long as it takes to learn the task: is what is learned as good?",
    ),
    "cartpole_3x2048_rollouts_256": Task(
        ("impala", "--env", "CartPole-v1", *DEEP, *ALONE, "--algorithm.rollout-length", 256,
         "--runtime.publish-every", 4),
        60_000, 22.0, "the preset's own optimiser, and updates from 256 steps: quick to learn, actors set the pace",
    ),
    "cartpole_3x2048_queue_1": Task(
        ("impala", "--env", "CartPole-v1", *DEEP, *ALONE, "--algorithm.rollout-length", 256,
         "--runtime.publish-every", 4, "--runtime.queue", 1),
        75_000, 22.0, "the same for longer, and one rollout may wait instead of two: quick actors are not ahead of it",
    ),
    "cartpole_3x3072": Task(
        ("impala", "--env", "CartPole-v1", *DEEPER, *ALONE, *ADAM, "--algorithm.rollout-length", 256,
         "--runtime.publish-every", 8),
        16_384, None, "weights that no cache holds: deciding waits for memory, learning does not",
    ),
    "cartpole_3x2048_env_2ms": Task(
        (*SWEPT, "--environment.wrappers", "_slow:by_2ms"), 4_000, None, "simulators of 2 ms a step: f in the middle",
    ),
    "cartpole_3x2048_env_10ms": Task(
        (*SWEPT, "--environment.wrappers", "_slow:by_10ms"), 1_500, None,
        "simulators of 10 ms a step: nothing to gain",
    ),
    "lunarlander_2x1024": Task(
        ("impala", "--env", "LunarLander-v3", *WIDE, *ALONE, *ADAM, "--algorithm.rollout-length", 128,
         "--algorithm.entropy-cost", 0.01, "--algorithm.reward-scale", 0.02, "--runtime.publish-every", 4),
        300_000, -180.0, "a wide network in a slower simulator; returns are the last 100 episodes of training: not yet "
        "at its end, and its likeliest action hovers until an episode is cut", "return_train",
    ),
    "pong_nature": Task(
        ("impala", "--env", "ALE/Pong-v5", "--network.torso", "nature", *ALONE, "--runtime.publish-every", 8),
        6_000, None,
        "convolutions",
    ),
    "cartpole_2x64": Task(("impala", "--env", "CartPole-v1"), 150_000, 22.0, "the negative: nothing to compress"),
    "cartpole_coarse": Task(
        ("impala", "--env", "CartPole-v1", "--runtime.publish-every", 16), 150_000, 22.0,
        "three bits and policies that are up to sixteen updates old: does correcting matter?",
    ),
}  # fmt: skip
COARSE = "cartpole_coarse"
FEW = (  # tasks that only these are tried on:
    "cartpole_3x2048_learned", "cartpole_3x2048_rollouts_256", "cartpole_3x2048_queue_1", "cartpole_3x3072",
    "cartpole_3x2048_env_2ms", "cartpole_3x2048_env_10ms",
)  # fmt: skip
TRIED = ("identity", "quantise", "chain")
COMPRESSORS: dict[str, tuple[Any, ...]] = {  # name -> words
    "identity": ("--compressor", "identity"),
    "jitted": ("--compressor", "identity", "--compressor.engine", "jax"),
    "quantise": ("--compressor", "quantise"),
    "prune_distil": ("--compressor", "chain", "--compressor.members", "prune", "distil"),
    "distil": ("--compressor", "distil"),
    "chain": ("--compressor", "chain"),
    "three_bits": ("--compressor", "quantise", "--compressor.bits", 3),
}
CORRECTORS = ("vtrace", "none", "tis")
ALWAYS = ("identity", "jitted", "quantise", "prune_distil", "distil", "chain")  # with V-trace; with others these:
BESIDE = ("identity", "quantise", "prune_distil", "distil", "chain")
FEWEST = 3  # seeds from which on a part can be the best: fewer tell nothing of what was learned
INFERIOR = 0.05  # of the baseline's distance from the random policy
MEASURED = (
    "actor_time_ratio", "train_time_reduction", "amdahl_share", "predicted_reduction", "publish_share", "return_full",
    "return_compressed",
)  # fmt: skip
KEYS = (
    "best_actor_time_ratio", "best_train_time_reduction",
    *(f"tasks.*.parts.*.{key}" for key in MEASURED),
)  # fmt: skip


def parts(task: str) -> list[tuple[str, str]]:
    """(compressor, corrector) of a task; only the first has the whole grid."""
    if task == COARSE:
        return [("three_bits", corrector) for corrector in CORRECTORS]
    if task in FEW:
        return [(name, "vtrace") for name in TRIED]
    found = [(name, "vtrace") for name in ALWAYS]
    if task == next(iter(TASKS)):
        found += [(name, corrector) for corrector in CORRECTORS[1:] for name in BESIDE]
    return found


def main() -> None:
    """Measure what is missing, and print the record."""
    parser = _common.parser(__doc__)
    parser.add_argument("--only", choices=TASKS, help="this task alone")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to K-1")
    parser.add_argument("--vtrace-only", action="store_true", help="leave the other correctors for later")
    parser.add_argument("--compressors", nargs="+", choices=COMPRESSORS, help="these alone")
    arguments = parser.parse_args()
    arguments.seeds = 1 if arguments.quick else arguments.seeds
    kept = earlier(arguments)
    wanted = [arguments.only] if arguments.only else [next(iter(TASKS))] if arguments.quick else list(TASKS)
    for seed in range(arguments.seeds):
        for task in wanted:
            for name, corrector in parts(task)[: 3 if arguments.quick else None]:
                if arguments.vtrace_only and corrector != "vtrace":
                    continue
                if arguments.compressors and name not in arguments.compressors:
                    continue
                runs = kept[task].setdefault(f"{name}, {corrector}", {})
                if str(seed) not in runs:
                    runs[str(seed)] = run(task, name, corrector, seed, arguments.quick)
                    _common.say(f"{task}, {name}, {corrector}, seed {seed}: {runs[str(seed)]}")
                    if arguments.json:
                        _common.save(arguments.json, record(arguments, kept))
    _common.finish(arguments, record(arguments, kept))


def earlier(arguments: argparse.Namespace) -> dict[str, dict[str, dict[str, Any]]]:
    """The runs already in the JSON: task -> part -> seed -> run; of the same commands only."""
    kept: dict[str, dict[str, dict[str, Any]]] = {task: {} for task in TASKS}
    if arguments.quick or not (arguments.json and arguments.json.exists()):
        return kept
    for task, found in json.loads(arguments.json.read_text(encoding="utf-8"))["results"]["tasks"].items():
        if task in kept and found["command"] == command(task):
            kept[task] = {name: part["runs"] for name, part in found["parts"].items()}
    return kept


def command(task: str) -> str:
    """What is typed, but for compressor and corrector."""
    return "shoal train " + " ".join(map(str, (*TASKS[task].words, "--steps", TASKS[task].steps)))


def run(task: str, compressor: str, corrector: str, seed: int, quick: bool) -> dict[str, Any]:
    """One run."""
    steps = TASKS[task].steps // (20 if quick else 1)
    words = (*TASKS[task].words, "--steps", steps, "--seed", seed, "--corrector", corrector, *COMPRESSORS[compressor])
    told = _common.train(*words, "--eval-episodes", 0 if TASKS[task].random is None else 20)
    actor, learner, compression = told["actor"], told["learner"], told["compression"]
    return {
        "commit": _common.commit(),
        "machine": _machine(),
        "train_s": told["train_s"],
        "env_steps": told["env_steps"],
        "inference_us": actor["inference_us"]["median"],
        "engine": actor["engine"],
        "engines_us": actor["engines_us"],
        "actor": actor["split"],
        "learner": learner["split"],
        "publish_share": learner["publish_share"],
        "staleness": actor["staleness"],
        "kl": compression["kl"],
        "agreement": compression["agreement"],
        "bytes_packed": compression["bytes_packed"],
        "level": compression["level"],
        "ess": told["correction"]["ess"],
        "return_train": told["return_mean"],
        "area": told["train_return_mean"],  # of all episodes of the training: the area under its curve
        "return_full": told["eval_return_mean"],
        "return_compressed": compression["return_compressed"],
    }


def _machine() -> str:
    """What a run was measured on: its parts may come from several machines."""
    found = _common.machine()
    return f"{found['cpu']} ({' '.join(found['instruction_sets'])})"


def record(arguments: argparse.Namespace, kept: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """What is there so far."""
    tasks = {task: conclude(task, found) for task, found in kept.items() if found}
    every = [part for task in tasks.values() for part in task["parts"].values()]
    every = [part for part in every if part.get("not_inferior") is not False]  # to learn worse faster is no gain
    every = [part for part in every if len(part["runs"]) >= FEWEST]
    results = {
        "tasks": tasks,
        "best_actor_time_ratio": max((p["actor_time_ratio"] for p in every if p["actor_time_ratio"]), default=None),
        "best_train_time_reduction": max(
            (p["train_time_reduction"] for p in every if p["train_time_reduction"] is not None), default=None
        ),
    }
    return _common.record("accerl", arguments, results)


def conclude(task: str, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A task's numbers, each part beside the identity with the same corrector."""
    made = {}
    for name, runs in found.items():
        base = found.get(f"identity, {name.split(', ')[1]}", {})
        both = [seed for seed in runs if seed in base]
        area = [one["area"] for one in runs.values()]
        interval = list(statistics_of_seeds.interval(area)) if len(area) > 1 else None
        made[name] = {
            **beside(task, [runs[seed] for seed in both], [base[seed] for seed in both]),
            "area": statistics_of_seeds.iqm(area),
            "area_interval": interval,
            "runs": runs,
        }
    return {"command": command(task), "why": TASKS[task].why, "judged": TASKS[task].judged, "parts": made}


def beside(task: str, ours: list[dict[str, Any]], base: list[dict[str, Any]]) -> dict[str, Any]:
    """One part: medians over seeds of ratios seed by seed."""
    if not ours:
        return dict.fromkeys(MEASURED)
    ratio = [b["inference_us"] / o["inference_us"] for o, b in zip(ours, base, strict=True)]
    actor_ratio = [_acting(b) / _acting(o) for o, b in zip(ours, base, strict=True)]
    reduction = [1.0 - o["train_s"] / b["train_s"] for o, b in zip(ours, base, strict=True)]
    predicted = [predict(b, s) for b, s in zip(base, ratio, strict=True)]
    return {
        **_common.spread("inference_ratio", ratio),
        **_common.spread("actor_time_ratio", actor_ratio),
        **_common.spread("train_time_reduction", reduction),
        **_common.spread("predicted_reduction", [one.reduction for one in predicted]),
        "amdahl_share": statistics.median(one.f for one in predicted),
        "publish_share": statistics.median(one["publish_share"] for one in ours),
        **{
            key: _median(one[key] for one in ours) for key in ("return_full", "return_compressed", "return_train", "kl")
        },
        **not_inferior(task, ours, base),
        **{f"area_{key}": value for key, value in not_inferior(task, ours, base, "area").items()},
    }


def _acting(one: dict[str, Any]) -> float:
    """Seconds of an actor for the same steps: inference and simulator."""
    return (one["actor"]["inference_s"] + one["actor"]["env_s"]) / one["env_steps"]


def predict(base: dict[str, Any], s: float) -> timing.Prediction:
    """What the baseline's own stages say of a network that is so much faster."""
    return timing.predict(timing.measured_stages([base["actor"]], base["learner"]), s, packed=False)


def not_inferior(
    task: str, ours: list[dict[str, Any]], base: list[dict[str, Any]], key: str | None = None
) -> dict[str, Any]:
    """Whether the lower end of the difference in return is above -5 % of the baseline's distance from chance.

    `key`: which return of a run; None: the one the task is judged by.
    """
    chance, key = TASKS[task].random, key or TASKS[task].judged
    pairs = [(o[key], b[key]) for o, b in zip(ours, base, strict=True)]
    if chance is None or len(pairs) < 2 or any(value is None for pair in pairs for value in pair):
        return {"not_inferior": None, "difference": None, "difference_low": None, "difference_high": None}
    difference = np.array([o - b for o, b in pairs])
    draws = np.random.default_rng(0).integers(len(pairs), size=(10_000, len(pairs)))
    low, high = np.quantile(difference[draws].mean(axis=1), [0.025, 0.975]).tolist()
    bound = -INFERIOR * (statistics.mean(b for _, b in pairs) - chance)
    return {
        "not_inferior": bool(low > bound),
        "difference": float(difference.mean()),
        "difference_low": low,
        "difference_high": high,
        "bound": bound,
    }


def _median(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


if __name__ == "__main__":
    main()
