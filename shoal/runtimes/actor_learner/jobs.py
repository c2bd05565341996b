"""Who works in a run, and what each of them is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from shoal.core import types
from shoal.runtimes.actor_learner import actor, publisher, shared
from shoal.runtimes.crew import life

if TYPE_CHECKING:
    from shoal.runtimes import actor_learner


class Named(NamedTuple):
    """Which run it is."""

    seed: int
    life: int
    engine: str  # of its actors, or "auto"


class Jobs:
    """The roles and jobs of a run."""

    def __init__(self, config: actor_learner.Config, parts: types.Parts, common: shared.Shared, named: Named) -> None:
        """Workers take turns in this process, if nothing else is said.

        Args:
            config: `actor_learner.Config`.
            parts: The agent, its environment and compressor.
            common: What all of them share.
            named: Which run it is.
        """
        self._config, self._shared, self._named = config, common, named
        self.here = True  # in this process
        self.rebuild: Callable[[], types.Parts] = lambda: parts  # makes the parts where a worker is

    def roles(self) -> list[life.Role]:
        """The actors, and the compressor where there is something to compress."""
        acting = life.Role(name="actor", workers=self._config.workers, open=actor.Actor, job=self.actor)
        if self._shared.teacher is None:
            return [acting]
        return [acting, life.Role(name="compressor", workers=1, open=publisher.Publisher, job=self.publisher)]

    def actor(self, worker: int, incarnation: int) -> actor.Job:
        """What an actor is told."""
        return actor.Job(
            queues=self._shared.queue_block,
            board=self._shared.board_block,
            notes=self._shared.notes,
            bell=self._shared.bell,
            mine=self._shared.bells[worker],
            rebuild=self.rebuild,
            seed=self._named.seed,
            life=self._named.life,
            worker=worker,
            incarnation=incarnation,
            environments=self._config.environments,
            engine=self._named.engine,
            lockstep=self._config.lockstep,
        )

    def publisher(self, worker: int, incarnation: int) -> publisher.Job:
        """What the compressor is told."""
        del worker
        assert self._shared.teacher_block is not None
        return publisher.Job(
            teacher=self._shared.teacher_block,
            board=self._shared.board_block,
            bells=tuple(self._shared.bells),
            bell=self._shared.press,
            rebuild=self.rebuild,
            seed=self._named.seed,
            life=self._named.life,
            incarnation=incarnation,
            lockstep=self._config.lockstep,
            apart=not self.here,
        )
