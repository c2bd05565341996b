"""Finished runs, trained once in a session of tests whatever the number of its processes.

For tests that read a run, not for those of training: ``finished("a2c", "--env", "probe:match", "--steps", 320)`` is a
run folder that nobody may change (``shutil.copytree`` it first), and what the command printed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from shoal.command import cli


class Finished(NamedTuple):
    """A completed run."""

    folder: Path
    told: dict[str, Any]  # the object that ``--json`` printed


def store(folder: Path) -> Callable[..., Finished]:
    """A function of what is typed after ``shoal train``, its evaluation of no episodes apart.

    Args:
        folder: Where runs are kept; several processes may share it.
    """

    def finished(*typed: object) -> Finished:
        words = [str(word) for word in typed]
        place = folder / hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]
        place.mkdir(parents=True, exist_ok=True)
        printed = place / "printed.json"
        with open(place / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be training it
            if not printed.exists():
                printed.write_text(_train(words, place / "run"))
        return Finished(place / "run", json.loads(printed.read_text()))

    return finished


def _train(words: list[str], out: Path) -> str:
    """Train to the end inside this process; what it printed."""
    said, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        code = cli.main(["train", *words, "--out", str(out), "--eval-episodes", "0", "--json"])
    assert code == 0, errors.getvalue()
    return said.getvalue()
