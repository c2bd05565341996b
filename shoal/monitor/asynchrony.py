"""What several workers did at once, as data: the lags of their gradients, and the order in which they were applied.

A `Record` is the one thing a replayable run has to remember besides its seeds: per ticket, whose gradient it was and
after how many tickets the parameters it was computed from had been read. It is kept as ``asynchrony.npz``
(docs/asynchrony.md). Records can also be made up, to study many workers on few cores.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epy

from shoal.core import errors

with epy.lazy_imports():
    import numpy as np

FILE = "asynchrony.npz"
SCHEMA = 1
APPLIED, STALE, NON_FINITE = range(3)  # what became of a gradient
ROW = "u2,u4,i8,u4,u1"  # of a record, packed: 19 bytes; the columns of `Record` in order
EXACT = 16  # lags below have a bin each, larger ones a bin for each power of two
BINS = EXACT + 7
LABELS = (*map(str, range(EXACT)), *(f"{2**i}-{2 ** (i + 1) - 1}" for i in range(4, 10)), "1024+")


class Record(NamedTuple):
    """The tickets of a run in their order; columns ``[tickets]``."""

    worker: Any  # u2
    incarnation: Any  # u4, of the worker
    read: Any  # i8, tickets that had been done when it read
    steps: Any  # u4, environment steps of its segment
    flag: Any  # u1: APPLIED, STALE or NON_FINITE

    @property
    def tickets(self) -> int:
        """How many."""
        return int(np.shape(self.worker)[0])

    def first(self, tickets: int) -> Record:
        """The record as it was after so many tickets."""
        return Record(*(column[:tickets] for column in self))


class Mark(NamedTuple):
    """What the parameters were at one point, to compare with."""

    tickets: int
    sha256: str


class Kept(NamedTuple):
    """What ``asynchrony.npz`` holds."""

    record: Record
    marks: list[Mark]  # one a checkpoint, in order
    about: Mapping[str, Any]  # versions and machine, on which the bits depend


def place(lag: int) -> int:
    """The bin of a lag."""
    return lag if lag < EXACT else min(EXACT + lag.bit_length() - EXACT.bit_length(), BINS - 1)


def histogram(counts: Any) -> dict[str, int]:
    """Counts ``[BINS]`` by the lags they stand for, up to the last that occurred."""
    last = max((i for i, count in enumerate(counts) if count), default=-1)
    return {LABELS[i]: int(counts[i]) for i in range(last + 1)}


# ------------------------------------------------------------------------------------------------ records


def rows(rows: Any) -> Record:
    """A record from an array of dtype `ROW`, copied."""
    return Record(*(rows[name].copy() for name in rows.dtype.names))


def empty() -> Record:
    """No ticket."""
    return rows(np.zeros(0, np.dtype(ROW)))


def joined(before: Record, after: Record) -> Record:
    """One record of both."""
    return Record(*(np.concatenate(pair) for pair in zip(before, after, strict=True)))


def round_robin(workers: int, tickets: int, lag: int | None = None) -> Record:
    """A made-up record: workers take turns, and every gradient is `lag` tickets old.

    Args:
        workers: Logical workers.
        tickets: How many.
        lag: Tickets between read and apply; None: workers - 1, as of equally fast workers.
    """
    late = workers - 1 if lag is None else lag
    order = np.arange(tickets)
    return _made(order % workers, np.maximum(order - late, 0))


def random(workers: int, tickets: int, seed: int, spread: float = 0.3) -> Record:
    """A made-up record: every segment takes a random time, and a worker reads when it has applied.

    Args:
        workers: Logical workers.
        tickets: How many.
        seed: Of the times.
        spread: Deviation of the logarithm of a segment's time; 0 takes turns.
    """
    times = np.random.default_rng(seed).lognormal(0.0, spread, (workers, tickets)).cumsum(axis=1)
    order = np.argsort(times, axis=None, kind="stable")[:tickets]
    worker = order // tickets
    read, done = np.zeros(tickets, np.int64), np.zeros(workers, np.int64)
    for n, who in enumerate(worker.tolist()):
        read[n], done[who] = done[who], n + 1
    return _made(worker, read)


def _made(worker: Any, read: Any) -> Record:
    nothing = np.zeros(len(worker))
    return Record(
        worker.astype("u2"), nothing.astype("u4"), read.astype("i8"), nothing.astype("u4"), nothing.astype("u1")
    )


# ------------------------------------------------------------------------------------------------ files


def write(folder: Path, kept: Kept) -> None:
    """Replace ``asynchrony.npz`` in one step: a reader sees the old one or the new one.

    Raises:
        OSError: It could not be written; the old one is intact.
    """
    marks = np.array([mark.tickets for mark in kept.marks], np.int64)
    digests = np.array([bytes.fromhex(mark.sha256) for mark in kept.marks], "V32").reshape(-1)
    about = np.frombuffer(json.dumps({"schema": SCHEMA, **kept.about}).encode(), np.uint8)
    temporary = folder / f".tmp-{FILE}-{os.getpid()}"
    try:
        with temporary.open("wb") as file:
            np.savez(file, **kept.record._asdict(), mark_tickets=marks, mark_sha256=digests.view(np.uint8), about=about)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / FILE)
    finally:
        temporary.unlink(missing_ok=True)


def read(folder: Path) -> Kept:
    """``asynchrony.npz`` of a run folder, every number checked to make sense.

    Raises:
        Refused: There is none, or it is damaged.
    """
    path = folder / FILE
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            columns = {name: file[name] for name in (*Record._fields, "mark_tickets", "mark_sha256", "about")}
        about = json.loads(columns.pop("about").tobytes())
        tickets, digests = columns.pop("mark_tickets"), columns.pop("mark_sha256").reshape(-1, 32)
        marks = [Mark(int(n), row.tobytes().hex()) for n, row in zip(tickets, digests, strict=True)]
        record = Record(**columns)
        whole = {column.shape for column in record} == {(record.tickets,)}
        if not whole or about["schema"] > SCHEMA or not _before(record.read).all():
            raise ValueError("its columns do not fit together")
    except FileNotFoundError:
        raise errors.Refused(f"{folder} holds no {FILE}: only a run with --replayable records its order") from None
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise errors.Refused(f"{path} cannot be read ({error}); restore it, or train anew with --replayable") from None
    return Kept(record, marks, about)


def cut(folder: Path, tickets: int) -> Kept:
    """``asynchrony.npz`` of a run folder as it was after so many tickets.

    Raises:
        Refused: It is lost, damaged, or shorter.
    """
    kept = read(folder)
    if kept.record.tickets < tickets:
        raise errors.Refused(
            f"{folder}/{FILE} holds {kept.record.tickets} of {tickets} tickets; restore it, or train anew"
        )
    return kept._replace(record=kept.record.first(tickets), marks=[one for one in kept.marks if one.tickets <= tickets])


class Journal:
    """The record of a run as its artefact (`types.Artefact`): what earlier lives recorded, and what this one adds."""

    def __init__(self, added: Callable[[], tuple[Record, Sequence[Mark]]]) -> None:
        """Args: `added`, tells the tickets of this life, and what the parameters were whenever they were saved."""
        self.added = added
        self._before: Kept | None = None

    def take_up(self, folder: Path, meta: Mapping[str, Any]) -> None:
        """See `types.Artefact`."""
        self._before = cut(folder, meta["tickets"]) if "tickets" in meta else None

    def write(self, folder: Path, about: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `types.Artefact`."""
        record, added = self.added()
        marks = list(added)
        if before := self._before:
            record, marks = joined(before.record, record), [*before.marks, *marks]
        write(folder, Kept(record=record, marks=marks, about=about))
        return {"tickets": marks[-1].tickets}


def _before(read: Any) -> Any:
    """Whether what was read had been done by then, ``[tickets]``."""
    return (read >= 0) & (read <= np.arange(len(read)))
