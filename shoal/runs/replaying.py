"""`shoal replay RUN`: whether the recorded order of a run leads to the same parameters once more."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from etils import epy

from shoal import environments, experiment
from shoal.core import errors, types
from shoal.monitor import asynchrony
from shoal.runs import origin, repeated, run_folder

with epy.lazy_imports():
    import numpy as np


class Replayed(NamedTuple):
    """What came of it."""

    run: str
    equal: bool  # wherever it could be compared
    tickets: int  # done
    updates: int  # of those, gradients applied
    compared: int  # checkpoints, and the end if its parameters are known
    first_difference: int | None  # tickets at the first of these that differs
    params_sha256: str  # at the last of these
    expected_sha256: str
    same_machine: bool  # as far as versions and processor tell
    seconds: float
    what: str = "ticket"  # what is counted: tickets of workers, or exchanges of a population


def replay(folder: Path, say: Callable[[str], None]) -> Replayed:
    """Do the record of a run again, one ticket after the other, and compare.

    Args:
        folder: The run folder.
        say: Told what is going on.

    Raises:
        Refused: Not a run folder, not the run of a replayable kind, or nothing to compare with.
    """
    config = run_folder.read_config(folder)
    if "seeds" in config or "comparison" in config:
        raise errors.Refused(f"{folder} holds several runs; give the folder of one")
    made = run_folder.unedited(folder, config)
    settings = made.configs["runtime"]
    how = experiment.ways(made.runtime, settings)
    if how.repeats:
        same = _told_about(config, say)
        return Replayed(str(folder), **repeated.again(folder, made, say)._asdict(), same_machine=same, what="exchange")
    if not how.recordable:
        raise errors.Refused(f"{folder} {_unrecorded(made.runtime, how)}")
    if not how.records:
        raise errors.Refused(
            f"{folder} cannot be replayed: its workers applied without locks, which leaves no order to repeat; "
            "train with --replayable"
        )
    kept = asynchrony.read(folder)
    _check(folder, kept.record, settings.workers)
    expected = _expected(folder, kept)
    if not expected:
        raise errors.Refused(f"{folder} has no checkpoint yet to compare with; let it train on")
    same = _told_about(kept.about, say)
    opened = environments.open(made.env, made.configs["environment"])
    built = experiment.build(made, opened)
    if (start := origin.read(folder, made, built.parts.agent, say)) is not None:
        built = experiment.build(made, opened, start)
    record = kept.record.first(max(expected))
    began = time.monotonic()
    runtime: Any = built.runtime
    found = _run(runtime.replay(built.parts, made.seed, record, sorted(expected)), expected, record.tickets, say)
    different = [tickets for tickets in sorted(expected) if found.get(tickets) != expected[tickets]]
    last = max(expected)
    return Replayed(
        run=str(folder),
        equal=not different,
        tickets=record.tickets,
        updates=int(np.sum(record.flag == asynchrony.APPLIED)),
        compared=len(expected),
        first_difference=different[0] if different else None,
        params_sha256=found[last],
        expected_sha256=expected[last],
        same_machine=same,
        seconds=time.monotonic() - began,
    )


def _unrecorded(name: str, how: types.Ways) -> str:
    """Why a run of a runtime that records no order is not replayed, and what to do instead."""
    if how.races:
        return (
            f"cannot be replayed: its workers raced under {name}, and only hogwild records an order to replay; "
            f"what is trained with {how.races} repeats by its seed"
        )
    return f"ran under {name}, where no workers race: train again with its seed"


def _check(folder: Path, record: asynchrony.Record, workers: int) -> None:
    if record.tickets and int(record.worker.max()) >= workers:
        raise errors.Refused(
            f"{folder}/{asynchrony.FILE} names worker {int(record.worker.max())}, but the run has {workers}; restore it"
        )


def _expected(folder: Path, kept: asynchrony.Kept) -> dict[int, str]:
    """Tickets -> what the parameters were after them: at every checkpoint, and at the end."""
    expected = {mark.tickets: mark.sha256 for mark in kept.marks if mark.tickets <= kept.record.tickets}
    try:
        summary = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError):
        return expected
    # Of a run that was resumed and then killed, the summary is that of an earlier life.
    if summary.get("params_sha256") and summary.get("env_steps") == int(kept.record.steps.sum()):
        expected[kept.record.tickets] = summary["params_sha256"]
    return expected


def _told_about(about: Mapping[str, Any], say: Callable[[str], None]) -> bool:
    """Whether it is the same machine with the same versions; what is not is said."""
    now: dict[str, Any] = {"versions": run_folder.versions(), "machine": run_folder.machine()}
    pairs = {(name, "version"): (about["versions"].get(name), version) for name, version in now["versions"].items()}
    pairs["cpu", ""] = (about["machine"].get("cpu"), now["machine"]["cpu"])
    different = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    for (name, what), (then, here) in different.items():
        say(f"note: {name} {what} was {then} and is {here}: the same bits are not promised".replace("  ", " "))
    return not different


def _run(reached: Any, expected: Mapping[int, str], total: int, say: Callable[[str], None]) -> dict[int, str]:
    """Tickets -> what the parameters are now."""
    found: dict[int, str] = {}
    for tickets, sha256 in reached:
        if sha256 is not None:
            found[tickets] = sha256
            outcome = "equal" if sha256 == expected[tickets] else f"{sha256[:10]}, was {expected[tickets][:10]}"
            say(f"ticket {tickets:,} of {total:,}: {outcome}")
    return found
