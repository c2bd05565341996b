"""Losses of one decision; batch by `vmap`, reduce outside. Each is a quantity to *descend*."""

from __future__ import annotations

from typing import Any

from etils import epy

with epy.lazy_imports():
    import jax


def policy_gradient(log_prob: Any, advantage: Any) -> Any:
    """-log π(a|x) A, with the advantage a constant.

    Source: Williams 1992; Mnih et al. 2016, arXiv:1602.01783, algorithm S3.
    """
    return -log_prob * jax.lax.stop_gradient(advantage)


def squared_error(prediction: Any, target: Any) -> Any:
    """½ (target - prediction)², with the target a constant; dL/dprediction = prediction - target."""
    return 0.5 * (prediction - jax.lax.stop_gradient(target)) ** 2
