"""Benchmarks of learning: the runs of every part are kept one by one, so that a stopped measurement goes on.

A kept run counts only if its part still makes the same claim and, where the part is being measured, if the commit is
still the same (`--any-commit` goes on regardless; every run tells its own).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import _common

Runs = dict[str, dict[str, Any]]  # seed -> run


def arguments(doc: str, parts: Sequence[str]) -> argparse.ArgumentParser:
    """The arguments of such a benchmark.

    Args:
        doc: The script's docstring.
        parts: Names of what can be measured alone.
    """
    parser = _common.parser(doc)
    parser.add_argument("--only", choices=sorted(parts), metavar="PART", help="this part only: " + ", ".join(parts))
    parser.add_argument("--seeds", type=int, help="seeds 0 to K-1")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there already")
    parser.add_argument("--any-commit", action="store_true", help="go on even though the code has changed")
    return parser


def gather(
    given: argparse.Namespace,
    kept: dict[str, Runs],
    wanted: Mapping[str, int],
    run: Callable[[str, int], dict[str, Any]],
    made: Callable[[], Mapping[str, Any]],
) -> None:
    """Measure what is missing, and save after every run.

    Args:
        given: The arguments.
        kept: Part -> its runs; new ones are added.
        wanted: Part -> how many seeds.
        run: Measures one seed of one part.
        made: The record of what is there so far.
    """
    for name, seeds in wanted.items():
        for seed in range(seeds):
            if str(seed) not in kept[name]:
                kept[name][str(seed)] = run(name, seed) | {"commit": _common.commit()}
                _common.say(f"{name} seed {seed}: {kept[name][str(seed)]}")
                if given.json:
                    _common.save(given.json, made())


def earlier(
    given: argparse.Namespace, claims: Mapping[str, Mapping[str, Any]], wanted: Sequence[str]
) -> dict[str, Runs]:
    """The runs already in the JSON: part -> seed -> run. Of the wanted parts, only those of this very code.

    Args:
        given: The arguments.
        claims: Part -> what a kept part must equal to be the same claim.
        wanted: Parts to be measured.
    """
    kept: dict[str, Runs] = {name: {} for name in claims}
    if not (given.json and given.json.exists()):
        return kept
    commit = _common.commit()
    parts = json.loads(given.json.read_text(encoding="utf-8"))["results"]["parts"]
    for name, claim in claims.items():
        if name in parts and all(parts[name].get(key) == value for key, value in claim.items()):
            runs = parts[name]["runs"]
            usable = {seed: one for seed, one in runs.items() if given.any_commit or one["commit"] == commit}
            kept[name] = runs if name not in wanted else {} if given.fresh else usable
    return kept


def in_order(runs: Runs) -> Runs:
    """The runs by seed."""
    return dict(sorted(runs.items(), key=lambda item: int(item[0])))
