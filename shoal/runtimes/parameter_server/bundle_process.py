"""One bundle of a parameter server: an actor, a learner and, if the rule has one, its replay memory.

It fetches the parameters, acts with them, learns from its own experience, and pushes the gradient (Nair et al. 2015,
arXiv:1507.04296, bundled mode). Its learner's state never leaves it but for a checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from shoal.core import seeds, tree, types
from shoal.networks import in_numpy
from shoal.runtimes.crew import life, observed, sharing
from shoal.runtimes.experience import segments
from shoal.runtimes.parameter_server import bundle_learning, bundle_state, pushing, transport


class Job(NamedTuple):
    """What a bundle is told when it starts; all of it can be pickled."""

    block: sharing.Block
    bells: transport.Bells
    area: sharing.Block  # where its state is left for a checkpoint
    rebuild: Callable[[], types.Parts]
    seed: int
    bundle: int
    incarnation: int
    steps: int
    settings: bundle_state.Settings
    restore: bool  # begin with what is in the area


class Bundle(life.Worker):
    """Actor, learner and memory."""

    def __init__(self, job: Job, parent: life.Parent) -> None:
        """Build and compile everything."""
        parts, self._place = job.rebuild(), ("bundle", job.bundle, "incarnation", job.incarnation)
        self._job, self._block, self._at, self._parent = job, job.block, job.bundle, parent
        self._steps, self._device = parts.agent.about.rollout_length, parts.device_env is not None
        self._needs_policy = self._device or not in_numpy.decides(parts.agent.about)
        self._client = transport.Client(job.block, job.bells, job.bundle)
        self._learning = bundle_learning.Learning(parts.agent)
        self._theta = np.zeros(self._learning.flat.size, np.float32)  # as fetched last
        self._versions = np.zeros(1, np.int64)
        self._age = 0  # cycles since then
        self._fetched = False  # for the cycle under way
        self._pushes = pushing.Pushes(self._client, job.block, job.bundle, job.settings)
        update = [seeds.derive(job.seed, *self._place, "update", i) for i in range(2)]
        self._key = np.array([*update, 0], np.uint32)
        left = bundle_state.found(parts, job.settings, job.area) if job.restore else None
        self._state = self._first(left)
        self._open(parts)
        self._episodes: list[types.Episode] = []
        self._metrics: dict[str, float] = {}
        if left is not None:
            self._restore(left)
        self._hyper = jax.device_get(self._state.optimiser.hyper)
        self._warm_up(left)

    def _open(self, parts: types.Parts) -> None:
        """The stream of experience."""
        programs, job = segments.Programs(parts), self._job
        self._rollout: Any = ()
        self._seen: Any = ()  # the state as NumPy arrays, for what decides without XLA
        if self._device:
            self.segments: segments.Segments = segments.DeviceSegments(programs, job.seed, *self._place)
            return
        self._rollout = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), segments.like(parts))
        if not self._needs_policy:
            self._seen = jax.tree.map(np.array, self._learning.lean(self._state))
        shown = self._seen and self._seen._replace(params=self._learning.flat.unflatten(self._theta))
        self.segments = segments.HostSegments(programs, shown, self._rollout, job.seed, *self._place)

    def _first(self, left: bundle_state.Kept | None) -> Any:
        """The learner's state that the bundle begins with; it never makes a replay memory beside another."""
        if left is not None:
            return self._learning.continued(left.state, broken=not self._device)
        self._block["kept"][self._at] = 0  # what a dead one left is not this one's
        self._client.fetch(self._theta)
        return self._learning.first(self._job.seed, self._at, self._theta)

    def _warm_up(self, left: bundle_state.Kept | None) -> None:
        """Compile everything, without moving the stream."""
        numbers, normaliser = self._numbers(), self._normaliser()
        policy = self._policy(numbers, normaliser)
        payload = self.segments.rehearse(policy) if self._device else self._rollout
        update = self._learning.update
        jax.block_until_ready(update(self._state, self._theta, numbers, normaliser, payload)[0])
        self._state = self._first(left)  # the other was donated: a spare one would be a second replay memory
        if not self._device:
            self.segments.rehearse(policy)

    # ---------------------------------------------------------------- the cycle

    @property
    def over(self) -> bool:
        """Enough steps and everything offered, or the parent's word."""
        return self._parent.stopped or (self._used_up and not self._pushes.pending and not self._pushes.count)

    @property
    def _used_up(self) -> bool:
        return sharing.total(self._block["steps"]) >= self._job.steps

    def turn(self) -> bool:
        """Fetch, act, learn, push; False: the server has to apply something first."""
        clock, split = time.perf_counter, self._block["split"][self._at]
        if self._pushes.pending:
            began = clock()
            pushed = self._pushes.offer(self._hyper, self._learning.sizes)
            split[3] += clock() - began
            return pushed
        if self._used_up:  # one that is stopped keeps what it gathered
            self._pushes.take_rest(self._hyper, sharing.total(self._block["steps"]) - self._steps)
            self._pushes.count *= self._pushes.pending
            return True
        if not self._fetch():
            return False
        started = clock()
        segment = self._learn()
        split += (segment.environment_s, segment.inference_s, 0.0, 0.0)
        split[2] += clock() - started - segment.environment_s - segment.inference_s
        began = clock()
        self._pushes.offer(self._hyper, self._learning.sizes)  # if there is no room it waits for the next turn
        split[3] += clock() - began
        return True

    def wait(self) -> None:
        """See `life.Worker`; the time is accounted for."""
        began = time.perf_counter()
        if self._pushes.pending:
            time.sleep(life.STILL)
        else:
            self._client.sleep(0.1)
        self._block["split"][self._at, 3] += time.perf_counter() - began

    def _fetch(self) -> bool:
        """The parameters, if they are due; False: what this bundle pushed is not in them yet."""
        if not self._fetched and self._age % self._job.settings.n_fetch == 0:
            if not self._client.settled():
                return False
            self._versions = self._client.fetch(self._theta)
        self._fetched = True
        return True

    def _learn(self) -> segments.Segment:
        """A segment and what is learned from it."""
        self._age, self._fetched = self._age + 1, False
        numbers, normaliser = self._numbers(), self._normaliser()
        policy = self._policy(numbers, normaliser)
        if self._seen:
            jax.tree.map(_fill, self._seen, self._learning.lean(self._state))
            self._seen.env_steps[...] = numbers[3]
        segment = self.segments.collect(policy)
        self._block["unfit"][self._at] += segment.unfit
        rollout = segment.payload if self._device else self._rollout
        out, rates, self._state = self._learning.update(self._state, self._theta, numbers, normaliser, rollout)
        out, size = np.asarray(out), self._learning.flat.size
        self._key[2] += 1
        if normaliser:
            with self._client.among_bundles():
                observed.absorb(self._block, np.asarray(rollout.transitions.obs))
        self._block["steps"][self._at] += self._steps
        self._metrics = dict(zip(self._learning.names, out[size:-1].tolist(), strict=True))
        update = pushing.Update(
            gradient=out[:size], norm=float(out[-1]), loss=self._metrics["loss"], rates=rates, versions=self._versions
        )
        self._pushes.take(update, self._hyper, sharing.total(self._block["steps"]) - self._steps)
        self._note(segment)
        return segment

    def _policy(self, numbers: np.ndarray, normaliser: Any) -> types.Policy | None:
        if not self._needs_policy:
            return None
        return self._learning.policy(self._learning.lean(self._state), self._theta, numbers, normaliser)

    def _numbers(self) -> np.ndarray:
        """``[5]`` u32: the update's key, environment steps of all bundles, updates of the parameters fetched."""
        return np.array([*self._key, self._block["steps"].sum(), self._versions.min()], np.int64).astype(np.uint32)

    def _normaliser(self) -> Any:
        return observed.normaliser(self._block, self._state.normaliser)

    def _note(self, segment: segments.Segment) -> None:
        before = sharing.total(self._block["steps"]) - self._steps if segment.finished else 0
        for found in segment.finished:
            self._episodes.append(
                types.Episode(
                    env_steps=before + found.at,
                    episode_return=found.episode_return,
                    length=found.length,
                    worker=self._at,
                )
            )

    def report(self) -> tuple[list[types.Episode], dict[str, float]]:
        """See `life.Worker`."""
        episodes, self._episodes = self._episodes, []
        return episodes, {name: value for name, value in self._metrics.items() if np.isfinite(value)}

    # ---------------------------------------------------------------- checkpoints

    def keep(self) -> None:
        """Leave the state where the parent finds it."""
        self._block["kept"][self._at] = 0
        for path, leaf in tree.host(self._kept()).items():
            self._job.area[path][...] = leaf
        self._block["kept"][self._at] = 1

    def finish(self) -> None:
        """See `life.Worker`: what it leaves is part of the last checkpoint."""
        self.keep()

    def close(self) -> None:
        """See `life.Worker`."""
        self.segments.close()

    def _kept(self) -> bundle_state.Kept:
        pushes = self._pushes
        return bundle_state.Kept(
            state=self._state,
            stream=self.segments.save(),
            key=self._key,
            guard=pushes.guard.save(),
            gathered=pushes.gathered,
            count=np.int64(pushes.count),
            theta=self._theta if self._job.settings.n_fetch > 1 else self._theta[:0],
            fetched=np.array([self._age, self._versions.min(), pushes.oldest.min()]),
        )

    def _restore(self, found: bundle_state.Kept) -> None:
        """All but the learner's state."""
        pushes = self._pushes
        self.segments.restore(found.stream)
        self._key[:] = found.key
        pushes.guard.restore(found.guard)
        pushes.gathered[:] = found.gathered
        pushes.count = int(found.count)
        self._theta[: len(found.theta)] = found.theta
        self._age, *versions = found.fetched.tolist()
        self._versions, pushes.oldest = (np.array([version]) for version in versions)


def _fill(room: np.ndarray, leaf: Any) -> None:
    room[...] = leaf
