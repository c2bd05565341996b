"""A network whose parties are processes of their own, for Python simulators: spawned, supervised, replaced.

What a party must remember lies in memory that the parent holds and never reads but for a checkpoint: two halves, of
which one is whole at any moment. So a party that is killed comes back with its private state as of its last round, is
sent again the job that it owed, and, where it had answered, sends the reply that it had stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from shoal.core import errors, types
from shoal.runtimes.crew import crew, life, sharing
from shoal.runtimes.crew import turns as crew_turns
from shoal.runtimes.federated import accounts, keeping, network, party, turns, working

ROLE = "party"
PATIENCE = 600.0  # seconds that an answer beside the channel may take
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


class Asked(NamedTuple):
    """A question beside the channel: what it earns, or its policy."""

    number: int
    words: np.ndarray | None  # of a key, [2] u32; None: its policy
    episodes: int
    theta: np.ndarray | None  # [d], the global part that is acted with; None: as the party has it


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
        if asked.words is None:
            return self._party.policy(asked.theta)
        return self._party.evaluate(asked.words, asked.episodes, asked.theta)

    def close(self) -> None:
        """Let go of simulators."""
        self._party.close()


class Processes:
    """See `network.Network` and `network.Beside`."""

    def __init__(
        self,
        parties: Sequence[types.Party],
        terms: party.Terms,
        like: Sequence[types.Tree],
        fault: crew.OnFault,
        leaving: party.Leaves = party.as_it_is,
        form: type[crew.Processes | crew_turns.Turns] = crew.Processes,
    ) -> None:
        """Start them.

        Args:
            parties: In the order of their numbers; their `rebuild` can be pickled.
            terms: Of the run; the number is each one's own.
            like: A `party.Kept` of each, shapes are enough (`party.like`).
            fault: Told of every death that was mended.
            leaving: What is done to updates before they leave; can be pickled.
            form: Of the crew; `crew.turns.Turns` for tests.
        """
        self._names, self._like = [one.name for one in parties], tuple(like)
        self._blocks = [block(one) for one in like]

        def job(worker: int, incarnation: int) -> Job:
            del incarnation  # it goes on from what is remembered, or begins as the first did
            return Job(parties[worker], terms._replace(party=worker), self._blocks[worker], leaving)

        role = life.Role(name=ROLE, workers=len(parties), open=Worker, job=job, together=False, serves=True)
        self._crew, self._fault = form([role], fault), fault
        self._opened: dict[int, Opened] = {}
        self._owed: dict[int, Given] = {}  # what each party is at, or is to do once it is there
        self._next: dict[int, Given] = {}  # what it is to do then; a newer job takes the place of an older one
        self._replies: list[network.Reply] = []
        self._answers: dict[int, tuple[int, Asked, types.Tree]] = {}
        self._jobs = self._questions = 0
        self._accounts = accounts.Accounts(len(parties))

    def begin(self, going: Callable[[], bool]) -> bool:
        """Wait until all are there; False: `going`, asked now and then, said that the run is to end."""
        while len(self._opened) < len(self._names):
            self._hear(crew.LOOK)
            if not going():
                return False
        return True

    def beginning(self) -> np.ndarray:
        """What the global part may begin with, ``[d]``: the first party's own."""
        self.begin(lambda: True)
        return self._opened[0].beginning

    # ---------------------------------------------------------------- network.Network

    def parties(self) -> Sequence[str]:
        """See `network.Network`."""
        return self._names

    def send(self, party: int, body: bytes) -> int:
        """See `network.Network`; a party that is still at a job is sent its newest one after that."""
        self._jobs += 1
        given = Given(self._jobs, body)
        if party in self._owed:
            if (older := self._next.get(party)) is not None:
                self._replies.append(network.Reply(party, older.job, None))
            self._next[party] = given
        else:
            self._give(party, given)
        return self._jobs

    def _give(self, party: int, given: Given) -> None:
        self._owed[party] = given
        if party in self._opened:
            self._crew.send(ROLE, party, given)

    def poll(self, seconds: float) -> list[network.Reply]:
        """See `network.Network`."""
        until = time.monotonic() + seconds
        while not self._replies and (left := until - time.monotonic()) > 0:
            self._hear(min(left, crew.LOOK))
        replies, self._replies = self._replies, []
        return replies

    def _hear(self, seconds: float) -> None:
        for _, number, _, message in self._crew.said(seconds):
            if isinstance(message, Alive):
                continue
            if isinstance(message, Logged):
                self._fault(f"party {self._names[number]}: {message.what}", message.story)
                continue
            self._crew.answered(ROLE, number, progress=isinstance(message, Handled))
            if isinstance(message, Opened):
                self._came(number, message)
            elif isinstance(message, Handled):
                self._took(number, message)
            elif message.number in self._answers:
                self._answers[message.number] = number, self._answers[message.number][1], message

    def _came(self, number: int, message: Opened) -> None:
        """A party is there, for the first time or in the place of one that died: it is told again what it owes."""
        self._opened[number] = message
        if (owed := self._owed.get(number)) is not None:
            self._crew.send(ROLE, number, owed)
        for which, asked, answer in list(self._answers.values()):
            if which == number and answer is None:
                self._crew.send(ROLE, number, asked)

    def _took(self, number: int, message: Handled) -> None:
        owed = self._owed.get(number)
        if owed is None or owed.job != message.job:
            return  # said twice
        del self._owed[number]
        self._replies.append(network.Reply(number, message.job, message.body))
        if message.told is not None:
            self._accounts.take(number, message.told, message.env_steps)
        if (following := self._next.pop(number, None)) is not None:
            self._give(number, following)

    def close(self) -> None:
        """See `network.Network`."""
        self._crew.__exit__(None)

    # ---------------------------------------------------------------- network.Beside

    def told(self) -> network.Told:
        """See `network.Beside`."""
        return self._accounts.told(self._crew.about(ROLE)["restarts"])

    def about(self) -> dict[str, types.Tree]:
        """Of the processes, for `types.Progress.workers`."""
        return {**self._crew.about(ROLE), "env_steps": list(self._accounts.env_steps)}

    def evaluate(self, key: types.Key, episodes: int, theta: np.ndarray | None = None) -> types.Array:
        """See `turns.Turns.evaluate`; all of them at once."""
        words = turns.split(key, len(self._names))
        asked = [Asked(0, word, episodes, theta) for word in words]
        return np.array(self._ask(asked), np.float32)

    def policies(self, theta: np.ndarray | None = None) -> tuple[types.Policy, ...]:
        """See `network.Beside`; `theta` as in `evaluate`."""
        return tuple(self._ask([Asked(0, None, 0, theta) for _ in self._names]))

    def _ask(self, every: Sequence[Asked]) -> list[types.Tree]:
        """One question a party; the answers in the order of their numbers.

        Raises:
            GaveUp: One has not answered for a long time.
        """
        numbers = []
        for number, question in enumerate(every):
            self._questions += 1
            asked = question._replace(number=self._questions)
            self._answers[self._questions] = number, asked, None
            numbers.append(self._questions)
            if number in self._opened:
                self._crew.send(ROLE, number, asked)
        until = time.monotonic() + PATIENCE
        while any(self._answers[number][2] is None for number in numbers):
            self._hear(crew.LOOK)
            if time.monotonic() > until:
                raise errors.GaveUp(f"a party has not answered for {PATIENCE:.0f} s")
        return [self._answers.pop(number)[2].value for number in numbers]

    def saved(self) -> types.Tree:
        """See `network.Beside`: what the parties remembered last, which is read here."""
        found = [remembered(room, like) for room, like in zip(self._blocks, self._like, strict=True)]
        return tuple(found)

    def resume(self, saved: types.Tree) -> None:
        """See `network.Beside`; before the parties are there, who then begin with it."""
        for room, kept in zip(self._blocks, saved, strict=True):
            remember(room, kept)
        at = party.COUNTS.index("env_steps")
        self._accounts.begin([int(kept.counts[at]) for kept in saved])
