"""Evaluation: whole episodes with a frozen, greedy policy; several in parallel, each stream's first ones counted.

Every stream contributes the same number of episodes, so short episodes are not over-represented. There are no more
simulators at once than training had, for it is known that so many can be open; one, where even that fails.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from etils import epy

from shoal import experiment, log
from shoal.core import seeds, types
from shoal.runtimes.crew import beside, closing

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

T = TypeVar("T")

PARALLEL = 16  # streams at once, at most
LONGEST = 100_000  # steps after which an episode is given up and counted as it stands,
LONGEST_FREE = 10_000  # of an environment that has no time limit: its episodes may never end
SECONDS = 600.0  # that an evaluation on the host takes at most; episodes under way are then left out
SAY_AFTER, SAY_EVERY = 2.0, 10.0  # seconds until it is said how far it is, and between two times


class Evaluation(NamedTuple):
    """Returns and lengths of the episodes played."""

    returns: list[float]
    lengths: list[int]
    cut: int = 0  # of them, those that were given up and count as they stand

    def summary(self) -> dict[str, float | int | None]:
        """The keys of ``summary.json``."""
        finite = bool(np.isfinite(self.returns).all())  # a simulator may pay NaN: that is not a measurement
        return {
            "eval_return_mean": float(np.mean(self.returns)) if finite else None,
            "eval_return_std": float(np.std(self.returns)) if finite else None,
            "eval_episodes": len(self.returns),
            **({"eval_cut": self.cut} if self.cut else {}),
        }


def _say(kind: str, story: str) -> None:
    """Tell a fault on stderr, where no run keeps an account of it."""
    log.Plain(sys.stderr).fault(kind, story)


class Game(NamedTuple):
    """One episode."""

    value: float  # its return
    length: int
    whole: bool  # it came to its end


class Stopped(Exception):
    """Somebody asked for the end before the last episode was over."""


def _nothing(_: str) -> None:
    """Whoever evaluates has no screen."""


def streams(made: experiment.Experiment) -> int:
    """Simulators that training had at once; as many as `PARALLEL` where they are no simulators but compiled."""
    how = experiment.ways(made.runtime, made.configs["runtime"])
    return min(PARALLEL, how.streams * how.learners)


def evaluate(  # noqa: PLR0913  four of them are only who is told
    parts: types.Parts,
    policy: types.Policy,
    episodes: int,
    seed: int,
    *,
    greedy: bool = True,
    streams: int = PARALLEL,
    seconds: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_fault: Callable[[str, str], None] = _say,
    say: Callable[[str], None] = _nothing,
    show: Callable[[types.Stage], None] | None = None,
    packed: types.Packed | None = None,
    simulators: bool = False,
    owner: int | None = None,
) -> Evaluation:
    """Play episodes.

    Args:
        parts: The agent and the environment.
        policy: What acts; frozen, its normaliser too.
        episodes: How many, at least 1; fewer are played where the time runs out.
        seed: Of the evaluation; episodes are never those of training.
        greedy: Take the most probable action instead of sampling.
        streams: Simulators at once, at most (see `streams`); those that are compiled are always `PARALLEL`.
        seconds: That simulators are stepped at most, `SECONDS` when None; what is compiled plays to its end.
        stop: Asked at every step of a simulator, and now and then while something is compiled, or played by what is;
            True ends the evaluation.
        on_fault: Told ``(kind, traceback)`` of simulators that could not be closed; the numbers stand.
            By default it is said on stderr.
        say: Told which limit was reached; and how far it is, now and then, where there is no `show`.
        show: Told how far it is, as often as `stop` is asked.
        packed: What acts instead of `policy`, as actors run it (`types.Compressor.runner`).
        simulators: Step simulators on the host, even where the environment can be compiled: as `packed` is played.
        owner: Whose environment it is, where that differs between owners (`types.Env.init_as`); None: anybody's.

    Raises:
        Stopped: `stop` said so.
    """
    policy = policy._replace(explore=np.float32(0.0 if greedy else 1.0))
    device = parts.device_env and not simulators and packed is None
    play = functools.partial(_on_device, owner=owner) if device else functools.partial(_on_host, packed=packed)
    most = PARALLEL if device else min(streams, PARALLEL)
    told = _Told(stop, say, show, on_fault)
    watch = _Watch(episodes, most, SECONDS if seconds is None else seconds, told)
    while len(watch.games) < episodes and not watch.late:
        count = min(watch.streams, episodes - len(watch.games))
        watch.games += play(watch, parts, policy, count, seeds.derive(seed, "evaluation", len(watch.games)))
    return watch.result(_longest(parts.spec))


class _Told(NamedTuple):
    """Who is asked and told; see `evaluate`."""

    stop: Callable[[], bool]
    say: Callable[[str], None]
    show: Callable[[types.Stage], None] | None
    on_fault: Callable[[str, str], None]


class _Watch:
    """What one evaluation has come to: its games, how many simulators it may have, whether time is left."""

    def __init__(self, episodes: int, streams: int, seconds: float, told: _Told) -> None:
        self.games: list[Game] = []
        self.streams, self.late = streams, False
        self._episodes = episodes
        self._stop, self._say, self._show, self._on_fault = told
        self._seconds, self._until = seconds, time.monotonic() + seconds
        self._next = time.monotonic() + SAY_AFTER

    def look(self, over: int, steps: int) -> bool:
        """Whether time is left; says how far it is now and then.

        Args:
            over: Games under way that are over.
            steps: Of the longest under way.

        Raises:
            Stopped: Somebody asked for the end.
        """
        if self._stop():
            raise Stopped
        now, whole = time.monotonic(), len(self.games) + over
        if self._show is not None:
            self._show(types.Stage("evaluating", whole, self._episodes))
        elif now >= self._next:
            self._next = now + SAY_EVERY
            self._say(f"evaluating: {whole} of {self._episodes} episodes are over, step {steps:,}")
        self.late = self.late or now >= self._until
        return not self.late

    def patiently(self, make: Callable[[], T]) -> T:
        """Do what may compile, or play many games at once, to its end.

        Raises:
            Stopped: Somebody asked for the end.
        """

        def look(_: types.Stage) -> bool:
            self.look(0, 0)
            return True

        return beside.done(make, beside.COMPILING, look)

    def close(self, envs: list[types.HostEnv]) -> None:
        """Release all of them; one that cannot be is told, and the numbers stand."""
        closing.told(lambda: closing.every(env.close for env in envs), self._on_fault)

    def alone(self, reason: Exception) -> None:
        """From here on one simulator at a time."""
        self.streams = 1
        story = " ".join(f"{type(reason).__name__}: {reason}".split())
        self._say(f"evaluating with one simulator at a time, for another could not be opened ({story[:200]})")

    def result(self, longest: int) -> Evaluation:
        """Says which limit was reached."""
        whole = [game for game in self.games if game.whole]
        games = whole if self.late and whole else self.games
        if self.late:
            counted = "only they count" if whole else "those under way count as they stand"
            over = f"{len(whole)} of {self._episodes} episodes were over"
            self._say(f"the evaluation was ended after {self._seconds:g} s: {over}, and {counted}")
        elif cut := len(games) - len(whole):
            self._say(
                f"{cut} of {len(games)} episodes were still going after {longest:,} steps, and count as they stand; "
                "--environment.time-limit N ends them"
            )
        returns, lengths = [game.value for game in games], [game.length for game in games]
        return Evaluation(returns, lengths, sum(not game.whole for game in games))


def _longest(spec: types.EnvSpec) -> int:
    """Steps after which an episode is given up."""
    return LONGEST if spec.time_limit else LONGEST_FREE


def _carry(agent: types.Agent, streams: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (streams, *leaf.shape)), agent.about.carry)


def _begin(watch: _Watch, parts: types.Parts, count: int, seed: int) -> tuple[list[types.HostEnv], np.ndarray]:
    """Simulators and their first observations ``[count, *obs]``; one, where several cannot be open."""
    envs: list[types.HostEnv] = []
    try:
        for _ in range(count):
            envs.append(parts.environment.evaluation())
        return envs, np.stack([env.reset(seeds.derive(seed, "environment", i)) for i, env in enumerate(envs)])
    except BaseException as reason:
        watch.close(envs)
        if count == 1 or not isinstance(reason, Exception):
            raise
        watch.alone(reason)
    return _begin(watch, parts, 1, seed)


@functools.lru_cache(maxsize=4)  # one compilation serves every evaluation of a run
def _acting(act: Callable[..., Any]) -> Callable[..., Any]:
    """One step of all streams; its keys are made within, for a call of its own would cost more than the network."""

    def every(policy: types.Policy, carry: types.Carry, obs: Any, key: types.Key, step: Any) -> Any:
        keys = jax.random.split(jax.random.fold_in(key, step), len(obs))
        return jax.vmap(act, in_axes=(None, 0, 0, 0))(policy, carry, obs, keys)

    return jax.jit(every)


def _packed(parts: types.Parts, packed: types.Packed, policy: types.Policy, count: int, seed: int) -> Any:
    """`_acting` of what a compressor packed."""
    acting = parts.agent.about.acting
    assert acting is not None
    assert parts.compressor is not None
    runner = parts.compressor.runner(packed, count, parts.compressor.engine)
    generator = np.random.default_rng(seeds.derive(seed, "action"))

    def act(_: types.Policy, carry: types.Carry, obs: Any, key: types.Key, step: Any) -> Any:
        del key, step
        outputs, carry = runner(obs, carry)
        return *acting.decide_many(runner.policy._replace(explore=policy.explore), outputs, generator), carry

    return act


def _on_host(
    watch: _Watch, parts: types.Parts, policy: types.Policy, count: int, seed: int, packed: types.Packed | None
) -> list[Game]:
    envs, obs = _begin(watch, parts, count, seed)
    try:
        count, limit = len(envs), _longest(parts.spec)
        carry = _carry(parts.agent, count)
        returns, lengths, running = np.zeros(count), np.zeros(count, int), np.ones(count, bool)
        act = _acting(parts.agent.act) if packed is None else _packed(parts, packed, policy, count, seed)
        policy, key = jax.device_put(policy), seeds.key(seed, "action")
        watch.patiently(lambda: act(policy, carry, obs, key, np.uint32(0)))  # compiled, if it was not
        while running.any() and lengths.max() < limit and watch.look(int((~running).sum()), int(lengths.max())):
            action, _, carry = act(policy, carry, obs, key, np.uint32(lengths.max()))
            action = np.asarray(action)
            for i in np.flatnonzero(running):
                obs[i], outcome = envs[i].step(action[i])
                returns[i] += outcome.reward
                lengths[i] += 1
                running[i] = not (outcome.truncated or outcome.discount == 0)
    finally:
        watch.close(envs)
    return [Game(*game) for game in zip(returns.tolist(), lengths.tolist(), (~running).tolist(), strict=True)]


def _on_device(
    watch: _Watch, parts: types.Parts, policy: types.Policy, streams: int, seed: int, owner: int | None
) -> list[Game]:
    watch.look(0, 0)
    assert parts.device_env is not None
    env = parts.device_env
    play = _playing(parts.agent.act, env.init, env.init_as, env.step, streams, _longest(parts.spec))
    # Policy and owner are arguments, no constants of the program: one compilation serves every policy.
    given = policy, _carry(parts.agent, streams), seeds.key(seed), None if owner is None else np.int32(owner)
    returns, lengths, running = watch.patiently(lambda: jax.device_get(play(*given)))
    return [Game(*game) for game in zip(returns.tolist(), lengths.tolist(), (~running).tolist(), strict=True)]


def _swapped(init_as: Callable[..., Any], owner: Any, key: Any) -> Any:
    return init_as(key, owner)


@functools.lru_cache(maxsize=4)
def _playing(
    act: Callable[..., Any],
    init: Callable[..., Any],
    init_as: Callable[..., Any] | None,
    turn: Callable[..., Any],
    streams: int,
    limit: int,
) -> Callable[..., Any]:
    """The program that plays one episode in every stream."""

    def step(policy: types.Policy, at: Any) -> Any:
        state, obs, carry, total, length, running, key = at
        key, act_key, env_key = jax.random.split(key, 3)
        acting = jax.vmap(act, in_axes=(None, 0, 0, 0))
        action, _, carry = acting(policy, carry, obs, jax.random.split(act_key, streams))
        state, obs, outcome = jax.vmap(turn)(state, action, jax.random.split(env_key, streams))
        total = total + jnp.where(running, outcome.reward, 0.0)
        length = length + running
        running = running & ~(outcome.truncated | (outcome.discount == 0))
        return state, obs, carry, total, length, running, key

    def going(at: Any) -> Any:
        return at[5].any() & (at[4].max() < limit)

    def play(policy: types.Policy, carry: types.Carry, key: Any, owner: Any) -> Any:
        first, key = jax.random.split(key)
        begin = init if init_as is None or owner is None else functools.partial(_swapped, init_as, owner)
        state, obs = jax.vmap(begin)(jax.random.split(first, streams))
        zeros = jnp.zeros(streams), jnp.zeros(streams, jnp.int32), jnp.ones(streams, bool)
        at = (state, obs, carry, *zeros, key)
        return jax.lax.while_loop(going, functools.partial(step, policy), at)[3:6]

    return jax.jit(play)
