"""What every benchmark shares: arguments, alternating repeats, medians with their spread, and the JSON record."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal.runs import run_folder

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("shoal-rl", "jax", "jaxlib", "flax", "optax", "numpy", "gymnasium", "gymnax")
SHORT = ("--eval-episodes", 0)  # for runs of which only the training is timed


def parser(doc: str) -> argparse.ArgumentParser:
    """The arguments every benchmark takes.

    Args:
        doc: The script's docstring; its first line is the description.
    """
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument("--json", type=Path, help="write the record to this file as well as to stdout")
    made.add_argument("--quick", action="store_true", help="fewer repeats and shorter runs: a look, not a claim")
    return made


def say(message: str) -> None:
    """Tell a person what is going on; stdout is for the record."""
    print(message, file=sys.stderr, flush=True)


def alternate(sides: Mapping[str, Callable[[], float | None]], repeats: int) -> dict[str, list[float]]:
    """Measure every side once a round, so that a slow minute of the machine meets all of them.

    Args:
        sides: Name -> one measurement; None when it failed, and the side is given up.
        repeats: Rounds.

    Returns:
        Name -> one value a round; none at all for a side that failed.
    """
    values: dict[str, list[float]] = {name: [] for name in sides}
    failed = set()
    for turn in range(repeats):
        for name in [name for name in sides if name not in failed]:
            value = sides[name]()
            if value is None:
                failed.add(name)
            else:
                values[name].append(value)
                say(f"round {turn + 1} of {repeats}  {name:40} {value:,.1f}")
    return {name: [] if name in failed else measured for name, measured in values.items()}


def spread(key: str, values: Sequence[float]) -> dict[str, Any]:
    """The median under `key`, and `key`_min, `key`_max, `key`_repeats; null where nothing was measured."""
    measured = list(values)
    return {
        key: statistics.median(measured) if measured else None,
        f"{key}_min": min(measured, default=None),
        f"{key}_max": max(measured, default=None),
        f"{key}_repeats": measured,
    }


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Ratios round by round: what slows a whole round down cancels. Empty if a side was not measured."""
    return [a / b for a, b in zip(above, below, strict=True)] if above and below else []


def shoal(*words: Any, cache: str | None = None) -> tuple[str, float]:
    """Run Shoal's command line.

    Args:
        words: The words after ``shoal``.
        cache: Folder of the compilation cache; None for the user's own.

    Returns:
        (what it wrote to stdout, seconds from start to end).

    Raises:
        RuntimeError: It ended with another exit code than 0; holds the end of what it said.
    """
    command = [sys.executable, "-m", "shoal", *map(str, words)]
    found = [str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]  # wrappers by name (`_slow`)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(found)} | ({"SHOAL_CACHE_DIR": cache} if cache else {})
    began = time.perf_counter()
    with _ending():
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout, seconds


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    """SIGTERM raises in here, so that what is being run ends with the benchmark instead of training on alone."""
    if threading.current_thread() is not threading.main_thread():  # Python hears signals there alone
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def train(preset: str, *words: Any, cache: str | None = None) -> dict[str, Any]:
    """Run `shoal train PRESET ... --json` in a folder of its own, which is removed.

    Returns:
        The summary, with `command_s` (seconds from start to end of the command) and `config` (the resolved one).
    """
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        run = Path(folder) / "run"
        out, seconds = shoal("train", preset, *words, "--out", run, "--json", cache=cache)
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    return json.loads(out) | {"command_s": seconds, "config": config}


def record(
    name: str, arguments: argparse.Namespace, results: Any, peers: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Everything that makes a number a claim.

    Args:
        name: Of the benchmark.
        arguments: As parsed.
        results: The numbers.
        peers: Peer -> its versions, or the error that kept it from being measured.
    """
    return {
        "bench": name,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": _command(name, arguments),
        "machine": machine(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "peers": dict(peers or {}),
        "quick": arguments.quick,
        "results": results,
    }


def save(path: Path, made: Mapping[str, Any]) -> None:
    """Write a record so that a reader sees the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(made, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)


def finish(arguments: argparse.Namespace, made: Mapping[str, Any]) -> None:
    """Print the record, last on stdout, and keep it where `--json` says."""
    if arguments.json:
        save(arguments.json, made)
    print(json.dumps(made, allow_nan=False), flush=True)


def commit() -> str | None:
    """The commit measured, `-changed` added when the code differs from it; None outside a checkout."""
    head = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    outside = (":!benchmarks/results", ":!benchmarks/README.md", ":!README.md")  # what measuring itself writes
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--", ".", *outside)
    return f"{head}-changed" if head and changed else head


def machine() -> dict[str, Any]:
    """What it was measured on."""
    accelerator = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return run_folder.machine() | {"accelerator": accelerator or "none"}


def _command(name: str, arguments: argparse.Namespace) -> str:
    words = [f"shoal bench {name}"]
    for key, value in vars(arguments).items():
        if key == "json" or value in (None, False):
            continue
        option, each = f"--{key.replace('_', '-')}", value if isinstance(value, list) else [value]
        shown = ["DIR" if isinstance(one, Path) else str(one) for one in each]
        words.append(option if value is True else " ".join([option, *shown]))
    return " ".join(words)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    if not shutil.which(command[0]):
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None if done.returncode == 0 else None
