"""How the server reaches its parties: four verbs, whatever carries the bytes.

Parties as one axis of a compiled program, parties in turn, in processes, or on other machines are four networks; the
server's logic (`server`) sees none of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

from shoal.core import types


class Reply(NamedTuple):
    """What came back for one job."""

    party: int  # as the carrier knows it, never as the message says
    job: int  # what `Network.send` returned
    body: bytes | None  # None: failed or lost


class Network(Protocol):
    """Carries bytes between one server and its parties."""

    def parties(self) -> Sequence[str]:
        """Their names; a party's number is its place here."""
        ...

    def send(self, party: int, body: bytes) -> int:
        """Hand a party its job; returns the job's number, which its reply will bear."""
        ...

    def poll(self, seconds: float) -> list[Reply]:
        """What came back since; waits so long at most for the first."""
        ...

    def close(self) -> None:
        """Let go of everything; calling it twice is harmless."""
        ...


class Told(NamedTuple):
    """What a simulation on one machine tells beside the channel, since it was asked last."""

    episodes: Sequence[types.Episode]  # finished training episodes; `worker` is the party's number
    metrics: Sequence[Mapping[str, float]]  # latest, of each party
    env_steps: Sequence[int]  # of each party, since its beginning
    faults: Mapping[str, int] = MappingProxyType({})


class Beside(Protocol):
    """What a simulation on one machine also offers, for the report; never on the wire."""

    def told(self) -> Told:
        """What happened since."""
        ...

    def evaluate(self, key: types.Key, episodes: int) -> types.Array:
        """Mean return of each party in its own environment, greedily, ``[N]``.

        Args:
            key: Of the environments.
            episodes: Of each party.
        """
        ...

    def saved(self) -> types.Tree:
        """The parties' private state, for a checkpoint of the whole simulation."""
        ...

    def resume(self, saved: types.Tree) -> None:
        """Go on from there."""
        ...

    def policies(self) -> tuple[types.Policy, ...]:
        """One a party: the global part with its own local part and normaliser."""
        ...
