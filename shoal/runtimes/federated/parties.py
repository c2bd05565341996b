"""``parties.jsonl``: one line an evaluation of every party on the way: environment steps of a party, and returns."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shoal.runtimes.federated import appending

FILE = "parties.jsonl"
META = "parties_bytes"  # what a checkpoint says: how long the file was


class Lines(appending.Appended):
    """The evaluations of a run as its artefact (`types.Artefact`); lines are appended when it is written."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(FILE, META)
        self._names = list(names)

    def add(self, env_steps: int, each: Sequence[int], returns: Sequence[float]) -> None:
        """All parties were evaluated.

        Args:
            env_steps: Of a party, the median.
            each: Of every party.
            returns: Mean returns; one that is not finite was not measured.
        """
        self.append({
            "env_steps": env_steps,
            "parties": self._names,
            "each": list(each),
            "returns": [float(value) if math.isfinite(value) else None for value in returns],
        })  # fmt: skip
