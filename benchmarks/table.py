"""Makes the tables of a README from the committed results: `python benchmarks/table.py [--check] [FILE ...]`.

A table stands between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`. `--check` writes nothing and ends with 1 when a
table is not what its results say, or a committed record lacks a key.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import _common

HEADER = ("bench", "commit", "date", "command", "machine", "versions", "peers", "quick", "results")
HELPS = {"--help": "help_s", "train --help": "train_help_s"}
PAGES = [_common.RESULTS.parent / "README.md", _common.RESULTS.parents[1] / "README.md"]
BLOCK = re.compile(r"(<!-- bench:(\w+) -->\n).*?(<!-- /bench:\2 -->)", re.DOTALL)


# ------------------------------------------------------------------------------------------------ numbers


def number(value: float | None) -> str:
    """Three digits that matter, thousands apart; a dash for what was not measured."""
    if value is None:
        return "–"
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"


def spread(results: Mapping[str, Any], key: str, unit: str = "") -> str:
    """The median with its minimum and maximum."""
    if results.get(key) is None:
        return "–"
    text = f"{number(results[key])}{unit}"
    low, high = results.get(f"{key}_min"), results.get(f"{key}_max")
    return text if low is None else f"{text} ({number(low)} to {number(high)})"


def grid(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are flush right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


# ------------------------------------------------------------------------------------------------ one table a bench


def hogwild(results: Mapping[str, Any]) -> str:
    """Steps per second, and our two workers over each side; of both tasks."""
    tables = [against_peers(results, "CartPole-v1", "its own CartPole settings, 8 environments")]
    if results["atari"]["steps_per_s_2"] is not None:
        own = "its own Atari settings, 16 environments"
        told = (
            f"`{results['atari']['command']}` · {results['atari']['date'][:10]} · commit {results['atari']['commit']}"
        )
        tables += [against_peers(results["atari"], "Pong, four frames a step", own), f"Pong: {told}. CartPole-v1:"]
    return "\n\n".join(tables)


def against_peers(results: Mapping[str, Any], task: str, own: str) -> str:
    """One task."""
    sides = {
        "Shoal `a3c`, 2 workers": ("steps_per_s_2", None),
        "Shoal `a3c`, 1 worker": ("steps_per_s_1", "scaling_2"),
        f"SB3 A2C, {own}": ("sb3_a2c_steps_per_s", "ratio_sb3"),
        "SB3 A2C, our rollout length and network": ("sb3_a2c_ours_steps_per_s", "ratio_sb3_ours"),
        "PFRL A3C, 2 processes": ("pfrl_a3c_steps_per_s", "ratio_pfrl"),
    }
    rows = [
        [side, spread(results, key), spread(results, ratio, "x") if ratio else ""]
        for side, (key, ratio) in sides.items()
    ]
    if results["threads_steps_per_s_2"] is not None:
        rows.insert(2, ["the same workers as 2 threads of one process", spread(results, "threads_steps_per_s_2"), ""])
    return grid([task, "env steps/s", "Shoal's 2 workers over it"], rows)


def on_device(results: Mapping[str, Any]) -> str:
    """Speed of PPO, time to the score and start-up, speed of SAC and TD3."""
    told = {"cold cache": "cold_start_s", "warm cache": "warm_start_s", "saved by the cache": "compile_s"}
    start = "; ".join(f"{name}: {spread(results, key)} s" for name, key in told.items())
    return "\n\n".join(
        [
            ppo_speed(results),
            time_to_score(results),
            f"Of that until Shoal's first learning step, {start}.",
            off_policy(results),
        ]
    )


def ppo_speed(results: Mapping[str, Any]) -> str:
    """PPO's steps per second at every setting."""
    rows = []
    for one in results["ppo"].values():
        work = "{environments} x {rollout}, {epochs} x {minibatches}".format(**one["work"])
        rates = [spread(one, "ours_steps_per_s"), spread(one, "peer_steps_per_s"), spread(one, "ratio", "x")]
        rows.append([f"{one['peer']}, {one['settings']}", work, *rates, number(one["peer_compile_s"])])
    for peer in ("purejaxrl", "rejax"):
        ratio = results[f"ratio_{peer}"]
        rows.append([f"smallest against {peer}", "", "", "", "–" if ratio is None else f"{number(ratio)}x", ""])
    head = ["PPO, env steps/s", "environments x steps, passes x minibatches", "Shoal", "peer", "ratio"]
    return grid([*head, "its compiling, s"], rows)


def time_to_score(results: Mapping[str, Any]) -> str:
    """Seconds to 475, and the ratios."""
    rows = []
    for one in results["time_to_475"].values():
        reached = f"{one['reached']} of {one['of']}" if one["of"] else "–"
        rows.append([one["name"], reached, number(one["steps"]), spread(one, "total_s"), spread(one, "cold_total_s")])
    best = [f"{spread(results, f'ratio_time_to_475{end}', 'x')}" for end in ("", "_cold")]
    names = {results[f"best_peer_to_475{end}"] for end in ("", "_cold")} - {None}
    rows.append([f"best peer ({', '.join(sorted(names)) or '–'}) over Shoal", "", "", *best])
    return grid(["seconds from the command to 475", "reached", "steps", "warm cache", "cold cache"], rows)


def off_policy(results: Mapping[str, Any]) -> str:
    """Steps per second of SAC and TD3."""
    sides = {"Shoal": "shoal", "sbx": "sbx", "SB3": "sb3", "SB3, one thread": "sb3_1"}
    rows = [
        [name, *[spread(results["off_policy"][f"{algorithm}_{side}"], "steps_per_s") for algorithm in ("sac", "td3")]]
        for name, side in sides.items()
    ]
    for name, peer in {"Shoal over sbx": "sbx", "Shoal over SB3": "sb3"}.items():
        rows.append([name, *[spread(results, f"ratio_{peer}_{algorithm}", "x") for algorithm in ("sac", "td3")]])
    return grid(["Pendulum-v1, env steps/s", "SAC", "TD3"], rows)


def presets(results: Mapping[str, Any]) -> str:
    """What was learned, part by part, beside the first published figure; parts without a run are left out."""
    rows = []
    for part in results["parts"].values():
        if not part["of"]:
            continue
        seeds = f"{part['of']}" + ("" if part["complete"] else f" of {part['seeds']}")
        scores = [with_interval(part, key) for key in ("eval_return_mean", "return_mean")]
        told = published(part["references"][0]) if part["references"] else "–"
        rows.append(
            [
                f"`{part['preset']}` on {part['env']}",
                number(part["steps"]),
                seeds,
                *scores,
                number(part["train_s"]),
                told,
            ]
        )
    head = ["", "steps", "seeds", "evaluation, IQM [95 %]", "training, IQM [95 %]", "training, s", "published"]
    waiting = [f"`{name}`" for name, part in results["parts"].items() if not part["of"]]
    return grid(head, rows) + (f"\n\nNot measured yet: {', '.join(waiting)}." if waiting else "")


def with_interval(part: Mapping[str, Any], key: str) -> str:
    """The interquartile mean with its interval."""
    bounds = part[f"{key}_interval"]
    middle = number(part[f"{key}_iqm"])
    return f"{middle} [{number(bounds[0])}, {number(bounds[1])}]" if bounds else middle


def published(reference: Mapping[str, Any]) -> str:
    """A published figure with its steps and a link."""
    spread_of = f" ± {number(reference['spread'])}" if reference["spread"] is not None else ""
    version = f" on {reference['env']}" if reference["env"] else ""
    link = f"[{reference['source']}]({reference['url']})"
    return f"{number(reference['value'])}{spread_of} at {number(reference['steps'])}{version} ({link})"


def cartpole(results: Mapping[str, Any]) -> str:
    """What was learned, part by part."""
    rows = []
    for name, part in results["parts"].items():
        cells = [f"{part['solved']} of {part['of']}" + ("" if part["complete"] else " (incomplete)")]
        for key in ("solved_at_step", "train_s", "wall_s"):
            interval = part.get(f"{key}_interval")
            iqm = number(part.get(f"{key}_iqm"))
            cells += [number(part[key]), f"{iqm} [{number(interval[0])}, {number(interval[1])}]" if interval else iqm]
        rows.append([f"`{name}` to {part['target']:g}", *cells[:5], cells[5]])
    return grid(["preset", "reached", "steps", "IQM [95 %]", "training, s", "IQM [95 %]", "whole run, s"], rows)


def asynchrony(results: Mapping[str, Any]) -> str:
    """Updates per second, racing and with tickets."""
    rows = []
    for name, length in {"segments_5": "5", "segments_32": "32"}.items():
        keys = ("racing_updates_per_s", "replayable_updates_per_s", "cost")
        rows.append([f"segments of {length} steps", *(spread(results[name], key) for key in keys)])
    told = grid(["2 workers", "racing, updates/s", "replayable, updates/s", "cost of an update, ratio"], rows)
    size, rate = number(results["bytes_per_update"]), number(results["replay_updates_per_s"])
    same = "the same parameters" if results["replay_equal"] else "OTHER parameters"
    runs = [
        f"{number(one['tickets'])}{' (a worker was killed)' if one['restarts'] else ''}" for one in results["replays"]
    ]
    record = (
        f"The record takes {size} bytes an update; `shoal replay` reached {same}, at {rate} updates/s; updates of "
        f"each run: {', '.join(runs)}. A gradient of five steps takes a worker {spread(results, 'gradient_us')} µs "
        f"(64 units), the least compiled call {spread(results, 'call_us')} µs."
    )
    return f"{told}\n\n{record} {racing_against_turns(results['scores'])}"


def racing_against_turns(scores: Mapping[str, Any]) -> str:
    """Whether racing learns worse than taking turns."""
    sides = [
        f"{number(statistics.median(scores[name]))} {how} ({scores['reached'][name]} of {len(scores[name])} runs)"
        for name, how in (("racing", "racing"), ("replayable", "in turns"))
    ]
    return f"Steps to 475, median: {', '.join(sides)}; Mann-Whitney p = {number(scores['p_value'])}."


def async_scaling(results: Mapping[str, Any]) -> str:
    """Steps to the score, and what they would make of the published speed-up."""
    rows = []
    for name, method in results["methods"].items():
        for n, one in method["workers"].items():
            if one["of"]:
                spread_ = one["quartiles"]
                between = f" [{number(spread_[0])}, {number(spread_[1])}]" if spread_ else ""
                reached = f"{one['reached']} of {one['of']}"
                ratios = [number(one["speedup_n"]), number(one["published"])]
                rows.append(
                    [f"`{name}`, {n}", reached, f"{number(one['steps'])}{between}", number(one["lag_mean"]), *ratios]
                )
    head = ["logical workers", "reached", "steps, median [quartiles]", "mean lag", "speed-up it allows", "published"]
    return grid(head, rows)


def robustness(results: Mapping[str, Any]) -> str:
    """Shares that passed, bands, collapses, and what the other optimisers lose to shared RMSProp."""
    rows = []
    for name, method in results["methods"].items():
        for optimiser, one in method.items():
            if one["scores"]:
                bounds = one["less_than_shared_interval"]
                less = number(one["less_than_shared"]) + (
                    f" [{number(bounds[0])}, {number(bounds[1])}]" if bounds else ""
                )
                passed = f"{round(one['solved_fraction'] * len(one['scores']))} of {len(one['scores'])}"
                figures = [number(one[key]) for key in ("mean_score", "band_octaves", "collapsed")]
                rows.append([f"`{name}`, {optimiser}", passed, *figures, "" if optimiser == "shared" else less])
    head = ["method, optimiser", "passed", "mean score", "band, octaves", "collapsed"]
    return grid([*head, "less than shared RMSProp [95 %]"], rows)


def pong(results: Mapping[str, Any]) -> str:
    """How far it came, and when."""
    reached = "not reached"
    if results["reached_at_step"] is not None:
        reached = f"{number(results['reached_at_step'])} steps, {number(results['reached_at_s'] / 60)} minutes"
    rows = [
        [
            f"`{results['preset']}`, seed {results['seed']}",
            number(results["env_steps"]),
            number(results["wall_s"] / 60),
            number(results["frames_per_s"]),
            reached,
            number(results["best_mean"]),
            number(results["last_mean"]),
        ]
    ]
    means = ["mean of 0", "best mean", "last mean"]
    return grid(["Pong, 100 training episodes a mean", "steps", "minutes", "frames/s", *means], rows)


def startup(results: Mapping[str, Any]) -> str:
    """Seconds to the first learning step."""
    rows = [
        [f"`{preset}`", spread(one, "warm_s"), spread(one, "cold_s"), spread(one, "warm_outside_s")]
        for preset, one in results["presets"].items()
    ]
    table = grid(["seconds to the first learning step", "warm cache", "cold cache", "run less training, warm"], rows)
    asked = [f"`shoal {words}`: {spread(results, key)} s" for words, key in HELPS.items()]
    return f"{table}\n\n{'; '.join(asked)}."


def map_propagation(results: Mapping[str, Any]) -> str:
    """Speed, the published table, the tasks of one step, the cost of an update."""
    return "\n\n".join([map_speed(results), map_table(results), map_one_step(results), map_cost(results)])


def map_speed(results: Mapping[str, Any]) -> str:
    """Steps per second against the author's loop."""
    sides = {
        "the author's loop in NumPy, float64": ("numpy_steps_per_s", None),
        "Shoal `map_propagation`, 1 seed": ("steps_per_s_1", "ratio_numpy_1"),
        "Shoal `map_propagation`, 10 seeds together": ("steps_per_s_10", "ratio_numpy_10"),
        "Shoal, the author's control flow, 1 seed": ("paper_steps_per_s_1", "ratio_numpy_paper_1"),
    }
    rows = [
        [side, spread(results, key), spread(results, ratio, "x") if ratio else ""]
        for side, (key, ratio) in sides.items()
    ]
    return grid(["CartPole-v1, one core", "env steps/s", "over NumPy"], rows)


def map_table(results: Mapping[str, Any]) -> str:
    """The average return of all training episodes, ours over what was published."""
    methods = dict.fromkeys(method for one in results["table"].values() for method in one["methods"])
    rows = []
    for method in methods:
        cells = [f"`{method}`"]
        for one in results["table"].values():
            found = one["methods"].get(method)
            cells.append(_beside(found) if found else "")
        rows.append(cells)
    return grid(["mean (deviation) over seeds; *published*", *results["table"]], rows)


def _beside(found: Mapping[str, Any]) -> str:
    """E.g. `459 (13.9) *460 (13.9)*`; the seeds where there are fewer than ten."""
    ours = "–" if found["mean"] is None else f"{number(found['mean'])} ({number(found['std'])})"
    ours += f" [{found['of']} seeds]" if 0 < found["of"] < 10 else ""
    known = found["published_mean"]
    return ours if known is None else f"{ours} *{number(known)} ({number(found['published_std'])})*"


def map_one_step(results: Mapping[str, Any]) -> str:
    """Multiplexer and regression at the end."""
    parts = {
        "multiplexer": ("multiplexer, mean reward", "last_mean"),
        "regression": ("regression, error", "last_error"),
    }
    rows = [
        [f"{name}: `{method}`", number(one[key]), number(one["published"]), str(one["of"])]
        for part, (name, key) in parts.items()
        for method, one in results[part].items()
    ]
    return grid(["mean of the last 1,000 batches", "Shoal", "published, about", "seeds"], rows)


def map_cost(results: Mapping[str, Any]) -> str:
    """One update beside back-propagation."""
    rows = [
        [
            f"hidden layers, {shape}",
            spread(one["map_propagation"], "update_ms"),
            spread(one["backprop_det"], "update_ms"),
            spread(one, "time_ratio", "x"),
            number(one["map_propagation"]["temporary_kb"]),
            number(one["backprop_det"]["temporary_kb"]),
        ]
        for shape, one in results["cost"].items()
    ]
    head = ["one update", "MAP, ms", "back-propagation, ms", "ratio", "MAP, kB", "back-propagation, kB"]
    return grid(head, rows)


def linear(results: Mapping[str, Any]) -> str:
    """Learners that exchange weights, and mappers."""
    speeds, rows = results["sarsa_speed"], []
    for scheme, by_workers in results["sarsa"].items():
        for workers in sorted(by_workers, key=int):
            one, speed = by_workers[workers], speeds[scheme][workers]
            rows.append(
                [
                    f"`{scheme}`, {workers}",
                    spread(one, "steps_per_episode"),
                    spread(one, "last_steps_per_episode"),
                    number(one["bytes_per_episode"]),
                    spread(speed, "ratio_1", "x"),
                    number(speed["waiting_fraction"]),
                ]
            )
    head = ["scheme, learners", "steps per episode", "the last 10", "bytes per episode", "speed over one", "waiting"]
    batch = [
        [f"`{method}`, {workers}", spread(one, "seconds"), spread(one, "ratio_1", "x"), number(one["bytes_sent"])]
        for method, by_workers in results["batch"].items()
        for workers, one in by_workers.items()
    ]
    told = (
        f"`filtered` sends {number(100 * results['filtered_bytes_fraction'])} % of the bytes of `average` with two "
        f"learners, at {number(100 * results['filtered_score_ratio'])} % of its steps per episode in the end."
    )
    below = grid(["method, mappers", "seconds of solving", "speed over one", "bytes"], batch)
    return "\n\n".join([grid(head, rows), told, below])


def gorila(results: Mapping[str, Any]) -> str:
    """Time to the score by bundles; load and staleness by bundles and shards."""
    score, load = [], []
    for part in results["parts"].values():
        dropped = [quartiles(part, key) for key in ("stale", "outlier")]
        first = [str(part["bundles"])]
        if part["target"]:
            cells = [quartiles(part, key) for key in ("solved_at_step", "train_s")]
            score.append([*first, f"{part['solved']} of {part['of']}", *cells, *dropped])
        else:
            cells = [
                quartiles(part, key) for key in ("updates_per_s", "update_us", "utilisation", "lag_mean", "lag_max")
            ]
            load.append([*first, str(part["shards"]), *cells])
    return "\n\n".join(
        [
            grid(["bundles, 3 shards", "reached", "steps", "training, s", "stale", "outliers"], score),
            grid(
                ["bundles", "shards", "updates/s", "a shard's µs an update", "its utilisation", "lag", "largest lag"],
                load,
            ),
        ]
    )


def quartiles(results: Mapping[str, Any], key: str) -> str:
    """The median with its quartiles."""
    bounds = results[f"{key}_quartiles"]
    return number(results[key]) + (f" ({number(bounds[0])} to {number(bounds[1])})" if bounds else "")


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "hogwild": hogwild,
    "on_device": on_device,
    "cartpole": cartpole,
    "startup": startup,
    "presets": presets,
    "map_propagation": map_propagation,
    "linear": linear,
    "asynchrony": asynchrony,
    "async_scaling": async_scaling,
    "robustness": robustness,
    "pong": pong,
    "gorila": gorila,
}


# ------------------------------------------------------------------------------------------------ the page


def render(record: Mapping[str, Any] | None, bench: str) -> str:
    """A table with the command, the date and the machine; a line saying so if nothing was measured yet."""
    if record is None:
        return f"Not measured yet: `shoal bench {bench} --json benchmarks/results/{bench}.json`\n"
    host = record["machine"]
    where = f"{host['cpu']}, {host['cores']} cores, {host['memory_gb']:g} GB, accelerator: {host['accelerator']}"
    notes = [f"`{record['command']}` · {record['date'][:10]} · commit {record['commit']} · {where}"]
    notes += ["**A quick look, not a claim.**"] if record["quick"] else []
    notes += [f"{name} was not measured: {peer['error']}" for name, peer in record["peers"].items() if "error" in peer]
    return "\n\n".join([TABLES[bench](record["results"]), *notes]) + "\n"


def fill(text: str, records: Mapping[str, Mapping[str, Any]]) -> str:
    """A page with every table made anew.

    Args:
        text: The page.
        records: Bench -> its record.
    """
    return BLOCK.sub(lambda found: found[1] + render(records.get(found[2]), found[2]) + found[3], text)


def problems(record: Mapping[str, Any]) -> list[str]:
    """What a committed record lacks to be a claim."""
    bench = record.get("bench", "?")
    found = [f"{bench}: no {key!r}" for key in HEADER if key not in record]
    if not found:
        keys = importlib.import_module(bench).KEYS
        found = [f"{bench}: no {at!r} in the results" for key in keys for at in _missing(record["results"], key)]
    return found + ([f"{bench}: measured with --quick"] if record.get("quick") else [])


def _missing(results: Mapping[str, Any], path: str, done: str = "") -> Iterator[str]:
    """Dotted paths, `*` standing for every key, that lead nowhere."""
    first, _, rest = path.partition(".")
    for key in list(results) or ["?"] if first == "*" else [first]:
        if key not in results:
            yield f"{done}{key}"
        elif rest:
            yield from _missing(results[key], rest, f"{done}{key}.")


def committed() -> dict[str, dict[str, Any]]:
    """Bench -> its record in `results/`."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(_common.RESULTS.glob("*.json"))}


def main() -> int:
    """Fill the pages in, or check them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, default=PAGES)
    parser.add_argument("--check", action="store_true", help="change nothing; end with 1 if something is amiss")
    arguments = parser.parse_args()
    records = committed()
    amiss = [problem for record in records.values() for problem in problems(record)]
    for path in arguments.files:
        old = path.read_text(encoding="utf-8")
        new = fill(old, records)
        if new != old and arguments.check:
            amiss.append(f"{path}: not what the results say; run python benchmarks/table.py {path}")
        elif new != old:
            path.write_text(new, encoding="utf-8")
    for problem in amiss:
        _common.say(problem)
    return 1 if amiss else 0


if __name__ == "__main__":
    sys.exit(main())
