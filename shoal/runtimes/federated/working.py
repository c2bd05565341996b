"""What a party does between a download and its reply: it acts and learns at home, some updates long.

Two forms with one face (`Work`): `Compiled`, where its environment is pure JAX, and `simulated.Simulated`. The keys are
those of an axis of parties, so both learn what a party would there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from etils import epy

from shoal.core import programs, seeds, types
from shoal.formulas import optimise
from shoal.runtimes.experience import rollouts
from shoal.runtimes.federated import channels
from shoal.runtimes.members import loop

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

    from shoal.core import prng, tree
    from shoal.runtimes.members import fitness


class Place(NamedTuple):
    """Which party of which run; plain numbers."""

    seed: int  # of the run
    party: int  # its number
    environments: int  # B
    most: int  # local updates of one round, at most (K)
    padded: bool = False  # whether a rollout ends with its episode; then B is 1


class Home(NamedTuple):
    """All that makes a party's next update what it is; none of it ever leaves."""

    members: loop.Members  # of one: without an axis in front
    common: loop.Common


class Ended(NamedTuple):
    """An episode that ended in a round."""

    at: int  # environment steps into the round
    episode_return: float
    length: int


class Told(NamedTuple):
    """What a round was like; it stays at home, or goes beside the channel of a simulation on one machine."""

    episodes: list[Ended]
    metrics: dict[str, float]  # means over the round
    skipped: int  # gradients dropped in this round, for they were not finite
    unfit: tuple[int, int]  # rewards and observations that were not finite, in this round
    finite: bool  # whether its numbers are; false: the learner is as it was before the round
    env_steps: int  # of the round
    updates: int  # likewise


class Asked(NamedTuple):
    """What came down; scalars of JAX or NumPy."""

    theta: types.Array  # [d] f32
    base: types.Scalar  # i32, the version it is of
    mu: types.Scalar  # f32
    updates: types.Scalar  # i32, at most K


class Work(Protocol):
    """Local updates of one party."""

    @property
    def like(self) -> Home:
        """Of its private state, the shapes."""
        ...

    def begin(self) -> Home:
        """Its beginning: a new learner, and first episodes."""
        ...

    def __call__(self, home: Home, asked: Asked) -> tuple[Home, np.ndarray, Told]:
        """One round: (home after it, what goes up ``[d]``, what it was like)."""
        ...

    def evaluate(self, state: types.State, words: np.ndarray, episodes: int) -> float:
        """Mean return of so many greedy episodes, none of training; `words` [2] u32 are those of a key."""
        ...

    def resumed(self, home: Home, life: int) -> Home:
        """Home as it goes on after so many lives: as it is, or with episodes that begin anew."""
        ...

    def close(self) -> None:
        """Let go of simulators."""
        ...


def key(place: Place, purpose: str) -> types.Key:
    """The key of one party for one purpose."""
    return jax.random.fold_in(seeds.key(place.seed, purpose), place.party)


def starting(parts: types.Parts, place: Place) -> Callable[[types.Key], Home]:
    """(key) -> `Home`."""
    every = loop.start(parts, loop.Shape(place.environments, place.most), lambda state, _: state)

    def start(key: types.Key) -> Home:
        whole = every(key[None])
        return Home(jax.tree.map(lambda leaf: leaf[0], whole.members), whole.common)

    return start


def alone(function: Callable, *_: types.Tree) -> Callable:
    """A function of one party is one of all there are here."""
    return function


def sound(before: types.State, after: types.State, metrics: types.Metrics) -> tuple[types.State, types.Scalar]:
    """The learner after a round, the one before it where numbers of it are no longer finite; and whether they are."""
    finite = tree.all_finite((after, metrics))
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before), finite


def with_state(home: Home, state: types.State) -> Home:
    """Home with another learner."""
    return home._replace(members=home.members._replace(state=state))


def happened(ended: rollouts.Ended, used: types.Scalar) -> rollouts.Ended:
    """What ended in the steps of a rollout that are no padding."""
    real = jnp.arange(len(ended.over))[:, None] < used
    return ended._replace(over=ended.over & real, unfit=ended.unfit & real[..., None])


def episodes(ended: rollouts.Ended, steps: np.ndarray) -> list[Ended]:
    """Finished episodes of a round, in the order of steps.

    Args:
        ended: ``[K, T, B]``.
        steps: Environment steps of each update that was done, K of them at most.
    """
    before = np.concatenate([[0], np.cumsum(steps)])
    update, t, stream = np.nonzero(ended.over[: len(steps)])
    at = before[update] + (t + 1) * ended.over.shape[2]
    where = update, t, stream
    return [
        Ended(int(one), float(value), int(size))
        for one, value, size in zip(at, ended.episode_return[where], ended.length[where], strict=True)
    ]


class Compiled:
    """Everything of a round in one program."""

    def __init__(self, parts: types.Parts, place: Place, channel: channels.Channel) -> None:
        """Compile it.

        Args:
            parts: Of the party; its environment is pure JAX.
            place: Which one it is.
            channel: What crosses, and what it does here.
        """
        self._parts, self._place, self._channel = parts, place, channel
        self._measures: dict[int, Callable] = {}
        shelf, first = parts.programs or programs.Shelf(), key(place, "init")
        what = f"party {channel.kind} {place.environments} {place.most}"
        self._start = shelf.compiled(f"{what} start", starting(parts, place), first)
        asked = Asked(
            jax.ShapeDtypeStruct((channel.spec.size,), "float32"), jax.ShapeDtypeStruct((), "int32"),
            jax.ShapeDtypeStruct((), "float32"), jax.ShapeDtypeStruct((), "int32"),
        )  # fmt: skip
        self._like: Home = self._start.returns
        self._round = shelf.compiled(what, self._program(parts), self._like, asked, first).load()
        self._key = key(place, "run")

    def _program(self, parts: types.Parts) -> Callable:
        agent, env, channel, place = parts.agent, parts.device_env, self._channel, self._place
        collect = rollouts.collect_padded if place.padded else rollouts.collect
        learn = loop.learn(parts, alone)
        assert env is not None

        def update(home: Home, key: types.Key) -> Any:
            members, common = home
            act_key, learn_key = jax.random.split(jax.random.fold_in(key, common.update))
            policy = agent.snapshot(members.state)
            actors, rollout, ended = collect(agent, env, policy, members.actors, act_key)
            acted = members._replace(actors=actors)
            members, common, metrics = learn(acted, common, rollout, learn_key, jnp.bool_(False))
            used = ended.over.size if isinstance(rollout.used, tuple) else rollout.used
            ended = ended if isinstance(rollout.used, tuple) else happened(ended, rollout.used)
            return Home(members, common), (metrics, ended, jnp.int32(used))

        def round_(home: Home, asked: Asked, key: types.Key) -> Any:
            before = home.members.state
            home = with_state(home, channel.begin(before, asked.theta, asked.base, asked.mu))
            like = jax.eval_shape(update, home, key)[1]
            blank = jax.tree.map(lambda leaf: jnp.zeros((place.most, *leaf.shape), leaf.dtype), like)

            def once(now: Any) -> Any:
                at, home, gathered, told = now
                home, new = update(home, key)
                told = jax.tree.map(lambda all_, one: all_.at[at].set(one), told, new)
                return at + 1, home, channel.gather(gathered, home.members.state), told

            def going(now: Any) -> types.Scalar:
                at, _, _, told = now
                most = channel.episodes or jnp.iinfo(jnp.int32).max
                return (at < asked.updates) & (told[1].over.sum(dtype=jnp.int32) < most)

            done, home, gathered, told = jax.lax.while_loop(going, once, (jnp.int32(0), home, channel.first, blank))
            vector = channel.end(home.members.state, asked.theta, gathered, done.astype(jnp.float32))
            metrics = jax.tree.map(lambda leaf: leaf.sum(axis=0) / done, told[0])
            after = home.members.state
            state, finite = sound(before, after, metrics)
            more = optimise.skipped(after) - optimise.skipped(before), finite, told[2], done
            return with_state(home, state), vector, (metrics, told[1], *more)

        return round_

    @property
    def like(self) -> Home:
        """See `Work`."""
        return self._like

    def begin(self) -> Home:
        """See `Work`."""
        home: Home = self._start.load()(key(self._place, "init"))
        return home

    def __call__(self, home: Home, asked: Asked) -> tuple[Home, np.ndarray, Told]:
        """See `Work`."""
        home, vector, told = self._round(home, asked, self._key)
        vector, (metrics, ended, skipped, finite, steps, done) = jax.device_get((vector, told))
        found = episodes(ended, steps[: int(done)])
        unfit = tuple(int(count) for count in ended.unfit.sum(axis=(0, 1, 2)))
        named = {name: float(value) for name, value in metrics.items()}
        return (
            home,
            vector,
            Told(found, named, int(skipped), (unfit[0], unfit[1]), bool(finite), int(steps.sum()), int(done)),
        )

    def evaluate(self, state: types.State, words: np.ndarray, episodes: int) -> float:
        """See `Work`."""
        if episodes not in self._measures:
            self._measures[episodes] = jax.jit(fitness.program(self._parts, episodes))
        states = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], state)
        return float(self._measures[episodes](states, prng.wrap(words)[None])[0][0])

    def resumed(self, home: Home, life: int) -> Home:
        """See `Work`: all of it was saved."""
        del life
        return home

    def close(self) -> None:
        """See `Work`."""
