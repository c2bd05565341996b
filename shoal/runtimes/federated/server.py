"""The server: one global part, its versions, and the rounds that change it.

Pure host logic: it is told the time, it opens no connection and draws no number but the secret coins of a cohort, so
the same object serves a simulation in one process and a deployment. A loop around it hands out jobs and brings replies:

```
for party in server.idle(now): network.send(party, server.job(party))
for reply in network.poll(seconds): server.take(reply.party, reply.body, now)
if server.due(now): server.close(now)
```
"""

from __future__ import annotations

import hashlib
import math
import os
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from shoal.core import errors, types
from shoal.runtimes.federated import applying, audit, guard, message, robust, tally

KINDS = {"gradient": message.GRADIENT, "delta": message.DELTA, "outputs": message.OUTPUTS}
AGAIN = ("late", "duplicate", "run")  # reasons after which a party still owes its answer: the true one may be coming
WINDOW = 10  # rounds over which the norm's bound and the deadline take their medians
FACTOR = 3.0  # of those medians
SHORTEST_S = 30.0  # a deadline that nobody gave is no shorter: a pause of the machine is no vanished party
FIRST_S = 600.0  # that of the first round, which compiles


class Rules(NamedTuple):
    """How rounds are held."""

    mode: str = "gradient"  # or "delta", "outputs"
    asynchronous: bool = False
    aggregator: str = "auto"  # of `robust.RULES`; "auto": the mean, or `robust.DEFAULT` where hostile > 0
    hostile: int = 0  # parties that may be (f)
    max_norm: float = 0.0  # an update above it is turned away; 0: where hostile > 0, scaled down to 3 median norms
    participation: float = 1.0  # chance of each party to be in a round's cohort
    quorum: int = 0  # updates without which a round fails; 0: half of the cohort; what the rule needs at least
    deadline_s: float = 0.0  # seconds of a round (asynchronously of a job); 0: 3 median rounds
    max_lag: int = 8  # versions; an update computed from an older one is dropped
    buffer: int = 1  # updates of a step, asynchronously
    optimiser: applying.Numbers = applying.Numbers()  # of gradients: the experiment's; of deltas: "sgd" or "adam"
    eta: float = 1.0  # of deltas, synchronously
    alpha: float = 0.6  # and asynchronously
    settings: message.Settings = message.Settings()  # what parties are told
    env_steps: int = message.MOST  # of a party in one round, at most
    updates: int = message.MOST
    choices: int = 0  # of outputs: how many probabilities make one distribution
    coins: bytes = b""  # secret of the cohorts; b"": the system's randomness (a simulation gives its own)


class Job(NamedTuple):
    """What a party was asked for and has not answered."""

    round: int
    base: int
    since: float


class Server:
    """Owns the global part; see the module."""

    def __init__(
        self,
        spec: message.Spec,
        theta: np.ndarray,
        parties: Sequence[str],
        rules: Rules,
        run: bytes,
        log: audit.Audit | None = None,
    ) -> None:
        """A run before its first round.

        Args:
            spec: Of the global part.
            theta: Its first version, ``[size]`` f32.
            parties: Their names; a party's number is its place.
            rules: How rounds are held.
            run: The run's name, 16 bytes.
            log: Where every message is told.

        Raises:
            Refused: The rules cannot hold with so many parties.
        """
        self.rules = rules._replace(
            aggregator=robust.chosen(rules.aggregator, rules.hostile), coins=rules.coins or os.urandom(32)
        )
        check(self.rules, len(parties))
        self.spec, self.run, self.names = spec, run, tuple(parties)
        self.theta, self.version, self.round = np.array(theta, np.float32), 0, 1
        self.tally = tally.Tally(len(parties), rules.max_lag)
        self.present = np.ones(len(parties), bool)
        self._log = log
        self._kept = applying.first(self.rules.optimiser.rule, spec.size)
        self._pending: dict[int, Job] = {}
        self._answered = np.zeros(len(parties), np.int64)  # number of the last job that each answered
        self._asked: set[int] = set()  # who had a job of this round
        self._in: dict[int, tuple[int, np.ndarray]] = {}  # (version it was computed from, update) by party
        self._skipped = 0  # who said that there is nothing
        self._clock = 0.0  # environment steps of a party when the last round closed: rates are taken at them
        self._opened = math.nan  # when the round's first job was seen
        self._now = 0.0

    # ------------------------------------------------------------------------------------------------ handing out

    def cohort(self, round: int) -> list[int]:
        """Who is in a round: each party by a secret coin of its own, never by a number of its choice."""
        present = [party for party in range(len(self.names)) if self.present[party]]
        if self.rules.participation >= 1.0:
            return present
        return [party for party in present if self._coin(round, party) < self.rules.participation]

    def idle(self, now: float) -> list[int]:
        """Who is to be given a job now.

        Args:
            now: In seconds, of any clock that only goes forward.
        """
        self._seen(now)
        if not self.rules.asynchronous:
            return [party for party in self.cohort(self.round) if party not in self._asked]
        for party, job in list(self._pending.items()):
            if now - job.since >= self.deadline_s:  # it is given another; the answer to this one is late
                del self._pending[party]
        busy = self._pending.keys() | self._in.keys()
        return [party for party in self.cohort(self.round) if party not in busy]

    def job(self, party: int) -> bytes:
        """The bytes of a party's job, which it owes an answer from now on."""
        number = self.round
        if self.rules.asynchronous:  # a number of its own, so that no answer to an older one of this version counts
            number = int(max(self._answered[party], self._last(party))) + 1
        self._pending[party] = Job(number, self.version, self._now)
        self._asked.add(party)
        head = message.Header(self.run, party, number, self.version, KINDS[self.rules.mode])
        body = message.encode_down(self.spec, message.Down(head, self.theta, self.rules.settings))
        self.tally.arrays["bytes"][1] += len(body)
        self._tell("down", party, number, body, "ok")
        return body

    # ------------------------------------------------------------------------------------------------ taking in

    def take(self, party: int, body: bytes | None, now: float) -> str:
        """A reply came in.

        Args:
            party: Who sent it, as the carrier authenticated it.
            body: What; None: the job failed, or its answer was lost.
            now: As in `idle`.

        Returns:
            "ok", "skipped", "failed" or "rejected:" with one of `guard.REASONS`.
        """
        self._seen(now)
        job = self._pending.get(party)
        outcome = self._failed(party) if body is None else self._judged(party, body, job)
        if body is not None:
            self.tally.arrays["bytes"][0] += len(body)
        if outcome.startswith("rejected:"):
            self.tally.rejected(party, outcome.partition(":")[2])
        self._tell("up", party, job.round if job else 0, body or b"", outcome)
        return outcome

    def due(self, now: float) -> bool:
        """Whether the round can be closed: all answered, the buffer is full, or its time is up."""
        self._seen(now)
        if self.rules.asynchronous:
            return len(self._in) >= self.rules.buffer
        if any(party not in self._asked for party in self.cohort(self.round)):
            return False
        return not self._pending or now - self._opened >= self.deadline_s

    def close(self, now: float) -> tally.Closed:
        """Aggregate and step; without a quorum, or where the result is not finite, the global part stays as it is."""
        self._seen(now)
        took = sorted(self._in)
        bases = [self._in[party][0] for party in took]
        lags = tuple(self.version - base for base in bases)
        norms, bounded, why = (), 0, self._missed(len(took))
        if not why:
            updates = np.stack([self._in[party][1] for party in took])
            lengths = robust.norms(updates)
            norms = tuple(lengths.tolist())
            updates, bounded = self._bounded(updates, lengths)
            why = self._stepped(updates, lags)
        if not why:
            self.version += 1
        closed = tally.Closed(
            self.round, self.version, not why, why, tuple(took), len(self._asked), lags, norms, bounded,
            now - self._opened,
        )  # fmt: skip
        self.tally.closed(closed)
        self._next()
        return closed

    # ------------------------------------------------------------------------------------------------ keeping

    def admit(self, party: int, *, present: bool = True) -> None:
        """A party joins, or leaves: it is in no cohort until it joins again."""
        self.present[party] = present
        if not present:
            self._pending.pop(party, None)

    def forget(self) -> None:
        """All jobs that are out are lost (a restart): they are given out anew, and their answers are late."""
        for party, job in self._pending.items():
            self._answered[party] = max(self._answered[party], job.round if self.rules.asynchronous else 0)
            self._asked.discard(party)
        self._pending.clear()

    def kept(self) -> types.Tree:
        """What a checkpoint holds: NumPy arrays whose shapes the rules and the specification alone decide."""
        n = len(self.names)
        jobs, held = np.full((n, 2), -1, np.int64), np.full(n, -1, np.int64)
        waiting = np.zeros((n, self.spec.size), np.float32)
        for party, job in self._pending.items():
            jobs[party] = job.round, job.base
        for party, (base, update) in self._in.items():
            held[party], waiting[party] = base, update
        asked = np.isin(np.arange(n), sorted(self._asked))
        return {
            "theta": self.theta.copy(),
            "numbers": np.array([self.version, self.round, self._skipped, self._clock], np.int64),
            "optimiser": {name: array.copy() for name, array in self._kept.items()},
            "tally": {name: array.copy() for name, array in self.tally.arrays.items()},
            "parties": {"jobs": jobs, "held": held, "asked": asked, "present": self.present.copy(),
                        "answered": self._answered.copy()},
            "waiting": waiting,
            "coins": np.frombuffer(self.rules.coins, np.uint8).copy(),
        }  # fmt: skip

    def resume(self, kept: types.Tree) -> None:
        """Go on from `kept` of another life; its clock begins anew."""
        self.theta = np.array(kept["theta"], np.float32)
        self.version, self.round, self._skipped, clock = map(int, kept["numbers"])
        self._clock = float(clock)
        self._kept = {name: np.array(array) for name, array in kept["optimiser"].items()}
        self.tally.arrays = {name: np.array(array) for name, array in kept["tally"].items()}
        parties = {name: np.array(array) for name, array in kept["parties"].items()}
        self.present, self._answered = parties["present"], parties["answered"]
        self._asked = set(np.flatnonzero(parties["asked"]).tolist())
        jobs, held = parties["jobs"].tolist(), parties["held"].tolist()
        self._pending = {i: Job(*job, 0.0) for i, job in enumerate(jobs) if job[0] >= 0}
        self._in = {i: (base, np.array(kept["waiting"][i])) for i, base in enumerate(held) if base >= 0}
        self.rules = self.rules._replace(coins=np.asarray(kept["coins"], np.uint8).tobytes())
        self._opened, self._now = math.nan, 0.0

    @property
    def deadline_s(self) -> float:
        """Seconds after which a round is closed with those who answered."""
        if self.rules.deadline_s:
            return self.rules.deadline_s
        past = self.tally.recent("seconds", WINDOW)
        return max(SHORTEST_S, FACTOR * float(np.median(past))) if past.size else FIRST_S

    # ------------------------------------------------------------------------------------------------ inside

    def _seen(self, now: float) -> None:
        """The round begins when it is first looked at; jobs of another life begin with this one's clock."""
        if math.isnan(self._opened):
            self._opened = now
            self._pending = {party: job._replace(since=now) for party, job in self._pending.items()}
        self._now = now

    def _coin(self, round: int, party: int) -> float:
        told = round.to_bytes(8, "little") + party.to_bytes(4, "little")
        return int.from_bytes(hashlib.sha256(self.rules.coins + told).digest()[:7], "little") / (1 << 56)

    def _last(self, party: int) -> int:
        return self._pending[party].round if party in self._pending else 0

    def _failed(self, party: int) -> str:
        if self._pending.pop(party, None) is not None:
            self.tally.arrays["failed"][party] += 1
        return "failed"

    def _judged(self, party: int, body: bytes, job: Job | None) -> str:
        if not 0 <= party < len(self.names):
            return "rejected:party"
        if job is None:
            return f"rejected:{self._unasked(party, body)}"
        expected = guard.Expected(
            self.run, party, job.round, job.base, KINDS[self.rules.mode], self.rules.env_steps, self.rules.updates,
            self.rules.max_norm, self.rules.choices,
        )  # fmt: skip
        up, reason = guard.check(self.spec, body, expected)
        if reason == "late":
            reason = self._unasked(party, body)
        if reason not in AGAIN:
            self._answered[party] = job.round
            del self._pending[party]
        return f"rejected:{reason}" if up is None else self._accepted(party, up, job)

    def _accepted(self, party: int, up: message.Up, job: Job) -> str:
        if up.outcome == message.FAILED:
            self.tally.arrays["failed"][party] += 1
            return "failed"
        if self.version - job.base > self.rules.max_lag:
            return "rejected:stale"
        self.tally.counted(party, up.env_steps, up.updates)
        if up.outcome == message.SKIPPED:
            self._skipped += 1
            return "skipped"
        self._in[party] = job.base, up.vector
        return "ok"

    def _unasked(self, party: int, body: bytes) -> str:
        """Why a message that answers no job is turned away."""
        try:
            head = message.decode_up(self.spec, body).header
        except message.Malformed as malformed:
            return malformed.reason
        if head.run != self.run or head.party != party:
            return "run" if head.run != self.run else "party"
        if head.round == self._answered[party]:
            return "duplicate"
        return "late" if head.round < max(self._last(party), int(self._answered[party]), self.round) else "unasked"

    def _missed(self, came: int) -> str:
        """Why no step can be taken with so many updates; "" if one can."""
        if not came and self._skipped:
            return "skipped"
        least = max(robust.needs(self.rules.aggregator, self.rules.hostile), self.rules.quorum)
        if not self.rules.quorum and not self.rules.asynchronous:
            least = max(least, -(-len(self._asked) // 2) - self._skipped)
        return "quorum" if came < least else ""

    def _bounded(self, updates: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, int]:
        """Where hostile parties are allowed for: scaled down to 3 median norms of the last rounds, this one's too."""
        if not self.rules.hostile or self.rules.max_norm:
            return updates, 0
        past = self.tally.recent("norms", WINDOW - 1)
        bound = FACTOR * statistics.median([*past.tolist(), float(np.median(lengths))])
        return robust.bounded(updates, lengths, bound), int((lengths > bound).sum())

    def _stepped(self, updates: np.ndarray, lags: Sequence[int]) -> str:
        """Aggregate, step, and keep the result; why it is not kept."""
        rules, kept = self.rules, self._kept
        if rules.asynchronous:
            updates = (updates * (1.0 / np.sqrt(1.0 + np.array(lags)))[:, None]).astype(np.float32)
        with np.errstate(all="ignore"):  # what overflows is seen below
            one = robust.RULES[rules.aggregator].combine(updates, rules.hostile)
            if rules.mode == "gradient":
                theta, kept = applying.stepped(rules.optimiser, kept, self.theta, one, self._clock)
            elif rules.mode == "outputs":
                theta = one
            elif rules.optimiser.rule == "adam":
                theta, kept = applying.fed_adam(rules.optimiser, kept, self.theta, one)
            else:
                theta = self.theta + np.float32(rules.alpha if rules.asynchronous else rules.eta) * one
        if not (message.finite(theta) and all(message.finite(array) for array in kept.values())):
            return "not_finite"
        self.theta, self._kept = theta, kept
        return ""

    def _next(self) -> None:
        if not self.rules.asynchronous:
            self._pending.clear()
        self._in, self._skipped, self._asked = {}, 0, set()
        self.round, self._opened = self.round + 1, math.nan
        self._clock = self.tally.clock(np.flatnonzero(self.present).tolist())

    def _tell(self, direction: str, party: int, round: int, body: bytes, outcome: str) -> None:
        if self._log is not None:
            self._log.add(direction, party, round, body, outcome, self.spec.digest)


def check(rules: Rules, parties: int) -> None:
    """Refuse rules that cannot hold.

    Args:
        rules: How rounds are held.
        parties: How many there are.

    Raises:
        Refused: An unknown mode, or a robust rule that would see too few updates.
    """
    if rules.mode not in KINDS:
        raise errors.unknown("value of runtime.exchange", rules.mode, KINDS)
    aggregator = robust.chosen(rules.aggregator, rules.hostile)
    seen = rules.buffer if rules.asynchronous else rules.quorum or parties
    robust.check(aggregator, rules.hostile, min(seen, parties))
    if max(rules.quorum, rules.buffer if rules.asynchronous else 0) > parties:
        raise errors.Refused(
            f"runtime.quorum={rules.quorum}, runtime.buffer={rules.buffer}, but there are {parties} parties; give no "
            f"more than {parties}"
        )
