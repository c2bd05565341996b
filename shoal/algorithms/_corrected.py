"""Action values ``[T, B, n]`` as a corrector of action values sees them: what was taken, what is learned to be done."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from etils import epy

from shoal.core import types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

    from shoal.formulas import distributions


class Values(NamedTuple):
    """Of the same observations by both networks."""

    online: Any  # [..., n] Q(x, ·; θ), by which the policy that is learned chooses
    slow: Any  # [..., n] Q(x, ·; θ⁻), what its choices are worth


def expected(values: Values, epsilon: Any) -> Any:
    """E_π Q(x, ·; θ⁻) of the policy π that is ε-greedy in Q(x, ·; θ), ``[...]``."""
    best = jnp.argmax(values.online, axis=-1)
    greedy = jnp.take_along_axis(values.slow, best[..., None], axis=-1)[..., 0]
    return (1.0 - epsilon) * greedy + epsilon * values.slow.mean(axis=-1)


def seen(steps: types.Transition, here: Values, next_value: Any, epsilon: Any, counts: Any) -> types.Steps:
    """What the corrector sees.

    Args:
        steps: ``[T, B]``; rewards as they are learned from, ``discount`` with γ, ``extras`` as `types.Chosen`, or ()
            where the corrector does not look at μ.
        here: Of ``steps.obs``.
        next_value: ``[T, B]`` E_π Q(x', ·; θ⁻).
        epsilon: Of the policy that is learned.
        counts: `losses.counted`.
    """
    log_prob = functools.partial(distributions.epsilon_greedy_log_prob, epsilon=epsilon)
    log_pi = jax.vmap(jax.vmap(lambda values, action: log_prob(values, action=action)))(here.online, steps.action)
    return types.Steps(
        log_pi=log_pi,
        log_mu=steps.extras.log_prob if steps.extras else (),
        reward=steps.reward,
        discount=steps.discount,
        cut=(steps.discount == 0) | steps.truncated,
        value=jnp.take_along_axis(here.slow, steps.action[..., None], axis=-1)[..., 0],
        next_value=next_value,
        counts=counts,
    )
