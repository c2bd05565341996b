"""Map and reduce: samples collected once, cut into shards, mapped by spawned workers, added up, solved here.

Li & Schuurmans 2011, "MapReduce for Parallel Reinforcement Learning". A mapper reads its shard of the samples and emits
sums in float64; they are added up in the order of the workers, so the result does not depend on timing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

from etils import epy

from shoal import errors, options, types

with epy.lazy_imports():
    import numpy as np

    from shoal.runtimes import _mapper, _shared

REPORT_EVERY = 0.1  # seconds


@dataclasses.dataclass(frozen=True)
class Config:
    """Sums over shards of a batch."""

    workers: int = options.number(2, low=1, high=1024)
    """Mappers; the samples are cut into as many shards."""
    spawn: bool = True
    """Every mapper is a process of its own; if not, they take turns in this one."""


LEARNS = "sums"
CAPTURES = False
EXACT_RESUME = False  # samples are collected once more, and a simulator need not repeat itself


def check(config: Config, experiment: Any, opened: Any) -> None:
    """Refuse what this runtime cannot do.

    Raises:
        Refused: An end by episodes or by a goal: nothing is learned before the last sample is there.
    """
    del config, opened
    if experiment.goal is not None or experiment.episodes is not None:
        raise errors.Refused(
            "the map_reduce runtime learns after its last sample, so neither --until nor --episodes can end it; "
            "give --steps, the number of samples"
        )


def streams(config: Config) -> int:
    """Environments that samples are taken from at a time."""
    del config
    return 1


def build(config: Config) -> types.Runtime:
    """The runtime."""
    return MapReduce(config)


class MapReduce:
    """The driver."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def like(self, parts: types.Parts, seed: int) -> types.Tree:
        """See `types.Runtime`."""
        del seed
        return _saved(_sums(parts).begin(), 0, 0, 0, False)

    def policy(self, parts: types.Parts, seed: int, saved: types.Tree) -> types.Policy:
        """See `types.Runtime`."""
        del seed
        return _sums(parts).policy(saved["memory"])

    def run(
        self,
        parts: types.Parts,
        seed: int,
        steps: int,
        goal: types.Goal | None,
        observe: types.Observer,
        saved: types.Tree | None,
    ) -> types.Result:
        """See `types.Runtime`."""
        del goal
        driver = _Driver(self._config, parts, seed, steps, observe)
        driver.restore(saved)
        startup = driver.run()
        return types.Result(driver.sums.policy(driver.memory), driver.progress([]), startup)


def _sums(parts: types.Parts) -> types.Sums:
    assert parts.agent.sums is not None
    return parts.agent.sums


def _saved(memory: Any, samples: int, rounds: int, left_out: int, done: bool) -> dict[str, Any]:
    counts = {"samples": samples, "rounds": rounds, "left_out": left_out, "done": done}
    return {"memory": memory, **{name: np.int64(count) for name, count in counts.items()}}


class _Driver:
    """One run."""

    def __init__(self, config: Config, parts: types.Parts, seed: int, steps: int, observe: types.Observer) -> None:
        self._config, self._parts, self._seed, self._steps, self._observe = config, parts, seed, steps, observe
        self.sums = _sums(parts)
        self.memory = self.sums.begin()
        self._samples = self._rounds = self._before = 0
        self._left_out = self._told = 0  # samples that are not finite; those of them that earlier lives told
        self._reopened = 0
        self._done = False
        self._metrics: Any = {}
        self._split = {"environment": 0.0, "learning": 0.0, "waiting": 0.0}
        self._mappers: Any = None
        self._mark = self._looked = time.monotonic()

    def restore(self, saved: types.Tree | None) -> None:
        """Continue from a checkpoint: what was learned, and how many samples were told."""
        if saved is not None:
            self.memory = {name: np.array(leaf) for name, leaf in saved["memory"].items()}
            self._before, self._rounds = int(saved["samples"]), int(saved["rounds"])
            self._left_out = self._told = int(saved["left_out"])
            self._done = bool(saved["done"])

    def run(self) -> float:
        """Collect, then map and solve until it is enough; returns the seconds that starting mappers took."""
        block = _shared.Block(_mapper.layout(self._parts.spec, max(self._steps, self._before)))
        startup = time.monotonic() - self._mark
        going = self._collect(block)
        if not going or self._finished:
            return startup
        began = time.monotonic()
        with self._mapping(block) as mappers:
            going = mappers.begin(self._look)
            startup += time.monotonic() - began
            while going and not self._finished:
                going = self._round(mappers)
        return startup

    @property
    def _finished(self) -> bool:
        return self._done or self._rounds >= self.sums.rounds

    def _collect(self, block: _shared.Block) -> bool:
        """The samples; those that were told before are collected once more, in silence."""
        self._mark = time.monotonic()
        told, episodes = self._mark, []
        for collected, ended in _mapper.collect(self._parts, self._seed, block, self._broke):
            self._samples = collected
            if ended is not None and collected > self._before:
                episodes.append(ended)
            if (now := time.monotonic()) - told >= REPORT_EVERY:
                told = now
                self._spend("environment")
                if not self._observe(self.progress(episodes)):
                    return False
                episodes = []
        self._spend("environment")
        return self._observe(self.progress(episodes))

    def _broke(self, kind: str, traceback: str) -> None:
        self._reopened += 1
        self._observe.fault(kind, traceback)

    def _round(self, mappers: Any) -> bool:
        """Map, add up, solve; one that is stopped before its sums are there changes nothing."""
        self._mark = time.monotonic()
        told = mappers.sums(self.memory, self._wait)
        self._spend(self._while_mapping)
        if told is None:
            return False
        total = _mapper.added(told)
        self._left_out = max(self._told, self._samples - int(total["n"]))
        self.memory, metrics, self._done = self.sums.solve(self.memory, total)
        self._metrics = dict(metrics)
        self._rounds += 1
        self._spend("learning")
        return self._observe(self.progress([]))

    @property
    def _while_mapping(self) -> str:
        return "waiting" if self._config.spawn else "learning"

    def _wait(self) -> bool:
        """Whether to go on with a round."""
        self._spend(self._while_mapping)
        return self._look()

    def _look(self) -> bool:
        """Whether to go on; the observer is asked now and then."""
        if time.monotonic() - self._looked < REPORT_EVERY:
            return True
        self._looked = time.monotonic()
        return self._observe(self.progress([]))

    @contextlib.contextmanager
    def _mapping(self, block: _shared.Block) -> Iterator[Any]:
        """The mappers, and their end whatever happens."""
        edges = _mapper.shards(self._samples, self._config.workers)
        if not self._config.spawn:
            self._mappers = _mapper.InTurns(self._parts, block, edges)
            yield self._mappers
            return
        self._mappers = _mapper.Pooled(self._parts, block, edges, self._observe.fault)
        patience = 1.0
        try:
            yield self._mappers
            patience = 5.0 if self._finished else patience  # one that was stopped may be in the middle of a round
        finally:
            self._mappers.close(patience)

    def _spend(self, on: str) -> None:
        now = time.monotonic()
        self._split[on] += now - self._mark
        self._mark = now

    def progress(self, episodes: list[types.Episode]) -> types.Progress:
        """See `types.Progress`; a round is an update."""
        made = self._mappers
        communication = {
            "bytes_sent": made.bytes if made else 0,
            "messages": made.messages if made else 0,
            "dropped_messages": 0,
            "waiting_s": self._split["waiting"],
        }
        workers = {
            "up": made.up if made else 0,
            "of": self._config.workers,
            "rss_mb": made.rss_mb if made else 0.0,
            "pids": made.pids if made else [],
        }
        return types.Progress(
            env_steps=max(self._samples, self._before),
            updates=self._rounds,
            train_s=sum(self._split.values()),
            episodes=episodes,
            metrics=self._metrics,
            split=dict(self._split),
            workers=workers if self._config.spawn else {},
            faults={
                "restarts": self._reopened + (made.restarts if made else 0),
                "non_finite": 0,  # there are no gradients
                "left_out": self._left_out - self._told,
            },
            save=lambda: _saved(
                dict(self.memory), max(self._samples, self._before), self._rounds, self._left_out, self._done
            ),
            subsystems={"communication": communication},
        )
