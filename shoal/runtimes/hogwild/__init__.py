"""Hogwild: several processes act, learn, and write one shared parameter vector without locks.

Mnih et al. 2016, arXiv:1602.01783 (asynchronous actor-learners, shared RMSProp, a shared target network, annealing on
the global step counter); Niu et al. 2011, arXiv:1106.5730 (no locks). Each worker repeats: read a snapshot, act T
steps, one gradient, add it in place. Spawned processes instead of threads, because threads of one interpreter do not
scale. With `replayable`, applies take turns and their order is recorded (docs/asynchrony.md).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any, Literal

from etils import epy

from shoal.core import errors, options, types
from shoal.monitor import asynchrony
from shoal.runtimes.crew import threads

with epy.lazy_imports():
    from shoal.runtimes.crew import beside
    from shoal.runtimes.hogwild import parent, sequential


@dataclasses.dataclass(frozen=True)
class Config:
    """Actor-learners that share one parameter vector."""

    workers: int = options.number(2, low=1, high=1024)
    """Processes, each with its own environment; about one a core."""
    games: int = options.number(1, low=1, high=16)
    """Environments of each worker: one decision for all, a segment and an update for each (docs/asynchrony.md)."""
    segment: Literal["fixed", "paper"] = "fixed"
    """fixed: segments of algorithm.rollout_length steps, which may cross an episode's end; paper: they end with the
    episode, so that an update follows every end, as in the pseudo-code of Mnih et al. 2016."""
    report_s: float = options.number(0.1, low=0.01)
    """Seconds between two reports of a worker."""
    statistics: Literal["shared", "worker"] = "shared"
    """Whether all workers write one vector of optimiser statistics, or each has its own."""
    max_lag: int = options.number(0, low=0)
    """Applies of others that may come between a worker's read and its apply; 0: no limit."""
    on_stale: Literal["drop", "block"] = "drop"
    """drop: a gradient beyond max_lag is thrown away; block: workers wait, so that none gets there."""
    replayable: bool = False
    """Apply one gradient at a time and record the order, so that `shoal replay` can repeat the run."""


RULES = ("rmsprop", "momentum", "adagrad", "adam")  # that apply in place, without locks


def check(config: Config, experiment: Any, opened: Any) -> None:
    """Refuse what this runtime cannot do.

    Raises:
        Refused: An optimiser that has no form for shared memory, a limit that would leave every worker waiting, or
            several games where they cannot be played together.
    """
    del opened
    if config.games > 1 and config.segment == "paper":
        raise errors.Refused(
            f"runtime.games={config.games} with segment=paper, whose segments end at different steps; "
            "give runtime.segment=fixed, or more workers of one game each"
        )
    if config.games > 1 and config.max_lag and config.on_stale == "block":
        raise errors.Refused(
            f"runtime.games={config.games} with on_stale=block: the gradients of a worker's games were read at once, "
            "and would wait for each other; give runtime.on_stale=drop, or more workers of one game each"
        )
    least = config.workers - 1
    if config.on_stale == "block" and 0 < config.max_lag < least:
        raise errors.Refused(
            f"runtime.max_lag={config.max_lag} with on_stale=block: {config.workers} workers that read at once must "
            f"wait for each other; give at least {least}, or runtime.on_stale=drop"
        )
    rule = experiment.configs["optimiser"].rule
    if rule not in RULES:
        raise errors.Refused(
            f"optimiser.rule={rule} cannot be shared without locks; the hogwild runtime offers {', '.join(RULES)}"
        )
    if rule == "momentum" and config.statistics == "shared":
        raise errors.Refused(
            "optimiser.rule=momentum, but a momentum is each worker's own; add --runtime.statistics worker, "
            "or use rmsprop"
        )


def ways(config: Config) -> types.Ways:
    """See `types.Ways`; neither the order of applies without locks nor the simulators can be saved."""
    return types.Ways(
        learners=config.workers * config.games,
        captures=True,
        rules=RULES,
        pads=config.segment == "paper",
        workers="workers",
        processes=config.workers,
        process_mb=threads.COMPUTES,
        records=config.replayable,
        recordable=True,
        meanwhile=True,
    )


def build(config: Config) -> types.Runtime:
    """The runtime."""
    return Hogwild(config)


def replayer(config: Config, parts: types.Parts, seed: int) -> sequential.Sequence:
    """What does in one process, one ticket after the other, what workers did at once.

    Args:
        config: Of the run; its workers are logical ones here.
        parts: The agent and its environment.
        seed: Of the run.
    """
    start = parent.begin(config, parts, seed)
    return sequential.Sequence(parts, start.given, start.layout, start.first)


class Hogwild:
    """The parent's side: starts workers, watches them, reports."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def like(self, parts: types.Parts, seed: int) -> types.Tree:
        """See `types.Runtime`."""
        return parent.Run(self._config, parts, seed, 0, None, None).save()

    def policy(self, parts: types.Parts, seed: int, saved: types.Tree) -> types.Policy:
        """See `types.Runtime`."""
        run = parent.Run(self._config, parts, seed, 0, None, None)
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
        began = time.monotonic()

        def make() -> parent.Run:
            run = parent.Run(self._config, parts, seed, steps, goal, observe)
            run.restore(saved)
            return run

        before = (int(saved[name].sum()) if saved else 0 for name in ("steps", "updates"))
        return beside.done(make, beside.COMPILING, beside.first(observe, *before)).train(began)

    def replay(
        self, parts: types.Parts, seed: int, record: asynchrony.Record, looks: list[int]
    ) -> Iterator[tuple[int, str | None]]:
        """See `types.Recording`: in one process of its own."""
        begun = parent.begin(self._config, parts, seed)
        return sequential.apart(sequential.Job(parts.rebuild, begun.given, begun.layout, begun.first, record, looks))
