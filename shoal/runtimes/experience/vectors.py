"""Several simulators stepped as one: in this process, or in worker processes when a step is slow enough.

Each environment has its own seed, so the bits do not depend on where it is stepped. A simulator that raises, or whose
process dies, is replaced by a fresh one with a seed not used before; the step it owed becomes a truncation.
"""

from __future__ import annotations

import contextlib
import itertools
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from shoal.core import compilation, errors, seeds, types
from shoal.runtimes.crew import beside, closing, crew, life, threads

PAYS = 150e-6  # seconds a step of all environments must take before processes are worth their messages
PROBE = 100  # steps timed to find out
FAILURES = 5  # of one environment without a good step between them: a crash loop


def _unseen(stage: types.Stage) -> bool:
    """Nobody looks on."""
    del stage
    return True


def _nothing(answers: int) -> None:
    """Nobody waits for it."""
    del answers


class Serial:
    """All in this process.

    Args:
        environment: Opens one simulator after the other.
        seed: The run's.
        places: Which environments these are, by number.
        incarnation: Number of the first incarnation of each; keeps seeds apart from all that were used before.
        on_fault: Told ``(kind, traceback)``.
        look: Told how many are open.
    """

    def __init__(
        self,
        environment: types.Opener,
        seed: int,
        places: range,
        incarnation: int,
        on_fault: Callable[[str, str], None],
        look: beside.Look = _unseen,
    ) -> None:
        self._environment, self._seed, self._places, self._on_fault = environment, seed, places, on_fault
        self._look = look
        self._incarnations = [incarnation] * len(places)
        self._failures = [0] * len(places)
        self._envs: list[Any] = [None] * len(places)  # types.HostEnv; None until it is made, and after a failure
        self.restarts = 0

    def _begin(self, i: int) -> np.ndarray:
        """The first observation; a simulator that cannot be made or reset is replaced like one that cannot step."""
        while True:
            place = ("environment", self._places[i], "incarnation", self._incarnations[i])
            try:
                self._envs[i] = self._envs[i] or self._environment.host()
                return self._envs[i].reset(seeds.derive(self._seed, *place))
            except Exception:  # noqa: BLE001  see `step`
                self._lost(i, traceback.format_exc())

    def reset(self) -> np.ndarray:
        """See `types.HostVector`.

        Raises:
            NotBegun: `look` said that the run is to end.
        """
        first, count = [], len(self._envs)
        doing = f"opening {count} simulator{'s' * (count > 1)}"
        for i in range(count):
            beside.asked(self._look, types.Stage(doing, i, count))
            first.append(self._begin(i))
        self._obs = np.stack(first)
        return self._obs.copy()

    def anew(self, seed: int) -> np.ndarray:
        """Begin every episode anew, as a run of another seed; the first observations."""
        self._seed, count = seed, len(self._envs)
        self._incarnations, self._failures = [0] * count, [0] * count
        self._obs = np.stack([self._begin(i) for i in range(count)])
        return self._obs.copy()

    def step(self, actions: np.ndarray) -> types.Batch:
        """See `types.HostVector`."""
        count = len(self._envs)
        reward, discount = np.zeros(count, np.float32), np.ones(count, np.float32)
        truncated, successor = np.zeros(count, bool), np.empty_like(self._obs)
        for i, env in enumerate(self._envs):
            try:
                following, outcome = env.step(actions[i])
            except Exception:  # noqa: BLE001  whatever a simulator raises, the run goes on without it
                self._lost(i, traceback.format_exc())
                successor[i], truncated[i] = self._obs[i], True
                self._obs[i] = self._begin(i)
                continue
            self._failures[i] = 0
            reward[i], discount[i], truncated[i], successor[i] = outcome
            self._obs[i] = following
        return types.Batch(self._obs.copy(), types.Outcome(reward, discount, truncated, successor))

    def _lost(self, i: int, story: str) -> None:
        """Let go of a simulator that failed; `_begin` makes another."""
        self._failures[i] += 1
        if self._failures[i] >= FAILURES:
            raise errors.GaveUp(
                f"environment {self._places[i]} failed {FAILURES} times without a good step; the last time:\n{story}"
            )
        self._on_fault(f"environment {self._places[i]} failed; replacing it", story)
        time.sleep(0.1 * 2 ** (self._failures[i] - 1))
        self.restarts += 1
        self._incarnations[i] += 1
        env, self._envs[i] = self._envs[i], None
        if env is not None:
            with contextlib.suppress(Exception):  # it is broken already
                env.close()

    def close(self) -> None:
        """See `types.HostVector`."""
        closing.every(env.close for env in self._envs if env is not None)


class Fault(NamedTuple):
    """An environment failed inside a worker and was replaced there."""

    kind: str
    traceback: str


class Hopeless(NamedTuple):
    """An environment failed so often that the run is to end; a new process would not help."""

    story: str


class Anew(NamedTuple):
    """To a worker, in place of actions: see `Serial.anew`."""

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
        self._vector = Serial(job.environment, job.seed, job.places, job.incarnation, self._broke)
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
    """A share in each of several processes (see `Serial` for the arguments; `together`, environments never parted)."""

    def __init__(
        self,
        parts: types.Parts,
        seed: int,
        count: int,
        life_: int,
        processes: int,
        on_fault: Callable[[str, str], None],
        look: beside.Look = _unseen,
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
                incarnation=first_incarnation(life_, incarnation),
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
        """See `Serial.anew`."""
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


class Whole:
    """Environments that their own library steps as one (see `types.Opener.vector`); what it raises ends the run.

    Args:
        environment: Opens them.
        seed: The run's.
        count: Environments.
        life: Of the run; keeps its seed apart from those of the lives before a resume.
    """

    restarts = 0  # one simulator cannot be replaced without the others

    def __init__(self, environment: types.Opener, seed: int, count: int, life: int) -> None:
        vector = environment.vector(seeds.derive(seed, "environment", "vector", life), count)
        self.reset, self.step, self.close = vector.reset, vector.step, vector.close


def first_incarnation(life: int, process: int = 0) -> int:
    """Where the environments' incarnations begin: apart for each life of a run and each process that fills a place."""
    return life * 1_000_000_000 + process * 1_000_000


def processes_that_pay(
    parts: types.Parts, count: int, seed: int, on_fault: Callable[[str, str], None], look: beside.Look = _unseen
) -> int:
    """How many worker processes are worth their messages: 0 where stepping here is faster.

    Args:
        parts: Whose simulator is timed, on a stream of its own.
        count: Environments.
        seed: The run's.
        on_fault: Told ``(kind, traceback)`` if it cannot be closed.
        look: Told how far it is.

    Raises:
        NotBegun: `look` said that the run is to end.
    """
    cores = threads.cores()
    if cores == 1 or count == 1:
        return 0
    generator = np.random.default_rng(seeds.derive(seed, "probe"))
    env = parts.environment.host()
    try:
        env.reset(seeds.derive(seed, "probe", "environment"))
        began = looked = time.perf_counter()
        for step in range(PROBE):
            env.step(_anything(parts.spec.action, generator))
            if (now := time.perf_counter()) - looked >= beside.LOOK:
                looked = now
                beside.asked(look, types.Stage("timing the simulator", step, PROBE))
    except errors.NotBegun:
        raise
    except Exception:  # noqa: BLE001  it will be reported where it matters
        return 0
    finally:
        closing.told(env.close, on_fault)
    seconds = (time.perf_counter() - began) / PROBE * count
    return min(cores, count) if seconds > PAYS * min(cores, count) else 0


def _anything(spec: types.ActionSpec, generator: np.random.Generator) -> types.Action:
    """A random action."""
    if spec.sizes:
        return generator.integers(spec.sizes)
    return int(generator.integers(spec.n)) if spec.discrete else generator.standard_normal(spec.shape, "f4")
