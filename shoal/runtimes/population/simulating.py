"""The Python simulators of a population: all members' environments stepped as one, here or in processes.

Each process has a contiguous block of the members' environments. One that dies costs its block's unfinished episodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from shoal.core import seeds, types
from shoal.runtimes.crew import beside, closing, spawning
from shoal.runtimes.experience import pools, vectors


class Room(NamedTuple):
    """Where simulators are stepped, and who is told of them."""

    parts: types.Parts
    members: int  # N
    streams: int  # environments of each member (B)
    episodes: int  # of a fitness
    processes: int  # 0: here; -1, before `processes` was asked: as many as pay
    seed: int  # of the run
    fault: Callable[[str, str], None]
    look: beside.Look  # before the first step

    @property
    def blocks(self) -> int:
        """Blocks of members that act and learn by themselves: one a process, where these divide the members."""
        return self.processes if self.processes and self.members % self.processes == 0 else 1

    @property
    def greedy(self) -> int:
        """Simulators of each member that it is evaluated in (E): no more than it learns from."""
        return min(self.streams, self.episodes)


def processes(room: Room) -> int:
    """How many processes step them; `room` says what was asked for.

    Raises:
        NotBegun: `look` said that the run is to end.
    """
    environment, asked, count = room.parts.environment, room.processes, room.members * room.streams
    if spawning.hindrance() or environment.elsewhere:
        asked = max(0, asked)  # told before the run began
    if asked < 0 and not environment.steps_many:
        asked = vectors.processes_that_pay(room.parts, count, room.seed, room.fault, room.look)
    return max(0, min(asked, count))


class Training:
    """Simulators to learn from, ``[N * B]`` member by member, in blocks that are stepped by themselves."""

    def __init__(self, room: Room, life: int, blocks: int) -> None:
        """Open them.

        Args:
            room: Where.
            life: Apart for each life of the run; its seeds are those of no other.
            blocks: One, or as many as there are processes.
        """
        environment, count = room.parts.environment, room.members * room.streams
        self._fault, self._count, self._blocks = room.fault, count, blocks
        self._pool: pools.Pooled | None = None
        self._vector: types.HostVector
        if environment.steps_many and not room.processes:
            self._vector = whole = vectors.Whole(environment, room.seed, count, life)
            self._restarts = lambda: whole.restarts
        else:
            self._vector = made = _vector(room, room.streams, room.seed, life)
            self._restarts = lambda: made.restarts
            self._pool = made if isinstance(made, pools.Pooled) else None
        self._actions: types.Action = None

    @property
    def restarts(self) -> int:
        """Simulators and processes that were replaced."""
        return self._restarts()

    def about(self) -> types.Tree:
        """Of the processes, for `types.Progress.workers`."""
        return self._pool.about() if self._pool else {}

    def reset(self) -> list[types.Obs]:
        """First observations of every block.

        Raises:
            NotBegun: Whoever looks on said that the run is to end.
        """
        return list(np.split(self._vector.reset(), self._blocks))

    def ask(self, block: int, actions: types.Action) -> None:
        """Have a block act; it answers in `answers`."""
        if self._pool and self._blocks > 1:
            self._pool.ask(block, actions)
        else:
            self._actions = actions

    def answers(self, seconds: float) -> dict[int, types.Batch]:
        """One step of every block that was asked and has answered.

        Args:
            seconds: That nobody's answer is waited for.
        """
        if self._pool and self._blocks > 1:
            return self._pool.answers(seconds)
        return {0: self._vector.step(self._actions)}

    def close(self) -> None:
        """Release them; what is raised is told."""
        closing.told(self._vector.close, self._fault)


def _vector(room: Room, streams: int, seed: int, life: int) -> vectors.Serial | pools.Pooled:
    count = room.members * streams
    if not room.processes:
        first = vectors.first_incarnation(life)
        return vectors.Serial(room.parts.environment, seed, range(count), first, room.fault, room.look)
    together = streams if room.processes <= room.members else 1
    return pools.Pooled(room.parts, seed, count, life, room.processes, room.fault, room.look, together)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Opens simulators as they are evaluated; see `types.Opener`."""

    environment: types.Opener
    """Of training."""

    def host(self) -> types.HostEnv:
        """See `types.Opener`."""
        return self.environment.evaluation()

    evaluation = host

    @property
    def steps_many(self) -> bool:
        """See `types.Opener`: one at a time."""
        return False

    @property
    def elsewhere(self) -> str:
        """See `types.Opener`."""
        return self.environment.elsewhere

    def vector(self, seed: int, count: int) -> types.HostVector:
        """See `types.Opener`."""
        return self.environment.vector(seed, count)

    def hands(self) -> types.Hands:
        """See `types.Opener`."""
        return self.environment.hands()


class Evaluating:
    """Simulators to be evaluated in; opened when first needed, and used again."""

    def __init__(self, room: Room) -> None:
        """Args: `room`, where."""
        parts = room.parts._replace(environment=Evaluation(room.parts.environment))
        self._room = room._replace(parts=parts)
        self._vector: vectors.Serial | pools.Pooled | None = None

    @property
    def restarts(self) -> int:
        """Simulators and processes that were replaced."""
        return self._vector.restarts if self._vector else 0

    def begin(self, seed: int, look: beside.Look) -> types.Obs:
        """New episodes in all of them, ``[N * E, *obs]``.

        Args:
            seed: Of these episodes.
            look: Told while they are opened.

        Raises:
            NotBegun: `look` said that the run is to end; what was opened is closed.
        """
        if self._vector is not None:
            return self._vector.anew(seed)
        self._vector = _vector(self._room._replace(look=look), self._room.greedy, seed, 0)
        try:
            return self._vector.reset()
        except BaseException:
            self.close()
            raise

    def step(self, actions: types.Action) -> types.Batch:
        """Act once in each."""
        assert self._vector is not None
        return self._vector.step(actions)

    def close(self) -> None:
        """Release them."""
        vector, self._vector = self._vector, None
        if vector is not None:
            closing.told(vector.close, self._room.fault)


def seed_of(words: types.Array) -> int:
    """A seed for simulators.

    Args:
        words: Of keys, ``[N, 2]``; the first one's are taken.
    """
    first, second = words[0].tolist()
    return seeds.derive(first, "simulators", second)
