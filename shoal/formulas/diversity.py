"""How differently several policies act: distances between their actions, and the volume that those span."""

from __future__ import annotations

from typing import Any

from etils import epy

with epy.lazy_imports():
    import jax.numpy as jnp


def distances(behaviour: Any) -> Any:
    """Mean squared difference of actions between every two policies, ``[K, K]``.

    From the differences themselves: through products of the actions (the Gram matrix) rounding makes a small distance
    negative.

    Args:
        behaviour: ``[K, N, d]``, their actions at the same observations.
    """
    return ((behaviour[:, None] - behaviour[None, :]) ** 2).mean(axis=(2, 3))


def min_distance(squares: Any) -> Any:
    """The smallest distance between two policies: root of the mean squared difference; actions span -1 to 1.

    Args:
        squares: ``[K, K]`` of `distances`; K at least 2.
    """
    return jnp.sqrt(jnp.where(jnp.eye(len(squares), dtype=bool), jnp.inf, squares).min())


def log_det(squares: Any, length: Any, jitter: Any) -> Any:
    """The volume that policies span: log det(K + εI), K_ij = exp(-d_ij / 2ℓ).

    Where policies coincide the plain log det is -∞, and its gradient not a number. Here distances are never negative,
    so that K has no negative eigenvalue, and ε bounds them from below: Cholesky always works, and the gradient by the
    actions of policies that coincide is 0.

    Source: Parker-Holder et al. 2020, arXiv:2002.00632, section 4; ε is ours.

    Args:
        squares: d ``[K, K]``, squared distances.
        length: ℓ, scalar.
        jitter: ε, scalar.
    """
    kernel = jnp.exp(-squares / (2.0 * length))
    lower = jnp.linalg.cholesky(kernel + jitter * jnp.eye(len(kernel)))
    return 2.0 * jnp.log(jnp.diagonal(lower)).sum()
