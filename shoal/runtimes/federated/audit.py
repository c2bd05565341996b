"""``audit.jsonl``: one line a message, either way: enough to prove what crossed, and nothing of what it held."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

from shoal.runtimes.federated import appending

FILE = "audit.jsonl"
META = "audit_bytes"  # what a checkpoint says: how long the file was


class Audit(appending.Appended):
    """The messages of a run as its artefact (`types.Artefact`); lines are appended when it is written."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        super().__init__(FILE, META)
        self._clock = clock

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
        self.append({
            "time": round_to_ms(self._clock()),
            "direction": direction,
            "party": party,
            "round": round,
            "bytes": len(body),
            "spec": spec.hex()[:16],
            "sha256": hashlib.sha256(body).hexdigest(),
            "outcome": outcome,
        })  # fmt: skip


def round_to_ms(seconds: float) -> float:
    """Times are told to the millisecond."""
    return round(seconds, 3)
