"""Losses of one decision; batch by `vmap`, reduce with `total` or `mean`. Each is a quantity to *descend*."""

from __future__ import annotations

from typing import Any

from etils import epy

from shoal.core import types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


def counted(rollout: types.Rollout) -> Any:
    """Which steps of a rollout count, ``[T, B]`` bool; () where none is padding."""
    if isinstance(rollout.used, tuple):
        return ()
    steps, streams = rollout.transitions.reward.shape
    return jnp.broadcast_to((jnp.arange(steps) < rollout.used)[:, None], (steps, streams))


def accepted(counts: Any, weight: Any) -> Any:
    """Of the steps that count (`counted`) those that weigh something, ``[T, B]`` bool."""
    return weight > 0 if isinstance(counts, tuple) else counts & (weight > 0)


def happened(rollout: types.Rollout) -> Any:
    """How many steps of all streams a rollout holds, padding left out."""
    steps = rollout.transitions.reward
    return steps.size if isinstance(rollout.used, tuple) else rollout.used * steps.shape[1]


def last(rollout: types.Rollout) -> Any:
    """The index of the last step that is no padding."""
    return -1 if isinstance(rollout.used, tuple) else rollout.used - 1


def total(each: Any, counts: Any) -> Any:
    """The sum of ``[T, B]`` over the steps that count (`counted`)."""
    return each.sum() if isinstance(counts, tuple) else jnp.where(counts, each, 0.0).sum()


def mean(each: Any, counts: Any) -> Any:
    """The mean of ``[T, B]`` over the steps that count (`counted`)."""
    if isinstance(counts, tuple):
        return each.mean()
    return total(each, counts) / jnp.maximum(counts.sum(), 1).astype(each.dtype)


def policy_gradient(log_prob: Any, advantage: Any) -> Any:
    """-log π(a|x) A, with the advantage a constant.

    Source: Williams 1992; Mnih et al. 2016, arXiv:1602.01783, algorithm S3.
    """
    return -log_prob * jax.lax.stop_gradient(advantage)


def squared_error(prediction: Any, target: Any) -> Any:
    """½ (target - prediction)², with the target a constant; dL/dprediction = prediction - target."""
    return 0.5 * (prediction - jax.lax.stop_gradient(target)) ** 2


def clipped_policy_gradient(log_rho: Any, advantage: Any, clip: Any) -> Any:
    """-min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) with ρ = π(a|x) / μ(a|x).

    Args:
        log_rho: log π(a|x) - log μ(a|x), with μ's part a constant.
        advantage: A, a constant.
        clip: ε.

    Source: Schulman et al. 2017, arXiv:1707.06347, equation 7.
    """
    advantage, rho = jax.lax.stop_gradient(advantage), jnp.exp(log_rho)
    return -jnp.minimum(rho * advantage, jnp.clip(rho, 1.0 - clip, 1.0 + clip) * advantage)


def clipped_squared_error(prediction: Any, before: Any, target: Any, clip: Any) -> Any:
    """max(½ (y - v)², ½ (y - (v_old + clip(v - v_old, ±ε)))²): a value that moves no further than ε at a time.

    Args:
        prediction: v.
        before: v_old, of the network that acted; a constant.
        target: y, a constant.
        clip: ε; `optimise.LARGEST` leaves `squared_error`.

    Source: openai/baselines, `ppo2`; Andrychowicz et al. 2021, arXiv:2006.05990, section 3.2.
    """
    near = before + jnp.clip(prediction - before, -clip, clip)
    return jnp.maximum(squared_error(prediction, target), squared_error(near, target))


def huber(error: Any, threshold: Any) -> Any:
    """½ e² up to the threshold δ, δ (|e| - ½ δ) beyond: a squared error with a bounded gradient.

    Args:
        error: e.
        threshold: δ; `optimise.LARGEST` leaves the squared error.

    Source: Huber 1964; Mnih et al. 2015 (errors clipped to ±1 in the update of Q).
    """
    size = jnp.abs(error)
    inner = jnp.minimum(size, threshold)
    return inner * (size - 0.5 * inner)
