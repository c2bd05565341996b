"""Shoal run as a person runs it: in a process of its own, watched and interfered with from outside.

Every process of a run carries a mark in its environment, so that what it leaves behind is found whoever its parent is.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from shoal.command import cli

ROOT = Path(__file__).parents[2]
MARK = "SHOAL_TEST_RUN"
LONGEST = 90.0  # seconds any wait may take on a busy machine
ENDING = 5.0  # seconds in which a run's processes are gone once its parent is


class Ended(NamedTuple):
    """What a command left on the screen."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout; fails if there is anything else."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


def call(capsys: Any, *arguments: object) -> Ended:
    """One command inside this process: quick, since everything is imported already."""
    capsys.readouterr()
    code = cli.main([str(argument) for argument in arguments])
    return Ended(code, *capsys.readouterr())


def train(capsys: Any, out: Path, *arguments: object, evaluate: int = 0) -> dict[str, Any]:
    """Train to the end inside this process; the summary."""
    ended = call(capsys, "train", *arguments, "--out", out, "--eval-episodes", evaluate, "--json")
    assert ended.code == 0, ended.err
    return ended.json


class Process:
    """One command in a process of its own; killed with all its descendants when the block ends."""

    def __init__(self, *arguments: object, module: str = "shoal", **environment: object) -> None:
        self.mark = uuid.uuid4().hex
        given = {name: str(value) for name, value in environment.items()}
        inherited = {name: value for name, value in os.environ.items() if name != "SHOAL_PROGRAMS"}  # as a user's
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=ROOT,
            env={**inherited, MARK: self.mark, **given},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._err = ""

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for stream in (self._process.stdout, self._process.stderr):
            stream.close()
        self._process.wait(LONGEST)

    def signal(self, number: int) -> None:
        """What `kill` does: to the one process."""
        os.kill(self.pid, number)

    def ctrl_c(self) -> None:
        """What a terminal does: to all processes at once."""
        os.killpg(self.pid, signal.SIGINT)

    def ended(self) -> Ended:
        """Wait for the end."""
        out, err = self._process.communicate(timeout=LONGEST)
        return Ended(self._process.returncode, out, self._err + err)

    def says(self, text: str) -> None:
        """Wait until a line with `text` was written to stderr."""
        for line in self._process.stderr:
            self._err += line
            if text in line:
                return
        raise AssertionError(f"ended without {text!r}:\n{self._err}")

    def runs(self) -> bool:
        return self._process.poll() is None

    def left(self) -> list[int]:
        """Processes of this run that are alive, its first one included."""
        return list(marked(self.mark))

    def workers(self) -> list[int]:
        """Its worker processes: spawned by it, and not multiprocessing's book-keeper."""
        return [pid for pid in self.left() if pid != self.pid and b"spawn_main" in _read(pid, "cmdline")]


def marked(mark: str) -> Iterator[int]:
    """Living processes that carry a mark."""
    needle = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            pid = int(entry.name)
            if needle in _read(pid, "environ").split(b"\0") and b") Z" not in _read(pid, "stat"):
                yield pid


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has ended, or is not ours
        return b""


def wait(condition: Callable[[], Any], what: str, seconds: float = LONGEST) -> Any:
    """Wait until `condition()` is true; returns it."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.01)
    return found


def wait_for_training(process: Process, folder: Path, steps: int = 1) -> None:
    """Wait until `steps` environment steps are recorded."""

    def under_way() -> bool:
        assert process.runs(), process.ended().err
        return any(line["step"] >= steps for line in metrics(folder))

    wait(under_way, f"{steps} steps of training")


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of ``metrics.jsonl``."""
    try:
        text = (folder / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def summary(folder: Path) -> dict[str, Any]:
    """``summary.json`` of a run folder."""
    return json.loads((folder / "summary.json").read_text())
