"""One stream of experience and what it learns: the part of a hogwild worker that a replay shares.

No process, lock or clock is known here: a learner is given arrays (`shared_state`) to read from and to apply to.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from etils import epy

from shoal.core import prng, seeds, types
from shoal.formulas import in_place, optimise
from shoal.monitor import asynchrony
from shoal.networks import in_numpy
from shoal.runtimes.crew import crew, lags, observed, packing, sharing
from shoal.runtimes.hogwild import shared_state, staleness

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

    from shoal.core import tree
    from shoal.runtimes.experience import segments


class Start(NamedTuple):
    """What every learner of a run begins with; all of it can be pickled."""

    rest: Any  # the learner state `without` what is shared, on the host
    shapes: Any  # the parameters as ShapeDtypeStructs
    seed: int
    staleness: staleness.Policy
    padded: bool = False  # a segment ends with its episode
    games: int = 1  # environments of a worker


class _Letter(NamedTuple):
    """All that goes into a gradient call, in one vector of words."""

    theta: Any  # [size] f32, the snapshot this segment acts and learns with
    target: Any  # [size] f32 of the target network, read with it; [0] without one
    key: Any  # [3] u32: two words of key, and the count of updates
    rest: Any  # the learner's state less parameters, gradient and target
    rollout: Any  # [T, 1], or () where it cannot be words or is on the device already


class Compiled:
    """What learners of one process share: compiled functions, and how parameters become a vector."""

    def __init__(self, parts: types.Parts, start: Start) -> None:
        self.parts, self.start = parts, start
        self.flat = tree.flattener(start.shapes)
        self.device = parts.device_env is not None
        self.rollout = () if self.device else segments.like(parts, start.padded)
        self.enclosed = self.rollout if packing.fits(self.rollout) else ()
        unpack = self.letter()[2]
        self.gradient = _Gradient(parts.agent, self.flat, unpack)
        self.policy = jax.jit(_snapshot(parts.agent, self.flat, unpack))
        self.needs_policy = self.device or not in_numpy.decides(parts.agent.about)
        self.programs = segments.Programs(parts, start.padded)

    def letter(self) -> tuple[np.ndarray, _Letter, Any]:
        """Room for one learner's letter: the vector, its views, and how it is read inside `jit`."""
        rest, theta, key = self.start.rest, np.zeros(self.flat.size, np.float32), np.zeros(3, np.uint32)
        slow = np.zeros(self.flat.size if self.parts.agent.about.fields.target else 0, np.float32)
        return packing.make(_Letter(theta, slow, key, rest, self.enclosed))


@dataclasses.dataclass
class Left:
    """Whether a worker that died left statistics: its heir begins with none, at the first gradient it applies."""

    there: bool


class Learner:
    """One stream of experience and what it computes from parameters it has read.

    `read`, `compute` and `settle` are the whole of what a worker does to the shared state; a replay calls the same
    three. What they do depends on (seed, worker, incarnation, game) and on the arrays they are given, on nothing else.
    """

    def __init__(self, compiled: Compiled, worker: int, incarnation: int, game: int = 0) -> None:
        start = compiled.start
        place = ("worker", worker, "incarnation", incarnation, *(("game", game) if game else ()))
        self._compiled, self._worker, self._staleness = compiled, worker, start.staleness
        self._words, self._letter, _ = compiled.letter()
        fields = compiled.parts.agent.about.fields
        jax.tree.map(_fill, self._letter.rest, start.rest)
        if fields.stream:
            tree.field(self._letter.rest, fields.stream)[...] = worker * start.games + game
        self._letter.key[:2] = [seeds.derive(start.seed, *place, "update", i) for i in range(2)]
        before = compiled.flat.size + self._letter.target.size + 3
        self._rest = self._words[before:][: packing.size(start.rest)]
        self._apart: Any = ()
        if compiled.device:
            self.segments: segments.Segments = segments.DeviceSegments(compiled.programs, start.seed, *place)
        else:
            apart = () if compiled.enclosed else compiled.rollout
            self._apart = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), apart)
            state, room = _whole(compiled.flat, fields, self._letter), self._letter.rollout or self._apart
            self.segments = segments.HostSegments(compiled.programs, state, room, start.seed, *place)
        self._rule = in_place.build(start.rest.optimiser.rule, compiled.flat.size)
        self._target = target(self._letter.rest, fields)
        self.left = Left(incarnation % crew.LIVES > 0)
        self.steps = 0  # of the last segment
        self.version = 0  # applies that the parameters had seen when they were read
        self._payload: Any = ()
        self.out = np.zeros(0, np.float32)  # [gradient | metrics | norm]

    def warm_up(self, arrays: Any, rehearse: Callable[[types.Policy | None], types.Tree] | None = None) -> None:
        """Compile everything, without moving the stream; `rehearse` instead of that of its own segments."""
        self._letter.theta[:], self._letter.target[:] = arrays["theta"], arrays["target"]
        payload = (rehearse or self.segments.rehearse)(self.policy())
        self._compiled.gradient(self._words, payload if self._compiled.device else self._apart)

    def policy(self) -> types.Policy | None:
        """What its segments act with; None where that is the state itself, in NumPy."""
        return self._compiled.policy(self._words) if self._compiled.needs_policy else None

    def read(self, arrays: Any) -> None:
        """Take what the next segment acts and learns with: the arrays `shared_state.SEEN`."""
        letter = self._letter
        self.version = sharing.total(arrays["updates"])
        letter.theta[:], letter.target[:] = arrays["theta"], arrays["target"]
        if letter.rest.normaliser:
            jax.tree.map(_fill, letter.rest.normaliser, observed.normaliser(arrays, letter.rest.normaliser))
        letter.rest.env_steps[...] = sharing.total(arrays["steps"])  # of all workers: schedules follow the whole run

    def follow(self, other: Learner) -> None:
        """Take what another one has just read instead of reading."""
        ours, theirs = self._letter, other._letter
        self.version = other.version
        ours.theta[:], ours.target[:] = theirs.theta, theirs.target
        jax.tree.map(_fill, ours.rest.normaliser, theirs.rest.normaliser)
        ours.rest.env_steps[...] = theirs.rest.env_steps

    def compute(self) -> segments.Segment:
        """Act a segment, and find its gradient."""
        segment = self.segments.collect(self.policy())
        self.differentiate(segment)
        return segment

    def differentiate(self, segment: segments.Segment) -> None:
        """Find the gradient of a segment that its stream has just given."""
        letter, compiled = self._letter, self._compiled
        self._payload, self.steps = segment.payload, segment.steps
        self.out, rest = compiled.gradient(self._words, segment.payload if compiled.device else self._apart)
        self._rest[:] = rest
        letter.key[2] += 1

    @property
    def observations(self) -> np.ndarray | None:
        """What the last segment adds to the statistics of observations; None where they are not kept."""
        if not self._letter.rest.normaliser:
            return None
        return np.asarray((self._payload or self._letter.rollout or self._apart).transitions.obs)[: self.steps]

    def settle(self, arrays: Any, flag: int | None = None, watch: staleness.Watch | None = None) -> int:
        """Apply the gradient, or drop it, and count it.

        Args:
            arrays: The state, written.
            flag: What becomes of the gradient; None: that is to be judged. One that is not finite is always dropped.
            watch: Told of the apply.

        Returns:
            What became of it: `asynchrony.APPLIED`, ``STALE`` or ``NON_FINITE``.
        """
        worker = self._worker
        lag = sharing.total(arrays["updates"]) - self.version
        if not math.isfinite(self.out[-1]):
            flag = asynchrony.NON_FINITE
        elif flag is None:
            flag = asynchrony.STALE if self._staleness.drops(lag) else asynchrony.APPLIED
        if flag == asynchrony.APPLIED:
            self._apply(arrays, watch)
            lags.note(arrays, worker, lag)
        else:
            arrays["stale" if flag == asynchrony.STALE else "non_finite"][worker] += 1
        arrays["steps"][worker] += self.steps
        if self._target:
            shared_state.copy_when_due(arrays, int(self._target.period))
        return flag

    def _apply(self, arrays: Any, watch: staleness.Watch | None) -> None:
        gradient, optimiser = self.out[: self._compiled.flat.size], self._letter.rest.optimiser
        statistics = arrays["g"]
        if statistics.ndim == 2:  # each worker's own
            statistics = statistics[self._worker]
            if self.left.there:  # those of the one that died are lost with it
                statistics[:] = 0.0
        self.left.there = False
        before = sharing.total(arrays["steps"])  # as `optimise.local`: the steps this update does not hold
        eta = float(optimise.rate(optimiser.hyper, before))
        etas = eta * self._each(optimiser.rates) if optimiser.rates else eta  # as this update left them
        if watch:
            watch.begin()
        self._rule.apply(arrays["theta"], statistics, gradient, optimiser.hyper, etas)
        if watch:
            watch.end(self._rule.step)

    def _each(self, rates: Any) -> np.ndarray:
        """A rate for every parameter ``[size]``, in the order of the flat vector, from one for every leaf."""
        sizes = [int(np.prod(leaf.shape)) for leaf in tree.paths(self._compiled.start.shapes).values()]
        return np.repeat(np.asarray(list(tree.paths(rates).values()), np.float32), sizes)

    def metrics(self) -> dict[str, float]:
        """Learning metrics of the last segment."""
        told = self.out[self._compiled.flat.size :].tolist()
        return dict(zip(self._compiled.gradient.names, told, strict=False))


def in_turn(learner: Learner, arrays: Any, flag: int | None = None) -> int:
    """What one ticket does to the state; returns what became of the gradient (`Learner.settle`)."""
    seen = learner.observations
    if seen is not None:
        observed.absorb(arrays, seen)
    return learner.settle(arrays, flag)


def target(state: Any, fields: types.Fields) -> types.Target | None:
    """The target network that is to be copied by the steps of all workers; None without one."""
    return tree.field(state, fields.target) if fields.target else None


def without(state: Any, fields: types.Fields) -> Any:
    """The learner state less what travels as flat vectors."""
    state = state._replace(params=(), optimiser=state.optimiser._replace(gradient=()))
    slow = target(state, fields)
    return tree.replaced(state, fields.target, slow._replace(params=())) if slow else state


def _whole(flat: tree.Flattener, fields: types.Fields, letter: _Letter) -> Any:
    """The learner's state from a letter, inside `jit`, or as views of one on the host; its gradient is not in it."""
    state = letter.rest._replace(params=flat.unflatten(letter.theta))
    slow = target(state, fields)
    whole = slow._replace(params=flat.unflatten(letter.target)) if slow else None
    return tree.replaced(state, fields.target, whole) if slow else state


def _fill(room: np.ndarray, leaf: Any) -> None:
    room[...] = leaf


def _snapshot(agent: types.Agent, flat: tree.Flattener, unpack: Callable[[Any], _Letter]) -> Callable[[Any], Any]:
    def snapshot(words: Any) -> types.Policy:
        return agent.snapshot(_whole(flat, agent.about.fields, unpack(words)))

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
            state = _whole(flat, agent.about.fields, letter)
            state = state._replace(optimiser=state.optimiser._replace(gradient=state.params))
            state, metrics = agent.update(state, letter.rollout or payload, prng.counted(letter.key))
            vector = flat.flatten(state.optimiser.gradient)
            self.names = sorted(metrics)
            told = jnp.stack([metrics[name] for name in self.names])
            norm = jnp.sqrt(jnp.sum(vector * vector))  # finite exactly when the gradient is
            return packing.pack((vector, told, norm, without(state, agent.about.fields)))

        self.call = jax.jit(gradient)

    def __call__(self, words: np.ndarray, payload: Any) -> tuple[np.ndarray, np.ndarray]:
        """``[gradient | metrics | norm]`` and the rest of the state as words, on the host."""
        out = np.asarray(self.call(words, payload))
        end = self._size + len(self.names) + 1
        return out[:end].view(np.float32), out[end:]
