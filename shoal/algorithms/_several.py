"""What rules with several policies and one pair of shared critics have in common.

Parameters of K policies are one tree whose leaves are ``[K, ...]``. Every stream acts with one of them, told by
`Playing`; evaluation and export take the one policy that stands in `types.Policy.params`. Actions are in [-1, 1]^d
here, as in `_critics`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epy

from shoal.algorithms import _critics, _memory
from shoal.core import types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

    from shoal.formulas import optimise

NO_RETURN = -3.4028234663852886e38  # the lowest float32: of a return that is not finite, for checkpoints hold no NaN


class Playing(NamedTuple):
    """Which policy plays in each stream, and what its episode under way has come to."""

    policy: Any  # [B] i32, of K
    whole: Any  # [B] bool: it has played this episode from the beginning
    so_far: Any  # [B] f32, the episode's return as the environment pays it; `NO_RETURN` where that was not finite


class Ended(NamedTuple):
    """What ended in a rollout ``[T, B]``."""

    value: Any  # [T, B] f32, return of the episode up to this step
    counts: Any  # [T, B] bool: a whole episode of the stream's policy ended with this step
    over: Any  # [T, B] bool: an episode ended with this step


class Exploring(NamedTuple):
    """`types.Policy.exploration`: the policies that act in training."""

    policies: Any  # [K, ...]
    playing: Any  # [B] i32, which of them by stream
    noise: Any  # f32, standard deviation on actions
    random: Any  # f32: above 0, actions are uniform


# ------------------------------------------------------------------------------------------------ streams


def playing(streams: int, count: int) -> Playing:
    """At the start of every stream's first episode: stream b plays policy b mod K."""
    return Playing(jnp.arange(streams, dtype=jnp.int32) % count, jnp.ones(streams, bool), jnp.zeros(streams))


def follow(now: Playing, steps: types.Transition) -> tuple[Playing, Ended]:
    """The streams after a rollout ``[T, B]``, during which no stream changed its policy."""

    def one(now: Playing, step: tuple[Any, Any]) -> tuple[Playing, Ended]:
        reward, over = step
        value = finite(now.so_far + reward)
        ended = Ended(value, over & now.whole, over)
        return now._replace(whole=now.whole | over, so_far=jnp.where(over, 0.0, value)), ended

    over = (steps.discount == 0) | steps.truncated
    return jax.lax.scan(one, now, (steps.reward, over))


def hand_over(now: Playing, policy: Any, last: Any) -> Playing:
    """The streams go on with these policies ``[B]``; an episode under way is nobody's if its policy changed.

    Args:
        now: As `follow` left it.
        policy: ``[B]`` i32.
        last: ``[B]`` bool, whether an episode ended with the newest step, so that the next one is about to begin.
    """
    same = policy == now.policy
    return now._replace(policy=policy, whole=jnp.where(same, now.whole, last))


def anew(now: Playing) -> Playing:
    """All streams begin new episodes out of turn; see `types.About.restart`."""
    return now._replace(whole=jnp.ones_like(now.whole), so_far=jnp.zeros_like(now.so_far))


def finite(value: Any) -> Any:
    """The same, `NO_RETURN` where it is not finite."""
    return jnp.where(jnp.isfinite(value), value, NO_RETURN)


def known(value: Any) -> Any:
    """Whether a return was finite."""
    return value > NO_RETURN / 2


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


# ------------------------------------------------------------------------------------------------ distances


def distances(behaviour: Any) -> Any:
    """Mean squared difference of actions between every two policies, ``[K, K]``.

    From the differences themselves: through products of the actions (the Gram matrix) rounding makes a small distance
    negative.

    Args:
        behaviour: ``[K, N, d]``, as `everywhere` gives it.
    """
    return ((behaviour[:, None] - behaviour[None, :]) ** 2).mean(axis=(2, 3))


def min_distance(squares: Any) -> Any:
    """The smallest distance between two policies: root of the mean squared difference; actions span -1 to 1.

    Args:
        squares: ``[K, K]`` of `distances`; K at least 2.
    """
    return jnp.sqrt(jnp.where(jnp.eye(len(squares), dtype=bool), jnp.inf, squares).min())


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
    return each._replace(hyper=member(each.hyper, 0), skipped=jnp.int32(0))


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

    def one(gradient: Any, statistics: Any, params: Any) -> tuple[Any, Any, Any]:
        mine = state._replace(rule=statistics, skipped=jnp.int32(0))
        params, after, _ = optimiser.update(gradient, mine, params, env_steps)
        return params, after.rule, after.skipped

    policies, statistics, skipped = jax.vmap(one)(gradient, state.rule, policies)
    return policies, state._replace(rule=statistics, skipped=state.skipped + skipped.sum(dtype=jnp.int32))


def restart(memory: _memory.Memory) -> Callable[[Any], Any]:
    """`types.About.restart` of such a rule."""
    return lambda state: state._replace(memory=memory.cut(state.memory), playing=anew(state.playing))
