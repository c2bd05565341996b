"""Host: Python simulators stepped in lock-step, the policy and the update compiled; synchronous, repeatable.

B environments act on one batched decision a step; after T steps one update. Simulators run in this process, or in
worker processes where a step is slow enough to pay for the messages; the bits are the same either way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from etils import epy

from shoal.core import options, seeds, types
from shoal.runtimes.crew import threads

with epy.lazy_imports():
    import jax
    import numpy as np

    from shoal.runtimes.crew import beside
    from shoal.runtimes.members import compiled, lanes


@dataclasses.dataclass(frozen=True)
class Config:
    """Vectorised Python simulators."""

    environments: int = options.number(8, low=1)
    """Environments stepped in lock-step (B)."""
    processes: int = options.number(-1, low=-1, high=1024)
    """Worker processes that step them, for each seed; 0 steps here, -1 measures which is faster (several seeds: here).
    Simulators with threads of their own (EnvPool) step here unless processes are asked for."""


def ways(config: Config) -> types.Ways:
    """See `types.Ways`; simulators cannot be saved, so a resumed run is another."""
    processes = max(0, min(config.processes, config.environments))
    return types.Ways(
        streams=config.environments, seeds=True, threads=0, processes=processes, process_mb=threads.STEPS,
        measures=config.processes < 0,
    )  # fmt: skip


def check(config: Config, experiment: Any, opened: Any) -> None:
    """Every environment has a host side; nothing to refuse."""
    del config, experiment, opened


def build(config: Config) -> types.Runtime:
    """The runtime."""
    return Host(config)


class Host:
    """The loop on the host."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def like(self, parts: types.Parts, seed: int) -> types.Tree:
        """See `types.Runtime`."""
        return jax.eval_shape(parts.agent.init, seeds.key(seed, "init")), lanes.counters(0, 0, 0)

    def policy(self, parts: types.Parts, seed: int, saved: types.Tree) -> types.Policy:
        """See `types.Runtime`."""
        del seed
        return parts.agent.snapshot(saved[0])

    def run(
        self,
        parts: types.Parts,
        seed: int,
        steps: int,
        goal: types.Goal | None,
        observe: types.Observer,
        saved: types.Tree | None,
    ) -> types.Result:
        """See `types.Runtime`."""
        results: list[types.Result] = []
        self.run_many(parts, [types.Place(seed, observe, results.append, saved)], steps, goal)
        return results[0]

    def run_many(self, parts: types.Parts, places: Sequence[types.Place], steps: int, goal: types.Goal | None) -> None:
        """See `types.ManySeeds`: one decision and one update of all seeds, each with simulators of its own."""
        del goal  # the observers see every update and decide
        began, places = time.monotonic(), [place for place in places if place.observe]
        remembers = parts.agent.about.fields.memory is not None
        look = beside.together([lanes.looking(place) for place in places])
        with contextlib.ExitStack() as stack:
            every = beside.done(lambda: [lanes.Lane(parts, place) for place in places], beside.COMPILING, look)
            for lane in every:
                stack.callback(lane.close)
                lane.begin(self._config.environments, self._config.processes, look, alone=len(every) == 1)

            def make() -> list[_Loop]:
                groups, streams = _groups(every, apart=remembers), self._config.environments
                kinds = {len(group) > 1 for group in groups}
                made = {several: compiled.Compiled(parts.agent, several) for several in kinds}
                return [_Loop(made[len(group) > 1], group, streams, began, look) for group in groups]

            loops = beside.done(make, beside.COMPILING, look)
            while loops := [loop for loop in loops if loop.turn(steps)]:
                pass


def _groups(lanes: Sequence[lanes.Lane], *, apart: bool) -> list[Sequence[lanes.Lane]]:
    """What goes through a compiled call together.

    Two groups, so that one's simulators are stepped while the other's update is computed; or every lane apart, for a
    replay memory would be copied whole at every update of several.
    """
    if apart:
        return [[lane] for lane in lanes]
    half = -(-len(lanes) // 2)
    return [group for group in (lanes[:half], lanes[half:]) if group]


class _Loop:
    """Rollout, update, report, until it is enough; of one seed, or of several in lock-step.

    Below, ``[K]`` is an axis over the lanes, which is not there if there is but one.
    """

    def __init__(
        self, made: compiled.Compiled, lanes: Sequence[lanes.Lane], streams: int, began: float, look: beside.Look
    ) -> None:
        agent = made.agent
        self._look, self._looked = look, began  # until training has begun
        self._act: Any = self._first_act
        self._agent, self._compiled, self._lanes, self._began = agent, made, lanes, began
        self._several = len(lanes) > 1
        self._kept = made.keep(self._joined([lane.state for lane in lanes]))
        for lane in lanes:
            lane.state = None  # the loop's from now on
        self._carry = self._joined([_spread(agent.about.carry, streams) for _ in lanes])
        self._times = {"environment": 0.0, "inference": 0.0, "learning": 0.0}
        self._started: float | None = None
        self._startup = 0.0
        self._metrics: Any = None  # of the update under way; None: there is none
        self._told: Any = None  # those and the updates dropped so far, once somebody asks

    def _joined(self, trees: Sequence[Any]) -> Any:
        """One tree ``[K, ...]``."""
        return jax.tree.map(lambda *leaves: np.stack(leaves), *trees) if self._several else trees[0]

    def _mine(self, tree: Any, at: int) -> Any:
        """What of a tree ``[K, ...]`` is one lane's."""
        return self._compiled.share(tree, at) if self._several else tree

    def turn(self, steps: int) -> bool:
        """Wait for the last update and report it; then one rollout, and the next update begins. False: all are done.

        Lanes that are done keep their place.
        """
        if self._metrics is not None:
            self._finish()
        for at, lane in enumerate(self._lanes):
            if lane.going and lane.env_steps >= steps:
                self._end(at)
        if not any(lane.going for lane in self._lanes):
            return False
        rollout = self._collect()
        before = time.perf_counter()
        words = self._joined([lane.learning() for lane in self._lanes])
        update = self._compiled.update if self._started is not None else self._first_update
        self._kept, self._metrics = update(self._kept, rollout, words)
        self._times["learning"] += time.perf_counter() - before
        return True

    def _first_act(self, *given: Any) -> Any:
        """The first decision compiles what makes it."""
        made = beside.done(lambda: self._compiled.act(*given), beside.COMPILING, self._look)
        self._act = self._compiled.act
        return made

    def _first_update(self, *given: Any) -> Any:
        """Likewise; if it is left, what it was given is gone, and nobody wants it."""
        return beside.done(lambda: jax.block_until_ready(self._compiled.update(*given)), beside.COMPILING, self._look)

    def _tell(self, t: int, of: int) -> None:
        """The first rollout of slow simulators takes a while."""
        if self._started is None and time.monotonic() - self._looked >= beside.LOOK:
            self._looked = time.monotonic()
            beside.asked(self._look, types.Stage("taking the first steps", t, of))

    def _finish(self) -> None:
        before = time.perf_counter()
        jax.block_until_ready(self._kept)
        self._told = None
        self._times["learning"] += time.perf_counter() - before
        if self._started is None:  # the first update compiled everything: training is counted from here
            self._started = time.monotonic()
            self._startup = self._started - self._began
            self._times = dict.fromkeys(self._times, 0.0)
        for at, lane in enumerate(self._lanes):
            if lane.going:
                lane.updates += 1
                if lane.due() and not lane.observe(self._progress(at)):
                    self._end(at)

    def _collect(self) -> types.Rollout:
        agent, clock = self._agent, time.perf_counter
        carry, steps = self._carry, []
        keys = self._joined([lane.acting() for lane in self._lanes])
        for t in range(agent.about.rollout_length):
            a = clock()
            keys[..., 2] = t
            obs = self._joined([lane.obs for lane in self._lanes])
            action, extras, after = self._act(self._kept, self._carry, obs, keys)
            action = np.asarray(action)
            b = clock()
            each = action if self._several else [action]
            outcomes = [
                lane.step(mine) if lane.going else lane.outcome for lane, mine in zip(self._lanes, each, strict=True)
            ]
            self._times["inference"] += b - a
            self._times["environment"] += clock() - b
            self._tell(t + 1, agent.about.rollout_length)
            reward, discount, truncated, next_obs = self._joined(outcomes)
            steps.append(types.Transition(obs, action, reward, discount, truncated, next_obs, extras))
            self._carry = _restart(agent.about.carry, after, truncated | (discount == 0)) if agent.about.carry else ()
        axis = 1 if self._several else 0
        if len(steps) == 1:
            transitions = jax.tree.map(lambda leaf: np.expand_dims(np.asarray(leaf), axis), steps[0])
        else:
            transitions = jax.tree.map(lambda *leaves: np.stack(leaves, axis), *steps)
        return types.Rollout(transitions, carry)

    def _progress(self, at: int) -> types.Progress:
        lane = self._lanes[at]
        if self._told is None:
            self._told = jax.device_get((self._metrics or {}, self._compiled.told(self._kept)))
        metrics, skipped = jax.tree.map(lambda leaf: leaf[at] if np.ndim(leaf) else leaf, self._told)
        spent = time.monotonic() - self._started if self._started else 0.0
        return lane.progress(
            spent,
            metrics,
            self._times,
            int(skipped),
            lambda: jax.device_get(self._mine(self._compiled.state(self._kept), at)),
            lambda: self._policy(at),
        )

    def _policy(self, at: int) -> types.Policy:
        return jax.device_get(self._mine(self._compiled.snapshot(self._kept), at))

    def _end(self, at: int) -> None:
        self._lanes[at].end(self._policy(at), self._progress(at), self._startup)


def _spread(carry: types.Carry, count: int) -> types.Carry:
    return jax.tree.map(lambda leaf: np.broadcast_to(np.asarray(leaf), (count, *leaf.shape)).copy(), carry)


def _restart(first: types.Carry, carry: types.Carry, over: np.ndarray) -> types.Carry:
    """The recurrent state of streams that ended begins anew."""

    def one(start: Any, now: Any) -> Any:
        return np.where(over.reshape(*over.shape, *[1] * (now.ndim - over.ndim)), start, now)

    return jax.tree.map(one, first, carry)
