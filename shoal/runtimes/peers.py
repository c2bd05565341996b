"""Peers: several learners of one weight vector, each in its own simulation, exchange what they learned.

Grounds & Kudenko 2008, "Parallel Reinforcement Learning with Linear Function Approximation". Each learner is a spawned
process; messages go through mailboxes in shared memory, and every byte of them is counted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any, Literal

from etils import epy

from shoal import options, types

with epy.lazy_imports():
    import numpy as np

    from shoal.runtimes import _mailboxes, _peer, _pool, _shared


@dataclasses.dataclass(frozen=True)
class Config:
    """Learners that exchange weights."""

    workers: int = options.number(2, low=1, high=1024)
    """Learners, each with its own environment; about one a core."""
    scheme: Literal["average", "filtered", "asynchronous"] = "average"
    """All exchange all weights; all exchange those that moved; each tells those that moved and waits for nobody."""
    period: int = options.number(1, low=1)
    """Episodes of each learner between two exchanges."""
    threshold: float = options.number(0.1, low=0.0)
    """A weight is told once it moved by more than this (filtered, asynchronous)."""
    mailbox: int = options.number(8, low=2, high=1024)
    """Messages a mailbox holds, one for each pair of learners; the oldest is dropped from a full one (asynchronous)."""
    spawn: bool = True
    """Every learner is a process of its own; if not, they take turns in this one, the one with the fewest steps first,
    and any scheme repeats."""
    report_s: float = options.number(0.1, low=0.01)
    """Seconds between two reports of a learner."""


LEARNS = "exchange"
CAPTURES = False  # weights are written where they are learned
EXACT_RESUME = False  # episodes under way and messages on their way are not saved


def check(config: Config, experiment: Any, opened: Any) -> None:
    """Whatever the learning rule fits, fits here."""
    del config, experiment, opened


def streams(config: Config) -> int:
    """Environments that one learner learns from."""
    del config
    return 1


def races(config: Config) -> str:
    """What keeps workers from racing; "" where none do."""
    alone = config.scheme != "asynchronous" or not config.spawn or config.workers == 1
    return "" if alone else "--runtime.no-spawn"


def build(config: Config) -> types.Runtime:
    """The runtime."""
    return Peers(config)


class Peers:
    """The parent's side: starts learners, watches them, reports."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def like(self, parts: types.Parts, seed: int) -> types.Tree:
        """See `types.Runtime`."""
        return _Run(self._config, parts, seed, 0, None).save()

    def policy(self, parts: types.Parts, seed: int, saved: types.Tree) -> types.Policy:
        """See `types.Runtime`."""
        run = _Run(self._config, parts, seed, 0, None)
        run.restore(saved)
        return run.policy()

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
        del goal  # the observer counts episodes and decides
        began = time.monotonic()
        run = _Run(self._config, parts, seed, steps, observe)
        run.restore(saved)
        startup = run.in_processes(began) if self._config.spawn else run.in_turns(began)
        return types.Result(run.policy(), run.progress([]), startup)


class _Run:
    """One run of the parent."""

    def __init__(self, config: Config, parts: types.Parts, seed: int, steps: int, observe: Any) -> None:
        assert parts.agent.exchange is not None
        self._config, self._parts, self._seed, self._steps, self._observe = config, parts, seed, steps, observe
        self._exchange = parts.agent.exchange
        self._block = _shared.Block(_peer.layout(config.workers, self._exchange.size, config.mailbox))
        self._life = 0  # lives of the run: 0, and one more for each resume; keeps seeds from being used twice
        self._metrics: dict[str, float] = {}
        self._rss: dict[int, float] = {}
        self._began: float | None = None
        self._ended: float | None = None
        self._restarts = 0
        self._before = 0  # observations that were not finite, of earlier lives
        self._pool: Any = None

    # ---------------------------------------------------------------- checkpoints

    def save(self) -> types.Tree:
        """The checkpoint: weights and counters (a learner may be in the middle of an episode)."""
        return {name: self._block[name].copy() for name in _peer.KEPT} | {"life": np.int64(self._life)}

    def restore(self, saved: types.Tree | None) -> None:
        """Continue from a checkpoint; learners that wait for each other begin together, with an exchange."""
        if saved is None:
            return
        block = self._block
        for name in _peer.KEPT:
            block[name][:] = saved[name]
        self._life = int(saved["life"]) + 1
        self._before = int(saved["non_finite"].sum())
        block["exchanges"][:] = 0
        block["then"][:], block["agreed"][:] = block["steps"], block["steps"].sum()
        if self._config.scheme != "asynchronous" and self._config.workers > 1:
            fresh = block["visits"] - block["told"]
            last = block["known"][int(np.argmax(saved["exchanges"]))]  # one may have merged what others have not
            told = [_mailboxes.whole(*one) for one in zip(block["weights"], fresh, strict=True)]
            block["weights"][:] = block["known"][:] = _mailboxes.averaged(last, told)
            block["told"][:] = block["visits"]

    # ---------------------------------------------------------------- ways to run

    def in_processes(self, began: float) -> float:
        """Every learner a spawned process; returns the seconds until all could begin."""
        with self._closing() as pool:
            waiting = set(range(self._config.workers))
            going = True
            while waiting and going:
                for worker, _, message in pool.poll(0.1):
                    if isinstance(message, _peer.Ready):
                        waiting.discard(worker)
                        pool.rests(worker)
                going = self._observe(self.progress([]))
            self._block["stop"][0] = not going
            self._began = time.monotonic()
            for worker in range(self._config.workers):
                pool.send(worker, "go")
            while not pool.finished:
                if not self._observe(self.progress(self._gather(pool))):
                    self._block["stop"][0] = 1
            self._ended = time.monotonic()
        return self._began - began

    def in_turns(self, began: float) -> float:
        """Every learner in this process, the one with the fewest steps first; returns the seconds until they began."""
        envs = [self._parts.make_host() for _ in range(self._config.workers)]
        try:
            learners = [_peer.Learner(self._parts, env, self._job(i, 0)[0]) for i, env in enumerate(envs)]
            self._began = told = time.monotonic()
            while going := [one for one in learners if not one.over]:
                any(one.turn() for one in sorted(going, key=lambda one: one.steps))
                if time.monotonic() - told >= self._config.report_s:
                    told = time.monotonic()
                    self._block["stop"][0] = not self._observe(self.progress(self._taken(learners)))
            self._observe(self.progress(self._taken(learners)))
            self._ended = time.monotonic()
        finally:
            for env in envs:
                env.close()
        return self._began - began

    @contextlib.contextmanager
    def _closing(self) -> Iterator[_pool.Pool]:
        """The pool; whatever happens it is closed: stop flag first, then patience, then kill."""
        pool = self._pool = _pool.Pool(_peer.work, self._job, self._config.workers, self._fault)
        patience = 1.0
        try:
            yield pool
            patience = 5.0
        finally:
            self._block["stop"][0] = 1
            pool.close(patience)

    def _job(self, worker: int, incarnation: int) -> tuple[Any, ...]:
        config, life = self._config, self._life * 1_000_000 + incarnation
        report_s = config.report_s if config.spawn else math.inf  # nothing but steps decides about turns
        return (
            _peer.Job(self._block, self._parts.rebuild, self._seed, worker, life, self._steps, config.scheme,
                      config.period, config.threshold, report_s),
        )  # fmt: skip

    def _fault(self, kind: str, traceback: str) -> None:
        self._restarts += 1
        self._observe.fault(kind, traceback)

    def _gather(self, pool: _pool.Pool) -> list[types.Episode]:
        """What learners reported; the finished ones are noted."""
        episodes: list[types.Episode] = []
        for worker, _, message in pool.poll(0.1):
            if isinstance(message, _peer.Ready):  # a restarted one
                pool.send(worker, "go")
            if isinstance(message, _peer.Report):
                pool.progressed(worker)
                episodes += message.episodes
                self._metrics = message.metrics or self._metrics
                self._rss[worker] = message.rss_mb
                if message.done:
                    pool.finish(worker)
        return sorted(episodes, key=lambda episode: episode.env_steps)

    def _taken(self, learners: list[_peer.Learner]) -> list[types.Episode]:
        reports = [learner.report(done=False) for learner in learners]
        self._metrics = next((report.metrics for report in reports if report.metrics), self._metrics)
        return sorted((e for report in reports for e in report.episodes), key=lambda episode: episode.env_steps)

    # ---------------------------------------------------------------- reports

    def progress(self, episodes: list[types.Episode]) -> types.Progress:
        """See `types.Progress`; every step is an update."""
        block, spent = self._block, 0.0
        if self._began is not None:
            spent = (self._ended or time.monotonic()) - self._began
        split = dict(zip(_peer.SPLIT, block["split"].sum(axis=0).tolist(), strict=True))
        workers = {
            "up": self._pool.up if self._pool else 0,
            "of": self._config.workers,
            "restarts": self._restarts,
            "env_steps": block["steps"].tolist(),
            "episodes": block["episodes"].tolist(),
            "rss_mb": sum(self._rss.values()),
            "pids": self._pool.pids if self._pool else [],
        }
        asynchronous = self._config.scheme == "asynchronous"
        communication = {
            "scheme": self._config.scheme,
            "bytes_sent": int(block["bytes"].sum()),
            "messages": int(block["messages"].sum()),
            "dropped_messages": _mailboxes.dropped(block) if asynchronous else 0,
            "waiting_s": split["waiting"],
        }
        return types.Progress(
            env_steps=int(block["steps"].sum()),
            updates=int(block["steps"].sum()),
            train_s=spent,
            episodes=episodes,
            metrics=self._metrics,
            split=split,
            workers=workers if self._config.spawn else {},
            faults={"restarts": self._restarts, "non_finite": int(block["non_finite"].sum()) - self._before},
            save=self.save,
            subsystems={"communication": communication},
        )

    def policy(self) -> types.Policy:
        """The mean of all learners' weights; under `average` they are the same."""
        return self._exchange.policy(self._block["weights"].mean(axis=0))
