"""The samples of the map_reduce runtime, and the mappers that turn shards of them into sums."""

from __future__ import annotations

import contextlib
import functools
import itertools
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shoal import errors, seeds, types
from shoal.runtimes import _pool, _shared

Memory = Mapping[str, np.ndarray]
Going = Callable[[], bool]  # asked while the driver waits: whether to go on
CHUNK = 4096  # samples worked on at once; the features of its whole shard, two dense [n, F], a mapper keeps
BEAT = 1.0  # seconds between two signs of life


class Job(NamedTuple):
    """What a mapper is told when it starts; all of it can be pickled."""

    block: _shared.Block
    rebuild: Callable[[], types.Parts]
    first: int  # sample of its shard
    last: int  # after its shard


class Ready(NamedTuple):
    """A mapper has its shard before it, features computed."""

    rss_mb: float


class Alive(NamedTuple):
    """A mapper works: a sign of life between two chunks."""


class Told(NamedTuple):
    """The sums of one shard for one round."""

    round: int
    sums: dict[str, np.ndarray]


def layout(spec: types.EnvSpec, samples: int) -> _shared.Layout:
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


def samples(block: _shared.Block, first: int, last: int) -> types.Transition:
    """A shard ``[last - first]``; views of the shared memory."""
    names = types.Transition._fields[:-1]
    return types.Transition(**{name: block[name][first:last] for name in names}, extras=())


def collect(
    parts: types.Parts, seed: int, block: _shared.Block, broke: Callable[[str, str], None]
) -> Iterator[tuple[int, types.Episode | None]]:
    """Fill the block, a sample at a time; every episode from a seed of its own.

    A simulator that raises is opened anew, and a new episode begins; `broke` is told, as ``(kind, traceback)``.

    Yields:
        How many samples there are, and the episode that ended with the last one.

    Raises:
        GaveUp: It raised `_pool.DEATHS` times without a sample between them.
    """
    assert parts.agent.sums is not None
    env, behave = parts.make_host(), parts.agent.sums.behave
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
                if failures >= _pool.DEATHS:
                    raise errors.GaveUp(f"the simulator failed {failures} times without a sample:\n{story}") from None
                broke("the simulator raised; opening another", story)
                with contextlib.suppress(Exception):
                    env.close()
                env = parts.make_host()
                continue
            failures = 0
            to.obs[at], to.action[at] = obs, action
            to.reward[at], to.discount[at], to.truncated[at], to.next_obs[at] = outcome
            obs, length, total = following, length + 1, total + outcome.reward
            over = outcome.truncated or outcome.discount == 0
            at += 1
            yield at, types.Episode(at, total, length, 0) if over else None
            length = 0 if over else length
    finally:
        env.close()


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


class InTurns:
    """Mappers in this process, one after the other: nothing is sent."""

    def __init__(self, parts: types.Parts, block: _shared.Block, edges: Sequence[tuple[int, int]]) -> None:
        assert parts.agent.sums is not None
        self._sums, self._block, self._edges = parts.agent.sums, block, edges
        self._shards: list[list[Any]] = [[] for _ in edges]
        self.bytes = self.messages = self.restarts = self.up = 0
        self.rss_mb = 0.0
        self.pids: list[int] = []

    def begin(self, going: Going) -> bool:
        """Compute the features; False: told to stop before the end."""
        for shard, edge in zip(self._shards, self._edges, strict=True):
            for chunk in chunks(*edge):
                if not going():
                    return False
                shard.append(self._sums.prepare(samples(self._block, *chunk)))
        return True

    def sums(self, memory: Memory, going: Going) -> list[dict[str, np.ndarray]] | None:
        """Of every shard, in order; None: told to stop before the end."""
        told: list[dict[str, np.ndarray]] = []
        for shard in self._shards:
            total: dict[str, np.ndarray] = {}
            for chunk in shard:
                if not going():
                    return None
                total = _plus(total, self._sums.map(memory, chunk))
            told.append(total)
        return told


class Pooled:
    """Mappers in processes of their own; one that dies is replaced and asked again."""

    def __init__(
        self,
        parts: types.Parts,
        block: _shared.Block,
        edges: Sequence[tuple[int, int]],
        fault: Callable[[str, str], None],
    ) -> None:
        self._fault, self._count, self._round = fault, len(edges), 0
        self.bytes = self.messages = self.restarts = 0
        self._rss: dict[int, float] = {}
        jobs = [(Job(block, parts.rebuild, *edge),) for edge in edges]
        self._pool = _pool.Pool(work, lambda worker, _: jobs[worker], len(edges), self._mended)

    def begin(self, going: Going) -> bool:
        """Wait until every mapper has its features; False: told to stop before."""
        waiting = set(range(self._count))
        while waiting:
            waiting -= {worker for worker, message in self._messages() if isinstance(message, Ready)}
            if not going():
                return False
        return True

    @property
    def up(self) -> int:
        """Mappers that are alive."""
        return self._pool.up

    @property
    def rss_mb(self) -> float:
        """Peak memory of the mappers."""
        return sum(self._rss.values())

    @property
    def pids(self) -> list[int]:
        """Of the mappers that run."""
        return self._pool.pids

    def sums(self, memory: Memory, going: Going) -> list[dict[str, np.ndarray]] | None:
        """Of every shard, in the order of the workers, whoever was first; None: told to stop before the end."""
        self._round += 1
        told: dict[int, dict[str, np.ndarray]] = {}
        for worker in range(self._count):
            self._ask(worker, memory)
        while len(told) < self._count:
            for worker, message in self._messages():
                if isinstance(message, Ready) and worker not in told:  # a new one in the place of one that died
                    self._ask(worker, memory)
                elif isinstance(message, Told) and message.round == self._round:
                    self._pool.progressed(worker)
                    self.bytes += size(message.sums)
                    self.messages += 1
                    told[worker] = message.sums
            if not going():
                return None
        return [told[worker] for worker in range(self._count)]

    def close(self, patience: float) -> None:
        """End the mappers."""
        for worker in range(self._count):
            self._pool.finish(worker)
            self._pool.send(worker, None)
        self._pool.close(patience)

    def _ask(self, worker: int, memory: Memory) -> None:
        self._pool.send(worker, (self._round, dict(memory)))
        self.bytes += size(memory)
        self.messages += 1

    def _messages(self) -> Iterator[tuple[int, Any]]:
        for worker, _, message in self._pool.poll(0.1):
            if isinstance(message, Ready):
                self._rss[worker] = message.rss_mb
            if not isinstance(message, Alive):
                self._pool.rests(worker)
            yield worker, message

    def _mended(self, kind: str, traceback: str) -> None:
        self.restarts += 1
        self._fault(kind, traceback)


def work(link: _pool.Link, job: Job) -> None:
    """A mapper's life: features of its shard once, then sums for every memory it is sent."""
    sums = job.rebuild().agent.sums
    assert sums is not None
    shard = [sums.prepare(samples(job.block, *chunk)) for chunk in _beating(link, chunks(job.first, job.last))]
    unit = 1024 if sys.platform != "darwin" else 1024 * 1024
    link.send(Ready(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit))
    while (asked := link.receive()) is not None:
        number, memory = asked
        link.send(Told(number, added(sums.map(memory, chunk) for chunk in _beating(link, shard))))


def _beating(link: _pool.Link, parts: Sequence[Any]) -> Iterator[Any]:
    """The parts, with a sign of life between two of them now and then: work takes as long as it takes."""
    told = time.monotonic()
    for part in parts:
        if (now := time.monotonic()) - told >= BEAT:
            told = now
            link.send(Alive())
        yield part
