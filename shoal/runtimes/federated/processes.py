"""A network whose parties are processes of their own, for Python simulators: spawned, supervised, replaced.

A party that dies comes back with its private state as of its last round (`housed`), and the run goes on. One that is
slow is waited for as long as the server waits; its answer is then late.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from shoal.core import errors, types
from shoal.runtimes.crew import crew, life
from shoal.runtimes.crew import turns as crew_turns
from shoal.runtimes.federated import accounts, axis, housed, network, party, turns

ROLE = "party"
PATIENCE = 600.0  # seconds that an answer beside the channel may take


class Processes:
    """See `running.Carrier`; its clock is this machine's."""

    block = -1  # of an axis

    def __init__(
        self,
        parties: Sequence[types.Party],
        plan: turns.Plan,
        like: Sequence[party.Kept],
        fault: crew.OnFault,
        form: type[crew.Processes | crew_turns.Turns] = crew.Processes,
    ) -> None:
        """Start them.

        Args:
            parties: In the order of their numbers; their `rebuild` can be pickled.
            plan: How they work; paces are not simulated, and what is done to updates can be pickled.
            like: Of each what it must remember, shapes are enough (`party.like`).
            fault: Told of every death that was mended.
            form: Of the crew; `crew.turns.Turns` for tests.
        """
        self._names, self._like, self._plan = [one.name for one in parties], tuple(like), plan
        self._blocks = [housed.block(one) for one in like]
        terms, leaving = plan.terms, plan.leaving

        def job(worker: int, incarnation: int) -> housed.Job:
            del incarnation  # it goes on from what is remembered, or begins as the first did
            return housed.Job(parties[worker], terms._replace(party=worker), self._blocks[worker], leaving)

        role = life.Role(name=ROLE, workers=len(parties), open=housed.Worker, job=job, together=False, serves=True)
        self._crew, self._fault = form([role], fault), fault
        self._opened: dict[int, housed.Opened] = {}
        self._owed: dict[int, housed.Given] = {}  # what each party is at, or is to do once it is there
        self._next: dict[int, housed.Given] = {}  # what it is to do then; a newer job takes the place of an older one
        self._replies: list[network.Reply] = []
        self._answers: dict[int, tuple[int, housed.Asked, housed.Answer | None]] = {}
        self._jobs = self._questions = 0
        self._theta: np.ndarray | None = None
        self._accounts = accounts.Accounts(len(parties))

    def begin(self, going: Callable[[], bool]) -> bool:
        """Wait until all are there; False: `going`, asked now and then, said that the run is to end."""
        while len(self._opened) < len(self._names):
            self._hear(crew.LOOK)
            if not going():
                return False
        return True

    def stage(self) -> types.Stage:
        """Which are there, while they start and compile."""
        count = len(self._names)
        return types.Stage(f"starting {count} parties", len(self._opened), count)

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
        arrived = self._plan.wire(axis.DOWN, party, body)
        if arrived is None:
            self._replies.append(network.Reply(party, self._jobs, None))
            return self._jobs
        given = housed.Given(self._jobs, arrived)
        if party in self._owed:
            if (older := self._next.get(party)) is not None:
                self._replies.append(network.Reply(party, older.job, None))
            self._next[party] = given
        else:
            self._give(party, given)
        return self._jobs

    def _give(self, party: int, given: housed.Given) -> None:
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
            if isinstance(message, housed.Alive):
                continue
            if isinstance(message, housed.Logged):
                self._fault(f"party {self._names[number]}: {message.what}", message.story)
                continue
            self._crew.answered(ROLE, number, progress=isinstance(message, housed.Handled))
            if isinstance(message, housed.Opened):
                self._came(number, message)
            elif isinstance(message, housed.Handled):
                self._took(number, message)
            elif message.number in self._answers:
                asked = self._answers[message.number][1]
                self._answers[message.number] = number, asked, message
                if asked.what == housed.ALONE:
                    self._accounts.take(number, *message.value)

    def _came(self, number: int, message: housed.Opened) -> None:
        """A party is there, for the first time or in the place of one that died: it is told again what it owes."""
        self._opened[number] = message
        if (owed := self._owed.get(number)) is not None:
            self._crew.send(ROLE, number, owed)
        for which, asked, answer in list(self._answers.values()):
            if which == number and answer is None:
                self._crew.send(ROLE, number, asked)

    def _took(self, number: int, message: housed.Handled) -> None:
        owed = self._owed.get(number)
        if owed is None or owed.job != message.job:
            return  # said twice
        del self._owed[number]
        self._replies.append(network.Reply(number, message.job, self._plan.wire(axis.UP, number, message.body)))
        if message.told is not None:
            self._accounts.take(number, message.told, message.env_steps)
        if (following := self._next.pop(number, None)) is not None:
            self._give(number, following)

    def close(self) -> None:
        """See `network.Network`; parties that still start and compile have nothing to lose, and hear nobody."""
        there = len(self._opened) == len(self._names)
        self._crew.__exit__(None if there else errors.NotBegun)

    # ---------------------------------------------------------------- network.Beside

    def told(self) -> network.Told:
        """See `network.Beside`."""
        return self._accounts.told(self._crew.about(ROLE)["restarts"])

    def about(self) -> dict[str, types.Tree]:
        """Of the processes, for `types.Progress.workers`."""
        return {**self._crew.about(ROLE), "env_steps": list(self._accounts.env_steps)}

    def now(self) -> float:
        """Seconds of this machine's clock."""
        return time.monotonic()

    def alone(self) -> None:
        """Every party learns for a while, and nothing is sent."""
        self._ask([housed.Asked(0, housed.ALONE, many=self._plan.alone) for _ in self._names])

    def install(self, theta: np.ndarray) -> None:
        """The global part that parties are looked at with; none of them is changed."""
        self._theta = np.array(theta)

    def evaluate(self, key: types.Key, episodes: int) -> types.Array:
        """See `network.Beside`; all of them at once."""
        words = turns.split(key, len(self._names))
        return np.array(
            self._ask([housed.Asked(0, housed.RETURN, word, episodes, self._theta) for word in words]), np.float32
        )

    def policies(self) -> tuple[types.Policy, ...]:
        """See `network.Beside`."""
        return tuple(self._ask([housed.Asked(0, housed.POLICY, theta=self._theta) for _ in self._names]))

    def _ask(self, every: Sequence[housed.Asked]) -> list[types.Tree]:
        """One question a party; the answers in the order of their numbers.

        Raises:
            GaveUp: One has not answered for a long time.
        """
        first = self._questions + 1
        self._questions += len(every)
        for number, question in enumerate(every):
            asked = question._replace(number=first + number)
            self._answers[asked.number] = number, asked, None
            if number in self._opened:
                self._crew.send(ROLE, number, asked)
        until = time.monotonic() + PATIENCE
        while (answers := [self._answers[at][2] for at in range(first, self._questions + 1)]).count(None):
            self._hear(crew.LOOK)
            if time.monotonic() > until:
                raise errors.GaveUp(f"a party has not answered for {PATIENCE:.0f} s")
        for at in range(first, self._questions + 1):
            del self._answers[at]
        return [answer.value for answer in answers if answer is not None]

    def saved(self) -> types.Tree:
        """See `network.Beside`: what the parties remembered last, which is read here."""
        found = [housed.remembered(room, like) for room, like in zip(self._blocks, self._like, strict=True)]
        return tuple(found)

    def resume(self, saved: types.Tree) -> None:
        """See `network.Beside`; before the parties are there, who then begin with it."""
        for room, kept in zip(self._blocks, saved, strict=True):
            housed.remember(room, kept)
        at = party.COUNTS.index("env_steps")
        self._accounts.begin([int(kept.counts[at]) for kept in saved])
