"""The lasting party: one party behind a Unix socket, whose functions stay compiled and whose private part stays here.

Every job comes in by the socket (`door`), is checked by `party.Party` as strictly as the server checks what it gets,
and is answered only after the state that the answer belongs to was reported, and so saved. A party that is killed at
any moment goes on from there, and answers a job that it has answered before with the same bytes.
"""

from __future__ import annotations

import time
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from shoal.core import errors, types
from shoal.runtimes.crew import beside
from shoal.runtimes.federated import accounts, keeping, leaving, message
from shoal.runtimes.federated import ledger as ledgers
from shoal.runtimes.federated import party as parties
from shoal.runtimes.federated.flower import door as doors

if TYPE_CHECKING:
    from shoal.runtimes.federated import Config

WAITING = types.Stage("waiting for the server")
FAREWELL = b"farewell"  # what is answered to the last message of a run


class Seat(NamedTuple):
    """Which party of which run, and where it is asked."""

    number: int
    run: bytes  # [16]
    socket: Path
    folder: Path  # its own log and ledger
    user: int | None = None  # who may ask; None: who it is itself


class Saved(NamedTuple):
    """The checkpoint tree of a party."""

    party: types.Tree  # `party.Kept`
    theta: types.Array  # [d] f32, the newest global part that it saw


class Partaking:
    """A `types.Runtime` that does what a server far away asks for."""

    def __init__(self, config: Config, seat: Seat | None = None) -> None:
        """Args: `config`, of the federation; `seat`, None where nothing is run but a policy is looked at."""
        self._config, self._seat = config, seat

    def like(self, parts: types.Parts, seed: int) -> types.Tree:
        """See `types.Runtime`."""
        one = self._party(parts, seed)
        return Saved(one.like(), np.zeros(one.spec.size, np.float32))

    def policy(self, parts: types.Parts, seed: int, saved: types.Tree) -> types.Policy:
        """See `types.Runtime`: with the newest global part."""
        one = self._party(parts, seed)
        one.resume(saved.party)
        return one.policy(np.asarray(saved.theta))

    def run(
        self, parts: types.Parts, seed: int, steps: int, goal: types.Goal | None, observe: types.Observer,
        saved: types.Tree | None,
    ) -> types.Result:  # fmt: skip
        """See `types.Runtime`: until the server says farewell, or the observer stop."""
        del goal, steps  # how long it takes the server knows
        began, seat = time.monotonic(), self._seat
        if seat is None:
            raise errors.Refused("a party's run is continued by `shoal federate party`, with the same --out")
        counts = dict(zip(parties.COUNTS, map(int, saved.party.counts), strict=True)) if saved is not None else {}
        done = counts.get("env_steps", 0), counts.get("updates", 0)
        one = beside.done(lambda: self._party(parts, seed), beside.COMPILING, beside.first(observe, *done))
        theta = one.theta()
        if saved is not None:
            one.resume(saved.party)
            theta = np.asarray(saved.theta)
        return _Life(one, seat, observe, theta)(time.monotonic() - began)

    def _party(self, parts: types.Parts, seed: int) -> parties.Party:
        config, seat = self._config, self._seat or Seat(0, bytes(16), Path(), Path())
        terms = parties.Terms(
            run=seat.run, party=seat.number, seed=seed, environments=config.environments, exchange=config.exchange,
            most=config.local_updates, reset_moments=config.reset_moments,
        )  # fmt: skip
        folder = seat.folder if self._seat else None

        def log(what: str, story: str) -> None:
            if folder is not None:
                keeping.log(folder, what, story)

        return parties.Party(parts, terms, leaves(config, folder), log)


def leaves(config: Config, folder: Path | None) -> parties.Leaves:
    """What is done to an update before it leaves: what the owner agreed to, with noise from the system's source.

    Args:
        config: Of the federation.
        folder: Of its ledger; None: none is kept, and nothing is ever sent.
    """
    noise = config.noise if config.privacy == "local" else 0.0
    if not config.clip or folder is None:
        return parties.as_it_is
    settings = leaving.Settings(config.clip, noise, config.unit)
    if not noise:
        return leaving.Leaving(settings, leaving.Secure(), None)
    ledger = ledgers.Ledger(folder, delta=config.delta, max_epsilon=config.max_epsilon, unit=config.unit)
    return leaving.Leaving(settings, leaving.Secure(), ledger)


class _Life:
    """One life of a lasting party."""

    def __init__(self, one: parties.Party, seat: Seat, observe: types.Observer, theta: np.ndarray) -> None:
        self._one, self._seat, self._observe, self._theta = one, seat, observe, theta
        self._began = time.monotonic()
        self._accounts = accounts.Accounts(1)
        self._accounts.begin([one.counts["env_steps"]])

    def __call__(self, startup: float) -> types.Result:
        seat = self._seat
        going = True
        with doors.Door(seat.socket, seat.user) as door:
            while going:
                visitor = door.visitor(0.25)
                if visitor is None:
                    going = self._observe(self._progress()._replace(stage=WAITING))
                    continue
                with visitor:
                    body = doors.taken(visitor)
                    if body is None:
                        continue
                    if self._is_farewell(body):
                        doors.given(visitor, FAREWELL)
                        break
                    going = self._answer(visitor, body)
        policy = self._one.policy(self._theta)
        return types.Result(policy, self._progress(), startup)

    def _answer(self, visitor: connection.Connection, body: bytes) -> bool:
        """One job; whether the run goes on."""
        one, before = self._one, self._one.told
        reply = one.handle(body)
        if one.told is not None and one.told is not before:
            self._accounts.take(0, one.told, one.counts["env_steps"])
            self._theta = np.array(message.decode_down(one.spec, body).vector, np.float32)
        going = self._observe(self._progress())  # saved before it leaves
        doors.given(visitor, reply)
        return going

    def _is_farewell(self, body: bytes) -> bool:
        """Whether it is the last message: a download that asks for no update."""
        one = self._one
        try:
            down = message.decode_down(one.spec, body)
        except message.Malformed:
            return False
        head, mine = down.header, (one.terms.run, one.terms.party, one.channel.kind)
        if (head.run, head.party, head.kind) != mine or down.settings.local_updates:
            return False
        self._theta = np.array(down.vector, np.float32)
        return True

    def _progress(self) -> types.Progress:
        """What the party's own run tells; nothing of it leaves."""
        one, told = self._one, self._accounts.told()
        counts, spent = one.counts, time.monotonic() - self._began
        faults = {**told.faults, "refused": counts["refused"], "failed": counts["failed"]}
        return types.Progress(
            env_steps=counts["env_steps"], updates=counts["updates"], train_s=spent, episodes=told.episodes,
            metrics=told.metrics[0], split={"on_device": spent}, workers={}, faults=faults, save=self._save,
            policy=lambda: one.policy(self._theta),
            subsystems={"party": {"number": one.terms.party, "version": counts["base"], "round": counts["round"]}},
        )  # fmt: skip

    def _save(self) -> Saved:
        return Saved(self._one.kept(), self._theta.copy())
