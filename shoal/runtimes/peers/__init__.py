"""Peers: several learners of one weight vector, each in its own simulation, exchange what they learned.

Grounds & Kudenko 2008, "Parallel Reinforcement Learning with Linear Function Approximation". Each learner is a spawned
process; messages go through mailboxes in shared memory, and every byte of them is counted.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any, Literal

from etils import epy

from shoal.core import options, types
from shoal.runtimes.crew import threads

with epy.lazy_imports():
    import numpy as np

    from shoal.runtimes.crew import crew, life, sharing, turns
    from shoal.runtimes.experience import finite
    from shoal.runtimes.peers import mailboxes, process


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


def check(config: Config, experiment: Any, opened: Any) -> None:
    """Whatever the learning rule fits, fits here."""
    del config, experiment, opened


def ways(config: Config) -> types.Ways:
    """See `types.Ways`; weights are written where they are learned, and messages on their way are not saved."""
    alone = config.scheme != "asynchronous" or not config.spawn or config.workers == 1
    return types.Ways(
        learns="exchange",
        workers="workers",
        processes=config.workers if config.spawn else 0,
        process_mb=threads.COMPUTES,
        meanwhile=config.spawn,
        races="" if alone else "--runtime.no-spawn",
    )


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
        return run.train(began)


class _Run:
    """One run of the parent."""

    def __init__(self, config: Config, parts: types.Parts, seed: int, steps: int, observe: Any) -> None:
        assert parts.agent.about.exchange is not None
        self._config, self._parts, self._seed, self._steps, self._observe = config, parts, seed, steps, observe
        self._exchange = parts.agent.about.exchange
        self._block = sharing.Block(process.layout(config.workers, self._exchange.size, config.mailbox))
        self._life = 0  # lives of the run: 0, and one more for each resume; keeps seeds from being used twice
        self._before = 0  # observations that were not finite, of earlier lives
        self._crew: Any = None  # while it works
        self._watch: Any = None

    # ---------------------------------------------------------------- checkpoints

    def save(self) -> types.Tree:
        """The checkpoint: weights and counters (a learner may be in the middle of an episode)."""
        return {name: self._block[name].copy() for name in process.KEPT} | {"life": np.int64(self._life)}

    def restore(self, saved: types.Tree | None) -> None:
        """Continue from a checkpoint; learners that wait for each other begin together, with an exchange."""
        if saved is None:
            return
        block = self._block
        for name in process.KEPT:
            block[name][:] = saved[name]
        self._life = int(saved["life"]) + 1
        self._before = int(saved["non_finite"].sum())
        block["exchanges"][:] = 0
        block["then"][:], block["agreed"][:] = block["steps"], block["steps"].sum()
        if self._config.scheme != "asynchronous" and self._config.workers > 1:
            fresh = block["visits"] - block["told"]
            last = block["known"][int(np.argmax(saved["exchanges"]))]  # one may have merged what others have not
            told = [mailboxes.whole(*one) for one in zip(block["weights"], fresh, strict=True)]
            block["weights"][:] = block["known"][:] = mailboxes.averaged(last, told)
            block["told"][:] = block["visits"]

    # ---------------------------------------------------------------- learners

    def train(self, began: float) -> types.Result:
        """Every learner a process, or all in turns, the one with the fewest steps first."""
        config = self._config
        role = life.Role(
            name="worker", workers=config.workers, open=process.Learner, job=self.job, report_s=config.report_s
        )
        fault = self._observe.fault
        made = crew.Processes([role], fault) if config.spawn else turns.Turns([role], fault, order=_steps)
        with made as self._crew:
            self._watch = crew.Watch(self._crew, "worker", self._observe)
            startup = self._watch.run(began, self.progress)
            final = self.progress([])
        return types.Result(policy=self.policy(), final=final, startup_s=startup)

    def job(self, worker: int, incarnation: int) -> process.Job:
        """What a learner is told."""
        config = self._config
        return process.Job(
            block=self._block,
            rebuild=self._parts.rebuild if config.spawn else lambda: self._parts,
            seed=self._seed,
            worker=worker,
            incarnation=crew.number(self._life, incarnation),
            steps=self._steps,
            scheme=config.scheme,
            period=config.period,
            threshold=config.threshold,
            stretch_s=config.report_s if config.spawn else math.inf,  # nothing but steps decides about turns
        )

    # ---------------------------------------------------------------- reports

    def progress(self, episodes: list[types.Episode]) -> types.Progress:
        """See `types.Progress`; every step is an update."""
        block, about = self._block, self._crew.about("worker")
        split = dict(zip(process.SPLIT, block["split"].sum(axis=0).tolist(), strict=True))
        counted = {"env_steps": block["steps"].tolist(), "episodes": block["episodes"].tolist()}
        asynchronous = self._config.scheme == "asynchronous"
        communication = {
            "scheme": self._config.scheme,
            "bytes_sent": int(block["bytes"].sum()),
            "messages": int(block["messages"].sum()),
            "dropped_messages": mailboxes.dropped(block) if asynchronous else 0,
            "waiting_s": split["waiting"],
        }
        return types.Progress(
            env_steps=int(block["steps"].sum()),
            updates=int(block["steps"].sum()),
            train_s=self._watch.train_s,
            episodes=episodes,
            metrics=self._watch.metrics,
            split=split,
            workers={**about, **counted} if self._config.spawn else {},
            faults={
                "restarts": about["restarts"],
                "non_finite": int(block["non_finite"].sum()) - self._before,
                **finite.faults(*block["unfit"].sum(axis=0)),
            },
            save=self.save,
            policy=self.policy,
            subsystems={"communication": communication},
        )

    def policy(self) -> types.Policy:
        """The mean of all learners' weights; under `average` they are the same."""
        return self._exchange.policy(self._block["weights"].mean(axis=0))


def _steps(learner: Any) -> int:
    return int(learner.steps)
