"""A tune folder on the disk: ``config.json`` with what is searched, ``trials.json`` with what was found so far.

Beside them ``trials/0007/``, an ordinary run folder for each trial (of a population ``population/``), Optuna's journal,
``confirm/``, and at the end ``best.json``, ``summary.json`` and ``report.html``. Every JSON file is replaced in one
step, so a kill at any moment leaves what was told before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal import experiment
from shoal.core import errors, files
from shoal.runs import run_folder
from shoal.runs.tuning import plan as plans

TRIALS, BEST = "trials.json", "best.json"


def config(plan: plans.Plan, made: experiment.Experiment, typed: Mapping[str, Any], command: str) -> dict[str, Any]:
    """What ``config.json`` holds.

    Args:
        plan: What is done.
        made: The preset on its environment, without what is searched.
        typed: Settings by option name that a person gave: they hold for every trial, and for the default.
        command: How it was asked for.
    """
    data = {"tune": plan.to_json(), "experiment": made.to_json(), "settings": dict(typed)}
    return {
        "schema": experiment.SCHEMA,
        **data,
        "preset": made.preset,
        "env": made.env,
        "tune_sha256": _digest(data),
        "command": command,
        "versions": run_folder.versions(),
        "machine": run_folder.machine(),
    }


def is_one(folder: Path) -> bool:
    """Whether a folder is a search's; False also for what is no folder."""
    try:
        return "tune" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, TypeError):
        return False


def read(folder: Path) -> dict[str, Any]:
    """``config.json`` of a tune folder that is as it was written.

    Raises:
        Refused: It was edited, or is no tune folder.
    """
    found = run_folder.read_config(folder)
    data = {key: found.get(key) for key in ("tune", "experiment", "settings")}
    if found.get("tune_sha256") != _digest(data):
        raise errors.Refused(f"{folder}/config.json was edited since the search began; restore it, or begin anew")
    return found


def same(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Refuse to go on with a search that was asked for differently.

    Raises:
        Refused: Names the first thing that differs.
    """
    before, now = read(folder), wanted
    for part in ("tune", "settings", "experiment"):  # in the words a person has typed, before what follows from them
        here, there = _flat(before[part]), _flat(json.loads(json.dumps(now[part])))
        for key in {**here, **there}:
            if here.get(key) != there.get(key):
                raise errors.Refused(
                    f"{folder} holds a search with {key}={here.get(key)}, not {there.get(key)}; "
                    f"`shoal resume {files.typed(folder)}` goes on with it, another --out begins a new one"
                )


def trials(folder: Path) -> list[dict[str, Any]]:
    """The rows of ``trials.json``, by number; none before the first."""
    try:
        found: list[dict[str, Any]] = json.loads((folder / TRIALS).read_text())["trials"]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise errors.Refused(f"{folder / TRIALS} cannot be read ({problem}); restore it, or begin anew") from None
    return sorted(found, key=lambda row: row["trial"])


def keep(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows of ``trials.json``."""
    run_folder.write_json(folder / TRIALS, {"trials": list(rows)})


def place(folder: Path, trial: int) -> Path:
    """The run folder of a trial."""
    return folder / "trials" / f"{trial:04d}"


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
