"""A pure-JAX environment seen as a `types.HostEnv`: compiled reset and step, NumPy out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from etils import epy

from shoal.core import prng, types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np


OTHER_KEY = 0x9E3779B9  # the golden ratio; any constant would do


def key_of_step(seed: Any, step: Any) -> jax.Array:
    """The key of one step of an episode stream; step 0 is the reset, so the first action is step 1."""
    return jax.random.fold_in(prng.key(seed), step)


def other(key: types.Key) -> types.Key:
    """A second key, for the reset. A hash decorrelates any two keys, so flipping bits replaces a costly split."""
    return jax.random.wrap_key_data(jax.random.key_data(key) ^ jnp.uint32(OTHER_KEY), impl=jax.random.key_impl(key))


def strong(leaf: Any) -> Any:
    """The leaf without a weak type: resets and steps must agree for a loop to be compiled once."""
    return jax.lax.convert_element_type(leaf, jnp.result_type(leaf))


class DeviceEnv:
    """One stream of a pure-JAX environment on the host. Keys derive from the seed and the step, none is kept."""

    def __init__(self, spec: types.EnvSpec, begin: Callable, advance: Callable) -> None:
        self.spec = spec
        self._begin, self._advance = begin, advance
        self._state: types.Tree = None
        self._seed: Any = 0
        self._steps = 0

    def reset(self, seed: int) -> np.ndarray:
        """Begin anew, all randomness from `seed`."""
        self._steps = 0
        self._seed = np.uint32(seed)  # a plain int of 2^31 and more would not enter a compiled call
        self._state, obs = self._begin(self._seed)
        return np.asarray(obs)

    def step(self, action: Any) -> tuple[np.ndarray, types.Outcome]:
        """Act once; after an end the returned observation is the first of the next episode."""
        self._steps += 1
        self._state, seen, facts = self._advance(self._state, action, self._seed, self._steps)
        obs, next_obs = np.asarray(seen)
        reward, discount, truncated = np.asarray(facts).tolist()
        return obs, types.Outcome(reward, discount, truncated > 0, next_obs)

    def close(self) -> None:
        """Nothing to release."""


def host(env: types.Env) -> Callable[[], types.HostEnv]:
    """How to open host views of `env`; all share one compilation.

    Args:
        env: The pure-JAX environment.
    """
    compiled: list[tuple[Callable, Callable]] = []

    def begin(seed: Any) -> tuple[types.Tree, Any]:
        return env.init(key_of_step(seed, 0))

    def advance(state: types.Tree, action: Any, seed: Any, step: Any) -> tuple[types.Tree, Any, Any]:
        state, obs, outcome = env.step(state, action, key_of_step(seed, step))
        # Every array fetched costs about 10 microseconds, so what the host needs is packed into two.
        facts = jnp.stack([outcome.reward, outcome.discount, outcome.truncated.astype(jnp.float32)])
        return state, jnp.stack([obs, outcome.next_obs]), facts

    def open_one() -> types.HostEnv:
        if not compiled:
            compiled.append((jax.jit(begin), jax.jit(advance)))
        return DeviceEnv(env.spec, *compiled[0])

    return open_one
