"""One bundle of a parameter server: an actor, a learner and, if the rule has one, its replay memory, in one process.

It fetches the parameters, acts with them, learns from its own experience, and pushes the gradient (Nair et al. 2015,
arXiv:1507.04296, bundled mode). Its learner's state never leaves the process but for a checkpoint.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shoal import asynchrony, optimise, prng, seeds, tree, types
from shoal.runtimes import _actor_learner, _bundle_state, _guards, _pool, _segment, _shared, _state, _transport


class Settings(NamedTuple):
    """Numbers of the runtime's config that a bundle needs."""

    max_lag: int
    outlier_sigma: float
    n_fetch: int
    n_push: int
    report_s: float


class Job(NamedTuple):
    """What a bundle is told when it starts; all of it can be pickled."""

    block: _shared.Block
    bells: _transport.Bells
    area: _shared.Block  # where its state is left for a checkpoint
    rebuild: Callable[[], types.Parts]
    seed: int
    bundle: int
    incarnation: int
    steps: int
    settings: Settings
    restore: bool  # begin with what is in the area


def work(link: _pool.Link, job: Job) -> None:
    """A bundle's life: build, compile, wait for the start, then cycle after cycle."""
    bundle = Bundle(job.rebuild(), job, link.orphaned)
    bundle.warm_up()
    link.send(_actor_learner.Ready())
    link.receive()
    reported = time.monotonic()
    while not bundle.over() and not link.orphaned():
        bundle.hold_still()
        bundle.cycle()
        if time.monotonic() - reported >= job.settings.report_s:
            link.send(bundle.report(done=False))
            reported = time.monotonic()
    bundle.push_rest()
    bundle.keep()
    link.send(bundle.report(done=True))
    bundle.segments.close()


class Bundle:
    """Actor, learner and memory."""

    def __init__(self, parts: types.Parts, job: Job, gone: Callable[[], bool]) -> None:
        place = ("bundle", job.bundle, "incarnation", job.incarnation)
        self._job, self._block, self._at, self._gone = job, job.block, job.bundle, gone
        agent = self._agent = parts.agent
        self._client = _transport.Client(job.block, job.bells, job.bundle, gone)
        self._guard = _guards.Outliers(job.settings.outlier_sigma)
        params = jax.eval_shape(agent.init, seeds.key(0)).params
        self._flat = tree.flattener(params)
        self._sizes = [int(np.prod(leaf.shape)) for leaf in tree.paths(params).values()]
        self._theta = np.zeros(self._flat.size, np.float32)  # as fetched last
        self._versions = np.zeros(1, np.int64)
        self._age = 0  # cycles since then
        self._gathered = np.zeros(self._flat.size if job.settings.n_push > 1 else 0, np.float32)
        self._count = 0
        self._oldest = self._versions  # versions of the first gradient gathered
        self._rates: Any = None  # of each leaf, with the last one; () where all are alike, None before the first
        self._key = np.array([*(seeds.derive(job.seed, *place, "update", i) for i in range(2)), 0], np.uint32)
        self._device = parts.device_env is not None
        self._left = self._found(parts) if job.restore else None
        self._state = self._first()
        self._rollout: Any = ()
        self._seen: Any = ()  # the state as NumPy arrays, for what decides without XLA
        programs = _segment.Programs(parts)
        if self._device:
            self.segments: _segment.Segments = _segment.DeviceSegments(programs, job.seed, *place)
        else:
            like = _segment.like(parts)
            self._rollout = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
            self._seen = jax.tree.map(np.array, _lean(self._state)) if agent.small_act else ()
            shown = self._seen and self._seen._replace(params=self._flat.unflatten(self._theta))
            self.segments = _segment.HostSegments(programs, shown, self._rollout, job.seed, *place)
        self._needs_policy = self._device or agent.small_act is None
        self._steps = agent.rollout_length
        self._names: list[str] = []
        self._policy, self._update = jax.jit(self._snapshot), jax.jit(self._learn, donate_argnums=0)
        self._episodes: list[types.Episode] = []
        self._metrics: dict[str, float] = {}
        self._dropped_in_a_row = 0
        if self._left is not None:
            self._restore(self._left)
        self._hyper = jax.device_get(self._state.optimiser.hyper)

    # ---------------------------------------------------------------- compiled

    def _informed(self, state: Any, theta: Any, numbers: Any, normaliser: Any) -> Any:
        """The learner's state with the fetched parameters, and what it must know of the others' work."""
        params, steps = self._flat.unflatten(theta), numbers[3].astype(jnp.int32)
        slow = getattr(state, "target", None)
        if isinstance(slow, types.Target):
            state = state._replace(target=_followed(slow, params, state.env_steps, steps))
        state = state._replace(
            params=params,
            optimiser=state.optimiser._replace(gradient=jax.tree.map(jnp.zeros_like, params)),
            env_steps=steps,
            normaliser=normaliser or state.normaliser,
        )
        return state._replace(updates=numbers[4].astype(jnp.int32)) if hasattr(state, "updates") else state

    def _snapshot(self, state: Any, theta: Any, numbers: Any, normaliser: Any) -> types.Policy:
        return self._agent.snapshot(self._informed(state, theta, numbers, normaliser))

    def _learn(self, state: Any, theta: Any, numbers: Any, normaliser: Any, rollout: types.Rollout) -> Any:
        """One update: ``[gradient | metrics | norm]``, the factors of the rate of each leaf, and the state."""
        informed = self._informed(state, theta, numbers, normaliser)
        after, metrics = self._agent.update(informed, rollout, prng.counted(numbers[:3]))
        gradient = self._flat.flatten(after.optimiser.gradient)
        self._names = sorted(metrics)
        told = jnp.stack([metrics[name] for name in self._names])
        norm = jnp.sqrt(jnp.sum(gradient * gradient))  # finite exactly when the gradient is
        return jnp.concatenate([gradient, told, norm[None]]), after.optimiser.rates, _bundle_state.without(after)

    # ---------------------------------------------------------------- the cycle

    def warm_up(self) -> None:
        """Compile everything, without moving the stream."""
        numbers, normaliser = self._numbers(), self._normaliser()
        policy = self._policy(_lean(self._state), self._theta, numbers, normaliser) if self._needs_policy else None
        payload = self.segments.rehearse(policy) if self._device else self._rollout
        jax.block_until_ready(self._update(self._state, self._theta, numbers, normaliser, payload)[0])
        self._state = self._first()  # the other was donated: a spare one would be a second replay memory
        if not self._device:
            self.segments.rehearse(policy)

    def over(self) -> bool:
        """Whether the run is to end: enough steps, or the parent's word."""
        return bool(self._block["stop"][0]) or int(self._block["steps"].sum()) >= self._job.steps

    def cycle(self) -> None:
        """Fetch, act, learn, push."""
        clock, settings = time.perf_counter, self._job.settings
        started = clock()
        waited = 0.0
        if self._age % settings.n_fetch == 0:
            self._client.settle()  # what it pushed is in what it reads
            waited = clock() - started
            self._versions = self._client.fetch(self._theta)
        self._age += 1
        numbers, normaliser = self._numbers(), self._normaliser()
        policy = self._policy(_lean(self._state), self._theta, numbers, normaliser) if self._needs_policy else None
        if self._seen:
            jax.tree.map(_fill, self._seen, _lean(self._state))
            self._seen.env_steps[...] = numbers[3]
        segment = self.segments.collect(policy)
        rollout = segment.payload if self._device else self._rollout
        out, rates, self._state = self._update(self._state, self._theta, numbers, normaliser, rollout)
        out = np.asarray(out)
        self._key[2] += 1
        if normaliser:
            with self._client.among_bundles():
                _state.absorb(self._block, np.asarray(rollout.transitions.obs))
        self._block["steps"][self._at] += self._steps
        self._metrics = dict(zip(self._names, out[self._flat.size : -1].tolist(), strict=True))
        waited += self._judge(out[: self._flat.size], float(out[-1]), rates)
        self._note(segment)
        split = self._block["split"][self._at]
        split += (segment.environment_s, segment.inference_s, 0.0, waited)
        split[2] += clock() - started - segment.environment_s - segment.inference_s - waited

    def _numbers(self) -> np.ndarray:
        """``[5]`` u32: the update's key, environment steps of all bundles, updates of the parameters fetched."""
        return np.array([*self._key, self._block["steps"].sum(), self._versions.min()], np.int64).astype(np.uint32)

    def _normaliser(self) -> Any:
        return _state.normaliser(self._block, self._state.normaliser)

    def _judge(self, gradient: np.ndarray, norm: float, rates: Any) -> float:
        """Push the gradient, keep it for later or drop it; returns seconds waited."""
        if norm == 0.0:  # nothing was learned, e.g. while a replay memory fills
            return 0.0
        if not np.isfinite(norm) or not np.isfinite(self._metrics["loss"]):
            self._drop("non_finite")
            return 0.0
        self._dropped_in_a_row = 0
        if self._guard.drops(self._metrics["loss"]):
            self._drop("outlier")
            return 0.0
        if self._count == 0:
            self._oldest = self._versions
        self._count += 1
        if self._job.settings.n_push > 1:
            self._gathered += gradient
            gradient = self._gathered
        self._rates = rates
        return self._push(gradient) if self._count >= self._job.settings.n_push else 0.0

    def push_rest(self) -> None:
        """At the end of a run what was gathered is pushed, although there is less of it; one stopped keeps it."""
        if self._count and self._rates is not None and not self._block["stop"][0]:
            self._push(self._gathered)

    def _push(self, gradient: np.ndarray) -> float:
        """Push, and begin to gather anew; returns seconds waited."""
        block, at, before = self._block, self._at, time.perf_counter()
        taken = int(block["steps"].sum()) - self._steps  # as `optimise.local`: without the steps of this update
        eta = float(optimise.rate(self._hyper, taken))
        rates = list(tree.paths(self._rates).values()) if self._rates else []
        factors = np.repeat(np.asarray(rates, np.float32), self._sizes) if rates else None
        settings = self._job.settings
        answer = self._client.push(gradient, self._oldest, self._hyper, eta, factors, settings.max_lag)
        block["offered"][at, min(answer.lag, _bundle_state.LAGS - 1)] += 1
        if answer.taken:
            block["updates"][at] += 1
            block["lag_sum"][at] += answer.lag
            block["lag_max"][at] = max(answer.lag, block["lag_max"][at])
            block["lags"][at, asynchrony.place(answer.lag)] += 1
        else:
            self._drop("stale")
        self._count = 0
        self._gathered[:] = 0.0
        return time.perf_counter() - before

    def _drop(self, reason: str) -> None:
        self._block["dropped"][self._at, _bundle_state.DROPPED.index(reason)] += 1
        if reason == "non_finite":
            self._dropped_in_a_row += 1
            if self._dropped_in_a_row >= _actor_learner.DIVERGED:
                raise FloatingPointError(
                    f"{_actor_learner.DIVERGED} gradients in a row were not finite; lower the learning rate"
                )

    def _note(self, segment: _segment.Segment) -> None:
        if segment.finished:
            before = int(self._block["steps"].sum()) - self._steps
            for found in segment.finished:
                self._episodes.append(types.Episode(before + found.at, found.episode_return, found.length, self._at))

    def report(self, done: bool) -> _actor_learner.Report:
        """What happened since the last report."""
        episodes, self._episodes = self._episodes, []
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        finite = {name: value for name, value in self._metrics.items() if np.isfinite(value)}
        return _actor_learner.Report(episodes, finite, rss, done)

    # ---------------------------------------------------------------- checkpoints

    def hold_still(self) -> None:
        """If a checkpoint is to be taken: leave the state for it, and wait until it was written."""
        block, asked = self._block, int(self._block["pause"][0])
        if not asked or block["paused"][self._at] == asked:
            return
        self.keep()
        block["paused"][self._at] = asked
        while block["pause"][0] == asked and not self._gone():
            time.sleep(0.0005)

    def keep(self) -> None:
        """Leave the state where the parent finds it, with everything pushed applied."""
        self._client.settle()
        self._block["kept"][self._at] = 0
        for path, leaf in tree.host(self._kept()).items():
            self._job.area[path][...] = leaf
        self._block["kept"][self._at] = 1

    def _kept(self) -> _bundle_state.Kept:
        count, guard, theta = np.int64(self._count), self._guard.save(), self._theta
        if self._job.settings.n_fetch == 1:
            theta = theta[:0]
        fetched = np.array([self._age, self._versions.min(), self._oldest.min()])
        stream = self.segments.save()
        return _bundle_state.Kept(self._state, stream, self._key, guard, self._gathered, count, theta, fetched)

    def _first(self) -> Any:
        """The learner's state that the bundle begins with; it never makes a replay memory beside another."""
        return self._fresh() if self._left is None else self._continued(self._left.state)

    def _fresh(self) -> Any:
        """Without anything to continue: an empty memory, and the server's parameters in the target network too."""
        self._block["kept"][self._at] = 0  # what a dead one left is not this one's
        self._client.fetch(self._theta)
        state: Any = jax.jit(self._agent.init)(seeds.key(self._job.seed, "init"))
        if hasattr(state, "stream"):
            state = state._replace(stream=jnp.int32(self._at))
        if hasattr(state, "target"):
            fetched, slow = jax.tree.map(jnp.array, self._flat.unflatten(self._theta)), state.target
            target = slow._replace(params=fetched) if isinstance(slow, types.Target) else fetched
            state = state._replace(target=target)
        return _bundle_state.without(state)

    def _continued(self, left: Any) -> Any:
        state = jax.tree.map(jnp.array, left)
        if self._agent.restart and not self._device:  # the simulator could not be saved: the stream breaks off here
            state = jax.jit(self._agent.restart, donate_argnums=0)(state)
        return state

    def _found(self, parts: types.Parts) -> _bundle_state.Kept:
        """What is in the area, as views."""
        like, area = _bundle_state.kept(parts, self._job.settings.n_push, self._job.settings.n_fetch), self._job.area
        return tree.fill(like, area.arrays)

    def _restore(self, found: _bundle_state.Kept) -> None:
        """All but the learner's state."""
        self.segments.restore(found.stream)
        self._key[:] = found.key
        self._guard.restore(found.guard)
        self._gathered[:] = found.gathered
        self._count = int(found.count)
        self._theta[: len(found.theta)] = found.theta
        self._age, *versions = found.fetched.tolist()
        self._versions, self._oldest = (np.array([version]) for version in versions)


def _lean(state: Any) -> Any:
    """The state without what acting never needs: every array that enters a compiled call costs time."""
    return state._replace(memory=()) if hasattr(state, "memory") else state


def _followed(slow: types.Target, params: types.Params, before: Any, now: Any) -> types.Target:
    """The target network, copied where others' steps passed a multiple of its period; `update` sees only its own."""
    period = slow.period.astype(jnp.int32)
    due = now // period > before // period
    return slow._replace(params=jax.tree.map(lambda new, old: jnp.where(due, new, old), params, slow.params))


def _fill(room: np.ndarray, leaf: Any) -> None:
    room[...] = leaf
