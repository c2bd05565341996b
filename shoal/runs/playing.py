"""A trained policy in one's own hands: a loop around any simulator, without Shoal's adapters and runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epy

from shoal import experiment
from shoal.core import errors, seeds, types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


class Player:
    """Acts with a frozen policy; a recurrent one remembers from call to call, until `reset`.

    Observations are those that the simulator itself gives and actions those that it takes: a Gymnasium dictionary is
    flattened, choices begin at the space's start, boxes keep their shape and dtype.
    """

    def __init__(self, parts: types.Parts, policy: types.Policy, *, greedy: bool = True, seed: int = 0) -> None:
        """What it acts with.

        Args:
            parts: The agent and its environment.
            policy: Frozen, its normaliser too.
            greedy: Take the most probable action; False samples as in training.
            seed: Of what is sampled.
        """
        self._agent, self._spec, self._hands = parts.agent, parts.spec, parts.environment.hands()
        self._policy = policy._replace(explore=np.float32(0.0 if greedy else 1.0))
        self._act = jax.jit(jax.vmap(parts.agent.act, in_axes=(None, 0, 0, 0)))
        self._key, self._calls = seeds.key(seed, "playing"), 0
        self._carries: dict[int, Any] = {}  # number of streams -> their memory

    def act(self, obs: Any) -> Any:
        """The action for one observation.

        Args:
            obs: As the simulator gives it.

        Raises:
            Refused: It has not the shape of the observations that the policy was trained on.
        """
        return self._decide([obs], 0)[0]

    def act_many(self, obs: Sequence[Any]) -> list[Any]:
        """The actions for observations of as many environments; each of them keeps its place.

        Args:
            obs: One for each environment.

        Raises:
            Refused: As `act`.
        """
        return self._decide(obs, len(obs)) if len(obs) else []

    def reset(self, over: Sequence[bool] | None = None) -> None:
        """Forget: a new episode begins. Only a recurrent policy remembers anything.

        Args:
            over: Of `act_many`, which environments begin anew; None: all of them, and that of `act`.
        """
        if over is None:
            self._carries.clear()
        elif len(over) in self._carries:
            mask = np.asarray(over, bool)
            fresh = self._fresh(len(mask))
            self._carries[len(mask)] = jax.tree.map(
                lambda new, old: jnp.where(mask.reshape(-1, *[1] * (new.ndim - 1)), new, old),
                fresh,
                self._carries[len(mask)],
            )

    def _decide(self, obs: Sequence[Any], place: int) -> list[Any]:
        seen = np.stack([self._see(one) for one in obs])
        carry = self._carries.get(place)
        keys = jax.random.split(jax.random.fold_in(self._key, self._calls), len(seen))
        self._calls += 1
        actions, _, self._carries[place] = self._act(
            self._policy, self._fresh(len(seen)) if carry is None else carry, seen, keys
        )
        return [self._hands.act(action) for action in np.asarray(actions)]

    def _see(self, obs: Any) -> np.ndarray:
        shape = self._spec.observation.shape
        try:
            seen = self._hands.see(obs)
        except (TypeError, ValueError, KeyError, IndexError) as problem:
            raise errors.Refused(
                f"the observation is not one of {self._spec.id} ({type(problem).__name__}: {problem}); give it as the "
                "environment does"
            ) from None
        if seen.shape != shape:
            raise errors.Refused(
                f"the observation is seen as {list(seen.shape)}, but the policy was trained on {list(shape)} of "
                f"{self._spec.id}; give one observation to act, several to act_many"
            )
        return seen

    def _fresh(self, streams: int) -> Any:
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (streams, *leaf.shape)), self._agent.about.carry)


def player(made: experiment.Experiment, policy: types.Policy) -> Player:
    """The greedy player of an experiment's policy."""
    experiment.cache()
    return Player(experiment.build(made).parts, policy, seed=made.seed)


__all__ = ["Player", "player"]
