"""The programs of parties as one axis: all act and learn at home in one compiled call, some updates each.

A party has the keys of its number and counts its own updates, so what it learns depends on no other and not on who else
is at work; who is not keeps every bit. What came down is installed at the beginning of a call, what goes up is its last
result (`channels`): between the two nothing of one party is seen by another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epy

from shoal.core import tree, types
from shoal.formulas import optimise
from shoal.runtimes.experience import rollouts
from shoal.runtimes.federated import channels
from shoal.runtimes.members import dispatch, fitness, loop

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

    from shoal.networks import scopes

Homes = loop.Loop  # every leaf [N, ...], those of `loop.Common` too: parties need not be at the same update
Channel = channels.Channel | None  # None: nothing is exchanged


class Shape(NamedTuple):
    """What fixes the programs."""

    parties: int  # N
    environments: int  # B, of each
    updates: int  # K of a call


class Asked(NamedTuple):
    """What a call is to do; leaves ``[N, ...]``."""

    theta: types.Array  # [N, d] f32, what came down
    base: types.Array  # [N] i32, the version it is of
    mu: types.Array  # [N] f32
    active: types.Array  # [N] bool, who is at work
    force: types.Array  # [N] bool: learns, ready or not; to measure how long it takes


class Told(NamedTuple):
    """What comes of a call; the vectors go up, the rest is told beside the channel."""

    vector: types.Array  # [N, d] f32
    metrics: types.Metrics  # [N], means over the call
    ended: rollouts.Ended  # [N, K, T, B], but `unfit` [N, 2]: how many
    skipped: types.Array  # [N] i32, gradients dropped in this call, for they were not finite
    finite: types.Array  # [N] bool; false: the learner is as it was before, for its numbers were no longer finite


# ------------------------------------------------------------------------------------------------ beginning


def keys(seed: types.Key, parties: int) -> types.Key:
    """One a party, ``[N]``, by its number."""
    return jax.vmap(lambda at: jax.random.fold_in(seed, at))(jnp.arange(parties))


def begin(parts: types.Parts, shape: Shape) -> Callable:
    """(keys ``[N]``) -> `Homes`: a party begins as it would alone, in its own environment."""

    def one(key: types.Key, number: types.Scalar) -> Homes:
        own = parts._replace(device_env=owned(parts, number))
        whole = loop.start(own, loop.Shape(shape.environments, shape.updates), lambda state, _: state)(key[None])
        return loop.Loop(jax.tree.map(lambda leaf: leaf[0], whole.members), whole.common)

    return lambda keys: jax.vmap(one)(keys, jnp.arange(shape.parties, dtype=jnp.int32))


def owned(parts: types.Parts, number: types.Scalar) -> types.Env:
    """The environment as it begins for one owner; where owners do not differ, as it is."""
    env = parts.device_env
    assert env is not None
    init = env.init_as
    return env if init is None else env._replace(init=lambda key: init(key, number))


# ------------------------------------------------------------------------------------------------ at work


def work(parts: types.Parts, shape: Shape, channel: Channel, way: dispatch.Way, *, whole: bool) -> Callable:
    """A call of K updates.

    Args:
        parts: The agent and its environment.
        shape: Of the program.
        channel: What crosses.
        way: How a function of one party becomes one of all.
        whole: All parties are at work in every call, and `Asked.active` is not read.

    Returns:
        (`Homes`, keys ``[N]``, `Asked`) -> (`Homes`, `Told`).
    """

    def many(function: Callable, *_: types.Tree) -> Callable:
        return jax.vmap(function)

    def single(function: Callable, *_: types.Tree) -> Callable:
        return function

    several, one = _working(parts, shape, channel, many), _working(parts, shape, channel, single)
    if not whole:
        several, one = _only_active(several), _if_active(one)
    every = dispatch.every(one, several, way)

    def call(homes: Homes, keys: types.Key, asked: Asked) -> tuple[Homes, Told]:
        (homes, _), _, told = every((homes, asked), (), keys)
        return homes, told

    return call


Turn = Callable[..., tuple[tuple[Homes, Asked], tuple, Told]]  # ((homes, asked), (), keys) -> as `dispatch.every` wants


def _working(parts: types.Parts, shape: Shape, channel: Channel, lift: Callable) -> Turn:
    update, finish = _update(parts, lift), lift(_finish(channel, shape.updates))

    def down(homes: Homes, asked: Asked) -> tuple[Homes, types.Tree]:
        """Homes after the download, and what gathering begins with."""
        if channel is None:
            return homes, ()
        members, first = homes.members, channel.first
        state = lift(channel.begin)(members.state, asked.theta, asked.base, asked.mu)
        return homes._replace(members=members._replace(state=state)), lift(lambda _: first)(asked.base)

    def turn(given: tuple[Homes, Asked], common: tuple, keys: types.Key) -> Any:
        before, asked = given
        homes, gathered = down(before, asked)

        def once(at: tuple[Homes, types.Tree], _: None) -> Any:
            homes, new = update(at[0], keys, asked.force)
            return (homes, lift(channel.gather)(at[1], homes.members.state) if channel else ()), new

        (homes, gathered), told = jax.lax.scan(once, (homes, gathered), None, shape.updates)  # [K, ...] or [K, N, ...]
        if keys.ndim:
            told = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), told)
        state, tells = finish(before.members.state, homes.members.state, asked.theta, gathered, told)
        return (homes._replace(members=homes.members._replace(state=state)), asked), common, tells

    return turn


def _update(parts: types.Parts, lift: Callable) -> Callable:
    """(homes, keys, force) -> (homes, (metrics, ended))."""
    agent, env, learn = parts.agent, parts.device_env, loop.learn(parts, lift)
    assert env is not None

    def acting(state: types.State, actors: rollouts.Actors, key: types.Key) -> Any:
        act_key, learn_key = jax.random.split(key)
        return *rollouts.collect(agent, env, agent.snapshot(state), actors, act_key), learn_key

    act, own = lift(acting), lift(jax.random.fold_in)

    def update(homes: Homes, keys: types.Key, force: types.Array) -> Any:
        members, common = homes
        actors, rollout, ended, learn_keys = act(members.state, members.actors, own(keys, common.update))
        acted = members._replace(actors=actors)
        members, common, metrics = learn(acted, common, rollout, learn_keys, force)
        return loop.Loop(members, common), (metrics, ended)

    return update


def _finish(channel: Channel, updates: int) -> Callable:
    """Of one party: what goes up and is told, and the learner as it stays at home."""

    def finish(before: types.State, after: types.State, theta: types.Array, gathered: types.Tree, told: Any) -> Any:
        means, ended = jax.tree.map(lambda leaf: leaf.mean(axis=0), told[0]), told[1]
        vector = channel.end(after, theta, gathered, jnp.float32(updates)) if channel else jnp.zeros(0)
        finite = tree.all_finite((after, means))
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)
        ended = ended._replace(unfit=ended.unfit.sum(axis=(0, 1, 2), dtype=jnp.int32))
        skipped = optimise.skipped(after) - optimise.skipped(before)
        return state, Told(vector, means, ended, skipped, finite)

    return finish


def _only_active(turn: Turn) -> Turn:
    """Several parties: all are computed, and of those that are not at work nothing is kept."""

    def masked(given: tuple[Homes, Asked], common: tuple, keys: types.Key) -> Any:
        (after, asked), common, told = turn(given, common, keys)

        def kept(new: types.Array, old: types.Array) -> types.Array:
            return jnp.where(asked.active.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        blank = jax.tree.map(jnp.zeros_like, told)._replace(finite=jnp.ones_like(told.finite))
        return (jax.tree.map(kept, after, given[0]), asked), common, jax.tree.map(kept, told, blank)

    return masked


def _if_active(turn: Turn) -> Turn:
    """One party: nothing is computed where it is not at work."""

    def masked(given: tuple[Homes, Asked], common: tuple, keys: types.Key) -> Any:
        like = jax.eval_shape(turn, given, common, keys)[2]

        def rest(given: tuple[Homes, Asked], common: tuple, keys: types.Key) -> Any:
            del keys
            blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
            return given, common, blank._replace(finite=jnp.bool_(True))

        return jax.lax.cond(given[1].active, turn, rest, given, common, keys)

    return masked


# ------------------------------------------------------------------------------------------------ looked at


def policies(parts: types.Parts, channel: Channel) -> Callable:
    """(learners ``[N]``, global part ``[d]``) -> every party's policy: the global part with what is its own."""
    install = installed(channel)
    return lambda states, theta: jax.vmap(lambda state: parts.agent.snapshot(install(state, theta)))(states)


def installed(channel: Channel) -> Callable:
    """(learner, global part ``[d]``) -> the learner with it; all else is bit for bit as before."""

    def install(state: types.State, theta: types.Array) -> types.State:
        return state._replace(params=scopes.install(state.params, theta)) if channel else state

    return install


def measure(parts: types.Parts, channel: Channel, episodes: int) -> Callable:
    """Whole greedy episodes of every party in its own environment; nothing of training is touched.

    Args:
        parts: The agent and its environment.
        channel: What crosses.
        episodes: That each plays, at the same time.

    Returns:
        (learners ``[N]``, global part ``[d]``, keys ``[N]``) -> returns ``[N, episodes]``.
    """
    agent, install = parts.agent, installed(channel)
    limit = fitness.LONGEST if parts.spec.time_limit else fitness.LONGEST_FREE

    def first(number: types.Scalar, key: types.Key) -> Any:
        env = owned(parts, number)
        state, obs = jax.vmap(env.init)(jax.random.split(key, episodes))
        carry = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (episodes, *leaf.shape)), agent.about.carry)
        return state, obs, carry, jnp.zeros(episodes), jnp.ones(episodes, bool)

    def step(policy: types.Policy, key: types.Key, at: Any, count: types.Scalar) -> Any:
        state, obs, carry, total, running = at
        act_key, env_key = jax.random.split(jax.random.fold_in(key, count))
        action, _, carry = rollouts.act_all(agent, policy, carry, obs, jax.random.split(act_key, episodes))
        env = parts.device_env
        assert env is not None
        state, obs, outcome = jax.vmap(env.step)(state, action, jax.random.split(env_key, episodes))
        total = total + jnp.where(running, outcome.reward, 0.0)
        return state, obs, carry, total, running & ~(outcome.truncated | (outcome.discount == 0))

    def measured(states: types.State, theta: types.Array, keys: types.Key) -> types.Array:
        def greedy(state: types.State) -> types.Policy:
            return agent.snapshot(install(state, theta))._replace(explore=jnp.float32(0.0))

        policy, numbers = jax.vmap(greedy)(states), jnp.arange(len(keys), dtype=jnp.int32)
        begins, keys = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
        start = jax.vmap(first)(numbers, begins), jnp.uint32(0)

        def once(at: Any) -> Any:
            return jax.vmap(step, in_axes=(0, 0, 0, None))(policy, keys, *at), at[1] + 1

        return jax.lax.while_loop(lambda at: at[0][4].any() & (at[1] < limit), once, start)[0][3]

    return measured
