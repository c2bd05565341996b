"""A3C processes against Stable-Baselines3's A2C and PFRL's A3C on CartPole-v1 or Pong (`--atari`), in steps a second.

Every side learns while it steps; start-up and compilation are counted on no side. `ratio_sb3` is against SB3's own
settings (eight environments on CartPole, sixteen on Pong), with one torch thread or torch's default, whichever is
faster. Every peer also runs with our rollout length and network: `ratio_sb3_ours` is the same rule on the same work.
`impala` is one actor and a learner apart, on the same two cores; what its monitor costs is measured by leaving it out
(`--monitoring`).
PFRL is the other A3C, with two processes; that it forks them counts, 0.1 s on CartPole and 0.4 s on Pong. On CartPole
the workers are also run as two threads of one process: why they are processes. A step of Pong is four frames. With
`--atari` Pong is measured as the paper has it (four pictures of 84 by 84), with `--field` in one picture of 42 by 42,
which is what `a3c_lstm` learns from here; without either CartPole; the others stay as the JSON has them. `--field`
leaves PFRL out, and SB3 makes its small picture of the whole screen; `a3c_lstm` itself is told beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import _common
import _peers

MEASURED = (
    *("steps_per_s_1", "steps_per_s_2", "scaling_2", "sb3_a2c_steps_per_s", "ratio_sb3"),
    *("sb3_a2c_ours_steps_per_s", "ratio_sb3_ours", "pfrl_a3c_steps_per_s", "ratio_pfrl"),
    *("threads_steps_per_s_2", "scaling_threads_2"),
)
APART = ("impala_steps_per_s", "ratio_impala_sb3")  # of an actor and a learner, on CartPole
TOLD = ("commit", "date", "command")  # of each half its own
LSTM = ("lstm_steps_per_s_2",)  # `a3c_lstm` with the same pictures, for which SB3's A2C has no network
HALVES = ("atari", "field")  # each a record of its own within the record
WATCHED = 9  # rounds of the monitor, whose cost is smaller than what two runs differ by
KEYS = (
    *MEASURED,
    *APART,
    *(f"atari.{key}" for key in (*MEASURED, *TOLD)),
    *(f"field.{key}" for key in (*MEASURED, *LSTM, *TOLD)),
    *(f"monitoring.{key}" for key in ("cost", *TOLD)),
)
SIZE = 42  # of the pictures of `--field`
FIELD = (
    *("--environment.size", SIZE, "--environment.frames", 1, "--environment.crop", 34, 194),
    *("--network.torso", "universe", "--algorithm.rollout-length", 20),
)


class Task(NamedTuple):
    """An environment, and for how long each side trains in it."""

    env: str
    repeats: int
    steps: int
    peer_steps: int
    quick: tuple[int, int, int]  # the same three; about the same time for each side, instead of the same steps
    words: tuple[Any, ...] = ()  # what else our side is asked for


TASKS = {
    "cartpole": Task("CartPole-v1", 3, 400_000, 60_000, (2, 60_000, 6_000)),
    "atari": Task("ALE/Pong-v5", 3, 15_000, 8_000, (1, 2_000, 1_000)),
    "field": Task("ALE/Pong-v5", 3, 30_000, 16_000, (1, 2_000, 1_000), FIELD),
}


def main() -> None:
    """Measure, and print the record."""
    parser = _common.parser(__doc__)
    parser.add_argument("--atari", action="store_true", help="Pong; the rest stays as the JSON has it")
    parser.add_argument("--field", action="store_true", help="Pong in one small picture; the rest stays likewise")
    parser.add_argument("--monitoring", action="store_true", help="what a monitor costs; the rest stays likewise")
    arguments = parser.parse_args()
    asked = [name for name in (*HALVES, "monitoring") if getattr(arguments, name)]
    if len(asked) > 1:
        parser.error(f"--{asked[0]} and --{asked[1]} are two measurements: ask for one of them")
    kept = earlier(arguments)
    results, peers = (kept["results"], kept["peers"]) if kept else (blank(), {})
    half = asked[0] if asked else None
    alone = half == "monitoring"
    found, report = (monitoring(arguments.quick), {}) if alone else measure(half or "cartpole", arguments.quick)
    made = _common.record("hogwild", arguments, results, peers | report)
    if half:  # the record's own are those of CartPole, if it was measured
        told = {key: made[key] for key in TOLD}
        made |= {"results": results | {half: found | told}} | {key: kept[key] for key in TOLD if kept}
    else:
        made["results"] = results | found
    _common.finish(arguments, made)


def blank() -> dict[str, Any]:
    """Results of nothing."""
    halves = {half: compare({}) | dict.fromkeys(TOLD) for half in HALVES}
    halves["field"] |= _common.spread(LSTM[0], [])
    return compare({}) | halves | {"monitoring": _common.spread("cost", []) | dict.fromkeys(TOLD)}


def earlier(arguments: argparse.Namespace) -> dict[str, Any]:
    """The record as the JSON has it; empty where there is none, or but a quick look."""
    if not (arguments.json and arguments.json.exists()):
        return {}
    record = json.loads(arguments.json.read_text(encoding="utf-8"))
    return {} if record["quick"] else record | {"results": blank() | record["results"]}


def measure(name: str, quick: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The numbers of one task, and what is to be told of the peers."""
    task = TASKS[name]
    repeats, steps, peer_steps = task.quick if quick else (task.repeats, task.steps, task.peer_steps)
    torch_threads = (1,) if quick else (1, None)
    few = 2_000 if name == "cartpole" else 200
    config = shoal(task.env, 1, few, *task.words)["config"]  # also fills the compilation cache
    settings = contenders(config, torch_threads)
    with _peers.Stand() as stand:
        sides = {f"shoal_{n}": lambda n=n: shoal(task.env, n, steps, *task.words)["env_steps_per_s"] for n in (1, 2)}
        if name == "cartpole":
            sides["threads_2"] = lambda: threads(2, steps)
            sides["impala"] = lambda: impala(task.env, steps)
        if name == "field":
            sides["lstm_2"] = lambda: shoal(task.env, 2, steps, preset="a3c_lstm")["env_steps_per_s"]
        for side, request in settings.items():
            peer = side.partition(",")[0]
            if stand.start(peer, may_install=peer == "sb3" or not quick):
                sides[side] = lambda peer=peer, request=request: stand.rate(peer, steps=peer_steps, **request)
        rates = _common.alternate(sides, repeats)
    told = {"env": task.env, "env_steps": steps, "peer_env_steps": peer_steps, "peer_settings": settings}
    if name == "field":
        told |= _common.spread(LSTM[0], rates.pop("lstm_2"))
    return compare(rates) | told, stand.report


def shoal(env: str, workers: int, steps: int, *asked: Any, preset: str = "a3c") -> dict[str, Any]:
    """Train with one or more workers, and with what else is asked for; the summary."""
    words = ("--env", env, "--workers", workers, "--steps", steps, "--seed", 0, *asked)
    return _common.train(preset, *words, *_common.SHORT)


def impala(env: str, steps: int, *words: str) -> float:
    """Environment steps per second of one actor and a learner."""
    told = _common.train("impala", "--env", env, "--steps", steps, "--seed", 0, *words, *_common.SHORT)
    return float(told["env_steps_per_s"])


def monitoring(quick: bool) -> dict[str, Any]:
    """What share of its steps the monitor costs `impala`."""
    task = TASKS["cartpole"]
    steps = task.quick[1] if quick else task.steps
    watched = {
        side: lambda words=words: impala(task.env, steps, *words)
        for side, words in {"watched": (), "unwatched": ("--runtime.no-monitor",)}.items()
    }
    rates = _common.alternate(watched, 1 if quick else WATCHED)
    ratios = _common.ratios(rates["watched"], rates["unwatched"])
    return _common.spread("cost", [1.0 - one for one in ratios]) | rates


def threads(count: int, steps: int) -> float:
    """Environment steps per second of our workers as threads of one process."""
    script = Path(__file__).with_name("_threads.py")
    done = subprocess.run([sys.executable, script, str(count), str(steps)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def contenders(config: Mapping[str, Any], torch_threads: tuple[int | None, ...]) -> dict[str, dict[str, Any]]:
    """What the peers are run with: side -> settings.

    Args:
        config: The resolved configuration of our run.
        torch_threads: Counts of torch's threads to try for SB3; None is torch's own.
    """
    algorithm, network = config["parts"]["algorithm"], config["parts"]["network"]
    rollout = algorithm["rollout_length"]
    where: dict[str, Any] = {"atari": [84, 4]}
    net: dict[str, Any] = {}
    lengths = {5, rollout}  # of PFRL
    if network["torso"] == "dqn_2013":
        ours = {"rollout": rollout, "small": True}
    elif network["torso"] == "universe":
        where = {"atari": [SIZE, 1]}
        ours, lengths = {"rollout": rollout, "small": True}, set()
    else:
        where, net = {}, {"sizes": list(network["hidden"])}
        ours = {"rollout": rollout, "shared": network["shared"]} | net
    sides: dict[str, dict[str, Any]] = {}
    for count in torch_threads:
        sides[f"sb3, its own settings, {count or 'all'} threads"] = where | {"threads": count}
        sides[f"sb3, our settings, {count or 'all'} threads"] = where | {"threads": count} | ours
    for length in sorted(lengths):
        sides[f"pfrl, rollout {length}"] = where | net | {"workers": 2, "rollout": length}
    return sides


def compare(rates: Mapping[str, list[float]]) -> dict[str, Any]:
    """The keys of the record from each side's environment steps per second, one a round."""

    def best(prefix: str) -> list[float]:
        measured = [values for side, values in rates.items() if side.startswith(prefix) and values]
        return max(measured, key=statistics.median, default=[])

    one, two = (rates.get(f"shoal_{n}", []) for n in (1, 2))
    results = _common.spread("steps_per_s_1", one) | _common.spread("steps_per_s_2", two)
    results |= _common.spread("scaling_2", _common.ratios(two, one))
    results |= _common.spread("threads_steps_per_s_2", rates.get("threads_2", []))
    results |= _common.spread("scaling_threads_2", _common.ratios(rates.get("threads_2", []), one))
    for key, prefix in {
        "sb3_a2c": "sb3, its",
        "sb3_a2c_ours": "sb3, our",
        "pfrl_a3c": "pfrl",
    }.items():
        results |= _common.spread(f"{key}_steps_per_s", best(prefix))
    for key, prefix in {"sb3": "sb3, its", "sb3_ours": "sb3, our", "pfrl": "pfrl"}.items():
        results |= _common.spread(f"ratio_{key}", _common.ratios(two, best(prefix)))
    apart = rates.get("impala", [])
    results |= _common.spread("impala_steps_per_s", apart)
    results |= _common.spread("ratio_impala_sb3", _common.ratios(apart, best("sb3, its")))
    sides = {side: values for side, values in rates.items() if not side.startswith(("shoal", "threads", "impala"))}
    return results | {"sides": sides}


if __name__ == "__main__":
    main()
