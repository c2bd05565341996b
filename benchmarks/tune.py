"""Searches with equal budgets, and whether what they find holds: each winner beside the default on fresh seeds.

`shoal tune` with every method, as a person types it: default priors, two cores, one process. What counts is not the
score that won, which was chosen for being high, but the winner trained anew on seeds 0 to 9, beside the preset's own
settings on the same seeds and for as many steps. Methods that were searched go on with what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import _common

PRESET, ENV = "a2c", "gymnax:Acrobot-v1"  # for which it is not tuned: its general settings learn nothing
BUDGET, STEPS, SEEDS = 4_000_000, 100_000, 10
METHODS: dict[str, tuple[Any, ...]] = {
    "tpe": ("--trial-steps", STEPS),
    "pbt": ("--members", BUDGET // STEPS - 8),
    "random": ("--trial-steps", STEPS),
    "halving": ("--trial-steps", STEPS),
}
QUICK = {"pbt": ("--members", 4), "random": ("--trial-steps", 10_000)}
KEYS = (
    *(f"methods.*.{key}" for key in ("score", "search_s", "env_steps", "difference", "difference_low", "settings")),
    *(f"methods.*.{side}.iqm" for side in ("best", "default")),
)


def main() -> None:
    """Search with what is missing, and print the record."""
    parser = _common.parser(__doc__)
    parser.add_argument("--only", choices=METHODS, help="this method alone")
    arguments = parser.parse_args()
    kept = earlier(arguments)
    for method in [arguments.only] if arguments.only else QUICK if arguments.quick else METHODS:
        if method not in kept:
            kept[method] = run(method, quick=arguments.quick)
            _common.say(f"{method}: {kept[method]}")
            if arguments.json:
                _common.save(arguments.json, record(arguments, kept))
    _common.finish(arguments, record(arguments, kept))


def earlier(arguments: argparse.Namespace) -> dict[str, Any]:
    """The methods already in the JSON, of the same task."""
    if arguments.quick or not (arguments.json and arguments.json.exists()):
        return {}
    results = json.loads(arguments.json.read_text(encoding="utf-8"))["results"]
    return dict(results["methods"]) if results["task"] == task(quick=False) else {}


def task(*, quick: bool) -> dict[str, Any]:
    """What is searched."""
    budget, steps, seeds = (40_000, 10_000, 2) if quick else (BUDGET, STEPS, SEEDS)
    return {"preset": PRESET, "env": ENV, "budget": budget, "steps": steps, "seeds": seeds}


def run(method: str, *, quick: bool) -> dict[str, Any]:
    """One search and its confirmation."""
    what = task(quick=quick)
    words = ("tune", PRESET, "--env", ENV, "--method", method, "--budget", what["budget"], "--confirm", what["seeds"],
        *(QUICK if quick else METHODS)[method])  # fmt: skip
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        out, seconds = _common.shoal(*words, "--out", Path(folder) / "tune", "--json")
    return told(json.loads(out)) | {
        "commit": _common.commit(),
        "command": "shoal " + " ".join(map(str, words)),
        "command_s": seconds,
        "load": (before + os.getloadavg()[1]) / 2,
    }


def told(summary: dict[str, Any]) -> dict[str, Any]:
    """Of a summary, what the record holds."""
    confirm = summary["confirm"]
    within = confirm["difference"]["interval"] or (None, None)
    return {
        "trials": summary["trials"],
        "failed": summary["failed"],
        "score": summary["best"]["score"],
        "settings": summary["best"]["settings"],
        "default_score": summary["default_score"],
        "env_steps": summary["env_steps"],
        "search_s": summary["search_s"],
        "best": confirm["best"],
        "default": confirm["default"],
        "schedule": confirm.get("schedule"),
        "difference": confirm["difference"]["iqm"],
        "difference_low": within[0],
        "difference_high": within[1],
        "verdict": confirm["verdict"],
    }


def record(arguments: argparse.Namespace, kept: dict[str, Any]) -> dict[str, Any]:
    """What is there so far."""
    ordered = {name: kept[name] for name in METHODS if name in kept}
    return _common.record("tune", arguments, {"task": task(quick=arguments.quick), "methods": ordered})


if __name__ == "__main__":
    main()
