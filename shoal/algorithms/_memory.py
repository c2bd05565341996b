"""Replay memories: flashbax's trajectory buffers behind two verbs, `add` and `sample`.

What is sampled is a transition over up to n steps, whatever way it is stored:

* of vectors, each step keeps its true successor, so that a time limit bootstraps from it;
* of images, each frame is kept once: a stack is put together again from the steps before, and a successor from the
  steps after. The successor of a step cut by a time limit is then the one thing that is not there; returns are
  bootstrapped from the observation before it, and the cut step itself gets weight 0.

A memory is part of the learner's state, so it is checkpointed and resumed with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epy

from shoal.core import errors, types

with epy.lazy_imports():
    import flashbax
    import jax
    import jax.numpy as jnp
    from flashbax.buffers import sum_tree


class Plan(NamedTuple):
    """The numbers that fix a memory's shape."""

    capacity: int  # environment steps of all streams
    batch: int  # transitions in a sample
    n_step: int  # steps of one transition at most
    streams: int  # B
    prioritised: bool
    rollout_length: int = 1  # T, steps that are added at a time


class Priorities(NamedTuple):
    """Numbers of prioritised replay that may change; Schaul et al. 2016, arXiv:1511.05952."""

    exponent: Any  # how much the error decides (alpha): 0 is uniform
    correction: Any  # how much of the bias is corrected (beta): 1 is all


class Step(NamedTuple):
    """One stored step of one stream."""

    obs: Any  # [*obs], or the newest frame of it
    action: Any
    reward: Any  # f32
    discount: Any  # f32, 0 only at true termination
    truncated: Any  # bool
    next_obs: Any  # [*obs] the true successor; () where frames are kept once


class Sample(NamedTuple):
    """N transitions."""

    obs: Any  # [N, *obs]
    action: Any  # [N, ...]
    reward: Any  # [N] f32, discounted sum over the steps taken together
    discount: Any  # [N] f32, γ^m times the environment's discount: what the value of next_obs is worth
    next_obs: Any  # [N, *obs] to bootstrap from
    weight: Any  # [N] f32: importance weights, at most 1; 0 where there is nothing to learn from
    index: Any  # for `reprioritise`, () when uniform


COUNTS = ("current_index", "is_full", "running_index")  # of what flashbax keeps, what only says how many rows there are


def build(plan: Plan, spec: types.EnvSpec) -> types.Replay:
    """A memory for one environment.

    Args:
        plan: Its shape.
        spec: Observations and actions to be kept.

    Raises:
        Refused: The capacity does not hold one sequence of each stream.
    """
    once = spec.observation.image
    before = spec.observation.stack - 1 if once else 0
    length = before + plan.n_step + (1 if once else 0)
    rows = plan.capacity // plan.streams
    needed = max(length + 1, plan.rollout_length)
    if rows < needed:
        raise errors.Refused(
            f"algorithm.capacity={plan.capacity} leaves {rows} steps for each of {plan.streams} environments, but "
            f"{needed} are needed; give at least {needed * plan.streams}"
        )
    buffer = _buffer(plan, length, rows)
    fold = _fold_frames(before, plan.n_step, spec.observation) if once else _fold_vectors(plan.n_step)

    def init() -> Any:
        # flashbax counts in weakly typed numbers, which would compile everything twice.
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), buffer.init(_example(spec, once)))

    def add(memory: Any, steps: types.Transition) -> Any:
        obs = steps.obs[..., -(steps.obs.shape[-1] // spec.observation.stack) :] if once else steps.obs
        kept = Step(obs, steps.action, steps.reward, steps.discount, steps.truncated, () if once else steps.next_obs)
        return buffer.add(memory, jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), kept))

    def sample(memory: Any, discount: Any, priorities: Any, key: types.Key) -> Sample:
        drawn = buffer.sample(memory, key)
        made = jax.vmap(fold, in_axes=(0, None))(drawn.experience, discount)
        if not plan.prioritised:
            return made
        held = drawn.probabilities > 0  # at the edges of the tree, rounding may lead to a place that holds nothing
        weight = jnp.where(held, jnp.where(held, drawn.probabilities, 1.0) ** -priorities.correction, 0.0)
        weight = weight / jnp.maximum(jnp.max(weight), 1e-12)
        return made._replace(weight=made.weight * weight, index=drawn.indices)

    def reprioritise(memory: Any, index: Any, error: Any, priorities: Any) -> Any:
        if not plan.prioritised:
            return memory
        before = sum_tree.get(memory.sum_tree_state, index)
        priority = (jnp.abs(error) + 1e-6) ** priorities.exponent
        # What holds nothing keeps its 0; an error that is not finite would spoil the sum of all: not drawn again.
        return buffer.set_priorities(memory, index, jnp.where((before > 0) & jnp.isfinite(priority), priority, 0.0))

    def cut(memory: Any) -> Any:
        newest = (memory.current_index - 1) % rows
        kept = memory.experience
        # Where nothing is stored yet the mark is on an empty place, and the first step overwrites or follows it.
        ended = kept.truncated.at[:, newest].set(kept.discount[:, newest] > 0)
        return memory.replace(experience=kept._replace(truncated=ended))

    def common(memory: Any) -> Any:
        own = jax.tree.map(lambda _: False, memory)
        return own.replace(**{name: True for name in COUNTS if name in vars(own)})

    return types.Replay(init, add, sample, buffer.can_sample, reprioritise, cut, common)


def _buffer(plan: Plan, length: int, rows: int) -> Any:
    settings = {
        "add_batch_size": plan.streams,
        "sample_batch_size": plan.batch,
        "sample_sequence_length": length,
        "period": 1,
        "min_length_time_axis": length,
        "max_length_time_axis": rows,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of periods that leave steps out; one leaves none
        if not plan.prioritised:
            return flashbax.make_trajectory_buffer(**settings)
        # The exponent is applied before the tree sees a priority, so that it may change.
        device = jax.default_backend()
        return flashbax.make_prioritised_trajectory_buffer(**settings, priority_exponent=1.0, device=device)


def _example(spec: types.EnvSpec, once: bool) -> Step:
    seen, action = spec.observation, spec.action
    shape = (*seen.shape[:2], seen.shape[2] // seen.stack) if once else seen.shape
    obs = jnp.zeros(shape, seen.dtype)
    chosen = jnp.int32(0) if action.discrete else jnp.zeros(action.shape)
    return Step(obs, chosen, jnp.float32(0), jnp.float32(0), jnp.asarray(False), () if once else obs)


def _returns(steps: Step, at: int, n_step: int, discount: Any, *, stored_next: bool) -> tuple[Any, Any, Any, Any]:
    """The transition that begins at step `at` of a sequence.

    Returns:
        (reward, discount of what follows, how many steps were taken together, weight).
    """
    reward, worth = jnp.zeros(()), jnp.ones(())
    going = jnp.asarray(True)  # no end so far
    taken = jnp.int32(0)
    for k in range(n_step):
        cut = steps.truncated[at + k]
        # Without its successor a cut step cannot be the last one: the return ends before it.
        use = going if stored_next else going & ~cut
        reward = reward + jnp.where(use, worth * steps.reward[at + k], 0.0)
        worth = jnp.where(use, worth * discount * steps.discount[at + k], worth)
        taken = taken + use.astype(jnp.int32)
        going = going & ~cut & (steps.discount[at + k] > 0)
    return reward, worth, taken, (taken > 0).astype(jnp.float32)


def _fold_vectors(n_step: int) -> Callable[[Step, Any], Sample]:
    def fold(steps: Step, discount: Any) -> Sample:  # leaves [n, ...]
        reward, worth, taken, weight = _returns(steps, 0, n_step, discount, stored_next=True)
        return Sample(steps.obs[0], steps.action[0], reward, worth, steps.next_obs[taken - 1], weight, ())

    return fold


def _fold_frames(before: int, n_step: int, seen: types.ObservationSpec) -> Callable[[Step, Any], Sample]:
    def stack(steps: Step, at: Any) -> Any:
        """The observation at one step: its frame and those before it, no older than the episode."""
        if not before:
            return steps.obs[at]
        ended = (steps.discount == 0) | steps.truncated
        places = jnp.arange(len(ended))
        first = jnp.max(jnp.where(ended & (places < at), places + 1, 0))
        chosen = jnp.maximum(at - jnp.arange(before, -1, -1), first)
        return jnp.moveaxis(steps.obs[chosen], 0, 2).reshape(seen.shape)

    def fold(steps: Step, discount: Any) -> Sample:  # leaves [before + n + 1, ...]
        reward, worth, taken, weight = _returns(steps, before, n_step, discount, stored_next=False)
        obs, following = stack(steps, jnp.int32(before)), stack(steps, before + taken)
        return Sample(obs, steps.action[before], reward, worth, following, weight, ())

    return fold


def update(
    practice: types.Practice, memory: types.Replay
) -> Callable[[Any, types.Rollout, types.Key], tuple[Any, types.Metrics]]:
    """What a rule that learns from memory does with a rollout: remember it, then practise."""

    def learn(state: Any, rollout: types.Rollout, key: types.Key) -> tuple[Any, types.Metrics]:
        kept = state.memory
        state, steps = practice.prepare(state._replace(memory=()), rollout)
        state, kept, metrics = practise(practice, memory, state, memory.add(kept, steps), key)
        return state._replace(memory=kept), metrics

    return learn


def practise(
    practice: types.Practice, memory: types.Replay, state: Any, kept: Any, key: types.Key
) -> tuple[Any, Any, types.Metrics]:
    """Draw and learn, some times over; nothing happens before the rule is ready and a sample can be drawn.

    The memory itself never passes through the conditional: a branch that hands on a large array copies it.

    Args:
        practice: Of the rule.
        memory: The functions of its memory.
        state: The learner's, without its memory.
        kept: What the memory holds.
        key: Consumed.

    Returns:
        The state, the memory with its new priorities, and the metrics of the last gradient step (0 before it is ready).
    """
    ready = practice.ready(state) & memory.filled(kept)
    discount, priorities = practice.drawing(state)

    def once(both: tuple[Any, Any], key: types.Key) -> tuple[tuple[Any, Any], types.Metrics]:
        state, kept = both
        draw_key, learn_key = jax.random.split(key)
        drawn = memory.sample(kept, discount, priorities, draw_key)
        like = jax.eval_shape(practice.learn, state, drawn, learn_key)[1:]

        def rest(state: Any, drawn: Sample, key: types.Key) -> Any:
            del drawn, key
            return state, *jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)

        state, error, metrics = jax.lax.cond(ready, practice.learn, rest, state, drawn, learn_key)
        error = jnp.where(drawn.weight > 0, error, 0.0)  # what nothing is learned from is not worth drawing
        after = memory.reprioritise(kept, drawn.index, error, priorities)
        kept = jax.tree.map(lambda new, old: old if new is old else jnp.where(ready, new, old), after, kept)
        return (state, kept), metrics

    if practice.updates == 1:
        (state, kept), metrics = once((state, kept), key)
        return state, kept, metrics
    (state, kept), metrics = jax.lax.scan(once, (state, kept), jax.random.split(key, practice.updates))
    return state, kept, jax.tree.map(lambda leaf: leaf[-1], metrics)


def restart(memory: types.Replay) -> Callable[[Any], Any]:
    """`types.About.restart` of such a rule: the streams that are remembered break off."""
    return lambda state: state._replace(memory=memory.cut(state.memory))
