"""What the rules with a policy and a value of states share: one network, its decision, its values along a stream."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epy

from shoal.core import types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np

    from shoal.formulas import deciding, distributions, losses, normalise


class Rule(NamedTuple):
    """What the functions of such a rule have in common."""

    config: Any  # the rule's own
    network: types.Network  # heads "policy" and "value"
    head: Any  # distributions.Distribution of the policy
    corrector: types.Corrector
    optimiser: Any  # optimise.Optimiser


def evaluate(
    rule: Rule, params: types.Params, normaliser: Any, obs: Any, carry: types.Carry
) -> tuple[Any, Any, types.Carry]:
    """Policy head output, value, and recurrent state after one observation."""
    seen = normalise.apply(normaliser, obs) if normaliser else obs
    outputs, carry = rule.network.apply(params, seen, carry)
    return outputs["policy"], outputs["value"][0], carry


def decide(rule: Rule, policy: types.Policy, output: Any, key: types.Key) -> tuple[Any, Any]:
    """An action and its log probability, from the policy head's output."""
    action = jnp.where(policy.explore > 0, rule.head.sample(output, key), rule.head.mode(output))
    return action, jnp.where(policy.explore > 0, rule.head.log_prob(output, action), 0.0)


def log_prob(rule: Rule, policy: types.Policy, output: Any, action: Any) -> Any:
    """How likely `decide` is to choose an action."""
    return jnp.where(policy.explore > 0, rule.head.log_prob(output, action), 0.0)


def decide_many(
    rule: Rule, policy: types.Policy, outputs: Mapping[str, np.ndarray], generator: np.random.Generator
) -> deciding.Drawn:
    """The same of ``[B]`` outputs, in NumPy."""
    drawn = deciding.suited(rule.head.name, rule.head.sizes)(outputs["policy"], policy.explore, generator)
    return drawn if rule.head.box is None else drawn._replace(action=distributions.stretch(rule.head.box, drawn.action))


def along_all(
    rule: Rule, params: types.Params, normaliser: Any, steps: types.Transition, carry: types.Carry
) -> tuple[Any, Any, types.Carry]:
    """Head outputs, values, and the recurrent state after each step ``[T, B, ...]``, from states ``[B, ...]``."""
    if rule.network.along is None:  # no memory
        every = jax.vmap(jax.vmap(lambda obs: evaluate(rule, params, normaliser, obs, ())))
        output, value, _ = every(steps.obs)
        return output, value, ()
    seen = steps.obs
    if normaliser:
        seen = jax.vmap(jax.vmap(functools.partial(normalise.apply, normaliser)))(seen)
    outputs, after = rule.network.along(params, seen, over(steps), carry)
    return outputs["policy"], outputs["value"][..., 0], after


def bootstrap(
    rule: Rule, params: types.Params, normaliser: Any, steps: types.Transition, value: Any, after: types.Carry
) -> Any:
    """V of every step's true successor, ``[T, B]``; the recurrent state is read, never advanced."""
    params, value, after = jax.lax.stop_gradient((params, value, after))

    def successor(obs: Any, carry: types.Carry) -> Any:
        return evaluate(rule, params, normaliser, obs, carry)[1]

    def only_last() -> Any:  # within the segment the successor is the next step's observation: its value is known
        last = jax.vmap(successor)(steps.next_obs[-1], jax.tree.map(lambda leaf: leaf[-1], after))
        return jnp.concatenate([value[1:], last[None]])

    def every() -> Any:
        return jax.vmap(jax.vmap(successor))(steps.next_obs, after)

    return jax.lax.cond(jnp.any(steps.truncated[:-1]), every, only_last)


def correct(rule: Rule, steps: types.Steps) -> types.Corrected:
    """What the corrector makes of every stream, ``[T, B]``."""
    correct = functools.partial(rule.corrector.correct, rule.corrector.hyper)
    return jax.vmap(correct, in_axes=1, out_axes=1)(steps)


def over(steps: types.Transition) -> Any:
    """Where a stream is cut: an end of either kind."""
    return (steps.discount == 0) | steps.truncated


def weighed(rule: Rule, each: Any, weight: Any) -> Any:
    """Losses as their steps weigh (`types.Corrected`)."""
    return weight * each if rule.corrector.weighs else each


def accepted(rule: Rule, counts: Any, weight: Any) -> Any:
    """Of the steps that count (`losses.counted`) those that the corrector did not reject."""
    return losses.accepted(counts, weight) if rule.corrector.weighs else counts
