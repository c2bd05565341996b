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

from shoal.core import errors, options, types
from shoal.runtimes.crew import threads

with epy.lazy_imports():
    import numpy as np

    from shoal.runtimes.crew import crew, life, sharing, turns
    from shoal.runtimes.experience import finite
    from shoal.runtimes.map_reduce import mapper

REPORT_EVERY = 0.1  # seconds


@dataclasses.dataclass(frozen=True)
class Config:
    """Sums over shards of a batch."""

    workers: int = options.number(2, low=1, high=1024)
    """Mappers; the samples are cut into as many shards."""
    spawn: bool = True
    """Every mapper is a process of its own; if not, they take turns in this one."""


def check(config: Config, experiment: Any, opened: Any) -> None:
    """Refuse what this runtime cannot do.

    Raises:
        Refused: An end by episodes or by a goal, or evaluations on the way: nothing is learned before the last sample
            is there.
    """
    del config, opened
    if experiment.goal is not None or experiment.episodes is not None:
        raise errors.Refused(
            "the map_reduce runtime learns after its last sample, so neither --until nor --episodes can end it; "
            "give --steps, the number of samples"
        )
    if experiment.evaluate_every is not None:
        raise errors.Refused(
            "--evaluate-every: the map_reduce runtime learns after its last sample, so there is nothing to evaluate on "
            "the way; leave it out (--eval-episodes plays the policy at the end)"
        )


def ways(config: Config) -> types.Ways:
    """See `types.Ways`; samples are collected once more after a resume, and a simulator need not repeat itself."""
    return types.Ways(
        learns="sums",
        workers="workers",
        processes=config.workers if config.spawn else 0,
        process_mb=threads.COMPUTES,
    )


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
    assert parts.agent.about.sums is not None
    return parts.agent.about.sums


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
        self._judged = 0  # samples
        self._unfit = np.zeros(2, int)  # rewards and observations that are not finite, of the samples of this life
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
        block = sharing.Block(mapper.layout(self._parts.spec, max(self._steps, self._before)))
        startup = time.monotonic() - self._mark
        going = self._collect(block)
        if not going or self._finished:
            return startup
        began = time.monotonic()
        with self._mapping(block) as mappers:
            going = mappers.begin(self._prepare)
            startup += time.monotonic() - began
            while going and not self._finished:
                going = self._round(mappers)
        return startup

    @property
    def _finished(self) -> bool:
        return self._done or self._rounds >= self.sums.rounds

    def _collect(self, block: sharing.Block) -> bool:
        """The samples; those that were told before are collected once more, in silence."""
        self._mark = time.monotonic()
        told, episodes = self._mark, []
        fault = self._observe.fault
        for collected, ended in mapper.collect(self._parts, self._seed, block, self._broke, fault):
            self._samples = collected
            if ended is not None and collected > self._before:
                episodes.append(ended)
            if (now := time.monotonic()) - told >= REPORT_EVERY:
                told = now
                self._spend("environment")
                self._judge(block)
                if not self._observe(self.progress(episodes)):
                    return False
                episodes = []
        self._spend("environment")
        self._judge(block)
        return self._observe(self.progress(episodes))

    def _judge(self, block: sharing.Block) -> None:
        """Count what is not finite among the samples that no earlier life and no earlier call has counted."""
        first, self._judged = max(self._judged, self._before), self._samples
        if first < self._samples:
            self._unfit += mapper.unfit(block, first, self._samples)

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
        total = mapper.added(told)
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

    def _prepare(self) -> bool:
        """Whether to go on while mappers start and compute features."""
        return self._look(self._mappers.stage)

    def _look(self, stage: types.Stage | None = None) -> bool:
        """Whether to go on; the observer is asked now and then."""
        if time.monotonic() - self._looked < REPORT_EVERY:
            return True
        self._looked = time.monotonic()
        return self._observe(self.progress([])._replace(stage=stage))

    @contextlib.contextmanager
    def _mapping(self, block: sharing.Block) -> Iterator[Any]:
        """The mappers, and their end whatever happens."""
        edges = mapper.shards(self._samples, self._config.workers)
        rebuild = self._parts.rebuild if self._config.spawn else lambda: self._parts

        def job(worker: int, _: int) -> mapper.Job:
            return mapper.Job(block, rebuild, *edges[worker])

        role = life.Role(name="worker", workers=len(edges), open=mapper.Mapper, job=job, together=False, serves=True)
        form = crew.Processes if self._config.spawn else turns.Turns
        with form([role], self._observe.fault) as team:
            self._mappers = mapper.Mappers(team, len(edges))
            yield self._mappers

    def _spend(self, on: str) -> None:
        now = time.monotonic()
        self._split[on] += now - self._mark
        self._mark = now

    def progress(self, episodes: list[types.Episode]) -> types.Progress:
        """See `types.Progress`; a round is an update."""
        made = self._mappers
        sent = made if made and self._config.spawn else None  # in turns nothing is sent
        communication = {
            "bytes_sent": sent.bytes if sent else 0,
            "messages": sent.messages if sent else 0,
            "dropped_messages": 0,
            "waiting_s": self._split["waiting"],
        }
        none: dict[str, Any] = {"up": 0, "of": self._config.workers, "restarts": 0, "rss_mb": 0.0, "pids": []}
        about = made.crew.about("worker") if made else none
        return types.Progress(
            env_steps=max(self._samples, self._before),
            updates=self._rounds,
            train_s=sum(self._split.values()),
            episodes=episodes,
            metrics=self._metrics,
            split=dict(self._split),
            workers=about if self._config.spawn else {},
            faults={
                "restarts": self._reopened + about["restarts"],
                "non_finite": 0,  # there are no gradients
                "left_out": self._left_out - self._told,
                **finite.faults(*self._unfit),
            },
            save=lambda: _saved(
                dict(self.memory), max(self._samples, self._before), self._rounds, self._left_out, self._done
            ),
            subsystems={"communication": communication},
        )
