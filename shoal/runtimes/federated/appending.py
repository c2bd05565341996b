"""A file of a run that only grows, a JSON object a line: what was told since a checkpoint is appended at the next."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from shoal.core import errors, types


class Appended:
    """Such a file as an artefact of the run (`types.Artefact`)."""

    def __init__(self, file: str, meta: str) -> None:
        """Nothing is told yet.

        Args:
            file: Its name in the run folder.
            meta: Under which a checkpoint says how long it was, in bytes.
        """
        self._file, self._meta = file, meta
        self._lines: list[str] = []  # since the file was written
        self._bytes = 0  # that the file holds

    def append(self, told: Mapping[str, object]) -> None:
        """One more line; its numbers are finite."""
        self._lines.append(json.dumps(told, allow_nan=False) + "\n")

    def take_up(self, folder: Path, meta: Mapping[str, types.Scalar]) -> None:
        """See `types.Artefact`."""
        wanted, path = int(meta.get(self._meta, 0)), Path(folder) / self._file
        there = path.stat().st_size if path.exists() else 0
        if there < wanted:
            raise errors.Refused(f"{path} holds {there} of {wanted} bytes; restore it, or train anew")
        self._bytes = wanted

    def write(self, folder: Path, about: Mapping[str, object]) -> dict[str, int]:
        """See `types.Artefact`: what came after the last checkpoint is cut off, new lines are appended."""
        del about
        data = "".join(self._lines).encode()
        with (Path(folder) / self._file).open("ab") as file:
            file.truncate(self._bytes)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._lines, self._bytes = [], self._bytes + len(data)
        return {self._meta: self._bytes}
