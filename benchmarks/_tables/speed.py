"""Speed beside peers, and start-up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _tables import show
from shoal.report import statistics as seeds_statistics

HELPS = {"--help": "help_s", "train --help": "train_help_s"}


def hogwild(results: Mapping[str, Any]) -> str:
    """Steps per second, and our two workers over each side; of both tasks."""
    tables = [against_peers(results, "CartPole-v1", "its own CartPole settings, 8 environments")]
    own = "its own Atari settings, 16 environments"
    pictures = {"atari": "four pictures of 84 by 84", "field": "one picture of 42 by 42"}
    halves = {name: results[name] for name in pictures if results.get(name, {}).get("steps_per_s_2") is not None}
    for name, half in halves.items():
        told = f"`{half['command']}` · {half['date'][:10]} · commit {half['commit']}"
        tables += [against_peers(half, f"Pong, {pictures[name]}", own), f"Pong, {pictures[name]}: {told}."]
    return "\n\n".join([*tables, "CartPole-v1:"] if halves else tables)


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
        [side, show.spread(results, key), show.spread(results, ratio, "x") if ratio else ""]
        for side, (key, ratio) in sides.items()
    ]
    if results["threads_steps_per_s_2"] is not None:
        rows.insert(
            2, ["the same workers as 2 threads of one process", show.spread(results, "threads_steps_per_s_2"), ""]
        )
    if results.get("lstm_steps_per_s_2") is not None:
        rows.insert(1, ["Shoal `a3c_lstm`, 2 workers", show.spread(results, "lstm_steps_per_s_2"), ""])
    if results["pfrl_a3c_steps_per_s"] is None:
        rows = [row for row in rows if not row[0].startswith("PFRL")]
    apart = results.get("impala_steps_per_s") is not None
    if apart:
        rows.append(["Shoal `impala`, an actor and a learner", show.spread(results, "impala_steps_per_s"), ""])
    made = show.grid([task, "env steps/s", "Shoal's 2 workers over it"], rows)
    if not apart:
        return made
    over = show.spread(results, "ratio_impala_sb3", "x")
    return f"{made}\n\n`impala` makes {over} the steps of SB3's A2C{_monitoring(results.get('monitoring', {}))}."


def _monitoring(found: Mapping[str, Any]) -> str:
    """What the monitor costs, and whether that is more than chance."""
    costs = found.get("cost_repeats")
    if not costs:
        return ""
    low, high = seeds_statistics.interval(costs)
    return (
        f"; its monitor costs {100 * found['cost']:.1f} % of them (median of {len(costs)} rounds, "
        f"{100 * found['cost_min']:.1f} to {100 * found['cost_max']:.1f} %; interval of the IQM "
        f"{100 * low:.1f} to {100 * high:.1f} %)"
    )


def on_device(results: Mapping[str, Any]) -> str:
    """Speed of PPO, time to the score and start-up, speed of SAC and TD3."""
    told = {"cold cache": "cold_start_s", "warm cache": "warm_start_s", "saved by the cache": "compile_s"}
    start = "; ".join(f"{name}: {show.spread(results, key)} s" for name, key in told.items())
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
        rates = [
            show.spread(one, "ours_steps_per_s"),
            show.spread(one, "peer_steps_per_s"),
            show.spread(one, "ratio", "x"),
        ]
        rows.append([f"{one['peer']}, {one['settings']}", work, *rates, show.number(one["peer_compile_s"])])
    for peer in ("purejaxrl", "rejax"):
        ratio = results[f"ratio_{peer}"]
        rows.append([f"smallest against {peer}", "", "", "", "–" if ratio is None else f"{show.number(ratio)}x", ""])
    head = ["PPO, env steps/s", "environments x steps, passes x minibatches", "Shoal", "peer", "ratio"]
    return show.grid([*head, "its compiling, s"], rows)


def time_to_score(results: Mapping[str, Any]) -> str:
    """Seconds to 475, and the ratios."""
    rows = []
    for one in results["time_to_475"].values():
        reached = f"{one['reached']} of {one['of']}" if one["of"] else "–"
        rows.append(
            [
                one["name"],
                reached,
                show.number(one["steps"]),
                show.spread(one, "total_s"),
                show.spread(one, "cold_total_s"),
            ]
        )
    best = [f"{show.spread(results, f'ratio_time_to_475{end}', 'x')}" for end in ("", "_cold")]
    names = {results[f"best_peer_to_475{end}"] for end in ("", "_cold")} - {None}
    rows.append([f"best peer ({', '.join(sorted(names)) or '–'}) over Shoal", "", "", *best])
    return show.grid(["seconds from the command to 475", "reached", "steps", "warm cache", "cold cache"], rows)


def off_policy(results: Mapping[str, Any]) -> str:
    """Steps per second of SAC and TD3."""
    sides = {"Shoal": "shoal", "sbx": "sbx", "SB3": "sb3", "SB3, one thread": "sb3_1"}
    rows = [
        [
            name,
            *[show.spread(results["off_policy"][f"{algorithm}_{side}"], "steps_per_s") for algorithm in ("sac", "td3")],
        ]
        for name, side in sides.items()
    ]
    for name, peer in {"Shoal over sbx": "sbx", "Shoal over SB3": "sb3"}.items():
        rows.append([name, *[show.spread(results, f"ratio_{peer}_{algorithm}", "x") for algorithm in ("sac", "td3")]])
    return show.grid(["Pendulum-v1, env steps/s", "SAC", "TD3"], rows)


def startup(results: Mapping[str, Any]) -> str:
    """Seconds to the first learning step."""
    rows = [
        [f"`{preset}`", show.spread(one, "warm_s"), show.spread(one, "cold_s"), show.spread(one, "warm_outside_s")]
        for preset, one in results["presets"].items()
    ]
    table = show.grid(
        ["seconds to the first learning step", "warm cache", "cold cache", "run less training, warm"], rows
    )
    asked = [f"`shoal {words}`: {show.spread(results, key)} s" for words, key in HELPS.items()]
    return f"{table}\n\n{'; '.join(asked)}."


def flower(results: Mapping[str, Any]) -> str:
    """What Flower costs as a carrier."""
    told = {
        "server up, keys registered, app running": "start_s",
        "nodes there, after their start": "present_s",
        "a round in which nobody has anything to do": "round_s",
        "the same, its server killed meanwhile": "after_kill_s",
    }
    shown = {key: show.number(results[key]) for key in told.values()} | {"round_s": show.spread(results, "round_s")}
    rows = [[what, shown[key]] for what, key in told.items()]
    megabytes = [[f"memory of {what}, MB", show.number(results[key])] for what, key in MEMORY.items()]
    return show.grid(["two parties on loopback, TLS, registered keys", "seconds"], rows + megabytes)


MEMORY = {"the server's processes": "server_mb", "a node's processes": "node_mb"}
