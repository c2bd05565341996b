"""An actor: several environments, one decision for all of them, with the newest packed policy there is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from etils import epy

from shoal.core import types
from shoal.monitor import timing
from shoal.runtimes.actor_learner import board, deciding, queue
from shoal.runtimes.crew import life, sharing
from shoal.runtimes.experience import finite, pools, vectors

with epy.lazy_imports():
    import jax

SPLIT = (*timing.ACTOR, "other")  # where an actor's time goes


class Job(NamedTuple):
    """What an actor is told when it starts; all of it can be pickled."""

    queues: sharing.Block
    board: sharing.Block
    notes: sharing.Block  # `layout`
    bell: sharing.Bell  # of the learner
    mine: sharing.Bell  # this actor sleeps on it
    rebuild: Callable[[], types.Parts]
    seed: int
    life: int
    worker: int
    incarnation: int
    environments: int
    engine: str
    lockstep: bool


def layout(workers: int) -> sharing.Layout:
    """What actors tell of themselves; every slot has a single writer."""
    return {
        "split": ((workers, len(SPLIT)), "f8"),  # seconds
        "steps": ((workers,), "i8"),  # of this life
        "unfit": ((workers, 2), "i8"),  # rewards and observations that were not finite
        "restarts": ((workers,), "i8"),  # simulators that were replaced
        "refused": ((workers,), "i8"),  # snapshots that were damaged
        "loads": ((workers,), "i8"),
        "decisions": ((workers, timing.BINS), "i8"),  # seconds of a decision, as `timing.Quantiles` counts them
        "latency": ((workers, timing.BINS), "i8"),  # of a snapshot, from its posting to the first action with it
        "transfer": ((workers,), "f8"),  # seconds of all of them until they were read
        "engine": ((workers, 16), "u1"),
        "measured": ((workers, 8), "f8"),  # microseconds of each engine that was compared, by name sorted
        "names": ((workers, 8, 16), "u1"),
    }


class Actor(life.Worker):
    """Acts; see `life.Worker`."""

    def __init__(self, job: Job, parent: life.Parent) -> None:
        """Open the simulators and the engine."""
        self._parts = parts = job.rebuild()
        self._job, self._parent, self._worker = job, parent, job.worker
        self._notes = job.notes
        self._queues = queue.Queues(job.queues.arrays, queue.like(parts, job.environments))
        self._board = board.Board(job.board)
        place = deciding.Place(job.seed, job.life, job.worker, job.incarnation, job.environments)
        self._decide = deciding.make(parts, self._first(), job.engine, place)
        self._note_engine()
        first = vectors.first_incarnation(job.life, job.incarnation)
        self._vector = self._open(first, place)
        self._finite = finite.Streams()
        self._obs = self._finite.first(self._vector.reset())
        self._carry = self._start = jax.tree.map(
            lambda leaf: np.broadcast_to(np.asarray(leaf), (job.environments, *leaf.shape)).copy(),
            parts.agent.about.carry,
        )
        self._returns, self._lengths = np.zeros(job.environments), np.zeros(job.environments, int)
        self._rollouts = 0
        self._decisions = timing.Quantiles(job.notes["decisions"][job.worker])
        self._latency = timing.Quantiles(job.notes["latency"][job.worker])
        self._watch: timing.Stopwatch | None = None  # from the first turn on
        self._before = job.notes["split"][job.worker].copy()  # of those that died in this place
        self._rehearse()

    def _first(self) -> types.Packed:
        return self._board.read().packed

    def _open(self, incarnation: int, place: deciding.Place) -> Any:
        environment, first = self._parts.environment, place.first
        if environment.steps_many:
            return vectors.Whole(environment, self._job.seed, place.environments, incarnation + place.worker)
        places = range(first, first + place.environments)
        return vectors.Serial(environment, self._job.seed, places, incarnation, self._broke)

    def _broke(self, kind: str, story: str) -> None:
        self._parent.tell(pools.Fault(kind, story))

    def _note_engine(self) -> None:
        notes, worker = self._notes, self._worker
        self._measured = self._decide.measured
        notes["names"][worker] = 0
        _write(notes["engine"][worker], self._decide.engine)
        for i, (name, spent) in enumerate(sorted(self._decide.measured.items())[:8]):
            _write(notes["names"][worker, i], name)
            notes["measured"][worker, i] = spent

    def _rehearse(self) -> None:
        """Compile, so that the first rollout is as quick as the others."""
        self._decide.begin(0)
        self._decide(self._obs, self._carry)

    # ---------------------------------------------------------------- turns

    @property
    def over(self) -> bool:
        """The learner has enough."""
        return self._parent.stopped

    def turn(self) -> bool:
        """The newest policy, one rollout; False: as many as may are waiting already."""
        watch = self._started()
        watch.lap("other")
        if self._queues.full(self._worker) or not self._may_begin():
            return False
        self._load()
        watch.lap("load")
        self._collect(watch)
        self._queues.put(self._worker, self._job.incarnation)
        self._job.bell.ring()
        notes, worker = self._notes, self._worker
        notes["steps"][worker] += len(self._obs) * self._parts.agent.about.rollout_length
        notes["unfit"][worker] = self._finite.rewards, self._finite.observations
        notes["restarts"][worker] = self._vector.restarts
        self._tell(watch)
        return True

    def _started(self) -> timing.Stopwatch:
        if self._watch is None:
            self._watch = timing.Stopwatch(timing.ACTOR)
        return self._watch

    def _tell(self, watch: timing.Stopwatch) -> None:
        self._notes["split"][self._worker] = self._before + [watch.spent[name] for name in SPLIT]

    def _may_begin(self) -> bool:
        """In lock-step, whether the policy of all rollouts before is there."""
        return not self._job.lockstep or self._board.posted > int(self._queues.written[self._worker])

    def wait(self) -> None:
        """See `life.Worker`; the time is accounted for."""
        watch = self._started()
        watch.lap("other")
        self._job.mine.wait(0.05)
        watch.lap("wait")
        self._tell(watch)

    def _load(self) -> None:
        """Take a newer policy, if there is one."""
        if self._board.version <= self._decide.version:
            return
        posted = self._board.read()
        read = time.monotonic()
        try:
            self._decide.load(posted.packed)
        except ValueError:  # written over while it was read, or damaged: the one before stays in use
            self._notes["refused"][self._worker] += 1
            return
        if self._decide.measured is not self._measured:  # other layers, and perhaps another engine
            self._note_engine()
        self._notes["loads"][self._worker] += 1
        self._notes["transfer"][self._worker] += read - posted.at
        self._fresh = posted.at

    _fresh: float | None = None  # when the policy was posted that has not acted yet

    def _collect(self, watch: timing.Stopwatch) -> None:
        """One rollout into its slot."""
        lap, decide, vector, decisions = watch.lap, self._decide, self._vector, self._decisions.add
        slot = self._queues.slot(self._worker)
        to, log_mu = slot.rollout.transitions, slot.log_mu
        extras_to = jax.tree.leaves(to.extras)
        jax.tree.map(np.copyto, slot.rollout.carry, self._carry)
        slot.rollout.version[:] = decide.version
        decide.begin(self._rollouts)
        obs = self._obs
        for t in range(len(to.reward)):
            lap("other")
            decision = decide(obs, self._carry)
            decisions(lap("inference"))
            if self._fresh is not None:
                self._latency.add(time.monotonic() - self._fresh)
                self._fresh = None
            batch = self._finite.step(obs, vector.step(decision.action))
            lap("env")
            reward, discount, truncated, successor = batch.outcome
            to.obs[t], to.action[t], to.next_obs[t] = obs, decision.action, successor
            to.reward[t], to.discount[t], to.truncated[t] = reward, discount, truncated
            log_mu[t] = decision.log_mu
            for room, leaf in zip(extras_to, decision.extras, strict=True):
                room[t] = leaf
            obs = batch.obs
            over = truncated | (discount == 0)
            self._carry = decision.carry
            self._account(slot, t, reward, over)
        self._obs = obs
        self._rollouts += 1

    def _account(self, slot: queue.Slot, t: int, reward: np.ndarray, over: np.ndarray) -> None:
        self._returns += reward
        self._lengths += 1
        slot.lengths[t] = 0
        if not over.any():
            return
        slot.returns[t], slot.lengths[t] = self._returns, np.where(over, self._lengths, 0)
        self._returns[over], self._lengths[over] = 0.0, 0
        self._carry = jax.tree.map(
            lambda first, now: np.where(over.reshape(-1, *[1] * (np.ndim(now) - 1)), first, now),
            self._start,
            self._carry,
        )

    def close(self) -> None:
        """See `life.Worker`."""
        self._vector.close()


def _write(room: np.ndarray, text: str) -> None:
    raw = text.encode()[: len(room)]
    room[:] = 0
    room[: len(raw)] = np.frombuffer(raw, np.uint8)


def read(room: np.ndarray) -> str:
    """A text that was written to shared memory."""
    return room.tobytes().rstrip(b"\0").decode(errors="replace")
