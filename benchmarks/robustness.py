"""Scores of 50 random (learning rate, seed) pairs, for the four asynchronous methods and their three optimisers.

Mnih et al. 2016 (arXiv:1602.01783) drew learning rates from LogUniform(1e-4, 1e-2) for 50 runs of each method, and
compared momentum SGD, RMSProp and shared RMSProp by their sorted scores. Here it is CartPole-v1 with two `hogwild`
workers, the same 50 pairs for every method and optimiser, and nothing but rate and optimiser changed. The score of a
run is the mean return of 100 greedy episodes of its final policy; of one given up, 0.

Runs are kept one by one: `--only a3c/shared` measures one part, a stopped one goes on. `band_octaves` is the width of
the longest range of drawn rates in which every run passes the bar. `collapsed` counts runs that lost what they had
learned: the mean of 100 training episodes was once twice that of random actions, and the final policy scores less than
half the best such mean. Exploration lowers those means, so a loss is surely one, and small ones are not seen.
"""

from __future__ import annotations

import argparse
import functools
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import _common
import _greedy
import _seeds
import numpy as np

METHODS = {"async_q": 195.0, "async_sarsa": 195.0, "async_nstep_q": 475.0, "a3c": 475.0}  # bar: mean of 100 episodes
OPTIMISERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # settings of the optimiser and of the runtime
    "momentum": ({"rule": "momentum"}, {"statistics": "worker"}),
    "rmsprop": ({"rule": "rmsprop"}, {"statistics": "worker"}),
    "shared": ({"rule": "rmsprop"}, {"statistics": "shared"}),
}
PAIRS, QUICK_PAIRS = 50, 2
STEPS, QUICK_STEPS = 100_000, 5_000
LOWEST, HIGHEST = 1e-4, 1e-2  # of the learning rates
RANDOM = 22.0  # mean return of random actions
PARTS = {f"{method}/{optimiser}": (method, optimiser) for method in METHODS for optimiser in OPTIMISERS}
QUICK = ("a3c/momentum", "a3c/rmsprop", "a3c/shared")
MEASURED = ("rates", "scores", "solved_fraction", "band_octaves", "collapsed", "mean_score", "area")
KEYS = (
    *(f"methods.*.*.{key}" for key in (*MEASURED, "less_than_shared", "less_than_shared_interval")),
    *(f"parts.*.{key}" for key in ("complete", "of", "steps", "bar", "runs")),
)
FIGURE = _common.ROOT / "docs" / "images" / "robustness.svg"


def main() -> None:
    """Measure what is missing, and print the record."""
    arguments = _seeds.arguments(__doc__, list(PARTS)).parse_args()
    pairs = min(arguments.seeds or PAIRS, PAIRS)
    pairs = QUICK_PAIRS if arguments.quick else pairs
    steps = QUICK_STEPS if arguments.quick else STEPS
    wanted = [arguments.only] if arguments.only else list(QUICK if arguments.quick else PARTS)
    claims = {part: {"steps": steps, "bar": METHODS[method]} for part, (method, _) in PARTS.items()}
    kept = _seeds.earlier(arguments, claims, wanted)
    made = functools.partial(_made, arguments, kept, pairs, steps)
    _seeds.gather(arguments, kept, dict.fromkeys(wanted, pairs), functools.partial(run, steps=steps), made)
    found = made()
    if not arguments.quick:
        draw(found["results"]["methods"], FIGURE)
    _common.finish(arguments, found)


def rates() -> list[float]:
    """The learning rates ``[PAIRS]``: pair i is the i-th with seed i."""
    drawn = np.random.default_rng(0).uniform(math.log(LOWEST), math.log(HIGHEST), PAIRS)
    return [float(f"{rate:.4g}") for rate in np.exp(drawn)]


def run(part: str, pair: int, steps: int) -> dict[str, Any]:
    """One pair; in this process, but for its workers: hundreds of start-ups of an interpreter take their time."""
    import shoal
    from shoal.core import errors

    method, optimiser = PARTS[part]
    rule, runtime = OPTIMISERS[optimiser]
    rate = rates()[pair]
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        try:
            trained = shoal.train(
                *(method, "CartPole-v1"),
                steps=steps,
                seed=pair,
                workers=2,
                out=Path(folder) / "run",
                quiet=True,
                optimiser={**rule, "learning_rate": rate},
                runtime={"name": "hogwild", **runtime},
                eval_episodes=0,
            )
        except errors.GaveUp:  # its gradients were not finite
            return {"rate": rate, "status": "failed", "score": None, "best": None, "train_s": None}
    done = trained.summary
    if done["status"] == "interrupted":  # the run heard the signal that was meant for all of this
        raise KeyboardInterrupt
    return {
        "rate": rate,
        "status": done["status"],
        "score": _greedy.judge(method)(trained.policy.params),
        "best": done["best_return_mean"],
        "train_s": done["train_s"],
    }


def _made(arguments: argparse.Namespace, kept: Mapping[str, _seeds.Runs], pairs: int, steps: int) -> dict[str, Any]:
    """The record of what is there so far."""
    return _common.record("robustness", arguments, conclude(kept, pairs, steps))


def conclude(kept: Mapping[str, _seeds.Runs], pairs: int, steps: int) -> dict[str, Any]:
    """The numbers of every method and optimiser.

    Args:
        kept: Part -> pair -> run.
        pairs: How many there are to be.
        steps: Environment steps of a run.
    """
    methods: dict[str, Any] = {}
    for method, bar in METHODS.items():
        mine = {name: kept[f"{method}/{name}"] for name in OPTIMISERS}
        methods[method] = {name: one(runs, bar) | against(runs, mine["shared"]) for name, runs in mine.items()}
    parts = {
        name: {
            "complete": len(kept[name]) >= pairs,
            "of": len(kept[name]),
            "steps": steps,
            "bar": METHODS[method],
            "runs": _seeds.in_order(kept[name]),
        }
        for name, (method, _) in PARTS.items()
    }
    return {"methods": methods, "parts": parts}


def one(runs: _seeds.Runs, bar: float) -> dict[str, Any]:
    """The numbers of one method with one optimiser; a run that failed scores 0."""
    if not runs:
        return {"rates": [], "scores": [], **dict.fromkeys(MEASURED[2:])}
    ordered = sorted(runs.values(), key=lambda run: run["rate"])
    rates, scores = [run["rate"] for run in ordered], [_score(run) for run in ordered]
    passed = [score >= bar for score in scores]
    fallen = [run for run in ordered if (run["best"] or 0.0) >= 2 * RANDOM and _score(run) < run["best"] / 2]
    return {
        "rates": rates,
        "scores": scores,
        "solved_fraction": sum(passed) / len(passed),
        "band_octaves": band(rates, passed),
        "collapsed": len(fallen),
        "mean_score": float(np.mean(scores)),
        "area": float(np.sum(scores)),  # under the scores sorted, a run apart
    }


def band(rates: Sequence[float], passed: Sequence[bool]) -> float:
    """Octaves between the ends of the longest range of rates, ascending, in which every run passed."""
    widest, first = 0.0, None
    for rate, good in zip(rates, passed, strict=True):
        first = (rate if first is None else first) if good else None
        widest = max(widest, math.log2(rate / first)) if first else widest
    return widest


def against(runs: _seeds.Runs, shared: _seeds.Runs) -> dict[str, Any]:
    """By how much the mean score is less than with shared RMSProp, of the pairs both have; bootstrap over the pairs."""
    both = [pair for pair in runs if pair in shared]
    less = np.array([_score(shared[pair]) - _score(runs[pair]) for pair in both])
    if len(less) < 2:
        return {"less_than_shared": None, "less_than_shared_interval": None}
    drawn = less[np.random.default_rng(0).integers(len(less), size=(2000, len(less)))].mean(axis=1)
    bounds = np.percentile(drawn, [2.5, 97.5])
    return {"less_than_shared": float(less.mean()), "less_than_shared_interval": [float(bound) for bound in bounds]}


def _score(run: Mapping[str, Any]) -> float:
    return 0.0 if run["score"] is None else float(run["score"])


def draw(methods: Mapping[str, Any], out: Path) -> None:
    """The figure of the documentation: scores over rates, and sorted, one row a method."""
    import matplotlib
    from matplotlib import figure

    from shoal.report import picture

    hues = dict(zip(("shared", "rmsprop", "momentum"), picture.HUES, strict=False))
    marks = {"shared": "o", "rmsprop": "^", "momentum": "x"}
    drawn = figure.Figure(figsize=(8.6, 9.2), layout="constrained")
    grid = drawn.subplots(len(METHODS), 2, sharey=True, sharex="col")
    for (method, bar), (scattered, ranked) in zip(METHODS.items(), grid, strict=True):
        for name, hue in hues.items():
            found = methods[method][name]
            scattered.plot(
                found["rates"], found["scores"], marks[name], color=hue, markersize=4, alpha=0.85, label=name
            )
            ranked.plot(sorted(found["scores"], reverse=True), color=hue, label=name)
        for axes in (scattered, ranked):
            axes.axhline(bar, color="#59636e", linewidth=0.8, linestyle=":")
            axes.spines[["top", "right"]].set_visible(False)
        scattered.set(xscale="log", ylim=(0, 515))
        scattered.set_ylabel(f"{method}\nscore")
    grid[-1][0].set_xlabel("learning rate")
    grid[-1][1].set_xlabel("runs, best first")
    grid[0][1].legend(frameon=False, loc="upper right")
    out.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "shoal"}):
        drawn.savefig(out, dpi=160, metadata={"Date": None} if out.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
