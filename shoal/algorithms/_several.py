"""What rules with several policies and one pair of shared critics have in common.

Parameters of K policies are one tree whose leaves are ``[K, ...]``. Every stream acts with one of them, told by
`_playing`; evaluation and export take the one policy that stands in `types.Policy.params`. Actions are in [-1, 1]^d
here, as in `_critics`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epy

from shoal.algorithms import _critics, _memory, _playing
from shoal.core import types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

    from shoal.formulas import optimise


class Exploring(NamedTuple):
    """`types.Policy.exploration`: the policies that act in training."""

    policies: Any  # [K, ...]
    playing: Any  # [B] i32, which of them by stream
    noise: Any  # f32, standard deviation on actions
    random: Any  # f32: above 0, actions are uniform


# ------------------------------------------------------------------------------------------------ acting


def init(rule: _critics.Rule, count: int, key: types.Key) -> Any:
    """K policies ``[K, ...]``, each from a key of its own."""
    return jax.vmap(rule.policy.init)(jax.random.split(key, count))


def member(policies: Any, at: Any) -> Any:
    """One of them."""
    return jax.tree.map(lambda leaf: leaf[at], policies)


def acting(given: types.Policy) -> Any:
    """The parameters that act: in training those of the stream, else the one policy."""
    exploring = given.exploration
    one = member(exploring.policies, exploring.playing[given.stream])
    return jax.tree.map(lambda alone, its: jnp.where(given.explore > 0, its, alone), given.params, one)


def choose(rule: _critics.Rule, params: types.Params, normaliser: Any, obs: Any) -> Any:
    """A policy's action in [-1, 1]^d."""
    return jnp.tanh(_critics.head(rule, params, normaliser, obs))


def actions(rule: _critics.Rule, policies: Any, normaliser: Any, obs: Any) -> Any:
    """``[K, N, d]`` of K policies, each at observations of its own ``[K, N, *obs]``."""
    each = jax.vmap(functools.partial(choose, rule), in_axes=(None, None, 0))
    return jax.vmap(each, in_axes=(0, None, 0))(policies, normaliser, obs)


def everywhere(rule: _critics.Rule, policies: Any, normaliser: Any, obs: Any) -> Any:
    """``[K, N, d]`` of K policies at the same observations ``[N, *obs]``."""
    each = jax.vmap(functools.partial(choose, rule), in_axes=(None, None, 0))
    return jax.vmap(each, in_axes=(0, None, None))(policies, normaliser, obs)


def blocks(leaf: Any, count: int) -> Any:
    """Rows ``[K·N, ...]`` as ``[K, N, ...]``: each policy's own."""
    return leaf.reshape(count, -1, *leaf.shape[1:])


# ------------------------------------------------------------------------------------------------ learning


def target(rule: _critics.Rule, state: Any, slow: Any, drawn: _memory.Sample, key: types.Key) -> Any:
    """``[K·N]`` of what critics should say: TD3's target, in each block of rows by the target policy of its own.

    The noise is one draw for all critics.

    Args:
        rule: The rule.
        state: The learner's, of which hyper and normaliser are read.
        slow: Target networks: ``{"policy": [K, ...], "critics": (...)}``.
        drawn: K·N transitions.
        key: Consumed.
    """
    hyper, seen = state.hyper, state.normaliser
    count = len(jax.tree.leaves(slow["policy"])[0])
    following = actions(rule, slow["policy"], seen, blocks(drawn.next_obs, count))
    following = following.reshape(-1, following.shape[-1])
    # Behind a barrier: the compiler would put the generator into every loop that reads the noise.
    noise = hyper.target_noise * jax.lax.optimization_barrier(jax.random.normal(key, following.shape))
    noise = jnp.clip(noise, -hyper.target_noise_clip, hyper.target_noise_clip)
    following = jnp.clip(following + noise, -1.0, 1.0)
    lowest = _critics.lowest(rule, slow["critics"], seen, drawn.next_obs, following)
    return drawn.reward + drawn.discount * lowest


def descend(rule: _critics.Rule, state: Any, drawn: _memory.Sample, wanted: Any) -> _critics.Lesson:
    """The shared critics' step, its loss the mean over all rows; rows whose target is not finite count nothing."""
    sound = jnp.isfinite(wanted)
    drawn = drawn._replace(weight=jnp.where(sound, drawn.weight, 0.0))
    return _critics.descend(rule, state, drawn, jnp.where(sound, wanted, 0.0))


def policy_loss(rule: _critics.Rule, critics: Any, normaliser: Any, policies: Any, obs: Any) -> Any:
    """Σ_k of -mean Q_1(x, π_k(x)): a sum, so that no policy's gradient depends on how many there are.

    Args:
        rule: The rule.
        critics: The first one judges.
        normaliser: Of observations.
        policies: ``[K, ...]``.
        obs: ``[K, N, *obs]``, each policy's own.
    """
    chosen = actions(rule, policies, normaliser, obs)

    def one(obs: Any, chosen: Any) -> Any:
        return -_critics.values(rule, critics[:1], normaliser, obs, chosen)[0].mean()

    return jax.vmap(one)(obs, chosen).sum()


def starting(optimiser: Any, policies: Any) -> Any:
    """An `optimise.OptimiserState` for K policies: statistics ``[K, ...]``, numbers that may change one for all."""
    each = jax.vmap(optimiser.init)(policies)
    return each._replace(hyper=member(each.hyper, 0), skipped=jnp.int32(0), mu=member(each.mu, 0))


def climb(
    optimiser: Any, gradient: Any, state: optimise.OptimiserState, policies: Any, env_steps: Any
) -> tuple[Any, optimise.OptimiserState]:
    """A step of K policies, each clipped and, where its gradient is not finite, skipped by itself.

    Args:
        optimiser: `optimise.Optimiser`.
        gradient: ``[K, ...]``.
        state: As `starting` made it.
        policies: ``[K, ...]``.
        env_steps: For annealing.
    """

    def one(gradient: Any, statistics: Any, anchor: Any, params: Any) -> tuple[Any, Any, Any]:
        mine = state._replace(rule=statistics, anchor=anchor, skipped=jnp.int32(0))
        params, after, _ = optimiser.update(gradient, mine, params, env_steps)
        return params, after.rule, after.skipped

    policies, statistics, skipped = jax.vmap(one)(gradient, state.rule, state.anchor, policies)
    return policies, state._replace(rule=statistics, skipped=state.skipped + skipped.sum(dtype=jnp.int32))


def restart(memory: types.Replay) -> Callable[[Any], Any]:
    """`types.About.restart` of such a rule."""
    return lambda state: state._replace(memory=memory.cut(state.memory), playing=_playing.anew(state.playing))
