"""Environment steps to a score on CartPole-v1 with 1 to 16 logical workers: the data side of asynchronous speed-up.

Mnih et al. 2016 (arXiv:1602.01783, table 2) measured the time to a reference score of 1 thread over that of n threads.
Such a speed-up is n times the ratio of the data needed, if every worker goes on at its full speed. Two cores cannot
show sixteen workers by the clock; the data they need can be measured: made-up records, in which every segment takes a
random time and a worker reads when it has applied, are done one ticket after the other in one process.

The score is of the greedy policy, 100 episodes every 1,000 steps: training episodes would tell how much the workers
explore, which differs with their number. They are played in the compiled CartPole, which equals the simulator. The
first of two looks in a row at or above the score counts.

A run that does not reach the score counts with all its steps. `speedup_n` is the ratio of medians times n, null where
one of them is such a limit; the published one is of seven Atari games. `time_s` is that of the one process: a cost of
this measurement, no speed-up.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import time
from typing import Any

import _common
import _greedy
import _seeds

ALONE = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "NPROC": "1", "OMP_NUM_THREADS": "1"}
WORKERS = (1, 2, 4, 8, 16)
METHODS = {"async_q": 195.0, "async_sarsa": 195.0, "async_nstep_q": 475.0, "a3c": 475.0}  # mean of 100 episodes
EVERY = 1_000  # environment steps between two looks at the score
STEPS, QUICK_STEPS = 500_000, 80_000  # environment steps a run may take
PUBLISHED = {
    "async_q": (1.0, 3.0, 6.3, 13.3, 24.1),
    "async_sarsa": (1.0, 2.8, 5.9, 13.1, 22.1),
    "async_nstep_q": (1.0, 2.7, 5.9, 10.7, 17.2),
    "a3c": (1.0, 2.1, 3.7, 6.9, 12.5),
}
PARTS = {f"{method}/{n}": (method, n) for method in METHODS for n in WORKERS}
QUICK = ("a3c/1", "a3c/2", "a3c/4", "a3c/8", "a3c/16")
KEYS = (
    *(f"methods.*.workers.*.{key}" for key in ("steps", "time_s", "speedup_n", "published", "reached", "of")),
    *("methods.*.data_ratio_8", "methods.*.complete", "parts.*.runs"),
)


def main() -> None:
    """Measure what is missing, and print the record."""
    arguments = _seeds.arguments(__doc__, list(PARTS)).parse_args()
    os.environ.update(ALONE)  # as hogwild's workers, before anything is compiled
    arguments.seeds = 1 if arguments.quick else arguments.seeds or 10
    steps = QUICK_STEPS if arguments.quick else STEPS
    known = [part for part in PARTS if available(PARTS[part][0])]
    wanted = [arguments.only] if arguments.only else [part for part in known if not arguments.quick or part in QUICK]
    claims = {part: {"target": METHODS[method], "steps": steps} for part, (method, _) in PARTS.items()}
    kept = _seeds.earlier(arguments, claims, wanted)
    measure = functools.partial(run, steps=steps)
    seeds = dict.fromkeys(wanted, arguments.seeds)
    _seeds.gather(arguments, kept, seeds, measure, lambda: made(arguments, kept))
    _common.finish(arguments, made(arguments, kept))


def available(method: str) -> bool:
    """Whether there is such a preset."""
    from shoal.experiment import presets

    return method in presets.PRESETS


def run(part: str, seed: int, steps: int) -> dict[str, Any]:
    """One seed of one method with so many logical workers, for so many environment steps at most."""
    from shoal import experiment
    from shoal.core import registry
    from shoal.experiment import presets
    from shoal.monitor import asynchrony

    experiment.cache()
    method, workers = PARTS[part]
    settings = {"runtime": {"workers": workers}}
    request = presets.Request(method, "CartPole-v1", steps, seed, runtime="hogwild", settings=settings)
    wanted, _ = presets.resolve(request)
    parts = experiment.build(wanted).parts
    sequence = registry.load("runtime", "hogwild").replayer(wanted.configs["runtime"], parts, seed)
    length = parts.agent.about.rollout_length
    record = asynchrony.random(workers, -(-steps // length), seed)
    judge = _greedy.judge(method)
    began, looked, first, reached = time.perf_counter(), 0, None, None
    for done in sequence.run(record, judge=True):
        now = done.ticket * length
        if now // EVERY > looked:
            looked = now // EVERY
            if judge(sequence.params()) < METHODS[method]:
                first = None
            elif first is None:
                first = now
            else:
                reached = first
                break
    sequence.close()
    lag = float(sequence.state["lag_sum"].sum() / max(1, sequence.state["updates"].sum()))
    return {"solved_at_step": reached, "time_s": time.perf_counter() - began, "lag_mean": lag}


def made(arguments: argparse.Namespace, kept: dict[str, _seeds.Runs]) -> dict[str, Any]:
    """The record of what is there so far."""
    steps = QUICK_STEPS if arguments.quick else STEPS
    return _common.record("async_scaling", arguments, conclude(kept, arguments.seeds, steps))


def conclude(kept: dict[str, _seeds.Runs], seeds: int, most: int) -> dict[str, Any]:
    """The numbers of every method.

    Args:
        kept: Part -> seed -> run.
        seeds: How many there are to be.
        most: Environment steps a run may take; what one that did not reach the score counts with.
    """
    methods: dict[str, Any] = {}
    for method in METHODS:
        steps = {n: _steps(kept[f"{method}/{n}"], most) for n in WORKERS}
        middle = {n: statistics.median(values) if values else None for n, values in steps.items()}
        workers: dict[str, Any] = {}
        for n, published in zip(WORKERS, PUBLISHED[method], strict=True):
            runs = kept[f"{method}/{n}"]
            first, here = middle[1] or most, middle[n] or most
            quartiles = statistics.quantiles(steps[n], n=4) if len(steps[n]) > 1 else None
            workers[str(n)] = {
                "steps": middle[n],
                "quartiles": [quartiles[0], quartiles[2]] if quartiles else None,
                "time_s": statistics.median(one["time_s"] for one in runs.values()) if runs else None,
                "lag_mean": statistics.median(one["lag_mean"] for one in runs.values()) if runs else None,
                "speedup_n": n * first / here if first < most and here < most else None,  # else a median is a limit
                "published": published,
                "reached": sum(one["solved_at_step"] is not None for one in runs.values()),
                "of": len(runs),
            }
        ratio = workers["8"]["speedup_n"] and workers["8"]["speedup_n"] / 8
        complete = all(len(kept[f"{method}/{n}"]) >= seeds for n in WORKERS)
        methods[method] = {"workers": workers, "data_ratio_8": ratio, "complete": complete}
    parts = {
        part: {"target": METHODS[method], "steps": most, "runs": _seeds.in_order(kept[part])}
        for part, (method, _) in PARTS.items()
    }
    return {"methods": methods, "parts": parts}


def _steps(runs: _seeds.Runs, most: int) -> list[int]:
    return [one["solved_at_step"] or most for one in runs.values()]


if __name__ == "__main__":
    main()
