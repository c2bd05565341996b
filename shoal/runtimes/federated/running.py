"""The life of a run: rounds one after the other, whoever carries the messages, until the steps are used up.

Everything that decides what comes next is in `Saved`, so a run that was stopped between any two messages goes on with
the same bits where its parties can be saved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from etils import epy

from shoal.core import errors, seeds, types
from shoal.runtimes.federated import audit, network, parties, promises, server, telling

with epy.lazy_imports():
    import jax

REPORT = 2048  # environment steps of all parties between two looks of the observer, about
FRUITLESS = 20  # rounds in a row in which parties failed and nobody got on, after which the run is given up
PATIENCE = 1.0  # seconds, of the carrier's clock, that are waited for a reply before the time is looked at


class Carrier(network.Network, network.Beside, Protocol):
    """Parties on this machine."""

    @property
    def block(self) -> int:
        """Of the way in which an axis of them is computed (`dispatch.of`); -1: there is none."""
        ...

    def beginning(self) -> np.ndarray:
        """The global part that a run begins with, ``[d]``: that of the first party's learner."""
        ...

    def now(self) -> float:
        """Seconds of the clock that deadlines are held against: simulated ones, or this machine's."""
        ...

    def alone(self) -> None:
        """Every party learns for a while, and nothing is sent."""
        ...

    def install(self, theta: np.ndarray) -> None:
        """The global part that parties are looked at with (`evaluate`, `policies`); none of them is changed."""
        ...


class Standing(NamedTuple):
    """What is known of the parties beside the channel."""

    evaluated_at: types.Scalar  # i64, environment steps of a party at the last evaluation
    returns: types.Array  # f64 [N], what it came to; 0 before the first
    measured: types.Array  # bool [N], whether there is one
    block: types.Scalar  # i64, of `dispatch.Way`; -1: not chosen yet


class Saved(NamedTuple):
    """The checkpoint tree: at home, at the server, beside the channel."""

    parties: types.Tree
    server: types.Tree
    standing: Standing


class Plan(NamedTuple):
    """How long, and what is looked at on the way."""

    steps: int  # environment steps of all parties
    per_update: int  # of one party in a local update
    evaluate_every: int  # of a party, between two evaluations; 0: none
    episodes: int  # of each party in an evaluation
    asynchronous: bool
    joins: tuple[tuple[int, int], ...] = ()  # (party, environment steps of the others before it joins)
    alone: bool = False  # nothing is exchanged
    sent: Callable[[list[network.Reply]], list[network.Reply]] = list  # replies as they were sent: some parties lie


def fresh(count: int) -> Standing:
    """Before the first round of so many parties."""
    return Standing(np.int64(0), np.zeros(count), np.zeros(count, bool), np.int64(-1))


class Running:
    """One life of a run."""

    def __init__(
        self,
        carrier: Carrier,
        served: server.Server,
        plan: Plan,
        seed: int,
        about: telling.About,
        log: audit.Audit,
        promised: promises.Promises,
    ) -> None:
        self._carrier, self._server, self._plan, self._seed = carrier, served, plan, seed
        self._telling, self._log, self._lines = telling.Telling(about), log, parties.Lines(about.names)
        self._promised, self._spent = promised, False  # whether the next release would pass the budget of privacy

    def __call__(self, now: Standing, observe: types.Observer, startup: float) -> types.Result:
        """Train to the end.

        Args:
            now: How the parties stand.
            observe: Who looks on.
            startup: Seconds that it took to get here.
        """
        self._now, self._observe, self._began = now, observe, time.monotonic()
        self._take()
        if self._promised.artefacts:  # the ledger is where it belongs before the first release
            observe(self._progress()._replace(stage=types.Stage("opening the ledger")))
        reported, fruitless = self._steps, 0
        while not self._over():
            before = self._steps, self._server.tally.failures
            self._round()
            self._take()
            stuck = self._steps == before[0] and (self._plan.alone or self._server.tally.failures > before[1])
            fruitless = fruitless + 1 if stuck else 0
            if fruitless >= FRUITLESS:
                raise errors.GaveUp(
                    f"no party got on in {FRUITLESS} rounds, for all that were asked failed; what they raised is told "
                    "above, and in the run's log"
                )
            self._evaluate()
            if self._steps - reported >= REPORT or self._over():
                reported = self._steps
                if not observe(self._progress()):
                    break
        if self._over():
            self._evaluate(last=True)
        self._carrier.install(self._server.theta)
        policies = self._carrier.policies()
        return types.Result(policies[0], self._progress(), startup, policies=policies)

    # ---------------------------------------------------------------- rounds

    def _over(self) -> bool:
        if self._spent or not self._plan.asynchronous:
            return self._spent or self._steps >= self._plan.steps
        return all(self._done(party) for party in self._here())

    def _here(self) -> list[int]:
        return np.flatnonzero(self._server.present).tolist()

    def _done(self, party: int) -> bool:
        """Whether a party has used its share of the steps up, where each goes on at its own pace."""
        return self._each[party] * len(self._each) >= self._plan.steps

    def _round(self) -> None:
        """Jobs for those who have none, what came back, and a step of the server if it is time for one."""
        carrier, served = self._carrier, self._server
        if self._plan.alone:
            carrier.alone()
            return
        for party, steps in self._plan.joins:
            others = self._steps - self._each[party]
            if served.present[party] != (others >= steps):
                served.admit(party, present=others >= steps)
        closed = None
        while closed is None:
            now = carrier.now()
            idle = [one for one in served.idle(now) if not (self._plan.asynchronous and self._done(one))]
            if not self._promised.begins(served.round, idle):
                self._spent = True
                return
            for party in idle:
                carrier.send(party, served.job(party))
            for reply in self._plan.sent(carrier.poll(PATIENCE)):
                served.take(reply.party, reply.body, carrier.now())
            closed = served.close(carrier.now()) if served.due(carrier.now()) else None
            if self._plan.asynchronous:
                break
        if closed is not None:
            self._telling.closed(closed)

    def _take(self) -> None:
        """What happened beside the channel."""
        told = self._carrier.told()
        self._each = told.env_steps
        self._steps = sum(told.env_steps)
        self._telling.take(told)

    # ---------------------------------------------------------------- looked at

    def _evaluate(self, *, last: bool = False) -> None:
        """An evaluation of every party, if it is due."""
        every, here = self._plan.evaluate_every, self._here()
        if not every:
            return
        steps = int(np.median([self._each[party] for party in here]))
        before = int(self._now.evaluated_at)
        if steps == before or not (last or steps // every > before // every):
            return
        began = time.monotonic()
        self._carrier.install(self._server.theta)
        key = seeds.key(self._seed, "evaluation", steps)
        found = np.asarray(self._carrier.evaluate(key, self._plan.episodes), float)
        measured = np.isfinite(found)
        self._now = self._now._replace(
            evaluated_at=np.int64(steps), returns=np.where(measured, found, 0.0), measured=measured
        )
        self._lines.add(steps, self._each, found.tolist())
        self._telling.evaluating_s += time.monotonic() - began

    def _progress(self) -> types.Progress:
        spent = time.monotonic() - self._began
        told, now = self._telling, self._now
        faults = {"non_finite": 0, **told.faults}
        return types.Progress(
            env_steps=self._steps,
            updates=self._steps // self._plan.per_update,
            train_s=spent,
            episodes=told.episodes(),
            metrics=told.metrics(now.returns[now.measured], self._server),
            split={"on_device": spent},
            workers={},
            faults=faults,
            save=self._saved,
            policy=self._policy,
            subsystems={
                "federation": told.summary(self._server, self._each, now.returns, now.measured)
                | self._promised.summary(last=self._over())
            },
            artefacts={audit.FILE: self._log, parties.FILE: self._lines, **self._promised.artefacts},
        )

    def _policy(self) -> types.Policy:
        self._carrier.install(self._server.theta)
        return self._carrier.policies()[0]

    def _saved(self) -> Saved:
        found: Saved = jax.device_get(Saved(self._carrier.saved(), self._server.kept(), self._now))
        return found


def joins(named: Sequence[str], names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """What `join` says, ``PARTY:STEPS`` each: (party, environment steps of the others before it joins).

    Raises:
        ValueError: One says something else.
    """
    found = []
    for one in named:
        who, _, steps = one.rpartition(":")
        party = names.index(who) if who in names else int(who)
        if not 0 <= party < len(names) or int(steps) < 0:
            raise ValueError(one)
        found.append((party, int(steps)))
    return tuple(sorted(found))
