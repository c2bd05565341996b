"""Which of the rollouts that wait an update learns from, and the episodes that ended in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from shoal.core import types
from shoal.runtimes.actor_learner import queue, shared

if TYPE_CHECKING:
    from shoal.runtimes import actor_learner


class Taking:
    """Chooses; what cannot be learned from is dropped and counted."""

    def __init__(self, config: actor_learner.Config, common: shared.Shared, each: bool) -> None:
        """Nothing was dropped yet.

        Args:
            config: `actor_learner.Config`.
            common: The queues, and the bells of their actors.
            each: Whether streams matter, so that every actor's must be there.
        """
        self._queues, self._bells = common.queues, common.bells
        self._each = each or not config.rollouts
        self._rollouts = config.rollouts or config.workers
        self.dropped = 0

    def chosen(self, updates: int) -> list[int] | None:
        """Whose rollouts are next; None: too few wait.

        Args:
            updates: The learner's so far.
        """
        waiting = self._queues.waiting()
        for worker in np.flatnonzero(waiting).tolist():
            while waiting[worker] and not queue.good(self._queues.peek(worker), updates):
                self._queues.drop(worker)
                self.dropped += 1
                waiting[worker] -= 1
                self._bells[worker].ring()
        if self._each:
            return list(range(len(waiting))) if waiting.all() else None
        if waiting.sum() < self._rollouts:
            return None
        chosen: list[int] = []
        while len(chosen) < self._rollouts:  # the fullest queue first
            worker = int(waiting.argmax())
            chosen.append(worker)
            waiting[worker] -= 1
        return chosen


def episodes(taken: queue.Taken, before: int) -> list[types.Episode]:
    """Those that ended in what is learned from, at their places among all steps.

    Args:
        taken: It.
        before: Environment steps that were learned from until then.
    """
    each = taken.lengths.shape[1]
    environments = each // len(taken.workers)
    return [
        types.Episode(
            env_steps=before + (int(t) + 1) * each,
            episode_return=float(taken.returns[t, stream]),
            length=int(taken.lengths[t, stream]),
            worker=taken.workers[int(stream) // environments],
        )
        for t, stream in zip(*np.nonzero(taken.lengths), strict=True)
    ]
