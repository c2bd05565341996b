"""What staleness and compression do to the policy that acts, measured on a sample of rollouts.

It costs a hundredth of the learner's time at most: after each sample as long a pause follows as that takes.
"""

from __future__ import annotations

import collections
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epy

from shoal.core import types
from shoal.monitor import drift
from shoal.runtimes.actor_learner import board, queue
from shoal.runtimes.experience import rollouts

with epy.lazy_imports():
    import jax

    from shoal.formulas import distributions, normalise

if TYPE_CHECKING:
    from shoal.runtimes import actor_learner

SHARE = 0.01  # of the learner's time
PAUSE = 0.2  # seconds between two samples, at least
LOOKED = 32  # steps of a rollout that are looked at, at most
COMPARED = 64  # observations on which packed and full policy are compared
KEPT_MB = 512  # of policies in full precision that are kept, at most


class Sampler:
    """Keeps recent policies in full precision and holds samples of rollouts against them."""

    def __init__(self, parts: types.Parts, posts: board.Board, versions: int, environments: int) -> None:
        """Compile nothing yet.

        Args:
            parts: The agent and its compressor.
            posts: Where actors take their policies from.
            versions: How many recent policies are to be kept.
            environments: Of an actor.
        """
        agent, self._board, self._environments = parts.agent, posts, environments
        assert parts.compressor is not None
        self._compressor, self._about = parts.compressor, agent.about
        self.drift = drift.Drift(parts.bounds)
        self.kl: list[float] = []  # exact, of packed and full policy, where outputs give it
        self.latest: dict[str, float] = {}
        self._policies: collections.deque[tuple[int, types.Policy]] = collections.deque(maxlen=versions)
        self._next, self._warm = 0.0, False
        self._shadow: types.Runner | None = None
        self._parted = not agent.about.carry  # of a recurrent one, a step alone says nothing

        def likely(policy: types.Policy, obs: Any, action: Any) -> Any:
            return jax.vmap(lambda obs, action: rollouts.log_prob_all(agent, policy, obs, action))(obs, action)

        def outputs(policy: types.Policy, obs: Any) -> Any:
            acting = agent.about.acting
            assert acting is not None
            network = agent.about.networks[acting.network]

            def one(obs: Any) -> Any:
                seen = normalise.apply(policy.normaliser, obs) if policy.normaliser else obs
                return network.apply(policy.params, seen, ())[0][acting.heads[0]]

            return jax.vmap(one)(obs)

        self._likely, self._outputs = jax.jit(likely), jax.jit(outputs)

    def warm(self, shapes: types.Rollout) -> None:
        """Compile, so that no sample takes longer than another.

        Args:
            shapes: Of an actor's rollout.
        """
        if not self._parted:
            return
        steps = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes.transitions)
        _, policy = self._policies[-1]
        self._likely(policy, steps.obs[:LOOKED], steps.action[:LOOKED])
        if self._compressor.unpack is None:
            self._outputs(policy, np.zeros((COMPARED, *steps.obs.shape[2:]), steps.obs.dtype))

    def keep(self, policy: types.Policy, version: int) -> None:
        """A policy that actors may act with, in full precision."""
        self._policies.append((version, policy))

    def due(self) -> bool:
        """Whether it is time for a sample."""
        return self._parted and time.monotonic() >= self._next

    def look(self, taken: queue.Taken, now: types.Policy) -> None:
        """Hold a rollout against the policies it came from.

        Args:
            taken: Of which the first rollout is looked at.
            now: The policy that is about to learn from it.
        """
        began = time.monotonic()
        try:
            self._look(taken, now)
        finally:
            spent = time.monotonic() - began
            # The first sample opens what runs the packed policy, which the others do not.
            self._next = time.monotonic() + max(PAUSE, spent * (1.0 / SHARE - 1.0) if self._warm else 0.0)
            self._warm = True

    def _look(self, taken: queue.Taken, now: types.Policy) -> None:
        mine, worker = slice(0, self._environments), taken.workers[0]
        steps = taken.rollout.transitions
        obs, action, log_mu = (each[:LOOKED, mine] for each in (steps.obs, steps.action, taken.log_mu))
        then = dict(self._policies).get(int(taken.rollout.version[0]))

        def likely(policy: types.Policy) -> np.ndarray:
            moved = jax.tree.map(lambda first: first + np.int32(worker * self._environments), policy.stream)
            return np.asarray(self._likely(policy._replace(stream=moved), obs, action))

        self.drift.add(log_mu, likely(now), None if then is None else likely(then))
        self._compare(obs.reshape(-1, *obs.shape[2:])[:COMPARED])
        recent = self.drift.take().metrics()
        self.latest |= {name: float(value) for name, value in recent.items() if value is not None}

    def _compare(self, obs: np.ndarray) -> None:
        """Packed and full policy of one version on the same observations."""
        if self._compressor.unpack is not None:
            return
        obs = np.resize(obs, (COMPARED, *obs.shape[1:]))  # what there is, some of it twice: an engine has one size
        posted = self._board.read().packed
        full = dict(self._policies).get(posted.version)
        if full is None:
            return
        try:
            if self._shadow is None:
                self._shadow = self._compressor.runner(posted, COMPARED, "jax")
            elif self._shadow.version != posted.version:
                self._shadow.load(posted)
        except ValueError:  # written over meanwhile
            return
        assert self._about.acting is not None
        head = self._about.acting.heads[0]
        packed, exact = self._shadow(obs, ())[0][head], np.asarray(self._outputs(full, obs))
        kind = self._about.head
        if kind in ("categorical", "greedy"):
            self.drift.compare(packed, exact)
        elif kind in ("gaussian", "stretched", "squashed", "deterministic"):
            middle = [np.split(one, 2, axis=-1)[0] if kind != "deterministic" else one for one in (packed, exact)]
            squash = np.tanh if kind in ("squashed", "deterministic") else np.asarray
            self.drift.compare(squash(middle[0]), squash(middle[1]), drift.NEAR)
        if kind == "categorical":
            self.kl.append(float(drift.kl_categorical(packed, exact).mean()))
        elif kind in ("gaussian", "stretched", "squashed"):
            self.kl.append(float(drift.kl_gaussian(_moments(kind, packed), _moments(kind, exact)).mean()))
        del self.kl[:-1000]


def _moments(kind: str, output: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of a Gaussian head's output."""
    mean, raw = np.split(np.asarray(output, np.float64), 2, axis=-1)
    if kind == "squashed":
        return mean, np.exp(np.clip(raw, *distributions.LOG_DEVIATION))
    return mean, np.sqrt(np.logaddexp(raw, 0.0) + distributions.MINIMUM_VARIANCE)


def versions(bytes_each: int, config: actor_learner.Config) -> int:
    """How many policies to keep: as many as may be in use at once, within `KEPT_MB`.

    Args:
        bytes_each: Of one of them.
        config: `actor_learner.Config`.
    """
    lags = (config.workers * config.queue + 4) // config.publish_every + 4
    return max(2, min(lags, KEPT_MB * 2**20 // max(bytes_each, 1)))
