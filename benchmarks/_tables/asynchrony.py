"""Workers that do not wait for each other: what it costs, what it does to learning; a parameter server."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from _tables import show


def asynchrony(results: Mapping[str, Any]) -> str:
    """Updates per second, racing and with tickets."""
    rows = []
    for name, length in {"segments_5": "5", "segments_32": "32"}.items():
        keys = ("racing_updates_per_s", "replayable_updates_per_s", "cost")
        rows.append([f"segments of {length} steps", *(show.spread(results[name], key) for key in keys)])
    told = show.grid(["2 workers", "racing, updates/s", "replayable, updates/s", "cost of an update, ratio"], rows)
    size, rate = show.number(results["bytes_per_update"]), show.number(results["replay_updates_per_s"])
    same = "the same parameters" if results["replay_equal"] else "OTHER parameters"
    runs = [
        f"{show.number(one['tickets'])}{' (a worker was killed)' if one['restarts'] else ''}"
        for one in results["replays"]
    ]
    record = (
        f"The record takes {size} bytes an update; `shoal replay` reached {same}, at {rate} updates/s; updates of "
        f"each run: {', '.join(runs)}. A gradient of five steps takes a worker "
        f"{show.spread(results, 'gradient_us')} µs (64 units), the least compiled call "
        f"{show.spread(results, 'call_us')} µs{_switches(results)}."
    )
    return f"{told}\n\n{record} {racing_against_turns(results['scores'])}"


def _switches(results: Mapping[str, Any]) -> str:
    """How often a worker gives up its core; records before 2026-12 do not tell."""
    if "context_switches" not in results:
        return ""
    return f"; in 6,400 gradients it gives up its core {show.spread(results, 'context_switches')} times"


def racing_against_turns(scores: Mapping[str, Any]) -> str:
    """Whether racing learns worse than taking turns."""
    sides = [
        f"{show.number(statistics.median(scores[name]))} {how} ({scores['reached'][name]} of {len(scores[name])} runs)"
        for name, how in (("racing", "racing"), ("replayable", "in turns"))
    ]
    return f"Steps to 475, median: {', '.join(sides)}; Mann-Whitney p = {show.number(scores['p_value'])}."


def async_scaling(results: Mapping[str, Any]) -> str:
    """Steps to the score, and what they would make of the published speed-up."""
    rows = []
    for name, method in results["methods"].items():
        for n, one in method["workers"].items():
            if one["of"]:
                spread_ = one["quartiles"]
                between = f" [{show.number(spread_[0])}, {show.number(spread_[1])}]" if spread_ else ""
                reached = f"{one['reached']} of {one['of']}"
                ratios = [show.number(one["speedup_n"]), show.number(one["published"])]
                rows.append(
                    [
                        f"`{name}`, {n}",
                        reached,
                        f"{show.number(one['steps'])}{between}",
                        show.number(one["lag_mean"]),
                        *ratios,
                    ]
                )
    head = ["logical workers", "reached", "steps, median [quartiles]", "mean lag", "speed-up it allows", "published"]
    return show.grid(head, rows)


def robustness(results: Mapping[str, Any]) -> str:
    """Shares that passed, bands, collapses, and what the other optimisers lose to shared RMSProp."""
    rows = []
    for name, method in results["methods"].items():
        for optimiser, one in method.items():
            if one["scores"]:
                bounds = one["less_than_shared_interval"]
                less = show.number(one["less_than_shared"]) + (
                    f" [{show.number(bounds[0])}, {show.number(bounds[1])}]" if bounds else ""
                )
                passed = f"{round(one['solved_fraction'] * len(one['scores']))} of {len(one['scores'])}"
                figures = [show.number(one[key]) for key in ("mean_score", "band_octaves", "collapsed")]
                rows.append([f"`{name}`, {optimiser}", passed, *figures, "" if optimiser == "shared" else less])
    head = ["method, optimiser", "passed", "mean score", "band, octaves", "collapsed"]
    return show.grid([*head, "less than shared RMSProp [95 %]"], rows)


def gorila(results: Mapping[str, Any]) -> str:
    """Time to the score by bundles; load and staleness by bundles and shards."""
    score, load = [], []
    for part in results["parts"].values():
        dropped = [show.quartiles(part, key) for key in ("stale", "outlier")]
        first = [str(part["bundles"])]
        if part["target"]:
            cells = [show.quartiles(part, key) for key in ("solved_at_step", "train_s")]
            score.append([*first, f"{part['solved']} of {part['of']}", *cells, *dropped])
        else:
            cells = [
                show.quartiles(part, key)
                for key in ("updates_per_s", "update_us", "utilisation", "lag_mean", "lag_max")
            ]
            load.append([*first, str(part["shards"]), *cells])
    return "\n\n".join(
        [
            show.grid(["bundles, 3 shards", "reached", "steps", "training, s", "stale", "outliers"], score),
            show.grid(
                ["bundles", "shards", "updates/s", "a shard's µs an update", "its utilisation", "lag", "largest lag"],
                load,
            ),
        ]
    )
