"""What members learn from a rollout, wherever it comes from: by their rule, or from memories that are kept here.

The replay memory lies beside the learners' states. Which of its rows is written next is the same for all members, so
under an axis of members a write stays one slice of one array, in place; were the memory inside a state that `vmap`
maps over, it would be copied at every step. Whether a member has seen enough to learn may differ between members: the
states, without the memory, are then chosen between by a mask, and nothing is computed before the first is ready.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epy

from shoal.core import types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

Given = tuple[types.State, types.Tree, types.Tree]  # states, their memories, what all memories have in common


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


# ------------------------------------------------------------------------------------------------ learning


def step(agent: types.Agent, lift: Callable[..., types.Tree]) -> Callable:
    """A function that lets members learn once.

    Args:
        agent: Their rule.
        lift: Makes of a function of one member one of all.

    Returns:
        (`Given`, rollouts ``[N, T, B]``, keys ``[N]``, whether all learn, ready or not) -> (states, memories, common,
        metrics ``[N]``).
    """
    kept_here = learns(agent)
    return _practising(kept_here, lift) if kept_here else _updating(agent, lift)


def _updating(agent: types.Agent, lift: Callable[..., Any]) -> Callable:
    """An update by `Agent.update`."""
    learn = lift(agent.update)

    def step(given: Given, rollout: types.Rollout, keys: types.Key, force: types.Scalar) -> Any:
        del force
        state, metrics = learn(given[0], rollout, keys)
        return state, *given[1:], metrics

    return step


def _practising(using: Learns, lift: Callable[..., Any]) -> Callable:
    """An update from the memories: what `Agent.update` does with one that is its own (decision 0016)."""
    practice, memory = using
    prepare, ready = lift(practice.prepare), lift(practice.ready)

    def remember(own: types.Tree, counts: types.Tree, steps: types.Transition) -> Any:
        after = memory.add(joined(own, counts), steps)
        return parted(after, memory.common(after))

    add = lift(remember, (0, None, 0), (0, None))
    filled = lift(lambda own, counts: memory.filled(joined(own, counts)), (0, None))

    def step(given: Given, rollout: types.Rollout, keys: types.Key, force: types.Scalar) -> Any:
        state, steps = prepare(given[0], rollout)
        kept, counts = add(*given[1:], steps)
        go = (ready(state) & filled(kept, counts)) | force
        state, kept, metrics = _practise(using, lift, (state, kept, counts), go, keys)
        return state, kept, counts, metrics

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
