"""Pools of EnvPool seen as a `types.HostVector` and, one environment large, as a `types.HostEnv`; see `envpool.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from etils import epy

from shoal.core import seeds, types

with epy.lazy_imports():
    import numpy as np

if TYPE_CHECKING:
    Begin = Callable[[Any], np.ndarray]  # what the pool gave after a reset, [B, ...] -> what the agent sees, [B, *obs]
    Follow = Callable[[Any, Any], np.ndarray]  # (what the agent saw, what the pool gave) -> what it sees now


class Kind(NamedTuple):
    """What a pool of one id needs to be opened and read."""

    spec: types.EnvSpec
    make: Callable[[list[int], int], Any]  # (a seed for each environment, threads) -> the pool
    begin: Begin
    follow: Follow
    act: Callable[[np.ndarray], np.ndarray]  # [B, *action] as the agent chose -> as the pool takes them
    episodic_life: bool


class Vector:
    """``B`` environments of one pool with truthful episodes; see `types.HostVector`. Nothing handed out is reused."""

    def __init__(self, kind: Kind, seed: int, count: int, threads: int) -> None:
        chosen = [seeds.derive(seed, "pool", i) >> 1 for i in range(count)]  # EnvPool's are signed
        self._kind, self._pool = kind, kind.make(chosen, threads)
        self._elapsed, self._lives = np.zeros(count, int), np.zeros(count, int)
        self._obs = np.zeros((count, *kind.spec.observation.shape), kind.spec.observation.dtype)

    def reset(self) -> np.ndarray:
        """First observations, ``[B, *obs]``; called once, since a pool cannot be seeded again."""
        self._obs = np.empty_like(self._obs)
        self._restart(self._obs, np.arange(len(self._obs), dtype=np.int32))
        return self._obs

    def _restart(self, obs: np.ndarray, places: np.ndarray) -> None:
        """Begin new episodes at some places; their first observations replace those of `obs`."""
        raw, info = self._pool.reset(places)
        obs[places], self._elapsed[places] = self._kind.begin(raw), 0
        if self._kind.episodic_life:
            self._lives[places] = info["lives"]

    def step(self, actions: np.ndarray) -> types.Batch:
        """Act once in each."""
        raw, reward, terminated, cut, info = self._pool.step(self._kind.act(actions))
        successor = self._kind.follow(self._obs, raw)
        self._elapsed += 1
        lost = self._lost(info)
        over = terminated | cut | (self._elapsed >= (self._kind.spec.time_limit or np.inf))
        obs = successor
        if (over | lost).any():
            obs = successor.copy()
            obs[lost] = self._kind.begin(raw[lost])
            if over.any():
                self._restart(obs, np.flatnonzero(over).astype(np.int32))
        self._obs, real = obs, terminated | lost
        outcome = types.Outcome(np.asarray(reward, np.float32), 1.0 - real.astype(np.float32), over & ~real, successor)
        return types.Batch(obs, outcome)

    def _lost(self, info: Any) -> np.ndarray:
        """Where a life was lost and the game goes on."""
        if not self._kind.episodic_life:
            return np.zeros(len(self._obs), bool)
        lives, before = np.array(info["lives"]), self._lives
        self._lives = lives
        return (lives > 0) & (lives < before)

    def close(self) -> None:
        """Release all of them; calling it twice is harmless."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()


class PoolEnv:
    """A pool of one; see `types.HostEnv`."""

    def __init__(self, kind: Kind) -> None:
        self.spec = kind.spec
        self._kind = kind
        self._vector: Vector | None = None

    def reset(self, seed: int) -> np.ndarray:
        """Begin anew, all randomness from `seed`."""
        self.close()
        self._vector = Vector(self._kind, seed, 1, threads=1)
        return self._vector.reset()[0]

    def step(self, action: Any) -> tuple[np.ndarray, types.Outcome]:
        """Act once; after an end the returned observation is the first of the next episode."""
        assert self._vector is not None, "reset comes first"
        obs, (reward, discount, truncated, successor) = self._vector.step(np.asarray(action)[None])
        return obs[0], types.Outcome(float(reward[0]), float(discount[0]), bool(truncated[0]), successor[0])

    def close(self) -> None:
        """Release the pool; calling it twice is harmless."""
        if self._vector is not None:
            self._vector.close()
        self._vector = None
