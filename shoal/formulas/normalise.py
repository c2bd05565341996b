"""Running moments of observations and of returns: part of the policy artefact, frozen in `eval`, exported with it.

Merging is exact (Chan, Golub & LeVeque 1979), so statistics gathered in pieces equal those gathered at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from etils import epy

from shoal.core import types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

CLIP = 10.0  # normalised observations are held in [-CLIP, CLIP]
EPSILON = 1e-8


class Statistics(NamedTuple):
    """Moments of every observation seen so far."""

    count: Any  # scalar f32
    mean: Any  # [*obs] f32
    m2: Any  # [*obs] f32, sum of squared deviations from the mean


def shape(observation: types.ObservationSpec) -> tuple[int, ...]:
    """Of the moments: one for each number of a vector; of pictures, one for all pixels.

    A pixel that was black so far would otherwise leap out as soon as something moves there.
    """
    return () if observation.image else observation.shape


def init(shape: tuple[int, ...]) -> Statistics:
    """Statistics of nothing: `apply` leaves observations as they are (mean 0, variance 1)."""
    return Statistics(jnp.zeros(()), jnp.zeros(shape), jnp.zeros(shape))


def of(observations: Any, shape: tuple[int, ...], counts: Any = ()) -> Statistics:
    """Statistics of a batch ``[..., *shape]``, or of those of it that count: `counts` ``[...]`` bool."""
    flat = observations.reshape(-1, *shape)
    if not jnp.issubdtype(flat.dtype, jnp.floating):  # bytes of pictures
        flat = flat.astype(jnp.float32)
    if isinstance(counts, jax.Array) and flat.shape[0] != counts.size:  # of pictures, all pixels of one that counts
        counts = jnp.repeat(counts.reshape(-1), flat.shape[0] // counts.size)
    if not isinstance(counts, tuple):
        weight = counts.reshape(-1, *[1] * len(shape)).astype(jnp.float32)
        count = jnp.maximum(weight.sum(), 1.0)
        mean = (weight * flat).sum(axis=0, keepdims=True) / count
        return Statistics(weight.sum(), mean[0], (weight * (flat - mean) ** 2).sum(axis=0))
    mean = flat.mean(axis=0, keepdims=True)
    return Statistics(jnp.asarray(float(flat.shape[0])), mean[0], ((flat - mean) ** 2).sum(axis=0))


def merge(a: Statistics, b: Statistics) -> Statistics:
    """Statistics of both together; works on JAX and NumPy arrays alike."""
    count = a.count + b.count
    share = b.count / (count + (count == 0).astype(count.dtype))
    delta = b.mean - a.mean
    return Statistics(count, a.mean + delta * share, a.m2 + b.m2 + delta**2 * a.count * share)


def update(statistics: Statistics, observations: Any, shape: tuple[int, ...], counts: Any = ()) -> Statistics:
    """Statistics with a batch ``[..., *shape]`` added (see `of`); one that holds NaN or infinity is passed over."""
    new = merge(statistics, of(observations, shape, counts))
    finite = jnp.all(jnp.isfinite(new.m2))
    return Statistics(*(jnp.where(finite, a, b) for a, b in zip(new, statistics, strict=True)))


def apply(statistics: Statistics, obs: Any) -> Any:
    """One observation, shifted and scaled to about zero mean and unit variance, clipped to ±`CLIP`."""
    variance = jnp.where(statistics.count > 1, statistics.m2 / jnp.maximum(statistics.count, 1.0), 1.0)
    obs = jnp.asarray(obs, statistics.mean.dtype)
    return jnp.clip((obs - statistics.mean) / jnp.sqrt(variance + EPSILON), -CLIP, CLIP)


class Returns(NamedTuple):
    """Moments of the discounted return as it runs along each stream; rewards are divided by its deviation."""

    moments: Statistics  # scalars
    running: Any  # [B] f32, the discounted sum of the episode under way


def init_returns(streams: int) -> Returns:
    """Nothing seen: rewards stay as they are."""
    return Returns(init(()), jnp.zeros(streams))


def update_returns(returns: Returns, reward: Any, over: Any, discount: Any) -> Returns:
    """Go on along a rollout.

    R_t = γ R_{t-1} + r_t, begun anew after every end of an episode.

    Args:
        returns: So far.
        reward: ``[T, B]``.
        over: ``[T, B]`` bool, True where an episode ended at this step.
        discount: γ.

    Source: Gymnasium's `NormalizeReward`, which openai/baselines' `VecNormalize` began.
    """

    def step(running: Any, at: Any) -> tuple[Any, Any]:
        r, ended = at
        now = discount * running + r
        now = jnp.where(jnp.isfinite(now), now, 0.0)  # or every one after it would not be either
        return jnp.where(ended, 0.0, now), now

    running, seen = jax.lax.scan(step, returns.running, (reward, over))
    return Returns(update(returns.moments, seen, ()), running)


def deviation(returns: Returns) -> Any:
    """What rewards are divided by; 1 before anything was seen."""
    count = returns.moments.count
    variance = jnp.where(count > 1, returns.moments.m2 / jnp.maximum(count, 1.0), 1.0)
    return jnp.sqrt(variance + EPSILON)
