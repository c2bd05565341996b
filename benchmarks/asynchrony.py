"""What it costs that a run can be replayed: updates per second of two workers, racing and with tickets.

A3C with two layers of 64 units and segments of five steps, where applies are as frequent as they come; then the
preset's own segments of 32. Both sides take turns. `cost` is the time of an update with lock and record over its time
without. The record's size counts the whole file. `replays`: three runs of 24,000 updates, in the last of which a
worker is killed, each done again by `shoal replay`. `gradient_us`, `call_us`, `context_switches`: what its calls take
(`_call_cost.py`).

`scores`: whether racing learns worse than taking turns: environment steps of the preset to a mean return of 475 in
100 training episodes, seeds 0 to 9 of both, and the two-sided Mann-Whitney test of their difference. A run that does
not get there counts with all its steps.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _common
from scipy import stats

TARGET = 475.0  # mean return of the last 100 training episodes
LENGTHS = {"segments_5": 5, "segments_32": 32}  # steps of a segment
KEYS = (
    *(f"{name}.{key}" for name in LENGTHS for key in ("racing_updates_per_s", "replayable_updates_per_s", "cost")),
    *("bytes_per_update", "replay_updates_per_s", "replay_equal", "replays"),
    *("gradient_us", "call_us"),
    *(f"scores.{key}" for key in ("racing", "replayable", "p_value", "reached")),
)


def main() -> None:
    """Measure, and print the record."""
    arguments = _common.parser(__doc__).parse_args()
    repeats, seconds = (2, 1) if arguments.quick else (5, 8)
    results: dict[str, Any] = {}
    for name, length in LENGTHS.items():
        train(length, 2_000)  # fills the compilation cache
        steps = 25_000 * seconds
        sides = {
            f"{name}, racing": lambda length=length, steps=steps: train(length, steps),
            f"{name}, replayable": lambda length=length, steps=steps: train(length, steps, "--replayable"),
        }
        racing, tickets = _common.alternate(sides, repeats).values()
        results[name] = _common.spread("racing_updates_per_s", racing)
        results[name] |= _common.spread("replayable_updates_per_s", tickets)
        results[name] |= _common.spread("cost", _common.ratios(racing, tickets)) | {"env_steps": steps}
    results |= replays(4_000 if arguments.quick else 120_000, [False, False, True])
    results |= calls(2 if arguments.quick else 7)
    results["scores"] = scores(2 if arguments.quick else 10)
    _common.finish(arguments, _common.record("asynchrony", arguments, results))


def calls(repeats: int) -> dict[str, Any]:
    """What the calls of a worker take, a process each time: phases in which the machine is slow outlast one."""
    script, found = Path(__file__).with_name("_call_cost.py"), []
    for _ in range(repeats):
        done = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        _common.say(f"microseconds of a call: {found[-1]}")
    names = ("gradient_us", "call_us", "context_switches")
    return dict(pair for name in names for pair in _common.spread(name, [one[name] for one in found]).items())


def scores(seeds: int) -> dict[str, Any]:
    """Steps to the score of every seed, racing and with tickets."""
    steps: dict[str, list[int]] = {"racing": [], "replayable": []}
    reached = dict.fromkeys(steps, 0)
    for seed in range(seeds):
        for name, more in (("racing", ()), ("replayable", ("--replayable",))):
            asked = ("--env", "CartPole-v1", "--workers", 2, "--seed", seed, "--until", TARGET, *more, *_common.SHORT)
            summary = _common.train("a3c", *asked)
            solved = summary["solved_at_step"]
            reached[name] += solved is not None
            steps[name].append(solved or summary["env_steps"])
            _common.say(f"seed {seed}, {name}: {steps[name][-1]:,} steps to {TARGET:g}")
    return steps | {"reached": reached, "p_value": difference(*steps.values())}


def difference(a: Sequence[float], b: Sequence[float]) -> float:
    """The p-value of the two-sided Mann-Whitney test."""
    return float(stats.mannwhitneyu(a, b).pvalue)


def words(length: int, steps: int, seed: int = 0) -> tuple[Any, ...]:
    """Of `shoal train`."""
    return (
        *("a3c", "--env", "CartPole-v1", "--workers", 2, "--steps", steps, "--seed", seed),
        *("--algorithm.rollout-length", length, *_common.SHORT),
    )


def train(length: int, steps: int, *more: Any) -> float:
    """Updates per second of training."""
    summary = _common.train(*words(length, steps), *more)
    return summary["updates"] / summary["train_s"]


def replays(steps: int, kills: Sequence[bool]) -> dict[str, Any]:
    """Replayable runs, and their replays."""
    found = [replay(steps, seed, kill) for seed, kill in enumerate(kills)]
    return {
        "bytes_per_update": found[0]["bytes"] / found[0]["tickets"],
        "replay_updates_per_s": found[0]["tickets"] / found[0]["seconds"],
        "replay_equal": all(one["equal"] for one in found),
        "replays": found,
    }


def replay(steps: int, seed: int, kill: bool) -> dict[str, Any]:
    """One run, in which a worker may be killed, and its replay."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        run = Path(folder) / "run"
        typed = [*words(5, steps, seed), "--replayable", "--out", run, "--quiet"]
        process = subprocess.Popen([sys.executable, "-m", "shoal", "train", *map(str, typed)])
        try:
            if kill:
                os.kill(worker(process.pid, run, steps // 4), signal.SIGKILL)
            if process.wait() != 0:
                raise RuntimeError(f"shoal train ended with {process.returncode}")
        finally:
            process.kill()
            process.wait()
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        again = json.loads(_common.shoal("replay", run, "--json")[0])
        size = (run / "asynchrony.npz").stat().st_size
    _common.say(f"{again['tickets']:,} tickets, restarts {summary['faults']['restarts']}: equal {again['equal']}")
    return {
        "tickets": again["tickets"],
        "seconds": again["seconds"],
        "bytes": size,
        "restarts": summary["faults"]["restarts"],
        "equal": again["equal"] and again["params_sha256"] == summary["params_sha256"],
    }


def worker(parent: int, run: Path, step: int) -> int:
    """The process id of one, once the run has come so far."""
    metrics, until = run / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < until:
        time.sleep(0.02)
        lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
        if lines and json.loads(lines[-1])["step"] >= step:
            return min(children(parent))
    raise RuntimeError(f"the run did not come to {step} steps in time")


def children(parent: int) -> list[int]:
    """Spawned worker processes of a process, from Linux's /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            ours = int(stat.read_text().rpartition(")")[2].split()[1]) == parent
            if ours and b"spawn_main" in (stat.parent / "cmdline").read_bytes():
                found.append(int(stat.parent.name))
    return found


if __name__ == "__main__":
    main()
