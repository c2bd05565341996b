"""The compiled loop of a population: every member acts, remembers and learns, several updates a call.

The replay memory lies beside the learners' states. Which of its rows is written next is the same for all members, so
under an axis of members a write stays one slice of one array, in place; were the memory inside a state that `vmap`
maps over, it would be copied at every step. Whether a member has seen enough to learn may differ between members: the
states, without the memory, are then chosen between by a mask, and nothing is computed before the first is ready.

Every member has the keys of its number, so what it learns depends on no other member.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epy

from shoal.core import tree, types
from shoal.formulas import optimise
from shoal.runtimes.experience import rollouts
from shoal.runtimes.members import dispatch

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


class Members(NamedTuple):
    """What is the members' own; leaves ``[N, ...]``."""

    state: types.State  # the learners, without their memories
    memory: types.Tree  # what each remembers; () where rules have none, or keep it in the state
    actors: rollouts.Actors  # [N, B, ...]


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


class Learns(NamedTuple):
    """Learning from memories that are kept here."""

    practice: types.Practice
    memory: types.Replay


def learns(agent: types.Agent) -> Learns | None:
    """How the rule learns from a memory that is kept here; None: it has none, or keeps it itself."""
    practice = agent.about.practice
    return None if practice is None or practice.memory is None else Learns(practice, practice.memory)


# ------------------------------------------------------------------------------------------------ memory


def parted(memory: types.Memory, common: types.Tree) -> tuple[types.Tree, types.Tree]:
    """A memory as what is one member's own, and what is the same for all."""
    own = jax.tree.map(lambda leaf, shared: None if shared else leaf, memory, common)
    return own, jax.tree.map(lambda leaf, shared: leaf if shared else None, memory, common)


def joined(own: types.Tree, common: types.Tree) -> types.Memory:
    """The memory again."""
    return jax.tree.map(lambda mine, ours: ours if mine is None else mine, own, common, is_leaf=lambda x: x is None)


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
    agent, env, kept_here = parts.agent, parts.device_env, learns(parts.agent)
    assert env is not None

    def one(key: types.Key) -> Members:
        learner, world, prior = jax.random.split(key, 3)
        state = agent.init(learner)
        kept: Any = ()
        if kept_here:
            field = str(agent.about.fields.memory)
            own = tree.field(state, field)
            kept, _ = parted(own, kept_here.memory.common(own))
            state = tree.replaced(state, field, ())
        return Members(tune(state, prior), kept, rollouts.start(agent, env, shape.environments, world))

    def every(keys: types.Key) -> Loop:
        counts: Any = ()
        if kept_here:
            empty = kept_here.memory.init()
            counts = parted(empty, kept_here.memory.common(empty))[1]
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
        kept_here = learns(parts.agent)
        step = _practising(parts, kept_here, lift) if kept_here else _updating(parts, lift)

        def update(members: Members, common: Common, keys: types.Key, force: types.Scalar) -> Any:
            own = lift(lambda key: jax.random.fold_in(key, common.update))(keys)
            members, counts, told = step(members, common.memory, own, force)
            return members, Common(counts, common.update + 1), told

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

    return dispatch.every(lifted(lambda function, *_: function), lifted(_vmapped), way)


def _vmapped(function: Callable, given: Any = 0, back: Any = 0) -> Callable:
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


def _updating(parts: types.Parts, lift: Callable[..., Any]) -> Callable:
    """An update by `Agent.update`."""
    act, learn = _acting(parts, lift), lift(parts.agent.update)

    def step(members: Members, counts: types.Tree, keys: types.Key, force: types.Scalar) -> Any:
        del force
        actors, rollout, ended, learn_keys = act(members.state, members.actors, keys)
        state, metrics = learn(members.state, rollout, learn_keys)
        return Members(state, (), actors), counts, (metrics, ended)

    return step


def _practising(parts: types.Parts, given: Learns, lift: Callable[..., Any]) -> Callable:
    """An update from the memories: what `Agent.update` does with one that is its own (decision 0016)."""
    practice, memory = given
    act, prepare, ready = _acting(parts, lift), lift(practice.prepare), lift(practice.ready)

    def remember(own: types.Tree, counts: types.Tree, steps: types.Transition) -> Any:
        after = memory.add(joined(own, counts), steps)
        return parted(after, memory.common(after))

    add = lift(remember, (0, None, 0), (0, None))
    filled = lift(lambda own, counts: memory.filled(joined(own, counts)), (0, None))

    def step(members: Members, counts: types.Tree, keys: types.Key, force: types.Scalar) -> Any:
        actors, rollout, ended, learn_keys = act(members.state, members.actors, keys)
        state, steps = prepare(members.state, rollout)
        kept, counts = add(members.memory, counts, steps)
        go = (ready(state) & filled(kept, counts)) | force
        state, kept, metrics = _practise(given, lift, (state, kept, counts), go, learn_keys)
        return Members(state, kept, actors), counts, (metrics, ended)

    return step


def _practise(
    using: Learns, lift: Callable[..., Any], given: tuple[Any, Any, Any], go: types.Array, keys: types.Key
) -> tuple[types.State, types.Tree, types.Metrics]:
    """Draw and learn, some times over, where `go` says so."""
    practice, memory = using
    state, kept, counts = given
    drawing = lift(practice.drawing)(state)

    def drawn(own: types.Tree, counts: types.Tree, drawing: Any, key: types.Key) -> Any:
        draw_key, learn_key = jax.random.split(key)
        return memory.sample(joined(own, counts), drawing[0], drawing[1], draw_key), learn_key

    def graded(own: types.Tree, counts: types.Tree, drawing: Any, sample: Any, error: types.Array, go: Any) -> Any:
        error = jnp.where(sample.weight > 0, error, 0.0)  # what nothing is learned from is not worth drawing
        before = joined(own, counts)
        after = memory.reprioritise(before, sample.index, error, drawing[1])
        after = jax.tree.map(lambda new, old: old if new is old else jnp.where(go, new, old), after, before)
        return parted(after, memory.common(after))[0]

    draw = lift(drawn, (0, None, 0, 0))
    grade = lift(graded, (0, None, 0, 0, 0, 0))
    choose = lift(lambda go, new, old: jax.tree.map(lambda a, b: jnp.where(go, a, b), new, old))

    def once(both: tuple[Any, Any], keys: types.Key) -> Any:
        state, kept = both
        sample, learn_keys = draw(kept, counts, drawing, keys)
        like = jax.eval_shape(lift(practice.learn), state, sample, learn_keys)[1:]

        def learn(state: types.State, sample: Any, keys: types.Key) -> Any:
            new, *rest = lift(practice.learn)(state, sample, keys)
            nothing = jax.tree.map(jnp.zeros_like, rest)
            return choose(go, new, state), *choose(go, rest, nothing)

        def rest(state: types.State, sample: Any, keys: types.Key) -> Any:
            del sample, keys
            return state, *jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)

        state, error, metrics = jax.lax.cond(jnp.any(go), learn, rest, state, sample, learn_keys)
        return (state, grade(kept, counts, drawing, sample, error, go)), metrics

    if practice.updates == 1:
        (state, kept), metrics = once((state, kept), keys)
        return state, kept, metrics
    several = jnp.moveaxis(lift(lambda key: jax.random.split(key, practice.updates))(keys), -1, 0)
    (state, kept), metrics = jax.lax.scan(once, (state, kept), several)
    return state, kept, jax.tree.map(lambda leaf: leaf[-1], metrics)
