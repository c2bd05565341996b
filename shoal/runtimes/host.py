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

from shoal import optimise, options, prng, seeds, types
from shoal.runtimes import _threads

with epy.lazy_imports():
    import jax
    import numpy as np

    from shoal.runtimes import _lane, _rollout, _words


@dataclasses.dataclass(frozen=True)
class Config:
    """Vectorised Python simulators."""

    environments: int = options.number(8, low=1)
    """Environments stepped in lock-step (B)."""
    processes: int = options.number(-1, low=-1, high=1024)
    """Worker processes that step them, for each seed; 0 steps here, -1 measures which is faster (several seeds: here).
    Simulators with threads of their own (EnvPool) step here unless processes are asked for."""


SMALL = 100_000  # words up to which a learner enters and leaves a compiled call as one array, which is a copy
CAPTURES = False
EXACT_RESUME = False  # simulators cannot be saved: episodes begin anew
SEEDS = True  # several in lock-step: `Host.run_many`


def check(config: Config, experiment: Any, opened: Any) -> None:
    """Every environment has a host side; nothing to refuse."""
    del config, experiment, opened


def prepare(config: Config, algorithm: Any, network: Any) -> None:
    """See `_threads`."""
    _threads.prepare(0, config.environments, algorithm, network)


def streams(config: Config) -> int:
    """Environments that one learner learns from at a time."""
    return config.environments


def build(config: Config) -> types.Runtime:
    """The runtime."""
    return Host(config)


class Host:
    """The loop on the host."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def like(self, parts: types.Parts, seed: int) -> types.Tree:
        """See `types.Runtime`."""
        return jax.eval_shape(parts.agent.init, seeds.key(seed, "init")), _lane.counters(0, 0, 0)

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
        remembers = hasattr(jax.eval_shape(parts.agent.init, seeds.key(0, "init")), "memory")
        with contextlib.ExitStack() as stack:
            lanes = [_lane.Lane(parts, place) for place in places]
            for lane in lanes:
                stack.callback(lane.close)
                lane.begin(self._config.environments, self._config.processes, alone=len(lanes) == 1)
            groups = _groups(lanes, apart=remembers)
            compiled = {several: _Compiled(parts.agent, several) for several in {len(group) > 1 for group in groups}}
            loops = [_Loop(compiled[len(group) > 1], group, self._config.environments, began) for group in groups]
            while loops := [loop for loop in loops if loop.turn(steps)]:
                pass


def _groups(lanes: Sequence[_lane.Lane], *, apart: bool) -> list[Sequence[_lane.Lane]]:
    """What goes through a compiled call together.

    Two groups, so that one's simulators are stepped while the other's update is computed; or every lane apart, for a
    replay memory would be copied whole at every update of several.
    """
    if apart:
        return [[lane] for lane in lanes]
    half = -(-len(lanes) // 2)
    return [group for group in (lanes[:half], lanes[half:]) if group]


class _Compiled:
    """What is compiled of an agent; with several lanes, for trees with an axis over them in front.

    A learner of a hundred small arrays costs a call more than the arithmetic in it; so it is kept as one vector.
    """

    def __init__(self, agent: types.Agent, several: bool) -> None:
        self.agent = agent
        every = jax.vmap if several else (lambda one: one)
        like = jax.eval_shape(agent.init, seeds.key(0, "init"))
        small = _words.fits(like) and _words.size(like) <= SMALL
        pack, unpack = (_words.pack, _words.make(like)[2]) if small else (_same, _same)

        def act(kept: Any, carry: types.Carry, obs: Any, words: Any) -> Any:
            keys = jax.random.split(prng.counted(words), obs.shape[0])
            return _rollout.act_all(agent, agent.snapshot(unpack(kept)), carry, obs, keys)

        def update(kept: Any, rollout: types.Rollout, words: Any) -> Any:
            state, metrics = agent.update(unpack(kept), rollout, prng.counted(words))
            return pack(state), metrics

        self.keep = jax.jit(every(pack))
        self.state = jax.jit(every(unpack))
        self.act = jax.jit(every(act))
        self.update = jax.jit(every(update), donate_argnums=0)
        self.told = jax.jit(every(lambda kept: optimise.skipped(unpack(kept))))
        self.snapshot = jax.jit(every(lambda kept: agent.snapshot(unpack(kept))))
        self.share = jax.jit(lambda tree, at: jax.tree.map(lambda leaf: leaf[at], tree))


def _same(tree: Any) -> Any:
    return tree


class _Loop:
    """Rollout, update, report, until it is enough; of one seed, or of several in lock-step.

    Below, ``[K]`` is an axis over the lanes, which is not there if there is but one.
    """

    def __init__(self, compiled: _Compiled, lanes: Sequence[_lane.Lane], streams: int, began: float) -> None:
        agent = compiled.agent
        self._agent, self._compiled, self._lanes, self._began = agent, compiled, lanes, began
        self._several = len(lanes) > 1
        self._kept = compiled.keep(self._joined([lane.state for lane in lanes]))
        for lane in lanes:
            lane.state = None  # the loop's from now on
        self._carry = self._joined([_spread(agent.carry, streams) for _ in lanes])
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
        self._kept, self._metrics = self._compiled.update(self._kept, rollout, words)
        self._times["learning"] += time.perf_counter() - before
        return True

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
        for t in range(agent.rollout_length):
            a = clock()
            keys[..., 2] = t
            obs = self._joined([lane.obs for lane in self._lanes])
            action, extras, after = self._compiled.act(self._kept, self._carry, obs, keys)
            action = np.asarray(action)
            b = clock()
            each = action if self._several else [action]
            outcomes = [
                lane.step(mine) if lane.going else lane.outcome for lane, mine in zip(self._lanes, each, strict=True)
            ]
            self._times["inference"] += b - a
            self._times["environment"] += clock() - b
            reward, discount, truncated, next_obs = self._joined(outcomes)
            steps.append(types.Transition(obs, action, reward, discount, truncated, next_obs, extras))
            self._carry = _restart(agent.carry, after, truncated | (discount == 0)) if agent.carry else ()
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
        )

    def _end(self, at: int) -> None:
        policy = jax.device_get(self._mine(self._compiled.snapshot(self._kept), at))
        self._lanes[at].end(policy, self._progress(at), self._startup)


def _spread(carry: types.Carry, count: int) -> types.Carry:
    return jax.tree.map(lambda leaf: np.broadcast_to(np.asarray(leaf), (count, *leaf.shape)).copy(), carry)


def _restart(first: types.Carry, carry: types.Carry, over: np.ndarray) -> types.Carry:
    """The recurrent state of streams that ended begins anew."""

    def one(start: Any, now: Any) -> Any:
        return np.where(over.reshape(*over.shape, *[1] * (now.ndim - over.ndim)), start, now)

    return jax.tree.map(one, first, carry)
