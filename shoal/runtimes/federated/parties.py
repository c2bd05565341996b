"""``parties.jsonl``: one line an evaluation of every party on the way: environment steps of a party, and returns."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from shoal.core import errors, types

FILE = "parties.jsonl"
META = "parties_bytes"  # what a checkpoint says: how long the file was


class Lines:
    """The evaluations of a run as its artefact (`types.Artefact`); lines are appended when it is written."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._lines: list[str] = []  # since the file was written
        self._bytes = 0  # that the file holds

    def add(self, env_steps: int, each: Sequence[int], returns: Sequence[float]) -> None:
        """All parties were evaluated.

        Args:
            env_steps: Of a party, the median.
            each: Of every party.
            returns: Mean returns; one that is not finite was not measured.
        """
        told = {
            "env_steps": env_steps,
            "parties": self._names,
            "each": list(each),
            "returns": [float(value) if math.isfinite(value) else None for value in returns],
        }
        self._lines.append(json.dumps(told, allow_nan=False) + "\n")

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
        data = "".join(self._lines).encode()
        with (Path(folder) / FILE).open("ab") as file:
            file.truncate(self._bytes)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._lines, self._bytes = [], self._bytes + len(data)
        return {META: self._bytes}
