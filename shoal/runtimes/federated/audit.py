"""``audit.jsonl``: one line a message, either way: enough to prove what crossed, and nothing of what it held."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from shoal.core import errors, types

FILE = "audit.jsonl"
META = "audit_bytes"  # what a checkpoint says: how long the file was


class Audit:
    """The messages of a run as its artefact (`types.Artefact`); lines are appended when it is written."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lines: list[str] = []  # since the file was written
        self._bytes = 0  # that the file holds

    def add(self, direction: str, party: int, round: int, body: bytes, outcome: str, spec: bytes) -> None:
        """A message crossed.

        Args:
            direction: "up" or "down".
            party: Its number.
            round: Of the job that it belongs to; 0: of none.
            body: The message; its length and hash alone are kept.
            outcome: One code of the fixed list.
            spec: Hash of the specification.
        """
        told = {
            "time": round_to_ms(self._clock()),
            "direction": direction,
            "party": party,
            "round": round,
            "bytes": len(body),
            "spec": spec.hex()[:16],
            "sha256": hashlib.sha256(body).hexdigest(),
            "outcome": outcome,
        }
        self._lines.append(json.dumps(told) + "\n")

    def take_up(self, folder: Path, meta: Mapping[str, types.Scalar]) -> None:
        """See `types.Artefact`."""
        wanted, path = int(meta.get(META, 0)), Path(folder) / FILE
        there = path.stat().st_size if path.exists() else 0
        if there < wanted:
            raise errors.Refused(f"{path} holds {there} of {wanted} bytes; restore it, or train anew")
        self._bytes = wanted

    def write(self, folder: Path, about: Mapping[str, object]) -> dict[str, int]:
        """See `types.Artefact`: what came after the last checkpoint is cut off, new lines are appended."""
        del about
        with (Path(folder) / FILE).open("ab") as file:
            file.truncate(self._bytes)
            data = "".join(self._lines).encode()
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._lines, self._bytes = [], self._bytes + len(data)
        return {META: self._bytes}


def round_to_ms(seconds: float) -> float:
    """Times are told to the millisecond."""
    return round(seconds, 3)
