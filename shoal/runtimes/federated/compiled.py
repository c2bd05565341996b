"""What is compiled for parties on one axis; each program when it is first asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from etils import epy

from shoal.core import programs, seeds, types
from shoal.runtimes.federated import together
from shoal.runtimes.members import dispatch

with epy.lazy_imports():
    import jax


class Programs:
    """What is compiled for an axis of parties; each program when it is first asked for."""

    def __init__(self, parts: types.Parts, shape: together.Shape, channel: together.Channel) -> None:
        self._parts, self.shape, self.channel = parts, shape, channel
        self._shelf: types.Programs = parts.programs or programs.Shelf()
        self._what = f"federated {shape} {channel.kind if channel else None}"
        self._looks: dict[str, Callable] = {}
        self.size = channel.spec.size if channel else 0
        self.per_update = shape.environments * parts.agent.about.rollout_length

    @functools.cached_property
    def begins(self) -> programs.Compiled:
        """(keys ``[N]``) -> where parties begin."""
        made: programs.Compiled = self._shelf.compiled(
            f"{self._what} start", together.begin(self._parts, self.shape), self.keys(0, "init")
        )
        return made

    @property
    def like(self) -> together.Homes:
        """Of that the shapes."""
        homes: together.Homes = self.begins.returns
        return homes

    def keys(self, seed: int, *place: str | int) -> types.Key:
        """One a party, ``[N]``."""
        return together.keys(seeds.key(seed, *place), self.shape.parties)

    def asked(self) -> together.Asked:
        """What a call may be asked, as zeros."""
        count = self.shape.parties
        return together.Asked(
            np.zeros((count, self.size), np.float32), np.zeros(count, np.int32), np.zeros(count, np.float32),
            np.zeros(count, bool), np.zeros(count, bool),
        )  # fmt: skip

    def work(self, way: dispatch.Way, *, whole: bool) -> Callable:
        """(homes, keys, asked) -> (homes, told); homes are given away."""
        made = together.work(self._parts, self.shape, self.channel, way, whole=whole)
        what = f"{self._what} {way} {whole}"
        examples = self.like, self.keys(0, "run"), self.asked()
        return self._shelf.compiled(what, made, *examples, donate=True).load()

    def _look(self, what: str, make: Callable[[], Callable]) -> Callable:
        if what not in self._looks:
            self._looks[what] = jax.jit(make())
        return self._looks[what]

    def policies(self, homes: together.Homes, theta: np.ndarray) -> types.Policy:
        """Every party's, leaves ``[N, ...]``, on the host."""
        look = self._look("policies", lambda: together.policies(self._parts, self.channel))
        found: types.Policy = jax.device_get(look(homes.members.state, theta))
        return found

    def measure(self, homes: together.Homes, theta: np.ndarray, keys: types.Key, episodes: int) -> np.ndarray:
        """Returns of greedy episodes, ``[N, episodes]``."""
        look = self._look(f"measure {episodes}", lambda: together.measure(self._parts, self.channel, episodes))
        return np.asarray(look(homes.members.state, theta, keys))

    def beginning(self, homes: together.Homes) -> np.ndarray:
        """The global part that the first party's learner began with, ``[d]``: where a run begins."""
        first = jax.tree.map(lambda leaf: leaf[0], homes.members.state)
        if self.channel is None:
            return np.zeros(0, np.float32)
        return np.array(self._look("beginning", lambda: self.channel.beginning)(first), np.float32)  # type: ignore[union-attr]
