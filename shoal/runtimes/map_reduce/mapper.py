"""The samples of the map_reduce runtime, and the mappers that turn shards of them into sums."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from shoal.core import errors, seeds, types
from shoal.runtimes.crew import closing, crew, life, sharing, supervise

Memory = Mapping[str, np.ndarray]
Going = Callable[[], bool]  # asked while the driver waits: whether to go on
CHUNK = 4096  # samples worked on at once; the features of its whole shard, two dense [n, F], a mapper keeps
BEAT = 1.0  # seconds between two signs of life


class Job(NamedTuple):
    """What a mapper is told when it starts; all of it can be pickled."""

    block: sharing.Block
    rebuild: Callable[[], types.Parts]
    first: int  # sample of its shard
    last: int  # after its shard


class Prepared(NamedTuple):
    """A mapper has its shard before it, features computed."""


class Alive(NamedTuple):
    """A mapper works: a sign of life between two chunks."""


class Told(NamedTuple):
    """The sums of one shard for one round."""

    round: int
    sums: dict[str, np.ndarray]


def layout(spec: types.EnvSpec, samples: int) -> sharing.Layout:
    """The samples, shared; pages that are never written take no memory.

    Args:
        spec: Of the environment; its observations are vectors.
        samples: How many at most.
    """
    seen = (samples, *spec.observation.shape)
    return {
        "obs": (seen, "f4"),
        "action": ((samples,), "i4"),
        "reward": ((samples,), "f8"),
        "discount": ((samples,), "f8"),
        "truncated": ((samples,), "?"),
        "next_obs": (seen, "f4"),
    }


def samples(block: sharing.Block, first: int, last: int) -> types.Transition:
    """A shard ``[last - first]``; views of the shared memory."""
    names = types.Transition._fields[:-1]
    return types.Transition(**{name: block[name][first:last] for name in names}, extras=())


def collect(
    parts: types.Parts,
    seed: int,
    block: sharing.Block,
    broke: Callable[[str, str], None],
    unclosed: Callable[[str, str], None],
) -> Iterator[tuple[int, types.Episode | None]]:
    """Fill the block, a sample at a time; every episode from a seed of its own.

    A simulator that raises is opened anew, and a new episode begins; `broke` is told, as ``(kind, traceback)``, and
    `unclosed` if the last one cannot be closed.

    Yields:
        How many samples there are, and the episode that ended with the last one.

    Raises:
        GaveUp: It raised `supervise.DEATHS` times without a sample between them.
    """
    assert parts.agent.about.sums is not None
    env, behave = parts.environment.host(), parts.agent.about.sums.behave
    to = samples(block, 0, len(block["reward"]))
    number, length, failures, at = -1, 0, 0, 0
    try:
        while at < len(to.reward):
            try:
                if not length:
                    number += 1
                    obs = env.reset(seeds.derive(seed, "samples", number, "environment"))
                    chance, total = np.random.default_rng(seeds.derive(seed, "samples", number, "action")), 0.0
                action = behave(chance)
                following, outcome = env.step(action)
            except Exception:  # noqa: BLE001  whatever the simulator raised
                length, failures, story = 0, failures + 1, traceback.format_exc()
                if failures >= supervise.DEATHS:
                    raise errors.GaveUp(f"the simulator failed {failures} times without a sample:\n{story}") from None
                broke("the simulator raised; opening another", story)
                with contextlib.suppress(Exception):
                    env.close()
                env = parts.environment.host()
                continue
            failures = 0
            to.obs[at], to.action[at] = obs, action
            to.reward[at], to.discount[at], to.truncated[at], to.next_obs[at] = outcome
            obs, length = following, length + 1
            total += outcome.reward if math.isfinite(outcome.reward) else 0.0
            over = outcome.truncated or outcome.discount == 0
            at += 1
            yield at, types.Episode(at, total, length, 0) if over else None
            length = 0 if over else length
    finally:
        closing.told(env.close, unclosed)


def unfit(block: sharing.Block, first: int, last: int) -> np.ndarray:
    """Rewards and observations of some samples that are not finite, ``[2]``; the rule leaves those samples out."""
    some = samples(block, first, last)
    seen = np.isfinite(some.obs).all(axis=1) & np.isfinite(some.next_obs).all(axis=1)
    return np.array([(~np.isfinite(some.reward)).sum(), (~seen).sum()])


def shards(count: int, workers: int) -> list[tuple[int, int]]:
    """Where each worker's samples begin and end; their sizes differ by one at most."""
    edges = [count * worker // workers for worker in range(workers + 1)]
    return list(itertools.pairwise(edges))


def chunks(first: int, last: int) -> list[tuple[int, int]]:
    """Where the chunks of a shard begin and end; an empty shard is one chunk, so that it has sums."""
    return [(at, min(at + CHUNK, last)) for at in range(first, max(last, first + 1), CHUNK)]


def added(parts: Iterable[Memory]) -> dict[str, np.ndarray]:
    """Plain sums in the order given."""
    return functools.reduce(_plus, parts, {})


def _plus(total: dict[str, np.ndarray], more: Memory) -> dict[str, np.ndarray]:
    """The sums with those of one more part; `total` is empty before the first."""
    return {name: total[name] + leaf if name in total else leaf for name, leaf in more.items()}


def size(memory: Memory) -> int:
    """Bytes of a message."""
    return sum(np.asarray(leaf).nbytes for leaf in memory.values())


class Mapper(life.Worker):
    """Features of its shard once, then sums for every memory it is sent; a chunk a turn."""

    def __init__(self, job: Job, parent: life.Parent) -> None:
        """Nothing is computed yet: that takes as long as it takes."""
        sums = job.rebuild().agent.about.sums
        assert sums is not None
        self._sums, self._block, self._parent = sums, job.block, parent
        self._left = chunks(job.first, job.last)
        self._shard: list[Any] = []
        self._asked: Any = None  # (round, memory) under way
        self._total: dict[str, np.ndarray] = {}
        self._next = 0  # chunk
        self._ended = False
        self._told = time.monotonic()

    @property
    def over(self) -> bool:
        """It was told to end, maybe in the middle of what it was asked."""
        return self._ended or self._parent.stopped

    def turn(self) -> bool:
        """A chunk; False: nothing is asked for."""
        if self._left:
            self._beat()
            self._shard.append(self._sums.prepare(samples(self._block, *self._left.pop(0))))
            if not self._left:
                self._parent.tell(Prepared())
            return True
        if self._asked is None:
            return self._listen()
        self._beat()
        number, memory = self._asked
        self._total = _plus(self._total, self._sums.map(memory, self._shard[self._next]))
        self._next += 1
        if self._next == len(self._shard):
            self._asked = None
            self._parent.tell(Told(number, self._total))
        return True

    def _listen(self) -> bool:
        said = self._parent.next()
        if said is None:
            self._ended = self._parent.stopped
            return False
        self._asked, self._total, self._next = said, {}, 0
        return True

    def _beat(self) -> None:
        """A sign of life between two chunks now and then."""
        if (now := time.monotonic()) - self._told >= BEAT:
            self._told = now
            self._parent.tell(Alive())


class Mappers:
    """The driver's side: asks every mapper, and adds nothing up; one that dies is replaced and asked again."""

    def __init__(self, team: crew.Crew, count: int) -> None:
        """Args: `team`, whose role ``worker`` they are."""
        self.crew, self._count, self._round = team, count, 0
        self.bytes = self.messages = 0
        self._ready: set[int] = set()
        self._asked: Memory | None = None

    def begin(self, going: Going) -> bool:
        """Wait until every mapper has its features; False: told to stop before."""
        self.crew.begin(going)
        while len(self._ready) < self._count:
            self._hear()
            if not going():
                return False
        return True

    @property
    def stage(self) -> types.Stage:
        """That they compute features, and how many are done with it."""
        return types.Stage(f"preparing {self._count} shard{'s' * (self._count > 1)}", len(self._ready), self._count)

    def sums(self, memory: Memory, going: Going) -> list[dict[str, np.ndarray]] | None:
        """Of every shard, in the order of the workers, whoever was first; None: told to stop before the end."""
        self._round, self._asked = self._round + 1, memory
        told: dict[int, dict[str, np.ndarray]] = {}
        for worker in self._ready:
            self._ask(worker)
        while len(told) < self._count:
            for worker, sums in self._hear():
                self.bytes += size(sums)
                self.messages += 1
                told[worker] = sums
            if not going():
                return None
        self._asked = None
        return [told[worker] for worker in range(self._count)]

    def _ask(self, worker: int) -> None:
        assert self._asked is not None
        self.crew.send("worker", worker, (self._round, dict(self._asked)))
        self.bytes += size(self._asked)
        self.messages += 1

    def _hear(self) -> list[tuple[int, dict[str, np.ndarray]]]:
        """The sums of this round that were told."""
        found = []
        for role, worker, _, message in self.crew.said(crew.LOOK):
            if isinstance(message, Alive):
                continue
            self.crew.answered(role, worker, progress=isinstance(message, Told))
            if isinstance(message, Prepared):
                self._ready.add(worker)
                if self._asked is not None:  # in the place of one that died
                    self._ask(worker)
            elif message.round == self._round:
                found.append((worker, message.sums))
        return found
