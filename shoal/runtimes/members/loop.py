"""The compiled loop of a population: every member acts, remembers and learns, several updates a call.

What they learn from their rollouts, and where their memories lie, is in `learning`.
Every member has the keys of its number, so what it learns depends on no other member.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epy

from shoal.core import tree, types
from shoal.formulas import optimise
from shoal.runtimes.experience import rollouts
from shoal.runtimes.members import dispatch, learning

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


class Members(NamedTuple):
    """What is the members' own; leaves ``[N, ...]``."""

    state: types.State  # the learners, without their memories
    memory: types.Tree  # what each remembers; () where rules have none, or keep it in the state
    actors: types.Tree  # `rollouts.Actors` [N, B, ...]; of simulators on the host, the recurrent state alone


class Common(NamedTuple):
    """What all members have in common."""

    memory: types.Tree  # which rows of the memories are filled
    update: types.Scalar  # u32, updates that each of them has done; keys are folded from it


class Loop(NamedTuple):
    """All that makes the next update what it is."""

    members: Members
    common: Common


class Told(NamedTuple):
    """What the device tells of a call of K updates."""

    metrics: types.Metrics  # [N], means over the call
    ended: rollouts.Ended  # [N, K, T, B], of fewer updates the first; but `unfit` [N, 2]: how many
    skipped: types.Array  # [N] i32, gradients dropped in this call, for they were not finite
    finite: types.Array  # [N] bool, whether all numbers of the learner, and what it measured, are


class Shape(NamedTuple):
    """What fixes the program."""

    environments: int  # B, of each member
    updates: int  # K, in a call at most


class Ask(NamedTuple):
    """What is asked of a call."""

    updates: types.Scalar  # i32, at most K
    force: types.Scalar  # bool: all learn, ready or not; to measure how long it takes


# ------------------------------------------------------------------------------------------------ beginning


def start(parts: types.Parts, shape: Shape, tune: Callable[[types.State, types.Key], types.State]) -> Callable:
    """A function that makes the first loop.

    Args:
        parts: The agent and its environment.
        shape: Of the program.
        tune: (one member's state, key) -> the state with its own hyperparameters.

    Returns:
        (keys ``[N]`` of the members' beginnings) -> `Loop`.
    """
    agent, env, kept_here, batch = parts.agent, parts.device_env, learning.learns(parts.agent), shape.environments

    def one(key: types.Key) -> Members:
        learner, world, prior = jax.random.split(key, 3)
        state = agent.init(learner)
        kept: Any = ()
        if kept_here:
            field = str(agent.about.fields.memory)
            own = tree.field(state, field)
            kept, _ = learning.parted(own, kept_here.memory.common(own))
            state = tree.replaced(state, field, ())
        if env is None:  # simulators on the host show the rest
            actors = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (batch, *leaf.shape)), agent.about.carry)
        else:
            actors = rollouts.start(agent, env, batch, world)
        return Members(tune(state, prior), kept, actors)

    def every(keys: types.Key) -> Loop:
        counts: Any = ()
        if kept_here:
            empty = kept_here.memory.init()
            counts = learning.parted(empty, kept_here.memory.common(empty))[1]
        return Loop(jax.vmap(one)(keys), Common(counts, jnp.uint32(0)))

    return every


# ------------------------------------------------------------------------------------------------ learning


def call(parts: types.Parts, shape: Shape, way: dispatch.Way) -> Callable:
    """A function that lets every member do some updates, K at most.

    Args:
        parts: The agent and its environment.
        shape: Of the program.
        way: How a function of one member becomes one of all.

    Returns:
        (`Members`, `Common`, keys ``[N]``, `Ask`) -> (`Members`, `Common`, `Told`).
    """

    def lifted(lift: Callable[..., Any]) -> Callable:
        act, practise = _acting(parts, lift), learn(parts, lift)

        def update(members: Members, common: Common, keys: types.Key, force: types.Scalar) -> Any:
            own = lift(lambda key: jax.random.fold_in(key, common.update))(keys)
            actors, rollout, ended, learn_keys = act(members.state, members.actors, own)
            acted = members._replace(actors=actors)
            members, common, metrics = practise(acted, common, rollout, learn_keys, force)
            return members, common, (metrics, ended)

        def several(members: Members, common: Common, keys: types.Key, ask: Ask) -> Any:
            before = lift(optimise.skipped)(members.state)
            one = jax.eval_shape(update, members, common, keys, ask.force)[2]
            metrics, ended = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), one)
            ended = lift(lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf] * shape.updates), tree))(ended)
            write = lift(lambda all_, new, at: jax.tree.map(lambda a, b: a.at[at].set(b), all_, new), (0, 0, None))

            def once(at: types.Scalar, now: tuple[Any, Any, Any, Any]) -> Any:
                members, common, metrics, ended = now
                members, common, (more, new) = update(members, common, keys, ask.force)
                return members, common, jax.tree.map(jnp.add, metrics, more), write(ended, new, at)

            # A loop whose length is not known: one program for calls of any length.
            members, common, metrics, ended = jax.lax.fori_loop(0, ask.updates, once, (members, common, metrics, ended))
            means = jax.tree.map(lambda leaf: leaf / ask.updates, metrics)
            return members, common, lift(_told)(members.state, means, ended, before)

        return several

    return dispatch.every(lifted(lambda function, *_: function), lifted(vmapped), way)


def vmapped(function: Callable, given: types.Tree = 0, back: types.Tree = 0) -> Callable:
    """A function of one member as one of all, by an axis in front."""
    return jax.vmap(function, in_axes=given, out_axes=back)


def _told(state: types.State, metrics: types.Metrics, ended: rollouts.Ended, before: types.Scalar) -> Told:
    finite = tree.all_finite((state, metrics))
    ended = ended._replace(unfit=ended.unfit.sum(axis=(0, 1, 2), dtype=jnp.int32))
    return Told(metrics, ended, optimise.skipped(state) - before, finite)


def _acting(parts: types.Parts, lift: Callable[..., Any]) -> Callable:
    """(members, keys) -> (actors, rollout, ended, keys to learn with)."""
    agent, env = parts.agent, parts.device_env
    assert env is not None

    def one(state: types.State, actors: rollouts.Actors, key: types.Key) -> Any:
        act_key, learn_key = jax.random.split(key)
        actors, rollout, ended = rollouts.collect(agent, env, agent.snapshot(state), actors, act_key)
        return actors, rollout, ended, learn_key

    return lift(one)


def learn(parts: types.Parts, lift: Callable[..., types.Tree]) -> Callable:
    """(members, common, rollout, keys, force) -> (members, common, metrics)."""
    step = learning.step(parts.agent, lift)

    def once(members: Members, common: Common, rollout: types.Rollout, keys: types.Key, force: types.Scalar) -> Any:
        given = members.state, members.memory, common.memory
        state, kept, counts, metrics = step(given, rollout, keys, force)
        return Members(state, kept, members.actors), Common(counts, common.update + 1), metrics

    return once
