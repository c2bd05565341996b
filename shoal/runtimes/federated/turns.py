"""A network whose parties take turns in this process, each compiled by itself.

So parties may have networks, observations and actions of different shapes, and of parties that are alike the numbers
are those of an axis of them. A job is done when its reply is the next to arrive, in simulated time (`desk`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epy

from shoal.core import types
from shoal.runtimes.federated import accounts, axis, desk, network, party

with epy.lazy_imports():
    import jax


class Saved(NamedTuple):
    """The parties' private state and the jobs on hand."""

    parties: tuple[party.Kept, ...]
    desk: desk.Desk


class Plan(NamedTuple):
    """How parties work; plain data, but for what is done to messages."""

    terms: party.Terms  # of the run; the number is each one's own
    paces: tuple[float, ...] = ()  # of parties, simulated seconds of a job; 1 where none is named
    apart: bool = False  # replies come one by one (`desk.takes`)
    alone: int = 0  # updates of a call of parties that exchange nothing
    leaving: party.Leaves = party.as_it_is
    wire: axis.Wire = axis.untouched


class Turns:
    """See `running.Carrier`."""

    block = -1  # of an axis

    def __init__(self, parties: Sequence[types.Party], plan: Plan, log: party.Log = party.nowhere) -> None:
        """Build and compile all of them.

        Args:
            parties: In the order of their numbers.
            plan: How they work.
            log: Told what goes wrong at a party; of a simulation on one machine it is the run's.
        """
        self._names, self._plan = [one.name for one in parties], plan
        self._parties = [
            party.Party(one.rebuild(), plan.terms._replace(party=number), plan.leaving, log)
            for number, one in enumerate(parties)
        ]
        self.spec = self._parties[0].spec
        self._desk = desk.fresh(len(parties), self.spec.bytes_down, self.spec.bytes_up)
        self._theta: np.ndarray | None = None
        self._accounts = accounts.Accounts(len(parties))

    def beginning(self) -> np.ndarray:
        """What the global part may begin with, ``[d]``: the first party's own."""
        return self._parties[0].theta()

    # ---------------------------------------------------------------- network.Network

    def parties(self) -> Sequence[str]:
        """See `network.Network`."""
        return self._names

    def send(self, party: int, body: bytes) -> int:
        """See `network.Network`; a job that the party has on hand is dropped for it."""
        plan, number = self._plan, int(self._desk.counts[0]) + 1
        takes = desk.takes(plan.paces, plan.terms.seed, party, number, apart=plan.apart)
        arrived = plan.wire(axis.DOWN, party, body)
        if arrived is None or len(arrived) != self.spec.bytes_down:
            desk.given(self._desk, party, bytes(self.spec.bytes_down), takes)
            self._desk.status[party] = desk.LOST
        else:
            desk.given(self._desk, party, arrived, takes)
        return number

    def poll(self, seconds: float) -> list[network.Reply]:
        """See `network.Network`: those that arrive next, at the same moment of simulated time."""
        return [self._reply(number) for number in desk.next_to_arrive(self._desk, seconds)]

    def _reply(self, number: int) -> network.Reply:
        lost = self._desk.status[number] == desk.LOST
        self._desk.status[number] = desk.IDLE
        body = None if lost else self._plan.wire(axis.UP, number, self._handled(number))
        return network.Reply(number, int(self._desk.job[number]), body)

    def _handled(self, number: int) -> bytes:
        one = self._parties[number]
        before = one.told
        reply = one.handle(self._desk.down[number].tobytes())
        self._learned(number, before)
        return reply

    def _learned(self, number: int, before: object) -> None:
        one = self._parties[number]
        if one.told is not None and one.told is not before:
            self._accounts.take(number, one.told, one.counts["env_steps"])
            self._desk.env_steps[number] = one.counts["env_steps"]

    def close(self) -> None:
        """See `network.Network`."""
        for one in self._parties:
            one.close()

    # ---------------------------------------------------------------- network.Beside

    def now(self) -> float:
        """Simulated seconds."""
        return float(self._desk.clock[0])

    def alone(self) -> None:
        """Every party learns for a while, and nothing is sent."""
        for number, one in enumerate(self._parties):
            before = one.told
            one.alone(self._plan.alone)
            self._learned(number, before)

    def install(self, theta: np.ndarray) -> None:
        """The global part that parties are looked at with; none of them is changed."""
        self._theta = np.array(theta)

    def told(self) -> network.Told:
        """See `network.Beside`."""
        return self._accounts.told()

    def evaluate(self, key: types.Key, episodes: int) -> types.Array:
        """See `network.Beside`."""
        words = split(key, len(self._parties))
        found = [one.evaluate(word, episodes, self._theta) for one, word in zip(self._parties, words, strict=True)]
        return np.array(found, np.float32)

    def policies(self) -> tuple[types.Policy, ...]:
        """See `network.Beside`."""
        return tuple(one.policy(self._theta) for one in self._parties)

    def saved(self) -> Saved:
        """See `network.Beside`."""
        return Saved(tuple(one.kept() for one in self._parties), jax.tree.map(np.copy, self._desk))

    def resume(self, saved: Saved) -> None:
        """See `network.Beside`."""
        for one, kept in zip(self._parties, saved.parties, strict=True):
            one.resume(kept)
        self._desk = desk.Desk(*(np.array(leaf) for leaf in saved.desk))
        self._accounts.begin([one.counts["env_steps"] for one in self._parties])


def like(parties: Sequence[types.Party], plan: Plan) -> Saved:
    """What `Turns.saved` gives, as ShapeDtypeStructs or arrays; nothing is compiled.

    Args:
        parties: In the order of their numbers.
        plan: How they work.
    """
    built = [one.rebuild() for one in parties]
    every = tuple(party.like(one, plan.terms._replace(party=number)) for number, one in enumerate(built))
    spec = party.channel_of(built[0].agent, plan.terms).spec
    return Saved(every, desk.fresh(len(parties), spec.bytes_down, spec.bytes_up))


def split(key: types.Key, parties: int) -> np.ndarray:
    """The words of a key for each party, ``[N, 2]`` u32, by its number."""
    return np.stack([np.asarray(jax.random.key_data(jax.random.fold_in(key, at))) for at in range(parties)])
