"""Flower as a network of four verbs: jobs are handed to the ServerApp over a socket, and answers come back.

The app (`app/shoalfed/server.py`) is a carrier that may be lost and started again at any time: jobs that were not
answered are handed to the next one. A party whose answer was lost gives the same again (`lasting`).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection
from typing import NamedTuple

from shoal.runtimes.federated import network
from shoal.runtimes.federated.flower import door as doors

HEAD = struct.Struct(">QQ")  # number of the job, node
MISSED = 30.0  # seconds after which a node that is away is given no more jobs; Flower itself takes longer to say so
TRIES = 5  # of a job that comes back without an answer: its party, its node or the carrier was lost meanwhile
PAUSE = 2.0  # seconds between them


class Job(NamedTuple):
    """What was sent and is not answered yet."""

    party: int
    body: bytes
    tries: int = 1
    again: float | None = None  # when it is handed out once more; None: it is out


class Carrier:
    """A `Network` of named parties behind nodes."""

    def __init__(
        self, names: Sequence[str], nodes: Mapping[int, int], door: doors.Door, watch: Callable[[bool], None]
    ) -> None:
        """Nobody is there yet.

        Args:
            names: Of the parties, in order.
            nodes: Flower's number of a node -> the party whose key it registered with.
            door: Where the ServerApp comes in; open.
            watch: Called now and then with whether the ServerApp is there; it looks after processes.
        """
        self._names, self._nodes, self._door, self._watch = tuple(names), dict(nodes), door, watch
        self._node_of = {party: node for node, party in nodes.items()}
        self._app: connection.Connection | None = None
        self._jobs: dict[int, Job] = {}
        self._next = 0
        self._failed: list[network.Reply] = []  # jobs of parties that are away
        self._seen = dict.fromkeys(nodes.values(), time.monotonic())  # when each party was there last
        self.present: frozenset[int] = frozenset()  # parties whose nodes are there
        self.foreign = 0  # answers that were nobody's: another node than the one that was asked, or asked nothing

    def parties(self) -> Sequence[str]:
        """Their names, in order."""
        return self._names

    def send(self, party: int, body: bytes) -> int:
        """Hand a job to a party; its number comes back with the answer."""
        self._next += 1
        if self._app is not None and time.monotonic() - self._seen[party] > MISSED:
            self._failed.append(network.Reply(party, self._next, None))
        else:
            self._jobs[self._next] = Job(party, body)
            self._hand(self._next)
        return self._next

    def forget(self, job: int) -> None:
        """An answer is not waited for any more; one that comes is dropped."""
        self._jobs.pop(job, None)

    def poll(self, seconds: float) -> list[network.Reply]:
        """Answers that came within so many seconds; at once where there are some."""
        until, found = time.monotonic() + seconds, self._failed
        self._failed = []
        while not found:
            left = until - time.monotonic()
            self._watch(self._app is not None)
            found += self._retried(time.monotonic())
            waited = connection.wait([self._door.socket, *([self._app] if self._app else [])], max(0.0, min(left, 0.5)))
            if self._door.socket in waited:
                self._welcome()
            while self._app is not None and self._readable():
                frame = doors.taken(self._app)
                if frame is None:
                    self._lost()
                else:
                    found += self._understood(frame)
            if left <= 0:
                break
        return found

    @property
    def carried(self) -> bool:
        """Whether the ServerApp is there."""
        return self._app is not None

    def close(self) -> None:
        """Let the ServerApp go: it ends."""
        self._lost()

    def _readable(self) -> bool:
        assert self._app is not None
        try:
            return self._app.poll(0)
        except OSError:
            self._lost()
            return False

    def _welcome(self) -> None:
        """A ServerApp has come; the newest one counts, and is given what was not answered."""
        visitor = self._door.visitor(0.0)
        if visitor is None:
            return
        self._lost()
        self._app = visitor
        self._seen = dict.fromkeys(self._seen, time.monotonic())
        for number, job in list(self._jobs.items()):
            self._jobs[number] = job._replace(again=None)
            self._hand(number)

    def _retried(self, now: float) -> list[network.Reply]:
        """Jobs that came back without an answer: handed out again, or lost where their party is."""
        lost = []
        for number, job in list(self._jobs.items()):
            if job.again is None or self._app is None or now < job.again:
                continue
            if job.party in self.present:
                self._jobs[number] = job._replace(again=None)
                self._hand(number)
            elif now - self._seen[job.party] > MISSED:
                del self._jobs[number]
                lost.append(network.Reply(job.party, number, None))
        return lost

    def _hand(self, number: int) -> None:
        job = self._jobs[number]
        frame = HEAD.pack(number, self._node_of[job.party]) + job.body
        if self._app is not None and not doors.given(self._app, frame):
            self._lost()

    def _lost(self) -> None:
        if self._app is not None:
            self._app.close()
        self._app, self.present = None, frozenset()

    def _understood(self, frame: bytes) -> list[network.Reply]:
        """The answers in a frame: none, or one."""
        kind, rest = frame[:1], frame[1:]
        if kind == b"N":
            there = struct.unpack(f">{len(rest) // 8}Q", rest)
            self.present = frozenset(self._nodes[node] for node in there if node in self._nodes)
            self._seen |= dict.fromkeys(self.present, time.monotonic())
            return []
        number, node = HEAD.unpack_from(rest)
        job = self._jobs.get(number)
        if job is None or self._nodes.get(node) != job.party:
            self.foreign += job is not None  # an answer given up on is nobody's fault
            return []
        body = rest[HEAD.size :] or None
        if body is None and job.tries < TRIES:
            self._jobs[number] = job._replace(tries=job.tries + 1, again=time.monotonic() + PAUSE)
            return []
        del self._jobs[number]
        return [network.Reply(job.party, number, body)]
