"""A network whose parties take turns in this process, each compiled by itself.

So parties may have networks, observations and actions of different shapes, and of parties that are alike the numbers
are those of an axis of them. A job is done when it is polled for, in the order in which jobs were sent.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np
from etils import epy

from shoal.core import types
from shoal.runtimes.federated import accounts, network, party

with epy.lazy_imports():
    import jax


class Turns:
    """See `network.Network` and `network.Beside`."""

    def __init__(
        self,
        parties: Sequence[types.Party],
        terms: party.Terms,
        log: party.Log = party.nowhere,
        leaving: party.Leaves = party.as_it_is,
    ) -> None:
        """Build and compile all of them.

        Args:
            parties: In the order of their numbers.
            terms: Of the run; the number is each one's own.
            log: Told what goes wrong at a party; of a simulation on one machine it is the run's.
            leaving: What is done to updates before they leave.
        """
        self._names = [one.name for one in parties]
        self._parties = [
            party.Party(one.rebuild(), terms._replace(party=number), leaving, log) for number, one in enumerate(parties)
        ]
        self._waiting: collections.deque[tuple[int, int, bytes]] = collections.deque()
        self._jobs = 0
        self._accounts = accounts.Accounts(len(parties))

    def beginning(self) -> np.ndarray:
        """What the global part may begin with, ``[d]``: the first party's own."""
        return self._parties[0].theta()

    # ---------------------------------------------------------------- network.Network

    def parties(self) -> Sequence[str]:
        """See `network.Network`."""
        return self._names

    def send(self, party: int, body: bytes) -> int:
        """See `network.Network`."""
        self._jobs += 1
        self._waiting.append((party, self._jobs, body))
        return self._jobs

    def poll(self, seconds: float) -> list[network.Reply]:
        """See `network.Network`; it takes as long as a party's round does."""
        del seconds
        if not self._waiting:
            return []
        number, job, body = self._waiting.popleft()
        return [network.Reply(number, job, self._handled(number, body))]

    def _handled(self, number: int, body: bytes) -> bytes:
        one = self._parties[number]
        before = one.told
        reply = one.handle(body)
        if one.told is not None and one.told is not before:
            self._accounts.take(number, one.told, one.counts["env_steps"])
        return reply

    def close(self) -> None:
        """See `network.Network`."""
        self._waiting.clear()
        for one in self._parties:
            one.close()

    # ---------------------------------------------------------------- network.Beside

    def told(self) -> network.Told:
        """See `network.Beside`."""
        return self._accounts.told()

    def evaluate(self, key: types.Key, episodes: int, theta: np.ndarray | None = None) -> types.Array:
        """See `network.Beside`.

        Args:
            key: Of the environments.
            episodes: Of each party.
            theta: The global part ``[d]`` that they act with; None: as each has it.
        """
        words = split(key, len(self._parties))
        found = [one.evaluate(word, episodes, theta) for one, word in zip(self._parties, words, strict=True)]
        return np.array(found, np.float32)

    def saved(self) -> types.Tree:
        """See `network.Beside`: one `party.Kept` a party."""
        return tuple(one.kept() for one in self._parties)

    def like(self) -> types.Tree:
        """Of `saved`, the shapes."""
        return tuple(one.like() for one in self._parties)

    def resume(self, saved: types.Tree) -> None:
        """See `network.Beside`."""
        for one, kept in zip(self._parties, saved, strict=True):
            one.resume(kept)
        self._accounts.begin([one.counts["env_steps"] for one in self._parties])

    def policies(self, theta: np.ndarray | None = None) -> tuple[types.Policy, ...]:
        """See `network.Beside`; `theta` as in `evaluate`."""
        return tuple(one.policy(theta) for one in self._parties)


def split(key: types.Key, parties: int) -> np.ndarray:
    """The words of a key for each party, ``[N, 2]`` u32, by its number."""
    return np.stack([np.asarray(jax.random.key_data(jax.random.fold_in(key, at))) for at in range(parties)])
