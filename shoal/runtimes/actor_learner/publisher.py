"""The compressor in a process of its own: it takes the learner's newest policy, compresses it and posts it for actors.

Between two publishes a compressor that learns (a student) goes on learning. Actors never wait for it: they act with the
last policy they have. What cannot be compressed is counted, and the last good one stays in use; after `LIMIT` in a row
the policy is posted in full precision until compressing succeeds again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from etils import epy

from shoal.core import seeds, types
from shoal.runtimes.actor_learner import board, teacher
from shoal.runtimes.crew import life, sharing

with epy.lazy_imports():
    import jax

    from shoal.core import tree

LIMIT = 3  # failures in a row
NICE = 5  # how much its process gives way


class Job(NamedTuple):
    """What the publisher is told when it starts; all of it can be pickled."""

    teacher: sharing.Block  # `teacher.layout`
    board: sharing.Block
    bells: tuple[sharing.Bell, ...]  # of the actors
    bell: sharing.Bell  # the learner's, which rings where there is a newer policy
    rebuild: Callable[[], types.Parts]
    seed: int
    life: int
    incarnation: int
    lockstep: bool
    apart: bool  # it is a process of its own


class Published(NamedTuple):
    """What the learner is told of one publish."""

    version: int
    level: str
    bytes: int
    seconds: float
    compressed: float
    failed: str  # why it could not be compressed; "": it was
    plain: bool  # it was posted in full precision instead
    metrics: dict[str, float]  # of what learned in between


class Publisher(life.Worker):
    """See the module."""

    def __init__(self, job: Job, parent: life.Parent) -> None:
        """Nothing is compressed yet."""
        if job.apart:  # a student learns without pause: where there is no core to spare it must not take the learner's
            os.nice(NICE)
        self._job, self._parent = job, parent
        parts = job.rebuild()
        assert parts.compressor is not None
        self._compressor = parts.compressor
        agent = parts.agent
        shapes = jax.eval_shape(lambda key: agent.snapshot(agent.init(key)), seeds.key(0))
        self._teacher = teacher.Teacher(job.teacher, shapes, teacher.remembered(agent, parts.compressor))
        self._board = board.Board(job.board)
        self._memory: Any = None
        self._policy: types.Policy | None = None
        _, newest = self._teacher.newest()
        self._done = self._teacher.given - (self._board.version < newest)  # what one that died left undone is done
        self._calls = self._failures = 0
        self._plain = self._teacher.plain
        self._metrics: dict[str, float] = {}
        self._rehearse(parts.spec)
        self._take_up()

    def _rehearse(self, spec: types.EnvSpec) -> None:
        """Compile what compressing compiles, on made-up observations; later, actors would act with an old policy."""
        policy, _ = self._teacher.newest()
        rng = np.random.default_rng(0)
        shape = (64, *spec.observation.shape)
        obs = rng.standard_normal(shape).astype(spec.observation.dtype)
        if spec.observation.dtype == "uint8":
            obs = rng.integers(0, 256, shape, np.uint8)
        try:
            memory = self._compressor.init(policy, self._key("init"))
            if self._compressor.study is not None:
                self._compressor.study(memory, policy, obs, self._key("study"))
            self._compressor.compress(memory, policy, obs, self._key("publish"))
        except (ValueError, ArithmeticError):
            return  # it is told when it matters
        self._memory = memory

    def _take_up(self) -> None:
        """Go on with the memory of the run before it was resumed, or of a compressor that died."""
        kept, there = self._teacher.memory()
        if there and self._memory is not None:
            self._memory = self._compressor.resumed(self._memory, kept)
        self._keep()

    def _keep(self) -> None:
        if self._memory is None:
            self._teacher.passed(self._done)
        else:
            self._teacher.keep(self._compressor.kept(self._memory), self._done)

    @property
    def over(self) -> bool:
        """The learner has enough."""
        return self._parent.stopped

    def wait(self) -> None:
        """See `life.Worker`."""
        self._job.bell.wait(0.05)

    def turn(self) -> bool:
        """Publish what is newer, or let the student learn; False: neither can be done.

        In lock-step it learns once for each policy, before that is posted: how often, and from which observations, is
        no matter of time then.
        """
        given, plain = self._teacher.given, self._teacher.plain
        if given > self._done or plain != self._plain:
            self._done, self._plain = given, plain
            self._publish()
            return True
        return not self._job.lockstep and self._study()

    def _key(self, what: str) -> types.Key:
        self._calls += 1
        return seeds.key(self._job.seed, "compress", what, self._job.life, self._job.incarnation, self._calls)

    def _publish(self) -> None:
        policy, version = self._teacher.newest()
        self._policy = policy
        if self._job.lockstep:
            self._study()
        try:
            if self._memory is None:
                self._memory = self._compressor.init(policy, self._key("init"))
            obs = self._teacher.observations()
            if self._plain or (self._compressor.needs_obs and not len(obs)):
                self._keep()
                self._post(self._compressor.plain(policy), version, plain=True)
                return
            memory, packed = self._compressor.compress(self._memory, policy, obs, self._key("publish"))
            self._memory, self._failures = memory, 0
            self._keep()  # before actors go on: in lock-step nothing moves until then
            self._post(packed, version)
        except (ValueError, ArithmeticError) as error:
            self._failed(policy, version, f"{type(error).__name__}: {error}")

    def _failed(self, policy: types.Policy, version: int, why: str) -> None:
        """Count it; the last good policy stays in use, or the plain one comes."""
        self._failures += 1
        self._keep()
        finite = bool(tree.all_finite(policy))
        if finite and (self._failures >= LIMIT or self._job.lockstep):
            self._post(self._compressor.plain(policy), version, failed=why, plain=True)
            return
        self._tell(types.Packed(b"", version, 0, 0.0, "", ""), failed=why)

    def _post(self, packed: types.Packed, version: int, failed: str = "", plain: bool = False) -> None:
        packed = packed._replace(version=version)
        self._board.post(packed)
        for bell in self._job.bells:
            bell.ring()
        self._tell(packed, failed, plain)

    def _tell(self, packed: types.Packed, failed: str = "", plain: bool = False) -> None:
        self._parent.tell(
            Published(
                version=packed.version,
                level=packed.level,
                bytes=packed.bytes,
                seconds=packed.seconds,
                compressed=packed.compressed,
                failed=failed,
                plain=plain,
                metrics=self._metrics,
            )
        )

    def _study(self) -> bool:
        """One step of what learns; False: there is nothing to learn from."""
        if self._compressor.study is None or self._policy is None or self._memory is None:
            return False
        obs = self._teacher.observations()
        if not len(obs):
            return False
        try:
            self._memory, metrics = self._compressor.study(self._memory, self._policy, obs, self._key("study"))
        except (ValueError, ArithmeticError) as error:
            self._tell(types.Packed(b"", 0, 0, 0.0, "", ""), failed=f"{type(error).__name__}: {error}")
            self._policy = None  # the memory before is good; it is tried again with a newer policy
            return True
        self._metrics = {name: float(value) for name, value in metrics.items()}
        if not self._job.lockstep:
            self._keep()
        return True
