"""Initial weights of a layer: orthogonal, uniform by its inputs, or zeros."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from etils import epy

from shoal.core import types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    from flax import linen

STEPS = 60  # of the iteration below; ten to twenty-five are usual
CLOSE = 1e-6  # mean square distance of XᵀX from 1 at which it ends


def orthogonal(gain: float) -> Callable[..., Any]:
    """Uniformly random matrices with orthonormal rows or columns, times `gain`, after Saxe et al. 2014.

    The polar factor of a Gaussian matrix, by Newton and Schulz: X ← X (3 - XᵀX) / 2 from a Frobenius norm below √3. It
    is made of matrix products alone. flax takes a QR factorisation, whose batched form in jaxlib waits inside a thread
    of the pool for tasks that need one of the same threads, so that two seeds under `vmap` could wait for ever on two
    cores; and lowering it imports SciPy, a tenth of a second of every start.

    Source: Higham 2008, "Functions of Matrices", equation 8.20 (convergence for singular values below √3).
    """

    def initialise(key: types.Key, shape: Any, dtype: Any = jnp.float32) -> Any:
        rows, columns = math.prod(shape[:-1]), shape[-1]
        tall, wide = max(rows, columns), min(rows, columns)
        start = jax.random.normal(key, (tall, wide), jnp.float32)
        start = start / (
            jnp.sqrt(jnp.float32(tall)) + jnp.sqrt(jnp.float32(wide))
        )  # singular values of at most about 1

        def refine(at: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            x, step, _ = at
            gram = x.T @ x
            distance = jnp.sum((gram - jnp.eye(wide, dtype=jnp.float32)) ** 2) / wide
            return 1.5 * x - 0.5 * (x @ gram), step + 1, distance

        def going(at: tuple[Any, Any, Any]) -> Any:
            return (at[1] < STEPS) & (at[2] > CLOSE**2)

        x, _, _ = jax.lax.while_loop(going, refine, (start, jnp.int32(0), jnp.float32(1.0)))
        return (gain * (x if rows >= columns else x.T)).reshape(shape).astype(dtype)

    return initialise


def of(initialiser: str, gain: float, fan_in: int) -> tuple[Any, Any]:
    """What makes the kernel and the bias of a layer.

    Args:
        initialiser: "orthogonal", "fan_in" or "glorot" (`layers.Config`).
        gain: Factor of orthogonal weights; 0: whatever the initialiser, the layer gives zeros at first.
        fan_in: Inputs of one unit.
    """
    if gain == 0.0:
        return linen.initializers.zeros, linen.initializers.zeros
    if initialiser == "orthogonal":
        return orthogonal(gain), linen.initializers.zeros
    if initialiser == "glorot":
        return linen.initializers.glorot_uniform(), linen.initializers.zeros
    bound = 1.0 / math.sqrt(fan_in)

    def uniform(key: types.Key, shape: Any, dtype: Any = jnp.float32) -> Any:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return uniform, uniform
