"""MAP propagation: the published table, tasks of one step, speed against the author's loop, cost of an update.

Parts, each of which `--only` measures alone; the others stay as the JSON has them, and a stopped part goes on:

* `speed`: environment steps per second with learning on CartPole-v1: the author's loop re-created in NumPy
  (`_map_numpy.py`, one environment, float64) against one seed and ten seeds of the preset in one compiled program.
* `table`: the average return of all training episodes, every method on every environment, seeds 0 to 9, beside the
  published numbers (`_map_parts.py`). `--only table/CartPole` or `--only table/CartPole/map_async` measure less.
* `multiplexer`, `regression`: the tasks of one step, seeds 0 to 2.
* `cost`: time and memory of one update against back-propagation, by width and depth; draws `docs/images/map_cost.svg`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import _common
import _map_cost
import _map_parts
import _seeds
import numpy as np

from shoal.report import statistics

PARTS = ("speed", "table", "multiplexer", "regression", "cost")
QUICK = ("table/CartPole/map_propagation",)  # all that --quick trains
KEYS = (
    *("ratio_numpy_1", "ratio_numpy_10", "numpy_steps_per_s", "steps_per_s_1", "steps_per_s_10"),
    *(f"table.*.{key}" for key in ("mean", "std", "published_mean", "published_std", "methods")),
    *(f"multiplexer.*.{key}" for key in ("last_mean", "published")),
    *(f"regression.*.{key}" for key in ("last_error", "published")),
    *("cost.*.time_ratio", "cost.*.memory_ratio"),
    *(f"parts.*.{key}" for key in ("complete", "of", "seeds", "command", "commits", "runs")),
)
SPEEDS = ("numpy_steps_per_s", "steps_per_s_1", "steps_per_s_10", "paper_steps_per_s_1")
FIGURE = _common.ROOT / "docs" / "images" / "map_cost.svg"
AT = (5_000, 10_000, 20_000)  # batches at which the tasks of one step are looked at
WINDOW = 1_000  # batches a look is a mean of


def main() -> None:
    """Measure what is missing, and print the record."""
    units = _map_parts.units()
    parents = {name.rpartition("/")[0] for name in units if name.count("/") > 1}
    arguments = _seeds.arguments(__doc__, [*PARTS, *parents, *units]).parse_args()
    if arguments.quick:
        units |= {name: _map_parts.shortened(units[name]) for name in QUICK}
    if arguments.seeds:
        units = {name: unit._replace(seeds=min(arguments.seeds, unit.seeds)) for name, unit in units.items()}
    only = arguments.only or ""
    wanted = [name for name in units if f"{name}/".startswith(f"{only}/" if only else "")]
    wanted = [name for name in wanted if name in QUICK] if arguments.quick else wanted
    kept = _seeds.earlier(arguments, {name: {"command": command(unit)} for name, unit in units.items()}, wanted)
    rest = earlier(arguments)
    if only in ("", "speed"):
        rest["speed"] = speed(arguments.quick)
        save(arguments, units, kept, rest)
    gather(arguments, units, kept, rest, wanted)
    if only in ("", "cost"):
        rest["cost"] |= _map_cost.measure(arguments.quick)
        if not arguments.quick:
            _map_cost.draw(rest["cost"], FIGURE)
    save(arguments, units, kept, rest)
    _common.finish(arguments, made(arguments, units, kept, rest))


def earlier(arguments: argparse.Namespace) -> dict[str, Any]:
    """Speed and cost as the JSON has them; blanks where it has nothing, or was but a quick look."""
    blank = {"speed": speeds({}), "cost": _map_cost.blank()}
    if not (arguments.json and arguments.json.exists()):
        return blank
    record = json.loads(arguments.json.read_text(encoding="utf-8"))
    return blank if record["quick"] or arguments.fresh else {key: record["results"][key] for key in blank}


def save(
    arguments: argparse.Namespace, units: Mapping[str, Any], kept: Mapping[str, _seeds.Runs], rest: Mapping[str, Any]
) -> None:
    """Keep what is there so far."""
    if arguments.json:
        _common.save(arguments.json, made(arguments, units, kept, rest))


def made(
    arguments: argparse.Namespace, units: Mapping[str, Any], kept: Mapping[str, _seeds.Runs], rest: Mapping[str, Any]
) -> dict[str, Any]:
    """The record of what is there so far."""
    peers = {"map_prop, its loop re-created from the paper": {"numpy": np.__version__}}
    return _common.record("map_propagation", arguments, conclude(units, kept, rest), peers)


# ------------------------------------------------------------------------------------------------ speed


def speed(quick: bool) -> dict[str, Any]:
    """Environment steps per second of all sides, in turn."""
    steps = {"numpy": 500, "one": 6_000, "ten": 4_000} if quick else {"numpy": 5_000, "one": 100_000, "ten": 40_000}
    sides = {
        "numpy_steps_per_s": lambda: numpy_loop(steps["numpy"]),
        "steps_per_s_1": lambda: ours("--steps", steps["one"]),
        "steps_per_s_10": lambda: ours("--steps", steps["ten"], "--seeds", 10),
        "paper_steps_per_s_1": lambda: ours("--steps", steps["one"], "--algorithm.variant", "paper"),
    }
    if quick:
        del sides["paper_steps_per_s_1"]
    return speeds(_common.alternate(sides, 1 if quick else 5))


def numpy_loop(steps: int) -> float:
    """The author's loop in a process of its own, with one thread as ours has."""
    script = Path(__file__).with_name("_map_numpy.py")
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    asked = [sys.executable, str(script), "--speed", str(steps)]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, env=os.environ | single)
    return float(done.stdout)


def ours(*words: Any) -> float:
    """Environment steps per second of the preset, of all seeds together; compilation is left out."""
    summary = _common.train("map_propagation", "--env", "gymnax:CartPole-v1", *words, *_common.SHORT)
    return summary["env_steps_per_s"]


def speeds(rates: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Medians and ratios, nulls where nothing was measured."""
    results: dict[str, Any] = {}
    for key in SPEEDS:
        results |= _common.spread(key, rates.get(key, []))
    for ratio, key in (("ratio_numpy_1", "steps_per_s_1"), ("ratio_numpy_10", "steps_per_s_10"),
                       ("ratio_numpy_paper_1", "paper_steps_per_s_1")):  # fmt: skip
        results |= _common.spread(ratio, _common.ratios(rates.get(key, []), rates.get(SPEEDS[0], [])))
    return results


# ------------------------------------------------------------------------------------------------ learning


def gather(
    arguments: argparse.Namespace,
    units: Mapping[str, _map_parts.Unit],
    kept: dict[str, _seeds.Runs],
    rest: Mapping[str, Any],
    wanted: Sequence[str],
) -> None:
    """Train what is missing; the seeds of a unit share a program, so they are trained and kept together."""
    for name in wanted:
        unit = units[name]
        if len(kept[name]) < unit.seeds:
            found = train(unit)
            kept[name] |= {seed: one | {"commit": _common.commit()} for seed, one in found.items()}
            _common.say(f"{name}: {conclude_unit(unit, kept[name])['mean']}")
            save(arguments, units, kept, rest)


def command(unit: _map_parts.Unit) -> str:
    """What was run, but for the seeds."""
    return " ".join(["shoal train", *map(str, unit.words)])


def train(unit: _map_parts.Unit) -> _seeds.Runs:
    """Seed -> run, from the folders, which are removed."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as place:
        folder = Path(place) / "run"
        _common.shoal("train", *unit.words, "--seeds", unit.seeds, "--out", folder, "--quiet", *_common.SHORT)
        return {str(seed): one_run(unit, folder / f"seed-{seed}") for seed in range(unit.seeds)}


def one_run(unit: _map_parts.Unit, folder: Path) -> dict[str, Any]:
    """The numbers of one run folder."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    returns = np.loadtxt(folder / "episodes.csv", delimiter=",", skiprows=1, usecols=1, ndmin=1)
    kept = {key: summary[key] for key in ("status", "env_steps", "episodes", "train_s", "wall_s")}
    kept |= {"mean": float(returns.mean()), "last_100": float(returns[-100:].mean())}
    if unit.batches:
        ends = [*(at for at in AT if at < unit.batches), unit.batches]
        return kept | {"at": {str(end): window(returns, end) for end in ends}}
    return kept | solved(returns, unit.solved)


def window(returns: np.ndarray, batches: int) -> float:
    """The mean reward of the last `WINDOW` batches before a number of them."""
    end = batches * _map_parts.BATCH
    return float(returns[max(0, end - WINDOW * _map_parts.BATCH) : end].mean())


def solved(returns: np.ndarray, bar: float | None) -> dict[str, Any]:
    """The first episode, counted from 1, at which the mean of the last 100 reaches the bar; the first at it."""
    if bar is None:
        return {"solved_at_episode": None, "first_hit": None}
    sums = np.cumsum(np.concatenate([[0.0], returns]))
    means = (sums[100:] - sums[:-100]) / 100
    reached, hit = np.flatnonzero(means >= bar - 1e-9), np.flatnonzero(returns >= bar)
    return {
        "solved_at_episode": int(reached[0]) + 100 if len(reached) else None,
        "first_hit": int(hit[0]) + 1 if len(hit) else None,
    }


# ------------------------------------------------------------------------------------------------ the numbers


def conclude(
    units: Mapping[str, _map_parts.Unit], kept: Mapping[str, _seeds.Runs], rest: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything in the record's results."""
    parts = {name: conclude_unit(unit, kept[name]) for name, unit in units.items()}
    table = {}
    for env, task in _map_parts.TASKS.items():
        own = {unit.method: parts[name] for name, unit in units.items() if name.startswith(f"table/{env}/")}
        methods = {name: row(one, task.published.get(name)) for name, one in own.items()}
        table[env] = methods["map_propagation"] | {"methods": methods}
    return {
        **rest["speed"],
        "table": table,
        "multiplexer": tail(units, parts, "multiplexer", _map_parts.MULTIPLEXER, "last_mean", 1.0),
        "regression": tail(units, parts, "regression", _map_parts.REGRESSION, "last_error", -1.0),
        "speed": rest["speed"],  # once more, to be kept as a part
        "cost": rest["cost"],
        "parts": parts,
    }


def conclude_unit(unit: _map_parts.Unit, runs: _seeds.Runs) -> dict[str, Any]:
    """A unit's numbers: mean and population deviation over seeds as in the paper, and interquartile mean."""
    means = [one["mean"] for one in runs.values()]
    reached = [one["solved_at_episode"] for one in runs.values() if one.get("solved_at_episode")]
    return {
        "complete": sum(one["status"] == "completed" for one in runs.values()) >= unit.seeds,
        "of": len(runs),
        "seeds": unit.seeds,
        "command": command(unit),
        "commits": sorted({str(one["commit"]) for one in runs.values()}),
        "mean": float(np.mean(means)) if means else None,
        "std": float(np.std(means)) if means else None,
        "iqm": statistics.iqm(means) if means else None,
        "interval": list(statistics.interval(means)) if len(means) > 1 else None,
        "solved": len(reached) if unit.solved is not None else None,
        "solved_at_episode": float(np.mean(reached)) if reached else None,
        "runs": _seeds.in_order(runs),
    }


def row(part: Mapping[str, Any], published: tuple[float, float] | None) -> dict[str, Any]:
    """One method on one environment beside what was published."""
    keys = ("mean", "std", "iqm", "interval", "solved", "solved_at_episode", "of")
    return {key: part[key] for key in keys} | {
        "published_mean": published[0] if published else None,
        "published_std": published[1] if published else None,
    }


def tail(
    units: Mapping[str, _map_parts.Unit], parts: Mapping[str, Any], part: str, published: Mapping[str, Any], key: str,
    sign: float,
) -> dict[str, Any]:  # fmt: skip
    """The means over seeds at the looks of a task of one step; of a regression the squared error of the sample."""
    results = {}
    for method, known in published.items():
        unit, runs = units[f"{part}/{method}"], parts[f"{part}/{method}"]["runs"]
        looks: dict[str, list[float]] = {}
        for one in runs.values():
            for at, value in one["at"].items():
                looks.setdefault(at, []).append(sign * value)
        means = {at: float(np.mean(values)) for at, values in looks.items()}
        results[method] = {key: means.get(str(unit.batches)), "published": known, "at": means, "of": len(runs)}
    return results


if __name__ == "__main__":
    main()
