"""How an actor decides: with the policy itself in one compiled call, or with a packed one on an engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from etils import epy

from shoal.core import prng, seeds, types
from shoal.runtimes.experience import rollouts

with epy.lazy_imports():
    import jax


class Decision(NamedTuple):
    """One step of all of an actor's environments; overwritten by the next."""

    action: np.ndarray  # [E, ...]
    extras: types.Extras  # leaves [E], as `Agent.act` gives them
    log_mu: np.ndarray  # [E] f32, of the policy that acted
    carry: types.Carry  # leaves [E, ...]


class Decider(Protocol):
    """Decides for the environments of one actor."""

    engine: str
    version: int
    measured: Mapping[str, float]  # microseconds of a decision's network by engine, where they were compared

    def load(self, packed: types.Packed) -> None:
        """See `types.Runner.load`."""
        ...

    def begin(self, rollout: int) -> None:
        """The actor's so many-th rollout begins."""
        ...

    def __call__(self, obs: np.ndarray, carry: types.Carry) -> Decision:
        """One decision for each environment."""
        ...


class Place(NamedTuple):
    """Which actor decides."""

    seed: int  # the run's
    life: int  # of the run
    worker: int
    incarnation: int
    environments: int  # E

    @property
    def first(self) -> int:
        """Its first stream."""
        return self.worker * self.environments


def make(parts: types.Parts, packed: types.Packed, engine: str, place: Place) -> Decider:
    """The decider that suits a compressor.

    Args:
        parts: Whose agent acts.
        packed: The first policy.
        engine: By name, or "auto".
        place: Of the actor.
    """
    assert parts.compressor is not None
    if parts.compressor.unpack is not None:
        return Whole(parts, packed, place)
    return Parted(parts, packed, engine, place)


class Whole:
    """`Agent.act` itself, compiled; with one actor in lock-step it computes what the `host` runtime does."""

    engine = "jax"

    def __init__(self, parts: types.Parts, packed: types.Packed, place: Place) -> None:
        agent, acting = parts.agent, parts.agent.about.acting
        assert acting is not None
        assert parts.compressor is not None
        assert parts.compressor.unpack is not None
        self._unpack, self._place, self._remembered = parts.compressor.unpack, place, acting.remembered
        self.measured: Mapping[str, float] = {}

        def act(policy: types.Policy, carry: types.Carry, obs: Any, words: Any) -> Any:
            keys = jax.random.split(prng.counted(words), obs.shape[0])
            return rollouts.act_all(agent, policy, carry, obs, keys)

        self._act = jax.jit(act)
        self._likely = jax.jit(lambda policy, obs, action: rollouts.log_prob_all(agent, policy, obs, action))
        self._words = np.zeros(3, np.uint32)
        self.load(packed)

    def load(self, packed: types.Packed) -> None:
        """See `Decider`."""
        policy = _moved(self._unpack(packed), self._place.first)
        self._policy, self.version = jax.device_put(policy), packed.version

    def begin(self, rollout: int) -> None:
        """See `Decider`; the first actor's stream of keys is that of the one seed in `members.lanes`."""
        where: tuple[Any, ...] = ("act", self._place.life, rollout)
        if self._place.worker or self._place.incarnation:
            where = (*where, "actor", self._place.worker, self._place.incarnation)
        self._words[:2] = [seeds.derive(self._place.seed, *where, i) for i in range(2)]
        self._words[2] = 0

    def __call__(self, obs: np.ndarray, carry: types.Carry) -> Decision:
        """See `Decider`."""
        action, extras, after = self._act(self._policy, carry, obs, self._words.copy())
        self._words[2] += 1
        log_mu = extras.log_prob if self._remembered else self._likely(self._policy, obs, action)
        return Decision(np.asarray(action), extras, np.asarray(log_mu), after)


class Parted:
    """A packed network on an engine, and the decision in NumPy."""

    def __init__(self, parts: types.Parts, packed: types.Packed, engine: str, place: Place) -> None:
        acting = parts.agent.about.acting
        assert acting is not None
        assert parts.compressor is not None
        self._decide, self._remembered, self._first = acting.decide_many, acting.remembered, place.first
        self._runner = parts.compressor.runner(packed, place.environments, engine)
        self.engine, self.measured = self._runner.engine, self._runner.measured
        self.version = packed.version
        where = ("actor", place.worker, "action", place.life, place.incarnation)
        self._generator = np.random.default_rng(seeds.derive(place.seed, *where))
        self._policy = _moved(self._runner.policy, self._first)

    def load(self, packed: types.Packed) -> None:
        """See `Decider`."""
        self._runner.load(packed)
        self._policy, self.engine = _moved(self._runner.policy, self._first), self._runner.engine
        self.version, self.measured = packed.version, self._runner.measured

    def begin(self, rollout: int) -> None:
        """See `Decider`."""

    def __call__(self, obs: np.ndarray, carry: types.Carry) -> Decision:
        """See `Decider`."""
        outputs, after = self._runner(obs, carry)
        action, extras = self._decide(self._policy, outputs, self._generator)
        return Decision(action, extras if self._remembered else (), extras.log_prob, after)


def _moved(policy: types.Policy, first: int) -> types.Policy:
    """The same policy acting from another stream on."""
    stream: types.Scalar = policy.stream if isinstance(policy.stream, tuple) else np.int32(policy.stream + first)
    return policy._replace(stream=stream)
