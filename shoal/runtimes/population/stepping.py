"""A call of a population whose simulators are in Python: its blocks of members act and learn, each at its own pace.

Every block, which has its own process if simulators are in some, acts T steps on one batched decision a step and then
learns from them. So for every member what it learns from and what it acted are in the ratio that its rule asks for at
every moment: a rate limiter (Cassirer et al. 2021, "Reverb", arXiv:2102.04736) whose error buffer is 0, and no policy
acts that is older than the last update. A block may run ahead of a slower one up to the end of a call, where they wait
for each other; so a slow simulator holds up the members of other blocks by no more than that.
"""

from __future__ import annotations

import time
from collections.abc import Generator

import numpy as np
from etils import epy

from shoal.core import types
from shoal.runtimes.crew import beside
from shoal.runtimes.experience import finite, rollouts
from shoal.runtimes.members import lanes, loop
from shoal.runtimes.population import blocks, on_host, simulating

with epy.lazy_imports():
    import jax

Work = Generator[types.Action, types.Batch, loop.Loop]  # yields actions [M * B], is sent what they led to


class Block:
    """Some of the members (M), and their streams (B of each)."""

    def __init__(
        self, agent: types.Agent, learner: on_host.Learner, programs: on_host.Programs, keys: types.Key, streams: int
    ) -> None:
        """Args: `keys`, of learning, ``[M]``."""
        self._agent, self._learn, self._programs, self._keys = agent, learner.learn, programs, keys
        self._shape = (len(keys), streams)
        self.finite = finite.Streams()
        self.split = {"inference": 0.0, "learning": 0.0}
        self.busy = 0.0  # seconds until it was done with a call, of all calls
        self.limit = 0  # updates that it does in this call

    def begin(self, obs: types.Obs) -> None:
        """First observations, ``[M * B, *obs]``."""
        self._obs = self.finite.first(obs)
        self._returns, self._lengths = np.zeros(self._shape, np.float32), np.zeros(self._shape, np.int32)

    def work(self, at: loop.Loop, force: types.Scalar) -> Work:
        """Updates up to `limit`, which may fall meanwhile; `told` tells of them.

        Args:
            at: Where they begin; given away.
            force: See `loop.Ask`.
        """
        self.done = 0
        self._metrics: list[types.Metrics] = []
        self._ends: list[rollouts.Ended] = []
        self._unfit = np.array([self.finite.rewards, self.finite.observations])
        self._skipped = np.asarray(self._programs.skipped(at.members.state)[0])
        carry, update = jax.device_get((at.members.actors, at.common.update))
        while self.done < self.limit:
            began = time.perf_counter()
            policies, words, learn_keys = self._programs.begin(at.members.state, self._keys, np.uint32(update))
            words = np.ascontiguousarray(np.moveaxis(np.asarray(words), 1, 0))
            self.split["learning"] += time.perf_counter() - began
            rollout, carry = yield from self._collect(policies, carry, words)
            began = time.perf_counter()
            at, told = self._learn(at, rollout, learn_keys, force)
            self.split["learning"] += time.perf_counter() - began
            self._metrics.append(told)
            self.done, update = self.done + 1, update + 1
        return at._replace(members=at.members._replace(actors=carry))

    def told(self, at: loop.Loop, *, look: bool) -> loop.Told:
        """What there is to tell of a call.

        Args:
            at: The loop after it.
            look: Whether numbers are looked at; else all count as finite.
        """
        began = time.perf_counter()
        means = jax.tree.map(lambda *values: np.mean(values, axis=0, dtype=np.float32), *jax.device_get(self._metrics))
        good = np.asarray(self._programs.finite(at.members.state)[0]) if look else np.ones(self._shape[0], bool)
        for value in means.values() if look else ():
            good = good & np.isfinite(value)
        skipped = np.asarray(self._programs.skipped(at.members.state)[0]) - self._skipped
        counts = np.zeros((self._shape[0], 2), np.int32)  # of all together
        counts[0] = np.array([self.finite.rewards, self.finite.observations]) - self._unfit
        ended = jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *self._ends)  # [M, K T, B]
        apart = jax.tree.map(lambda leaf: leaf.reshape(len(leaf), self.done, -1, *leaf.shape[2:]), ended)
        self.split["learning"] += time.perf_counter() - began
        return loop.Told(means, apart._replace(unfit=counts), skipped, good)

    def _collect(
        self, policies: types.Policy, carry: types.Carry, words: types.Array
    ) -> Generator[types.Action, types.Batch, tuple[types.Rollout, types.Carry]]:
        """A rollout of every member, ``[M, T, B]``, and the carry after it."""
        first, steps = carry, []
        for word in words:
            began = time.perf_counter()
            before = self._obs.reshape(*self._shape, *self._obs.shape[1:])
            action, extras, after = self._programs.act(policies, carry, before, word)
            action, extras = np.asarray(action), jax.tree.map(np.asarray, extras)
            self.split["inference"] += time.perf_counter() - began
            batch = self.finite.step(self._obs, (yield bearable(action.reshape(-1, *action.shape[2:]))))
            self._obs = batch.obs
            reward, discount, truncated, successor = (
                leaf.reshape(*self._shape, *leaf.shape[1:]) for leaf in batch.outcome
            )
            over = truncated | (discount == 0)
            carry = restarted(self._agent.about.carry, after, over)
            steps.append(types.Transition(before, action, reward, discount, truncated, successor, extras))
            self._end(reward, over)
        transitions = jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *steps)
        return types.Rollout(transitions, first), carry

    def _end(self, reward: types.Array, over: types.Array) -> None:
        self._returns, self._lengths = self._returns + reward, self._lengths + 1
        self._ends.append(rollouts.Ended(over, self._returns, self._lengths, ()))
        self._returns, self._lengths = np.where(over, np.float32(0.0), self._returns), np.where(over, 0, self._lengths)


class Stepping:
    """Calls of a life; see `loop.call` for what one is. It returns early when it is time to tell of it."""

    def __init__(self, room: simulating.Room, every: list[Block]) -> None:
        """Simulators are opened by `open`.

        Args:
            room: Where they are stepped.
            every: Blocks, as many as processes; or one.
        """
        self._room, self._blocks = room, every
        self._simulators: simulating.Training | None = None
        self._waited = {"environment": 0.0, "waiting": 0.0}
        self.look: beside.Look = room.look  # while some wait for others
        self.calls = 0.0  # seconds

    def open(self, life: int) -> None:
        """Begin the first episodes.

        Args:
            life: Apart for each life of the run.

        Raises:
            NotBegun: Whoever looks on said that the run is to end.
        """
        self._simulators = simulating.Training(self._room, life, len(self._blocks))
        for block, obs in zip(self._blocks, self._simulators.reset(), strict=True):
            block.begin(obs)

    @property
    def restarts(self) -> int:
        """Simulators and processes that were replaced."""
        return self._simulators.restarts if self._simulators else 0

    @property
    def split(self) -> dict[str, float]:
        """Seconds by what they went to."""
        here = {name: sum(block.split[name] for block in self._blocks) for name in ("inference", "learning")}
        return {**self._waited, **here}

    def about(self) -> types.Tree:
        """Of the processes, for `types.Progress.workers`."""
        return self._simulators.about() if self._simulators else {}

    def paces(self) -> list[float]:
        """Of every block, the share of the time in which it did not wait for others."""
        return [block.busy / self.calls if self.calls else 1.0 for block in self._blocks]

    def close(self) -> None:
        """Release the simulators."""
        simulators, self._simulators = self._simulators, None
        if simulators is not None:
            simulators.close()

    def __call__(self, at: blocks.Blocks, keys: types.Key, ask: loop.Ask) -> tuple[blocks.Blocks, loop.Told]:
        """Some updates of all members.

        Args:
            at: Where they begin; given away.
            keys: Not read: blocks have theirs.
            ask: How many at most.

        Returns:
            The loops, and what there is to tell of the updates that were done. Whether numbers are finite is looked at
            where all were done that were asked for; else all count as finite.
        """
        del keys
        loops = self._run(at.loops, int(ask.updates), ask.force)
        whole = self._blocks[0].done == int(ask.updates)
        told = [block.told(one, look=whole) for block, one in zip(self._blocks, loops, strict=True)]
        joined = told[0] if len(told) == 1 else jax.tree.map(lambda *leaves: np.concatenate(leaves), *told)
        put = tuple(one._replace(members=one.members._replace(actors=at.each.put(one.members.actors))) for one in loops)
        return at._replace(loops=put), joined

    def _run(self, loops: tuple[loop.Loop, ...], updates: int, force: types.Scalar) -> list[loop.Loop]:
        """Every block does as many updates; whose simulators have answered goes on, whoever else has not."""
        simulators = self._simulators
        assert simulators is not None
        began = looked = time.monotonic()
        works: dict[int, Work] = {}
        after: dict[int, loop.Loop] = {}
        for number, (block, at) in enumerate(zip(self._blocks, loops, strict=True)):
            block.limit = updates
            works[number] = block.work(at, force)
            simulators.ask(number, next(works[number]))
        while works:
            clock = time.perf_counter()
            answers = simulators.answers(beside.LOOK)
            self._waited["waiting" if after else "environment"] += time.perf_counter() - clock
            for number, batch in answers.items():
                try:
                    simulators.ask(number, works[number].send(batch))
                except StopIteration as ended:
                    after[number] = ended.value
                    self._blocks[number].busy += time.monotonic() - began
                    del works[number]
            now = time.monotonic()
            if now - began >= lanes.REPORT_EVERY and now - looked >= beside.LOOK:
                looked = now
                self._hurry(after)
        self.calls += time.monotonic() - began
        return [after[number] for number in range(len(loops))]

    def _hurry(self, after: dict[int, loop.Loop]) -> None:
        """End the call with the update in hand of the first, if no block is far behind, or the run is to end."""
        counts = [block.done + (number not in after) for number, block in enumerate(self._blocks)]
        least, most = min(counts), max(counts)
        if most - least > 1 and self.look(types.Stage("waiting for slow simulators", least, most)):
            return
        for block in self._blocks:
            block.limit = min(block.limit, most)


def bearable(actions: types.Action) -> types.Action:
    """Actions that simulators can be asked to do: what is not finite is 0."""
    if actions.dtype.kind != "f" or np.isfinite(actions).all():
        return actions
    return np.nan_to_num(actions, posinf=0.0, neginf=0.0)


def restarted(first: types.Carry, carry: types.Carry, over: types.Array) -> types.Carry:
    """The recurrent state after a step, that of streams that ended anew.

    Args:
        first: At the start of an episode.
        carry: Leaves ``[M, B, ...]``.
        over: ``[M, B]``.
    """

    def one(start: types.Array, now: types.Array) -> types.Array:
        now = np.asarray(now)
        return np.where(over.reshape(*over.shape, *[1] * (now.ndim - 2)), np.asarray(start), now)

    return jax.tree.map(one, first, carry)
