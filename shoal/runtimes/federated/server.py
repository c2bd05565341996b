"""The server: one global part, its versions, and the rounds that change it.

Pure host logic: it is told the time, opens no connection and draws nothing but the secret of its cohorts, so the same
object serves a simulation in one process and a deployment. A loop around it hands out jobs and brings replies:

```
for party in server.idle(now): network.send(party, server.job(party))
for reply in network.poll(seconds): server.take(reply.party, reply.body, now)
if server.due(now): server.close(now)
```

Synchronously a round asks a cohort, and closes when all have answered or its time is up. Asynchronously it is a buffer:
it closes when so many updates are in it, one of a party at most, each weighted by (1 + lag)^(-1/2).
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence

import numpy as np

from shoal.core import types
from shoal.runtimes.federated import applying, audit, guard, jobs, message, robust, rounds, tally

Rules = rounds.Rules
check = rounds.check
STILL_OWED = ("late", "duplicate", "run")  # reasons that leave a job open: its own answer may yet come
WINDOW = 10  # rounds over which the norm's bound and the deadline take their medians
SHORTEST_S = rounds.Rules().shortest_s
FIRST_S = 600.0  # that of the first round, which compiles


class Server:
    """Owns the global part; see the module."""

    def __init__(
        self,
        spec: message.Spec,
        theta: np.ndarray,
        parties: Sequence[str],
        rules: Rules,
        run: bytes,
        *,
        log: audit.Audit | None = None,
        release: rounds.Release | None = None,
        masked: message.Spec | None = None,
    ) -> None:
        """A run before its first round.

        Args:
            spec: Of the global part.
            theta: Its first version, ``[size]`` f32.
            parties: Their names; a party's number is its place.
            rules: How rounds are held.
            run: The run's name, 16 bytes.
            log: Where every message is told.
            release: What takes the place of the rule where single updates may not be used.
            masked: Of what parties send, where it is not `spec`: whole numbers behind masks.

        Raises:
            Refused: The rules cannot hold with so many parties.
        """
        check(rules, len(parties))
        aggregator = robust.chosen(rules.aggregator, rules.hostile)
        coins = hashlib.sha256(rules.coins).digest() if rules.coins else os.urandom(32)
        self.rules = rules._replace(aggregator=aggregator, coins=coins)
        self.spec, self.names, self._run = spec, tuple(parties), run
        self._up, self._kind = masked or spec, message.MASKED if masked else rounds.KINDS[rules.mode]
        self.version, self.round = 0, 1
        self.tally = tally.Tally(len(parties), rules.max_lag)
        self.present = np.ones(len(parties), bool)
        self._global = rounds.Global(np.array(theta, np.float32), applying.first(rules.optimiser.rule, spec.size))
        self._log, self._release = log, release
        self._jobs = jobs.Jobs(len(parties))
        self._clock = 0.0  # environment steps of a party when the last round closed: rates are taken at them
        self._opened = math.nan  # when the round was first looked at
        self._now = 0.0

    @property
    def theta(self) -> np.ndarray:
        """The global part, ``[size]`` f32."""
        return self._global.theta

    @property
    def deadline_s(self) -> float:
        """Seconds after which a round (asynchronously a job) waits no longer."""
        if self.rules.deadline_s:
            return self.rules.deadline_s
        past = self.tally.recent("seconds", WINDOW)
        return max(self.rules.shortest_s, rounds.FACTOR * float(np.median(past))) if past.size else FIRST_S

    # ------------------------------------------------------------------------------------------------ handing out

    def cohort(self, round: int) -> list[int]:
        """Who is in a round: those present, each by a secret coin of its own, never by a number of its choice."""
        return [
            party for party in range(len(self.names)) if self.present[party] and rounds.drawn(self.rules, round, party)
        ]

    def idle(self, now: float) -> list[int]:
        """Who is to be given a job now.

        Args:
            now: In seconds, of any clock that only goes forward.
        """
        self._seen(now)
        if not self.rules.asynchronous:
            return [party for party in self.cohort(self.round) if party not in self._jobs.asked]
        for party, job in list(self._jobs.open.items()):
            if now - job.since >= self.deadline_s:  # it is given another; the answer to this one is late
                self._lost(party)
        return [party for party in self.cohort(self.round) if party not in self._jobs.busy]

    def job(self, party: int) -> bytes:
        """The bytes of a party's job, which it owes an answer from now on."""
        number = int(self._jobs.given[party]) + 1 if self.rules.asynchronous else self.round
        self._jobs.give(party, jobs.Job(number, self.version, self._now))
        header = message.Header(self._run, party, number, self.version, self._kind)
        body = message.encode_down(self.spec, message.Down(header, self.theta, self.rules.settings))
        self.tally.crossed("down", body)
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
        job = self._jobs.open.get(party)
        if body is None:
            self._lost(party)
            outcome = "failed"
        else:
            outcome = self._judged(party, body, job)
            self.tally.crossed("up", body)
        if outcome.startswith("rejected:"):
            self.tally.rejected(party, outcome.partition(":")[2])
        self._tell("up", party, job.round if job else 0, body or b"", outcome)
        return outcome

    def due(self, now: float) -> bool:
        """Whether the round can be closed: all have answered, the buffer is full, or its time is up."""
        self._seen(now)
        if self.rules.asynchronous:
            return len(self._jobs.waiting) >= self.rules.buffer
        if any(party not in self._jobs.asked for party in self.cohort(self.round)):
            return False
        return not self._jobs.open or now - self._opened >= self.deadline_s

    def close(self, now: float) -> tally.Closed:
        """Aggregate and step; without a quorum, or where the result is not finite, the global part stays as it is."""
        self._seen(now)
        came, seconds, most = self._came(), now - self._opened, 0.0
        why = self._missed(len(came.parties))
        if not why:
            most = rounds.bound(self.rules, self.tally.recent("norms", WINDOW - 1).tolist(), came.norms)
            self._global, why = rounds.step(self.rules, self._global, came, most, self._clock, self._release)
        self.version += not why
        told = tally.Closed(
            self.round, self.version, why, came.parties, len(came.cohort), came.lags, tuple(came.norms.tolist()),
            int((came.norms > most).sum()) if most else 0, len(self._jobs.waiting) - len(came.parties), seconds,
        )  # fmt: skip
        self.tally.closed(told)
        self._next()
        return told

    # ------------------------------------------------------------------------------------------------ keeping

    def admit(self, party: int, *, present: bool = True) -> None:
        """A party joins, or leaves: it is in no cohort until it joins again."""
        self.present[party] = present
        if not present:
            self._lost(party)

    def forget(self) -> None:
        """All jobs that are out are lost (a restart): they are given out anew, synchronously with the same number."""
        self._jobs.forget()

    def kept(self) -> types.Tree:
        """What a checkpoint holds: NumPy arrays whose shapes the rules and the specification alone decide."""
        return {
            "theta": self.theta.copy(),
            "numbers": np.array([self.version, self.round, int(self._clock)], np.int64),
            "present": self.present.copy(),
            "optimiser": {name: array.copy() for name, array in self._global.kept.items()},
            "tally": {name: array.copy() for name, array in self.tally.arrays.items()},
            "jobs": self._jobs.kept(self.spec.size, self._up.dtype),
            "coins": np.frombuffer(self.rules.coins, np.uint8).copy(),
        }

    def resume(self, kept: types.Tree) -> None:
        """Go on from `kept` of another life; its clock begins anew."""
        statistics = {name: np.array(array) for name, array in kept["optimiser"].items()}
        self._global = rounds.Global(np.array(kept["theta"], np.float32), statistics)
        self.version, self.round, clock = map(int, kept["numbers"])
        self._clock, self._opened = float(clock), math.nan
        self.present = np.array(kept["present"], bool)
        self.tally.arrays = {name: np.array(array) for name, array in kept["tally"].items()}
        self._jobs.resume(kept["jobs"])
        self.rules = self.rules._replace(coins=np.asarray(kept["coins"], np.uint8).tobytes())

    # ------------------------------------------------------------------------------------------------ inside

    def _seen(self, now: float) -> None:
        """The round begins when it is first looked at."""
        if math.isnan(self._opened):
            self._opened = now
        self._jobs.seen(now)
        self._now = now

    def _lost(self, party: int) -> None:
        if self._jobs.open.pop(party, None) is not None:
            self.tally.failed(party)

    def _judged(self, party: int, body: bytes, job: jobs.Job | None) -> str:
        """The outcome of a message; an update that is taken is in the round from then on."""
        if not 0 <= party < len(self.names):
            return "rejected:party"
        if job is None:
            return f"rejected:{self._unasked(party, body)}"
        rules = self.rules
        expected = guard.Expected(
            self._run, party, job.round, job.base, self._kind,
            rules.env_steps, rules.updates, rules.max_norm, rules.choices,
        )  # fmt: skip
        up, reason = guard.check(self._up, body, expected)
        if reason == "late":
            reason = self._unasked(party, body)
        if reason not in STILL_OWED:
            self._jobs.answer(party)
        return f"rejected:{reason}" if up is None else self._accepted(party, up, job)

    def _accepted(self, party: int, up: message.Up, job: jobs.Job) -> str:
        if up.outcome == message.FAILED:
            self.tally.failed(party)
            return "failed"
        if self.version - job.base > self.rules.max_lag:
            return "rejected:stale"
        self.tally.counted(party, up.env_steps, up.updates)
        if up.outcome == message.SKIPPED:
            self._jobs.skipped += 1
            return "skipped"
        self._jobs.waiting[party] = job.base, up.vector
        return "ok"

    def _unasked(self, party: int, body: bytes) -> str:
        """Why a message that answers no open job is turned away."""
        up, reason = guard.read(self._up, body)
        if up is None:
            return reason
        if up.header.run != self._run or up.header.party != party:
            return "run" if up.header.run != self._run else "party"
        if up.header.round == self._jobs.answered[party]:
            return "duplicate"
        return "late" if up.header.round <= self._jobs.given[party] else "unasked"

    def _came(self) -> rounds.Came:
        """The updates of this step, by the party's number; who said nothing counts as such."""
        waiting, took = self._jobs.waiting, sorted(self._jobs.waiting)
        updates = np.array([waiting[party][1] for party in took]).reshape(len(took), self.spec.size)
        norms = robust.norms(updates) if self._up is self.spec else np.zeros(0)
        lags, cohort = tuple(self.version - waiting[party][0] for party in took), tuple(sorted(self._jobs.asked))
        came = rounds.spoken(self.rules, rounds.Came(updates, norms, lags, tuple(took), cohort, self.round))
        self._jobs.skipped += len(took) - len(came.parties)
        return came

    def _missed(self, came: int) -> str:
        """Why no step can be taken with so many updates; "" if one can."""
        if not came and self._jobs.skipped:
            return "skipped"
        least = max(0 if self._release else robust.needs(self.rules.aggregator, self.rules.hostile), self.rules.quorum)
        if not self.rules.quorum and not self.rules.asynchronous:
            least = max(least, -(-len(self._jobs.asked) // 2) - self._jobs.skipped)
        return "quorum" if came < least else ""

    def _next(self) -> None:
        if not self.rules.asynchronous:
            for party in list(self._jobs.open):
                self._lost(party)
        self._jobs.next()
        self.round, self._opened = self.round + 1, math.nan
        self._clock = self.tally.clock(np.flatnonzero(self.present).tolist())

    def _tell(self, direction: str, party: int, round: int, body: bytes, outcome: str) -> None:
        if self._log is not None:
            self._log.add(direction, party, round, body, outcome, self.spec.digest)
