"""What the server counts over a run, for ``summary.json`` / ``federation`` and the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from shoal.core import types
from shoal.runtimes.federated import guard

RING = 512  # rounds whose median norm is remembered


class Closed(NamedTuple):
    """What became of one round."""

    round: int
    version: int  # of the global part after it
    why: str  # the global part did not change: "quorum", "not_finite", "aborted", "skipped" (nobody had anything to
    # say); "" if it did
    took: tuple[int, ...]  # parties whose updates were applied, ascending
    asked: int  # parties that had a job of this round
    lags: tuple[int, ...]  # versions between, of each that took part
    norms: tuple[float, ...]  # of their updates as they came
    bounded: int  # of them scaled down to the bound
    silent: int  # updates that were left out since they said nothing
    seconds: float  # since its first job

    @property
    def stepped(self) -> bool:
        """Whether the global part changed."""
        return not self.why

    @property
    def failed(self) -> bool:
        """Whether it counts as failed."""
        return self.why not in ("", "skipped")


class Tally:
    """Counters of a run; arrays of fixed shapes, so that a checkpoint holds them."""

    def __init__(self, parties: int, max_lag: int) -> None:
        zeros = np.zeros
        self.arrays: dict[str, np.ndarray] = {
            "env_steps": zeros(parties, np.int64),  # that each party said, accepted messages alone
            "updates": zeros(parties, np.int64),
            "took": zeros(parties, np.int64),  # rounds whose step a party was in
            "rejected": zeros(len(guard.REASONS), np.int64),
            "rejected_by": zeros(parties, np.int64),
            "failed": zeros(parties, np.int64),  # jobs that failed or were lost
            "lags": zeros(max_lag + 1, np.int64),  # updates applied, by staleness
            "rounds": zeros(3, np.int64),  # closed, failed, without a word
            "present": zeros(2, np.int64),  # the least that took part, and the sum over rounds that stepped
            "bytes": zeros(2, np.int64),  # up, down
            "updates_seen": zeros(3, np.int64),  # applied, of them scaled down; left out since they said nothing
            "norms": zeros(RING, np.float64),  # median of each of the last rounds
            "largest": zeros((), np.float64),
            "seconds": zeros(RING, np.float64),  # of each of the last rounds
        }

    def rejected(self, party: int, reason: str) -> None:
        """A message was turned away; `party` may be one that there is not."""
        self.arrays["rejected"][guard.REASONS.index(reason)] += 1
        if 0 <= party < len(self.arrays["rejected_by"]):
            self.arrays["rejected_by"][party] += 1

    def crossed(self, direction: str, body: bytes) -> None:
        """A message crossed, "up" or "down"."""
        self.arrays["bytes"][("up", "down").index(direction)] += len(body)

    def failed(self, party: int) -> None:
        """A job of a party failed, or its answer never came."""
        self.arrays["failed"][party] += 1

    @property
    def failures(self) -> int:
        """Jobs of all parties that failed or were lost."""
        return int(self.arrays["failed"].sum())

    def counted(self, party: int, env_steps: int, updates: int) -> None:
        """What a party said that it did in one round."""
        self.arrays["env_steps"][party] += env_steps
        self.arrays["updates"][party] += updates

    def closed(self, one: Closed) -> None:
        """A round is over."""
        arrays = self.arrays
        at = int(arrays["rounds"][0]) % RING
        arrays["rounds"] += (1, int(one.failed), int(one.why == "skipped"))
        arrays["seconds"][at] = one.seconds
        arrays["norms"][at] = float(np.median(one.norms)) if one.norms else 0.0
        arrays["updates_seen"][2] += one.silent
        arrays["largest"][()] = max(float(arrays["largest"]), *one.norms, 0.0)
        if not one.stepped:
            return
        first = not arrays["present"][1]
        arrays["present"][0] = len(one.took) if first else min(int(arrays["present"][0]), len(one.took))
        arrays["present"][1] += len(one.took)
        arrays["updates_seen"][:2] += (len(one.took), one.bounded)
        for party in one.took:
            arrays["took"][party] += 1
        for lag in one.lags:
            arrays["lags"][lag] += 1

    def clock(self, parties: Sequence[int]) -> float:
        """Environment steps of a party, by the median of those named: a false count moves it little."""
        return float(np.sort(self.arrays["env_steps"][list(parties)])[(len(parties) - 1) // 2]) if parties else 0.0

    def recent(self, name: str, last: int) -> np.ndarray:
        """The ring `name` over the last rounds, oldest first, those of 0 left out."""
        rounds = int(self.arrays["rounds"][0])
        found = np.array([self.arrays[name][i % RING] for i in range(max(0, rounds - min(last, RING)), rounds)])
        return found[found > 0] if found.size else found

    def told(self) -> dict[str, types.Scalar]:
        """For ``summary.json`` / ``federation``; what was not measured is None."""
        arrays = self.arrays
        closed, failed, skipped = map(int, arrays["rounds"])
        stepped, reasons = closed - failed - skipped, dict(zip(guard.REASONS, arrays["rejected"].tolist(), strict=True))
        applied, norms, spread = int(arrays["updates_seen"][0]), self.recent("norms", RING), np.cumsum(arrays["lags"])
        half = int(np.searchsorted(spread, (applied + 1) // 2)) if applied else None
        return {
            "rounds": closed,
            "failed_rounds": failed,
            "participation_min": int(arrays["present"][0]) if stepped else None,
            "participation_mean": float(arrays["present"][1] / stepped) if stepped else None,
            "bytes_up": int(arrays["bytes"][0]),
            "bytes_down": int(arrays["bytes"][1]),
            "rejected": {reason: count for reason, count in reasons.items() if count},
            "rejected_by": arrays["rejected_by"].tolist(),
            "failed_jobs": arrays["failed"].tolist(),
            "dropped_stale": reasons["stale"] + reasons["late"],
            "staleness_median": half,
            "staleness_max": int(np.flatnonzero(arrays["lags"])[-1]) if applied else None,
            "staleness": arrays["lags"].tolist(),
            "bounded_fraction": float(arrays["updates_seen"][1] / applied) if applied else None,
            "silent": int(arrays["updates_seen"][2]),
            "update_norm_median": float(np.median(norms)) if norms.size else None,
            "update_norm_max": float(arrays["largest"]) if norms.size else None,
            "took": arrays["took"].tolist(),
        }
