"""Reads run folders: files only, no part of the framework is needed to look at a run.

A run may be going, interrupted, or killed in the middle of a line: what can be read is read, what cannot is counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from shoal.core import errors

SCHEMA = 2
EPISODE_COLUMNS = ("env_steps", "episode_return", "wall_s", "worker")
EVALUATION_COLUMNS = ("env_steps", "return_mean", "return_std", "wall_s")
CONTENTS = "a run folder holds config.json, metrics.jsonl, episodes.csv and, once finished, summary.json"

# Summary key -> the metrics column that stands in for it while there is no summary, and how it is reduced.
STAND_INS = {
    "env_steps": ("step", "last"),
    "wall_s": ("wall_s", "last"),
    "env_steps_per_s": ("env_steps_per_s", "last"),
    "return_mean": ("return_mean", "last"),
    "peak_rss_mb": ("rss_mb", "max"),
}


class Run(NamedTuple):
    """One run folder, read."""

    path: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]  # {} while the run is going, or when it was killed
    metrics: Mapping[str, np.ndarray]  # column -> [rows]; NaN where a row has no number
    episodes: Mapping[str, np.ndarray]  # EPISODE_COLUMNS -> [episodes], in the order of env_steps
    damaged: int  # lines that could not be read
    evaluations: Mapping[str, np.ndarray] = MappingProxyType({})  # EVALUATION_COLUMNS -> [evaluations], on the way

    @property
    def preset(self) -> str:
        """The preset's name."""
        return str(self.config["preset"])

    @property
    def env(self) -> str:
        """The environment id as typed."""
        return str(self.config["env"])

    @property
    def seed(self) -> Any:
        """The run's seed, None if it was not written."""
        return self.config.get("seed")

    @property
    def status(self) -> str:
        """``completed``, ``interrupted`` or ``failed``; ``unfinished`` when there is no summary."""
        return str(self.summary.get("status") or "unfinished")

    @property
    def goal(self) -> float | None:
        """The return at which the run counts as solved."""
        given = self.summary.get("goal") or self.config.get("goal")
        return number(given.get("target") if isinstance(given, Mapping) else given)

    @property
    def workers(self) -> int | None:
        """How many workers acted, None where there are none or it was not written."""
        given = self.summary.get("workers")
        if isinstance(given, Mapping):
            given = given.get("of", given.get("count"))
        if number(given) is None:
            given = _nested(self.config, "parts", "runtime", "workers")
        count = number(given)
        return None if count is None else int(count)

    @property
    def parties(self) -> int:
        """Owners that trained together, each for an equal share of the environment steps; 1: it is no federation.

        A learner that meets all owners of a set has a share for each of them too.
        """
        given = _nested(self.summary, "federation", "parties")
        runtime = _nested(self.config, "parts", "runtime", "parties")
        if runtime is None and "/" not in self.env:
            runtime = _nested(self.config, "parts", "environment", "parties")
        found = len(given) if isinstance(given, list) else number(runtime)
        return max(1, int(found or 1))

    @property
    def lags(self) -> dict[str, float]:
        """Gradients applied, by the versions that passed since their parameters were read; {} if nobody counted."""
        given = _nested(self.summary, "workers", "lag_histogram")
        counts = given.items() if isinstance(given, Mapping) else ()
        return {str(label): value for label, count in counts if (value := number(count)) is not None}

    @property
    def restarts(self) -> float | None:
        """How often a worker was started again, None if nobody counted."""
        counted = number(_nested(self.summary, "faults", "restarts"))
        return self.latest("restarts") if counted is None else counted

    @property
    def faults(self) -> dict[str, float]:
        """Everything that went wrong and was mended, by kind; only kinds that happened."""
        given = self.summary.get("faults")
        counts = {"restarts": self.restarts, **(given if isinstance(given, Mapping) else {})}
        return {str(kind): value for kind, count in counts.items() if (value := number(count))}

    def resumed(self, axis: str) -> np.ndarray:
        """Where it was resumed, ``[resumes]``: what a metrics column held in the last line before each.

        Args:
            axis: The column.
        """
        life = np.nan_to_num(self.metrics.get("life", np.zeros(0)))  # the first life does not say
        return self.metrics[axis][np.flatnonzero(np.diff(life) > 0)] if len(life) else life

    def value(self, key: str) -> float | None:
        """A number of the summary; without a summary, the latest one of the metrics. None: not measured."""
        if self.summary:
            return number(self.summary.get(key))
        column, how = STAND_INS.get(key, ("", ""))
        return _reduced(self.metrics.get(column), how)

    def inner(self, *keys: str) -> Any:
        """What stands inside the summary's objects, e.g. ``inner("actor", "engine")``; None: nothing."""
        return _nested(self.summary, *keys)

    def latest(self, column: str) -> float | None:
        """The last number of a metrics column. None: never measured."""
        return _reduced(self.metrics.get(column), "last")


def number(value: Any) -> float | None:
    """`value` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _nested(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _reduced(column: np.ndarray | None, how: str) -> float | None:
    finite = column[np.isfinite(column)] if column is not None else np.zeros(0)
    if not len(finite):
        return None
    return float(finite.max() if how == "max" else finite[-1])


def read_all(paths: Sequence[Path]) -> list[Run]:
    """Every run folder once, in the order given; that of several seeds, or of a comparison, stands for those inside.

    Raises:
        errors.Refused: No folder was given, or one of them is not a run folder.
    """
    if not paths:
        raise errors.Refused(f"no run folder was given; {CONTENTS}: name one or more, e.g. shoal report runs/*")
    every = [one for path in map(Path, paths) for one in _members(path)]
    return [read(path) for path in {path.resolve(): path for path in every}.values()]


def _members(path: Path) -> list[Path]:
    config = (_object(path / "config.json") or {}) if path.is_dir() else {}
    seeds, compared = config.get("seeds"), config.get("comparison")
    if not isinstance(seeds, list) or not seeds:
        return [path]
    if not isinstance(compared, list):
        return [path / f"seed-{seed}" for seed in seeds]
    begun = [path / str(name) / f"seed-{seed}" for name in compared for seed in seeds]
    return [place for place in begun if (place / "config.json").exists()] or [path]


def read(path: Path) -> Run:
    """Read one run folder.

    Args:
        path: The folder.

    Returns:
        The run, with whatever could be read of its metrics, episodes and summary.

    Raises:
        errors.Refused: The folder is missing, is not a run folder, or is of a newer schema.
    """
    config = _config(path)
    rows, bad_rows = _metrics(path / "metrics.jsonl")
    episodes, bad_episodes = _columns(path / "episodes.csv", EPISODE_COLUMNS)
    evaluations, bad_evaluations = _columns(path / "evaluations.csv", EVALUATION_COLUMNS)
    damaged = bad_rows + bad_episodes + bad_evaluations
    return Run(path, config, _object(path / "summary.json") or {}, rows, episodes, damaged, evaluations)


def _config(path: Path) -> Mapping[str, Any]:
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise errors.Refused(f"{str(path)!r} {what}; {CONTENTS}: give the folder that `shoal train` printed")
    config = _object(path / "config.json")
    if config is None or "preset" not in config or "env" not in config:
        what = "has no config.json" if not (path / "config.json").exists() else "has a config.json that is not a run's"
        raise errors.Refused(f"{str(path)!r} {what}; {CONTENTS}: give the folder that `shoal train` printed")
    schema = number(config.get("schema", SCHEMA))
    if schema is None or schema > SCHEMA:
        raise errors.Refused(
            f"{str(path)!r} has schema {config.get('schema')!r}; this Shoal reads up to {SCHEMA}: upgrade shoal-rl"
        )
    return config


def _object(path: Path) -> Mapping[str, Any] | None:
    """A JSON object; None when the file is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):  # ValueError: not JSON, or not UTF-8
        return None
    return content if isinstance(content, dict) else None


def _lines(path: Path) -> tuple[list[str], int]:
    """The complete lines, and how many were cut off: a number without its line's end may lack digits."""
    if not path.exists():
        return [], 0
    content, _, tail = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
    return content.splitlines() if content else [], int(bool(tail))


def _metrics(path: Path) -> tuple[Mapping[str, np.ndarray], int]:
    lines, damaged = _lines(path)
    rows: list[dict[str, Any]] = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and number(row.get("step")) is not None:
            rows.append(row)
        else:
            damaged += 1
    if not rows:
        return {}, damaged
    names = {name: None for row in rows for name in row}
    missing = math.nan
    columns = {
        name: np.array([missing if (v := number(row.get(name))) is None else v for row in rows]) for name in names
    }
    # A run resumed from a checkpoint repeats the steps after it: the second account is the one that counts.
    step = columns["step"]
    kept = np.append(step[:-1] < np.minimum.accumulate(step[:0:-1])[::-1], True)
    return {name: column[kept].astype(float) for name, column in columns.items()}, damaged


def _columns(path: Path, columns: Sequence[str]) -> tuple[Mapping[str, np.ndarray], int]:
    """The columns of a CSV file in the order of steps; the first two are needed. And how many lines were damaged."""
    lines, damaged = _lines(path)
    header = [name.strip() for name in lines[0].split(",")] if lines else []
    wanted = [name for name in columns if name in header]
    places = [header.index(name) for name in wanted]
    rows, bad = _table(lines[1:], places, len(header)) if {*columns[:2]} <= {*wanted} else ([], 0)
    table = np.reshape(rows, (-1, len(wanted))) if len(rows) else np.zeros((0, len(wanted)))
    table = table[np.isfinite(table).all(axis=1)]
    table = table[np.argsort(table[:, wanted.index("env_steps")], kind="stable")] if len(table) else table
    found = {name: table[:, i] for i, name in enumerate(wanted)}
    return {name: found.get(name, np.full(len(table), np.nan)) for name in columns}, damaged + bad


def _table(lines: Sequence[str], places: Sequence[int], width: int) -> tuple[Any, int]:
    """The wanted columns, and how many lines were left out; only a damaged file takes the slow way."""
    if not lines:
        return [], 0
    try:
        return np.loadtxt(lines, delimiter=",", usecols=places, ndmin=2, comments=None), 0
    except ValueError:
        rows = [row for row in (_floats(line, places, width) for line in lines) if row is not None]
        return rows, len(lines) - len(rows)


def _floats(line: str, places: Iterable[int], width: int) -> list[float] | None:
    cells = line.split(",")
    try:
        return [float(cells[place]) for place in places] if len(cells) == width else None
    except ValueError:
        return None
