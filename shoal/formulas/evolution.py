"""The cross-entropy method on vectors of parameters: a normal distribution that moves towards the best of its draws."""

from __future__ import annotations

from typing import Any, NamedTuple

from etils import epy

from shoal.core import types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


class Search(NamedTuple):
    """The distribution of policies: independent normal ones of every parameter, P in all."""

    mean: Any  # [P] f32
    variance: Any  # [P] f32
    noise: Any  # f32, what is added to the variance


def mirrored(search: Search, half: int, key: types.Key) -> Any:
    """``[2 half, P]``: mean ± √variance · noise; those with + come first, so there is no mirrored pair among them."""
    noise = jnp.sqrt(search.variance) * jax.random.normal(key, (half, *search.mean.shape))
    return search.mean + jnp.concatenate([noise, -noise])


def improved(search: Search, vectors: Any, fitness: Any, elites: int, decay: Any, floor: Any) -> Search:
    """The distribution after an iteration; as it was, but for its noise, where nobody has a finite fitness.

    w_i ∝ log((E + 1) / i) for the i-th best of E, Σ w = 1;  ε' = d ε + (1 - d) ε_end
    mean' = Σ w_i θ_i;  variance' = Σ w_i (θ_i - mean)² / E + ε'

    The variance is around the mean as it was. Policies whose fitness or parameters are not finite are no elites.

    Source: Pourchot & Sigaud 2019, arXiv:1810.01222, equations 1 and 2; / E as in the authors' code.

    Args:
        search: As it was.
        vectors: ``[K, P]`` the policies as they were tried.
        fitness: ``[K]``.
        elites: E.
        decay: d, scalar.
        floor: ε_end, scalar.
    """
    sound = jnp.isfinite(fitness) & jnp.isfinite(vectors).all(axis=1)
    value, best = jax.lax.top_k(jnp.where(sound, fitness, -jnp.inf), elites)
    chosen = jnp.isfinite(value)
    weight = jnp.where(chosen, jnp.log((elites + 1.0) / jnp.arange(1.0, elites + 1.0)), 0.0)
    weight = weight / jnp.maximum(weight.sum(), 1e-12)
    theta = jnp.where(chosen[:, None], vectors[best], search.mean)
    noise = decay * search.noise + (1.0 - decay) * floor
    mean = weight @ theta
    variance = weight @ (theta - search.mean) ** 2 / elites + noise
    some = chosen.any()
    return Search(jnp.where(some, mean, search.mean), jnp.where(some, variance, search.variance), noise)
