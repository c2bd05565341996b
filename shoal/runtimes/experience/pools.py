"""Simulators in worker processes, stepped together or each share by itself (see `vectors` for those of this process).

A process that dies is replaced; the step that its share owed becomes a truncation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from shoal.core import compilation, errors, types
from shoal.runtimes.crew import beside, crew, life
from shoal.runtimes.experience import vectors


def _nothing(answers: int) -> None:
    """Nobody waits for it."""
    del answers


class Fault(NamedTuple):
    """An environment failed inside a worker and was replaced there."""

    kind: str
    traceback: str


class Hopeless(NamedTuple):
    """An environment failed so often that the run is to end; a new process would not help."""

    story: str


class Anew(NamedTuple):
    """To a worker, in place of actions: see `vectors.Serial.anew`."""

    seed: int


class Job(NamedTuple):
    """What a worker is told when it starts: simulators alone, so that it imports nothing else."""

    environment: types.Opener
    seed: int  # the run's
    places: range  # which environments are its
    incarnation: int  # of each of them
    compiled: bool  # a step is a program of JAX's


class Simulators(life.Worker):
    """A share of the environments, stepped whenever told; its first observations are told at once."""

    def __init__(self, job: Job, parent: life.Parent) -> None:
        """Open them; one that fails again and again is told as `Hopeless`."""
        if job.compiled:
            compilation.share()
        self._parent, self._ended = parent, False
        self._vector = vectors.Serial(job.environment, job.seed, job.places, job.incarnation, self._broke)
        self._answer(self._vector.reset)

    @property
    def over(self) -> bool:
        """It was told to end."""
        return self._ended

    def turn(self) -> bool:
        """One step of each; False: nothing is asked for."""
        actions = self._parent.next()
        if actions is None:
            self._ended = self._parent.stopped
            return False
        if isinstance(actions, Anew):
            self._answer(lambda: self._vector.anew(actions.seed))
        else:
            self._answer(lambda: self._vector.step(actions))
        return True

    def _answer(self, act: Callable[[], Any]) -> None:
        try:
            self._parent.tell(act())
        except errors.GaveUp as error:
            self._parent.tell(Hopeless(str(error)))

    def _broke(self, kind: str, story: str) -> None:
        self._parent.tell(Fault(kind, story))

    def close(self) -> None:
        """See `life.Worker`."""
        self._vector.close()


class Pooled:
    """A share in each of several processes: see `vectors.Serial`; so many environments `together` are never parted."""

    def __init__(
        self,
        parts: types.Parts,
        seed: int,
        count: int,
        life_: int,
        processes: int,
        on_fault: Callable[[str, str], None],
        look: beside.Look = vectors.unseen,
        together: int = 1,
    ) -> None:
        bounds = (np.linspace(0, count // together, processes + 1).astype(int) * together).tolist()
        self._shares = [range(a, b) for a, b in itertools.pairwise(bounds)]
        self._on_fault, self._replaced, self._look, self._seed = on_fault, 0, look, seed
        self._owed: dict[int, int] = {}  # worker -> the incarnation that was asked for a step
        self._early: dict[
            int, np.ndarray
        ] = {}  # worker -> what one in the place of a dead one showed before it was asked

        def job(worker: int, incarnation: int) -> Job:
            return Job(
                environment=parts.environment,
                seed=self._seed,
                places=self._shares[worker],
                incarnation=vectors.first_incarnation(life_, incarnation),
                compiled=parts.spec.on_device,
            )

        role = life.Role(name="worker", workers=processes, open=Simulators, job=job, together=False, serves=True)
        self._crew = crew.Processes([role], on_fault)
        self._obs = np.zeros((count, *parts.spec.observation.shape), parts.spec.observation.dtype)

    @property
    def restarts(self) -> int:
        """Processes that died, and simulators that were replaced inside one."""
        return self._replaced + self._crew.restarts["worker"]

    def about(self) -> dict[str, Any]:
        """See `crew.Crew.about`."""
        return self._crew.about("worker")

    def _said(self, owed: dict[int, int], seconds: float) -> dict[int, Any]:
        """What workers answered within so many seconds.

        One that was asked nothing, and shows its first observations, died and has begun anew: they are its next answer.

        Args:
            owed: The incarnation of each that was asked.
            seconds: As long as nobody answers.
        """
        got: dict[int, Any] = {}
        for role, worker, incarnation, message in self._crew.said(seconds):
            if isinstance(message, Fault):
                self._replaced += 1
                self._on_fault(*message)
            elif isinstance(message, Hopeless):
                raise errors.GaveUp(message.story)
            elif isinstance(message, np.ndarray) or incarnation == owed.get(worker):
                self._crew.answered(role, worker, progress=isinstance(message, types.Batch))
                (got if worker in owed else self._early)[worker] = message
        return got

    def _gather(self, owed: dict[int, int], waiting: Callable[[int], None] = _nothing) -> dict[int, Any]:
        """One answer from every worker; a new incarnation answers with its first observations instead.

        Args:
            owed: The incarnation of each that was asked.
            waiting: Told how many have answered, now and then.
        """
        got: dict[int, Any] = {}
        while len(got) < len(owed):
            waiting(len(got))
            got |= self._said(owed, beside.LOOK)
        return got

    def reset(self) -> np.ndarray:
        """See `types.HostVector`.

        Raises:
            NotBegun: `look` said that the run is to end.
        """
        return self._first(dict.fromkeys(range(len(self._shares)), 0), self._started)

    def _first(self, owed: dict[int, int], waiting: Callable[[int], None] = _nothing) -> np.ndarray:
        for worker, first in self._gather(owed, waiting).items():
            self._obs[self._shares[worker].start : self._shares[worker].stop] = first
        return self._obs.copy()

    def anew(self, seed: int) -> np.ndarray:
        """See `vectors.Serial.anew`."""
        self._seed = seed
        owed = {worker: self._crew.incarnation("worker", worker) for worker in range(len(self._shares))}
        self._early = {}
        for worker in owed:
            self._crew.send("worker", worker, Anew(seed))
        return self._first(owed)

    def _started(self, ready: int) -> None:
        beside.asked(self._look, types.Stage(crew.starting(self._crew.roles.values()), ready, len(self._shares)))

    def step(self, actions: np.ndarray) -> types.Batch:
        """See `types.HostVector`."""
        for worker, share in enumerate(self._shares):
            self.ask(worker, actions[share.start : share.stop])
        got: dict[int, types.Batch] = {}
        while len(got) < len(self._shares):
            got |= self.answers(beside.LOOK)
        obs, outcomes = zip(*(got[worker] for worker in range(len(got))), strict=True)
        joined = [np.concatenate(leaves) for leaves in zip(*outcomes, strict=True)]
        return types.Batch(np.concatenate(obs), types.Outcome(*joined))

    def ask(self, worker: int, actions: np.ndarray) -> None:
        """Have one worker act in its share of the environments; it answers in `answers`."""
        self._owed[worker] = self._crew.incarnation("worker", worker)
        if worker not in self._early:
            self._crew.send("worker", worker, actions)

    def answers(self, seconds: float) -> dict[int, types.Batch]:
        """One step of the share of every worker that was asked and has answered.

        Args:
            seconds: That nobody's answer is waited for.
        """
        early = {worker: self._early.pop(worker) for worker in self._owed.keys() & self._early.keys()}
        said = early or self._said(self._owed, seconds)
        return {worker: self._batch(worker, answer) for worker, answer in said.items()}

    def _batch(self, worker: int, answer: Any) -> types.Batch:
        """An answer as a step; of a worker that died and has begun anew, what it owed is lost."""
        del self._owed[worker]
        at = slice(self._shares[worker].start, self._shares[worker].stop)
        if isinstance(answer, np.ndarray):
            count, before = len(answer), self._obs[at].copy()
            lost = types.Outcome(np.zeros(count, np.float32), np.ones(count, np.float32), np.ones(count, bool), before)
            answer = types.Batch(answer, lost)
        self._obs[at] = answer.obs
        return answer

    def close(self) -> None:
        """See `types.HostVector`."""
        self._crew.__exit__(None)
