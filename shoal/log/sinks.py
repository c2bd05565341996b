"""Where metrics go: JSON lines (the truth), CSV of episodes, TensorBoard. All are views of the same two calls.

Files are appended to without a buffer, so that every line is handed to the system when it is written, and their length
in whole lines is always known: a checkpoint records it and a resumed run cuts the files there.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import importlib.util
import io
import json
import math
import os
import pathlib
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from shoal.core import types


class Evaluated(NamedTuple):
    """An evaluation on the way: whole, greedy episodes with the policy of that moment."""

    env_steps: int
    return_mean: float
    return_std: float
    episodes: int


class Sink(Protocol):
    """Receives what a run measures. Any call may raise OSError; the caller then drops the sink."""

    name: str

    def start(self) -> None:
        """Opens the file."""
        ...

    def write(self, step: int, wall_s: float, metrics: Mapping[str, float | int | None]) -> None:
        """Takes scalars at one step; None where a number could not be measured."""
        ...

    def episodes(self, episodes: Sequence[types.Episode], wall_s: float) -> None:
        """Takes finished episodes."""
        ...

    def sync(self) -> None:
        """Returns when everything written is on the disk."""
        ...

    def close(self) -> None:
        """Ends the file; calling it twice is harmless."""
        ...


class Lines:
    """A text file of whole lines that only grows, of known length, continued at a given one."""

    def __init__(self, path: pathlib.Path, at: int, header: str = "") -> None:
        """Args: `path`; `at`, bytes to keep of what is there; `header`, first line of an empty file."""
        self.name = path.name
        self.length = min(at, path.stat().st_size) if path.exists() else 0  # bytes, whole lines only
        self._path, self._header, self._file = path, header, None

    _file: io.FileIO | None

    def start(self) -> None:
        """Opens the file and cuts it to the length to keep, or to the last whole line before that."""
        self._file = io.FileIO(self._path, "a")
        self.length = _whole_lines(self._path, self.length)
        if os.path.getsize(self._path) != self.length:
            self._file.truncate(self.length)
        if not self.length and self._header:
            self.append(self._header)

    def append(self, text: str) -> None:
        """Adds lines; on failure none of them count, and a broken piece is cut off again if the system lets us."""
        if self._file is None:
            return
        data = text.encode()
        try:
            if self._file.write(data) != len(data):  # a disk filling up takes a part and says so only afterwards
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(self.length)
            raise
        self.length += len(data)

    def sync(self) -> None:
        """Returns when every line is on the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class JsonLines(Lines):
    """``metrics.jsonl``: one object a line, ``{"step": .., "wall_s": .., scalars}``; non-finite numbers are null."""

    def __init__(self, folder: pathlib.Path, at: int) -> None:
        super().__init__(folder / "metrics.jsonl", at)

    def write(self, step: int, wall_s: float, metrics: Mapping[str, float | int | None]) -> None:
        """One line."""
        scalars = {name: value for name, value in metrics.items() if name not in ("step", "wall_s")}
        self.append(json.dumps({"step": step, "wall_s": round(wall_s, 3), **scalars}, allow_nan=False) + "\n")

    def episodes(self, episodes: Sequence[types.Episode], wall_s: float) -> None:
        """Not kept here."""

    def last_step(self) -> int | None:
        """The step of the last line kept; None if there is none."""
        with open(self._path, "rb") as file:
            file.seek(max(0, self.length - 65536))
            lines = file.read(min(self.length, 65536)).splitlines()
        return json.loads(lines[-1])["step"] if lines else None

    def column(self, name: str) -> Iterator[tuple[int, float]]:
        """(step, value) of every line that has a number of this name."""
        with open(self._path, "rb") as file:
            for line in file.read(self.length).splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):  # a damaged line
                    row = json.loads(line)
                    if row.get(name) is not None:
                        yield int(row["step"]), float(row[name])


class Csv(Lines):
    """``episodes.csv``: one finished episode a line."""

    def __init__(self, folder: pathlib.Path, at: int) -> None:
        super().__init__(folder / "episodes.csv", at, "env_steps,episode_return,length,worker,wall_s\n")

    def write(self, step: int, wall_s: float, metrics: Mapping[str, float | int | None]) -> None:
        """Not kept here."""

    def episodes(self, episodes: Sequence[types.Episode], wall_s: float) -> None:
        """One line for each; returns in full precision."""
        rows = (
            f"{int(e.env_steps)},{float(e.episode_return)!r},{int(e.length)},{int(e.worker)},{wall_s:.3f}\n"
            for e in episodes
        )
        self.append("".join(rows))


class Evaluations(Lines):
    """``evaluations.csv``: one evaluation a line."""

    def __init__(self, folder: pathlib.Path, at: int) -> None:
        super().__init__(folder / "evaluations.csv", at, "env_steps,return_mean,return_std,episodes,wall_s\n")

    def write(self, step: int, wall_s: float, metrics: Mapping[str, float | int | None]) -> None:
        """Not kept here."""

    def episodes(self, episodes: Sequence[types.Episode], wall_s: float) -> None:
        """Not kept here."""

    def take(self, evaluated: Evaluated, wall_s: float) -> None:
        """One line; returns in full precision."""
        e = evaluated
        self.append(f"{e.env_steps},{e.return_mean!r},{e.return_std!r},{e.episodes},{wall_s:.3f}\n")


class TensorBoard:
    """``events.out.tfevents.*``; tags without a group belong to ``train/``.

    The record writer of tensorboardX is used directly: its SummaryWriter hands events to a thread, which on a full
    disk dies unseen and leaves the caller waiting for ever on a bounded queue.
    """

    name = "TensorBoard events"

    def __init__(self, folder: pathlib.Path, purge_step: int | None) -> None:
        """Args: `folder` of the run; `purge_step`, on resume, from which on earlier events are hidden."""
        self._folder, self._purge_step, self._writer = folder, purge_step, None

    _writer: Any

    def start(self) -> None:
        """Opens a file of its own; TensorBoard reads all of a folder as one run."""
        event_file_writer, event_pb2, _ = _tensorboard()
        # The library's names have a resolution of one second: two files of one second would overwrite each other.
        suffix = f".{os.getpid()}.{secrets.token_hex(4)}"
        self._writer = event_file_writer.EventsWriter(str(self._folder / "events"), suffix)
        if self._purge_step is not None:
            begin = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._writer.write_event(event_pb2.Event(step=self._purge_step, session_log=begin))
        self._writer.flush()

    def write(self, step: int, wall_s: float, metrics: Mapping[str, float | int | None]) -> None:
        """One event with all scalars that were measured; the wall time of TensorBoard is that of the clock."""
        if self._writer is None:
            return
        _, event_pb2, summary_pb2 = _tensorboard()
        values = [
            summary_pb2.Summary.Value(tag=name if "/" in name else f"train/{name}", simple_value=float(value))
            for name, value in metrics.items()
            if value is not None
        ]
        summary = summary_pb2.Summary(
            value=[*values, summary_pb2.Summary.Value(tag="time/wall_s", simple_value=wall_s)]
        )
        self._writer.write_event(event_pb2.Event(step=step, wall_time=time.time(), summary=summary))
        self._writer.flush()

    def episodes(self, episodes: Sequence[types.Episode], wall_s: float) -> None:
        """Single episodes are in the CSV; here their mean is enough."""

    def sync(self) -> None:
        """Only a view: flushed with every event, not worth waiting for the disk."""

    def close(self) -> None:
        """Ends the file."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()


@functools.cache
def _tensorboard() -> list[Any]:
    """The modules of tensorboardX that write events, without their package, which imports PyTorch where that is.

    It takes seconds in which nothing is answered, and nothing of it is used. Whoever imports the package afterwards
    gets the real one.
    """
    package, wanted = "tensorboardX", ("event_file_writer", "proto.event_pb2", "proto.summary_pb2")
    spec = None if package in sys.modules else importlib.util.find_spec(package)
    stand_in = importlib.util.module_from_spec(spec) if spec else None  # not executed
    if stand_in is not None:
        sys.modules[package] = stand_in
    try:
        return [importlib.import_module(f"{package}.{name}") for name in wanted]
    finally:
        if stand_in is not None and sys.modules.get(package) is stand_in:
            del sys.modules[package]


def scalars(metrics: Mapping[str, Any]) -> dict[str, float | int | None]:
    """Metrics as plain numbers: NumPy and JAX scalars unwrapped, None and non-finite as None."""
    return {name: _scalar(value) for name, value in metrics.items()}


def _scalar(value: Any) -> float | int | None:
    """One plain number, or None."""
    value = value.item() if hasattr(value, "item") else value
    if value is None or isinstance(value, int):
        return None if value is None else int(value)
    return float(value) if math.isfinite(value) else None


def _whole_lines(path: pathlib.Path, length: int) -> int:
    """The end of the last whole line within the first `length` bytes (a power cut may have eaten some)."""
    with open(path, "rb") as file:
        data = file.read(length)
    return data.rfind(b"\n") + 1
