"""Seconds from the start of the command to a mean return of 475 over the last 100 training episodes of CartPole-v1.

Everything counts: the interpreter, the imports, compilation, learning. Every run is a fresh process with a seed of its
own, and the sides take turns. Whoever can keep compiled programs runs twice in a round, first with an empty cache
(`cold_total_s`) and then with what that run left (`total_s`); the libraries on torch have none, so both are the same.

Each peer has its documented settings for CartPole: purejaxrl those of its script, rejax those of its repository,
Stable-Baselines3 and sbx those of rl-baselines3-zoo. purejaxrl and rejax cannot stop early: they are given the seconds
until they are compiled and the share of their training up to the step where they reached the score, as if they could.
rejax has no schedule that a longer training would change, so it also runs with five times its steps.

Our own end is `startup_s` + `train_s` of the summary; `command_s` also has what comes after, the saving and the report.
A run that does not reach the score counts as endless; a median over too many of those is null.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import _common
import _peers

UNTIL = 475
REJAX = {  # configs/gymnax/cartpole.yaml of its repository; what is not here is as its class has it
    "num_envs": 5,
    "num_steps": 100,
    "num_epochs": 5,
    "num_minibatches": 5,
    "learning_rate": 0.00075,
    "max_grad_norm": 0.5,
    "total_timesteps": 100_000,
    "agent_kwargs": {"activation": "tanh"},
}


class Side(NamedTuple):
    """One system with its settings."""

    name: str  # for the table
    peer: str | None  # None: ours
    request: dict[str, Any]
    caches: bool = True  # whether it keeps compiled programs


SIDES = {
    "shoal": Side("Shoal `ppo`", None, {}),
    "purejaxrl": Side("purejaxrl PPO", "purejaxrl", {}),
    "rejax": Side("rejax PPO", "rejax", {"settings": REJAX}),
    "rejax_long": Side("rejax PPO, 500,000 steps", "rejax", {"settings": REJAX | {"total_timesteps": 500_000}}),
    "sbx_ppo": Side("sbx PPO", "sbx", {"algorithm": "ppo"}),
    "sb3_ppo": Side("SB3 PPO", "sb3", {"algorithm": "ppo"}, caches=False),
    "sb3_ppo_1": Side("SB3 PPO, one thread", "sb3", {"algorithm": "ppo", "threads": 1}, caches=False),
    "sb3_a2c": Side("SB3 A2C", "sb3", {"algorithm": "a2c"}, caches=False),
    "sb3_a2c_1": Side("SB3 A2C, one thread", "sb3", {"algorithm": "a2c", "threads": 1}, caches=False),
}
QUICK = ("shoal",)  # all that --quick measures
SERIES = ("total_s", "cold_total_s", "steps", "train_s", "command_s", "start_s", "cold_start_s", "best_return")


def measure(stand: _peers.Stand, purejaxrl: Path | None, quick: bool) -> dict[str, Any]:
    """Side -> numbers.

    Args:
        stand: Where peers are reported.
        purejaxrl: Its checkout; None, and the peer is not measured.
        quick: One round of `QUICK`.
    """
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    failed = set()
    for seed in range(1 if quick else 3):
        for key, side in SIDES.items():
            if side.peer in failed or (quick and key not in QUICK) or (side.peer == "purejaxrl" and purejaxrl is None):
                continue
            try:
                rounds[key].append(one_round(side, seed, purejaxrl, not quick))
            except _peers.PeerError as reason:
                stand.fail(str(side.peer), str(reason))
                failed.add(side.peer)
                continue
            stand.note(str(side.peer), **rounds[key][-1].pop("told"))
            _common.say(f"seed {seed}  {side.name:40} {rounds[key][-1]}")
    return {key: one_side(side, [] if side.peer in failed else rounds[key]) for key, side in SIDES.items()}


def one_round(side: Side, seed: int, purejaxrl: Path | None, may_install: bool) -> dict[str, Any]:
    """One seed of one side: with an empty cache, and with what that left.

    Raises:
        PeerError: It does not install, or failed.
    """
    with tempfile.TemporaryDirectory() as cache:
        if side.peer is None:
            cold, warm = ours(seed, cache), ours(seed, cache)
        else:
            _peers.install(side.peer, allowed=may_install)  # before the clock starts
            cold = theirs(side, seed, cache, purejaxrl)
            warm = theirs(side, seed, cache, purejaxrl) if side.caches else cold
    return warm | {"cold_total_s": cold["total_s"], "cold_start_s": cold["start_s"]}


def ours(seed: int, cache: str) -> dict[str, Any]:
    """One run of ours."""
    words = ("--env", "gymnax:CartPole-v1", "--seed", seed, f"--until={UNTIL}", *_common.SHORT)
    summary = _common.train("ppo", *words, cache=cache)
    steps, start_s = summary["solved_at_step"], summary["startup_s"]
    return {
        "total_s": start_s + summary["train_s"] if steps else None,
        "steps": steps,
        "train_s": summary["train_s"],
        "command_s": summary["command_s"],
        "start_s": start_s,
        "best_return": summary["return_mean"],
        "told": {},
    }


def theirs(side: Side, seed: int, cache: str, purejaxrl: Path | None) -> dict[str, Any]:
    """One run of a peer.

    Raises:
        PeerError: It failed.
    """
    with session(side, cache, purejaxrl) as peer:
        answer = peer.ask(until=UNTIL, seed=seed, **side.request)
        total = answer["solved_at"] - peer.began if answer["solved_at"] else None
    return {
        "total_s": total,
        "steps": answer["steps"],
        "train_s": answer["train_s"],
        "command_s": None,
        "start_s": None,
        "best_return": answer["best_return"],
        "told": {"versions": peer.versions},
    }


@contextlib.contextmanager
def session(side: Side, cache: str, purejaxrl: Path | None) -> Iterator[_peers.Session]:
    """A peer's script in a fresh process; JAX keeps whatever it compiles, however small."""
    words = {"purejaxrl": (str(purejaxrl),), "sb3": ("sb3",), "sbx": ("sbx",)}.get(str(side.peer), ())
    variables = {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    script = "stable_baselines.py" if side.peer == "sb3" else None
    with contextlib.closing(
        _peers.Session(str(side.peer), *words, script=script, variables=variables if side.caches else None)
    ) as peer:
        yield peer


def one_side(side: Side, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """A side's numbers."""
    results: dict[str, Any] = {"name": side.name, "of": len(rounds)}
    results["reached"] = sum(one["total_s"] is not None for one in rounds)
    for key in SERIES:
        values = [one[key] for one in rounds]
        if key in ("total_s", "cold_total_s", "steps"):
            results |= endless(key, values)
        else:
            results |= _common.spread(key, [value for value in values if value is not None])
    return results


def blank() -> dict[str, Any]:
    """Side -> nulls."""
    return {key: one_side(side, []) for key, side in SIDES.items()}


def endless(key: str, values: list[float | None]) -> dict[str, Any]:
    """Like `_common.spread`, where null stands for a run that did not get there and is longer than any other."""
    told = _common.spread(key, [math.inf if value is None else value for value in values])
    finite = {name: None if value == math.inf else value for name, value in told.items()}
    return finite | {f"{key}_repeats": values}


def conclude(sides: dict[str, Any]) -> dict[str, Any]:
    """The keys at the top: ours, the best peer's, and the ratio; the same with an empty cache; our start-up."""
    results: dict[str, Any] = {}
    mine = sides["shoal"]
    for state in ("", "_cold"):
        key = f"{state[1:]}_total_s".lstrip("_")
        peers = {name: one for name, one in sides.items() if name != "shoal" and one[key] is not None}
        best = min(peers, key=lambda name: peers[name][key], default=None)
        results |= {f"time_to_475{state}_total_s{end}": mine[f"{key}{end}"] for end in ("", "_min", "_max", "_repeats")}
        results[f"best_peer_time_to_475{state}_total_s"] = peers[best][key] if best else None
        results[f"best_peer_to_475{state}"] = peers[best]["name"] if best else None
        pairs = zip(peers[best][f"{key}_repeats"], mine[f"{key}_repeats"], strict=False) if best else []
        ratios = [above / below for above, below in pairs if above is not None and below is not None]
        results |= _common.spread(f"ratio_time_to_475{state}", ratios if mine[key] is not None else [])
    cold, warm = mine["cold_start_s_repeats"], mine["start_s_repeats"]
    results |= _common.spread("cold_start_s", cold) | _common.spread("warm_start_s", warm)
    # What a full cache saves. Tracing and lowering come again at every start and are in `warm_start_s`.
    return results | _common.spread("compile_s", [a - b for a, b in zip(cold, warm, strict=True)])
