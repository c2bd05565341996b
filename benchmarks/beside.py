"""This tree beside another commit of it, alternating: whether a change made anything slower.

Both run with the same interpreter and packages. `ratio` is this tree's speed over the other's, round by round, so
above 1 is faster here; of `help` it is the other's seconds over ours. Training is timed without start-up and
compilation. The other commit is checked out into a folder of its own, which is removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _common

CASES: dict[str, tuple[Any, ...]] = {  # name -> words after `shoal train`; none for the time of `--help`
    "hogwild_1": ("a3c", "--env", "CartPole-v1", "--workers", 1, "--steps", 150_000),
    "hogwild_2": ("a3c", "--env", "CartPole-v1", "--workers", 2, "--steps", 300_000),
    "hogwild_2_segments_of_32": (
        *("a3c", "--env", "CartPole-v1", "--workers", 2, "--steps", 300_000),
        *("--algorithm.rollout-length", 32),
    ),
    "ppo_on_device": ("ppo", "--env", "gymnax:CartPole-v1", "--runtime", "on_device", "--steps", 3_000_000),
    "dqn_on_device": ("dqn", "--env", "gymnax:CartPole-v1", "--runtime", "on_device", "--steps", 200_000),
    "sac_on_device": ("sac", "--env", "gymnax:Pendulum-v1", "--runtime", "on_device", "--steps", 6_000),
    "a2c_host": ("a2c", "--env", "CartPole-v1", "--runtime", "host", "--steps", 150_000),
    "help": (),
}
KEYS = ("cases.*.ratio", "cases.*.ratio_min", "cases.*.ratio_max")


def main() -> None:
    """Measure, and print the record."""
    parser = _common.parser(__doc__)
    parser.add_argument("--against", default="HEAD^", help="the other commit (HEAD^)")
    parser.add_argument("--only", choices=CASES, help="this case alone")
    arguments = parser.parse_args()
    repeats = 1 if arguments.quick else 5
    results: dict[str, Any] = {"against": _full_name(arguments.against), "cases": {}}
    with _checked_out(arguments.against) as other:
        for case in [arguments.only] if arguments.only else CASES:
            sides = _common.alternate(
                {f"{case} {side}": lambda case=case, tree=tree: measure(case, tree, arguments.quick)
                 for side, tree in (("here", _common.ROOT), ("there", other))},
                repeats,
            )  # fmt: skip
            here, there = sides.values()
            results["cases"][case] = _common.spread("ratio", _common.ratios(here, there))
            results["cases"][case] |= _common.spread("here", here) | _common.spread("there", there)
    _common.finish(arguments, _common.record("beside", arguments, results))


def measure(case: str, tree: Path, quick: bool) -> float:
    """Environment steps a second of one run of `tree`, or how often a second it shows its help."""
    environment = os.environ | {"PYTHONPATH": str(tree)}
    words = [str(word) for word in CASES[case]]
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        if words:
            if quick:
                words[words.index("--steps") + 1] = str(int(words[words.index("--steps") + 1]) // 10)
            words = ["train", *words, "--seed", "0", "--eval-episodes", "0", "--json", "--out", f"{folder}/run"]
        began = time.perf_counter()
        command = [sys.executable, "-m", "shoal", *(words or ["--help"])]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{case} of {tree} ended with {done.returncode}: {done.stderr[-2000:]}")
    if not words:
        return 1 / seconds
    told = json.loads(done.stdout)
    return float(told["env_steps"]) / float(told["train_s"])


@contextlib.contextmanager
def _checked_out(commit: str) -> Iterator[Path]:
    git = ("git", "-C", str(_common.ROOT), "worktree")
    with tempfile.TemporaryDirectory(prefix="shoal-beside-") as folder:
        tree = Path(folder) / "tree"
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=False)


def _full_name(commit: str) -> str:
    command = ["git", "-C", str(_common.ROOT), "rev-parse", "--short=12", commit]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
