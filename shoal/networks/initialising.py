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
AT_ONCE, PANELS = 1024, (64, 257)  # columns up to which all are made at once; beyond: sizes of a panel, from and below


def orthogonal(gain: float) -> Callable[..., Any]:
    """Uniformly random matrices with orthonormal rows or columns, times `gain`, after Saxe et al. 2014.

    The polar factor of a Gaussian matrix (`_polar`); of a large one panel by panel (`_by_panels`), a seventh of
    the time there (decision 0046). Both are made of matrix products alone. flax takes a QR factorisation, whose
    batched form in jaxlib waits inside a thread of the pool for tasks that need one of the same threads, so that two
    seeds under `vmap` could wait for ever on two cores; and lowering it imports SciPy, a tenth of a second of every
    start.
    """

    def initialise(key: types.Key, shape: Any, dtype: Any = jnp.float32) -> Any:
        rows, columns = math.prod(shape[:-1]), shape[-1]
        tall, wide = max(rows, columns), min(rows, columns)
        start = jax.random.normal(key, (tall, wide), jnp.float32)
        start = start / (
            jnp.sqrt(jnp.float32(tall)) + jnp.sqrt(jnp.float32(wide))
        )  # singular values of at most about 1
        panel = _panel(wide)
        x = _by_panels(start, panel) if panel else _polar(start)
        return (gain * (x if rows >= columns else x.T)).reshape(shape).astype(dtype)

    return initialise


def _polar(start: Any) -> Any:
    """The orthonormal matrix ``[tall, wide]`` nearest to one whose singular values are below √3.

    By Newton and Schulz: X ← X (3 - XᵀX) / 2.

    Source: Higham 2008, "Functions of Matrices", equation 8.20.
    """
    wide = start.shape[1]

    def refine(at: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        x, step, _ = at
        gram = x.T @ x
        distance = jnp.sum((gram - jnp.eye(wide, dtype=jnp.float32)) ** 2) / wide
        return 1.5 * x - 0.5 * (x @ gram), step + 1, distance

    def going(at: tuple[Any, Any, Any]) -> Any:
        return (at[1] < STEPS) & (at[2] > CLOSE**2)

    x, _, _ = jax.lax.while_loop(going, refine, (start, jnp.int32(0), jnp.float32(1.0)))
    return x


def _panel(wide: int) -> int:
    """Columns of a panel; 0: all of them at once."""
    fitting = [size for size in range(*PANELS) if wide % size == 0]
    return fitting[-1] if wide > AT_ONCE and fitting else 0


def _by_panels(start: Any, panel: int) -> Any:
    """Orthonormal columns ``[tall, wide]`` that span what the Gaussian `start` does, some at a time.

    Each panel loses what earlier ones span and becomes its own polar factor, twice, as rounding demands (Giraud et al.
    2005, "twice is enough"). A Gaussian panel is alike in all directions that are left, so that the whole is uniform.
    """

    def turn(done: Any, first: Any) -> tuple[Any, None]:
        x = jax.lax.dynamic_slice_in_dim(start, first, panel, 1)
        for _ in range(2):
            x = x - done @ (done.T @ x)
            x = _polar(x / jnp.sqrt(jnp.max(jnp.sum(jnp.abs(x.T @ x), 0))))  # no singular value is above 1
        return jax.lax.dynamic_update_slice_in_dim(done, x, first, 1), None

    done, _ = jax.lax.scan(turn, jnp.zeros_like(start), jnp.arange(0, start.shape[1], panel))
    return done


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
