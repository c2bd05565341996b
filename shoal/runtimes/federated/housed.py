"""A party in a process of its own: what it is told, what it says, and what it must remember if it dies.

What it remembers lies in memory that the parent holds and never reads but for a checkpoint: two halves, of which one is
whole at any moment. It is written before anybody can see the reply, so a party that is killed comes back as of its last
round, is sent again the job that it owed, and, where it had answered, sends the reply that it had stored.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from shoal.core import types
from shoal.runtimes.crew import life, sharing
from shoal.runtimes.federated import keeping, party, working

BEAT = 1.0  # seconds between two signs of life


class Job(NamedTuple):
    """What a party's process is told when it starts; all of it can be pickled."""

    party: types.Party
    terms: party.Terms
    block: sharing.Block  # of what it must remember
    leaving: party.Leaves


class Given(NamedTuple):
    """A job of the channel."""

    job: int
    body: bytes


POLICY, RETURN, ALONE = "policy", "return", "alone"  # what is asked beside the channel


class Asked(NamedTuple):
    """A question beside the channel: its policy, what it earns, or that it is to learn by itself."""

    number: int
    what: str
    words: np.ndarray | None = None  # of a key, [2] u32 (return)
    many: int = 0  # episodes (return) or updates (alone)
    theta: np.ndarray | None = None  # [d], the global part that is acted with; None: as the party has it


class Alive(NamedTuple):
    """A sign of life in a long round."""


class Logged(NamedTuple):
    """Something went wrong at a party; of a simulation on one machine its log is the run's."""

    what: str
    story: str


class Handled(NamedTuple):
    """The reply to a job, and beside it what the round was like."""

    job: int
    body: bytes
    told: working.Told | None
    env_steps: int


class Opened(NamedTuple):
    """A party is there, new or again."""

    beginning: np.ndarray  # [d]
    env_steps: int


class Answer(NamedTuple):
    """To what was asked beside the channel."""

    number: int
    value: types.Tree


def block(like: types.Tree) -> sharing.Block:
    """Room for what one party must remember.

    Args:
        like: Its `party.Kept`, shapes are enough.
    """
    most = keeping.size(like)
    return sharing.Block({"state": ((2, most), "u1"), "length": ((2,), "i8"), "whole": ((1,), "i8")})


def remember(room: sharing.Block, kept: types.Tree) -> None:
    """Write into the half that is not whole, then say that it is."""
    data = np.frombuffer(keeping.packed(kept), np.uint8)
    at = 1 - int(room["whole"][0]) % 2
    room["length"][at] = len(data)
    room["state"][at, : len(data)] = data
    room["whole"][0] = at


def remembered(room: sharing.Block, like: types.Tree) -> types.Tree | None:
    """What was written last; None before the first time."""
    at = int(room["whole"][0]) % 2
    length = int(room["length"][at])
    return keeping.unpacked(room["state"][at, :length].tobytes(), like) if length else None


class Worker(life.Worker):
    """One party's process: does what it is sent, in the order in which it is sent it."""

    def __init__(self, job: Job, parent: life.Parent) -> None:
        """Build and compile; go on from what is remembered, if anything is."""
        self._parent, self._block, self._ended = parent, job.block, False
        self._told = time.monotonic()
        self._party = party.Party(job.party.rebuild(), job.terms, job.leaving, self._log, beat=self._beat)
        beginning = self._party.theta()
        kept = remembered(job.block, self._party.like())
        if kept is not None:
            self._party.resume(kept)
        remember(job.block, self._party.kept())
        parent.tell(Opened(beginning, self._party.counts["env_steps"]))

    def _log(self, what: str, story: str) -> None:
        self._parent.tell(Logged(what, story))

    def _beat(self) -> None:
        """A sign of life in a long round."""
        if (now := time.monotonic()) - self._told >= BEAT:
            self._told = now
            self._parent.tell(Alive())

    @property
    def over(self) -> bool:
        """Whether it was told to end."""
        return self._ended or self._parent.stopped

    def turn(self) -> bool:
        """One job, or one question."""
        said = self._parent.next()
        if said is None:
            self._ended = self._parent.stopped
            return False
        if isinstance(said, Given):
            self._handle(said)
        else:
            self._parent.tell(Answer(said.number, self._answered(said)))
        return True

    def _handle(self, given: Given) -> None:
        before = self._party.told
        body = self._party.handle(given.body)
        remember(self._block, self._party.kept())  # before anybody can see the reply
        told = self._party.told if self._party.told is not before else None
        self._parent.tell(Handled(given.job, body, told, self._party.counts["env_steps"]))

    def _answered(self, asked: Asked) -> types.Tree:
        if asked.what == POLICY:
            return self._party.policy(asked.theta)
        if asked.what == RETURN:
            assert asked.words is not None
            return self._party.evaluate(asked.words, asked.many, asked.theta)
        self._party.alone(asked.many)
        remember(self._block, self._party.kept())
        return self._party.told, self._party.counts["env_steps"]

    def close(self) -> None:
        """Let go of simulators."""
        self._party.close()
