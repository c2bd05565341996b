"""One actor-learner of the hogwild runtime: what a spawned process does, and what it shares with the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from etils import epy

from shoal import in_place, normalise, optimise, prng, seeds, types
from shoal.runtimes import _pool, _shared, _words

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

    from shoal import tree
    from shoal.runtimes import _segment

SPLIT = ("environment", "inference", "learning", "waiting")
DIVERGED = 1000  # non-finite gradients in a row after which a worker gives up


class Job(NamedTuple):
    """What a worker is told when it starts; all of it can be pickled."""

    block: _shared.Block
    rebuild: Callable[[], types.Parts]
    rest: Any  # the learner state less parameters and gradient, on the host
    shapes: Any  # the parameters as ShapeDtypeStructs
    seed: int
    worker: int
    incarnation: int
    steps: int
    goal: types.Goal | None
    report_s: float


class Ready(NamedTuple):
    """A worker has compiled and waits for the start."""


class Report(NamedTuple):
    """What a worker tells a few times a second; the last one when it is done."""

    episodes: list[types.Episode]
    metrics: dict[str, float]
    rss_mb: float
    done: bool


def layout(size: int, workers: int, window: int, observed: int) -> _shared.Layout:
    """The shared arrays; every slot of a ``[workers]`` array has a single writer, so no count is ever lost.

    Args:
        size: Parameters.
        workers: Processes.
        window: Episodes remembered for the goal.
        observed: Numbers in an observation that is normalised; 0 where none is.
    """
    return {
        "theta": ((size,), "f4"),  # parameters
        "g": ((size,), "f4"),  # RMSProp's mean squares
        "steps": ((workers,), "i8"),  # environment steps; the global counter T is their sum
        "updates": ((workers,), "i8"),  # applies; the version of theta is their sum
        "lag_sum": ((workers,), "i8"),  # versions that passed between a worker's read and its apply
        "lag_max": ((workers,), "i8"),
        "non_finite": ((workers,), "i8"),  # gradients dropped
        "split": ((workers, len(SPLIT)), "f8"),  # seconds
        "returns": ((workers, window), "f8"),  # rings of finished episodes, for the goal
        "ended_at": ((workers, window), "i8"),  # T at their ends; 0: none yet
        "episodes": ((workers,), "i8"),
        "solved_at": ((workers,), "i8"),  # T at which a worker saw the goal met; 0: not yet
        "normaliser": ((1 + 2 * observed if observed else 0,), "f8"),  # count, mean, m2; merged under a lock
        "stop": ((1,), "i4"),
    }


def work(link: _pool.Link, job: Job) -> None:
    """A worker's life: build, compile, wait for the start, then segment after segment."""
    parts = job.rebuild()
    learner = _Learner(parts, job)
    learner.warm_up()
    link.send(Ready())
    link.receive()
    reported = time.monotonic()
    while not learner.over() and not link.orphaned():
        learner.cycle()
        if time.monotonic() - reported >= job.report_s:
            link.send(learner.report(done=False))
            reported = time.monotonic()
    link.send(learner.report(done=True))
    learner.segments.close()


class _Letter(NamedTuple):
    """All that goes into a gradient call, in one vector of words."""

    theta: Any  # [size] f32, the snapshot this segment acts and learns with
    key: Any  # [3] u32: two words of key, and the count of updates
    rest: Any  # the learner's state less parameters and gradient
    rollout: Any  # [T, 1], or () where it cannot be words or is on the device already


class _Learner:
    """One actor-learner."""

    def __init__(self, parts: types.Parts, job: Job) -> None:
        agent, place = parts.agent, ("worker", job.worker, "incarnation", job.incarnation)
        self._job, self._block, self._worker = job, job.block, job.worker
        flat = tree.flattener(job.shapes)
        rollout = () if parts.device_env else _segment.like(parts)
        enclosed = rollout if _words.fits(rollout) else ()
        theta, key = np.zeros(flat.size, np.float32), np.zeros(3, np.uint32)
        self._words, self._letter, unpack = _words.make(_Letter(theta, key, job.rest, enclosed))
        jax.tree.map(_fill, self._letter.rest, job.rest)
        self._letter.key[:2] = [seeds.derive(job.seed, *place, "update", i) for i in range(2)]
        self._rest = self._words[flat.size + 3 :][: sum(np.size(leaf) for leaf in jax.tree.leaves(job.rest))]
        self._apart: Any = ()
        if parts.device_env:
            self.segments: _segment.Segments = _segment.DeviceSegments(parts, job.seed, *place)
        else:
            self._apart = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), () if enclosed else rollout)
            params, room = flat.unflatten(self._letter.theta), self._letter.rollout or self._apart
            self.segments = _segment.HostSegments(parts, params, room, job.seed, *place)
        self._device = parts.device_env is not None
        self._rule = in_place.SharedRMSProp(flat.size)
        self._gradient = _Gradient(agent, flat, unpack)
        self._steps = agent.rollout_length  # of one segment
        self._policy = jax.jit(_snapshot(agent, flat, unpack))
        self._needs_policy = self._device or agent.small_act is None
        self._episodes: list[types.Episode] = []
        self._out = np.zeros(0, np.float32)
        self._dropped_in_a_row = 0

    def warm_up(self) -> None:
        """Compile everything, without moving the stream."""
        self._letter.theta[:] = self._block["theta"]
        policy = self._policy(self._words) if self._needs_policy else None
        payload = self.segments.rehearse(policy)
        self._gradient(self._words, payload if self._device else self._apart)

    def over(self) -> bool:
        """Whether the run is to end: enough steps, the goal, or the parent's word."""
        block = self._block
        return bool(block["stop"][0]) or int(block["steps"].sum()) >= self._job.steps

    def cycle(self) -> None:
        """Snapshot, act, gradient, apply."""
        block, letter, clock = self._block, self._letter, time.perf_counter
        started = clock()
        version = int(block["updates"].sum())
        letter.theta[:] = block["theta"]
        if letter.rest.normaliser:
            jax.tree.map(_fill, letter.rest.normaliser, normaliser(block, letter.rest.normaliser))
        letter.rest.env_steps[...] = block["steps"].sum()  # of all workers: schedules follow the whole run
        policy = self._policy(self._words) if self._needs_policy else None
        segment = self.segments.collect(policy)
        self._out, rest = self._gradient(self._words, segment.payload if self._device else self._apart)
        if letter.rest.normaliser:
            merge(block, np.asarray((segment.payload or letter.rollout or self._apart).transitions.obs))
        self._rest[:] = rest
        letter.key[2] += 1
        block["steps"][self._worker] += self._steps
        if np.isfinite(self._out[-1]):
            self._apply(self._out[: len(letter.theta)], version)
        else:
            self._drop()
        self._note(segment)
        split = block["split"][self._worker]
        split[0] += segment.environment_s
        split[1] += segment.inference_s
        split[2] += clock() - started - segment.environment_s - segment.inference_s

    def _apply(self, gradient: np.ndarray, version: int) -> None:
        block, worker = self._block, self._worker
        self._dropped_in_a_row = 0
        lag = int(block["updates"].sum()) - version
        hyper = self._letter.rest.optimiser.hyper
        before = int(block["steps"].sum()) - self._steps  # as `optimise.local`: the steps this update does not hold
        eta = float(optimise.rate(hyper, before))
        rates = self._letter.rest.optimiser.rates  # as this update left them
        self._rule.apply(block["theta"], block["g"], gradient, hyper, eta * self._each(rates) if rates else eta)
        block["updates"][worker] += 1
        block["lag_sum"][worker] += lag
        block["lag_max"][worker] = max(lag, block["lag_max"][worker])

    def _each(self, rates: Any) -> np.ndarray:
        """A rate for every parameter ``[size]``, in the order of the flat vector, from one for every leaf."""
        sizes = [int(np.prod(leaf.shape)) for leaf in tree.paths(self._job.shapes).values()]
        return np.repeat(np.asarray(list(tree.paths(rates).values()), np.float32), sizes)

    def _drop(self) -> None:
        self._block["non_finite"][self._worker] += 1
        self._dropped_in_a_row += 1
        if self._dropped_in_a_row >= DIVERGED:
            raise FloatingPointError(f"{DIVERGED} gradients in a row were not finite; lower the learning rate")

    def _note(self, segment: _segment.Segment) -> None:
        if not segment.finished:
            return
        block, worker = self._block, self._worker
        total = int(block["steps"].sum())
        window = block["returns"].shape[1]
        for finished in segment.finished:
            at = total - self._steps + finished.at
            self._episodes.append(types.Episode(at, finished.episode_return, finished.length, worker))
            place = int(block["episodes"][worker]) % window
            block["returns"][worker, place] = finished.episode_return
            block["ended_at"][worker, place] = at
            block["episodes"][worker] += 1
            if self._job.goal and not block["stop"][0] and self._job.goal.met(_latest(block, window)):
                block["solved_at"][worker] = at
                block["stop"][0] = 1

    def report(self, done: bool) -> Report:
        """What happened since the last report."""
        import resource

        episodes, self._episodes = self._episodes, []
        metrics = dict(zip(self._gradient.names, self._out[len(self._letter.theta) :].tolist(), strict=False))
        return Report(episodes, metrics, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, done)


def normaliser(block: _shared.Block, like: Any) -> Any:
    """The shared statistics of observations as `normalise.Statistics` shaped as `like`; () where `like` is."""
    if not like:
        return ()
    count, moments = block["normaliser"][0], block["normaliser"][1:].astype(np.float32)
    mean, m2 = moments.reshape(2, *np.shape(like.mean))
    return normalise.Statistics(np.float32(count), mean, m2)


def merge(block: _shared.Block, observations: np.ndarray) -> None:
    """Add observations ``[..., *obs]`` to the shared statistics; exact, since only one process merges at a time."""
    shared = block["normaliser"]
    shape = (len(shared) // 2,)
    seen = observations.reshape(-1, *shape).astype(np.float64)
    if not np.isfinite(seen).all():  # as `normalise.update`
        return
    new = normalise.Statistics(float(len(seen)), seen.mean(axis=0), ((seen - seen.mean(axis=0)) ** 2).sum(axis=0))
    with block.locked():
        old = normalise.Statistics(shared[0], *shared[1:].reshape(2, *shape))
        merged = normalise.merge(old, new)
        shared[0], shared[1:] = merged.count, np.concatenate([merged.mean, merged.m2])


def _latest(block: _shared.Block, window: int) -> list[float]:
    """The returns of the last `window` episodes of all workers, oldest first."""
    ended = block["ended_at"].ravel().copy()  # others write it: NumPy refuses to search what changes meanwhile
    known = np.flatnonzero(ended)
    order = known[np.argsort(ended[known], kind="stable")][-window:]
    return block["returns"].ravel()[order].tolist()


def without(state: Any) -> Any:
    """The learner state less what travels as the flat vector."""
    return state._replace(params=(), optimiser=state.optimiser._replace(gradient=()))


def _fill(room: np.ndarray, leaf: Any) -> None:
    room[...] = leaf


def _snapshot(agent: types.Agent, flat: tree.Flattener, unpack: Callable[[Any], _Letter]) -> Callable[[Any], Any]:
    def snapshot(words: Any) -> types.Policy:
        letter = unpack(words)
        return agent.snapshot(letter.rest._replace(params=flat.unflatten(letter.theta)))

    return snapshot


class _Gradient:
    """One compiled call: words in, words out.

    Out come ``[gradient | metrics | norm]`` as float32, and what `update` made of the rest of the learner's state.
    """

    def __init__(self, agent: types.Agent, flat: tree.Flattener, unpack: Callable[[Any], _Letter]) -> None:
        self.names: list[str] = []
        self._size = flat.size

        def gradient(words: Any, payload: Any) -> Any:
            letter = unpack(words)
            params = flat.unflatten(letter.theta)
            state = letter.rest._replace(params=params, optimiser=letter.rest.optimiser._replace(gradient=params))
            state, metrics = agent.update(state, letter.rollout or payload, prng.counted(letter.key))
            vector = flat.flatten(state.optimiser.gradient)
            self.names = sorted(metrics)
            told = jnp.stack([metrics[name] for name in self.names])
            norm = jnp.sqrt(jnp.sum(vector * vector))  # finite exactly when the gradient is
            return _words.pack((vector, told, norm, without(state)))

        self.call = jax.jit(gradient)

    def __call__(self, words: np.ndarray, payload: Any) -> tuple[np.ndarray, np.ndarray]:
        """``[gradient | metrics | norm]`` and the rest of the state as words, on the host."""
        out = np.asarray(self.call(words, payload))
        end = self._size + len(self.names) + 1
        return out[:end].view(np.float32), out[end:]
