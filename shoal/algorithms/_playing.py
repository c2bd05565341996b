"""Which of several policies plays in which stream, and what whole episodes it came to.

An episode counts for a policy that has played it from its beginning to its end. Streams change their policy between
two rollouts only, so where rollouts end within an episode the rest of it is nobody's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from etils import epy

from shoal.core import types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

NO_RETURN = -3.4028234663852886e38  # the lowest float32: of a return that is not finite, for checkpoints hold no NaN

RECENT = 10  # episodes over which a policy's running return looks back


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


class Trial(NamedTuple):
    """How far the policies of this iteration have been tried."""

    total: Any  # [K] f32, returns added up; `NO_RETURN` where one was not finite
    episodes: Any  # [K] i32, how many
    done: Any  # [B] bool, the stream's policy has played its episode there
    begun: Any  # scalar i32, policies that a stream has begun with
    env_steps: Any  # scalar i32, steps of all streams


class Record(NamedTuple):
    """How each policy fares in training."""

    value: Any  # [K] f32, running mean of its returns
    episodes: Any  # [K] i32


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


# ------------------------------------------------------------------------------------------------ one trial each


def trial(streams: int, count: int) -> Trial:
    """At the start of an iteration; see `playing`."""
    begun = jnp.int32(min(count, streams))
    nothing = jnp.zeros(count), jnp.zeros(count, jnp.int32), jnp.zeros(streams, bool)
    return Trial(*nothing, begun=begun, env_steps=jnp.int32(0))


def tried(now: Trial, playing: Playing, ended: Ended) -> Trial:
    """With the first whole episode of every stream that has not played its policy's yet."""
    counts = ended.counts & (jnp.cumsum(ended.counts, axis=0) == 1) & ~now.done
    value = jnp.where(counts, ended.value, 0.0)
    at = jnp.broadcast_to(playing.policy, counts.shape)
    return now._replace(
        total=finite(now.total.at[at].add(value)),
        episodes=now.episodes.at[at].add(counts.astype(jnp.int32)),
        done=now.done | counts.any(axis=0),
        env_steps=now.env_steps + jnp.int32(counts.size),
    )


def next_in_line(now: Trial, playing: Playing, last: Any, count: int) -> tuple[Trial, Playing]:
    """Streams that are done go on with policies that no stream has begun with: where there are fewer streams than K."""
    place = now.begun + jnp.cumsum(now.done) - 1
    takes = now.done & (place < count)
    policy = jnp.where(takes, place, playing.policy).astype(jnp.int32)
    begun = now.begun + takes.sum(dtype=jnp.int32)
    return now._replace(done=now.done & ~takes, begun=begun), hand_over(playing, policy, last)


def fitness_of(now: Trial) -> Any:
    """``[K]`` mean return of the episodes that counted: one of each, but where streams outnumber the policies."""
    mean = now.total / jnp.maximum(now.episodes, 1)
    return jnp.where(known(now.total), mean, NO_RETURN)


# ------------------------------------------------------------------------------------------------ running returns


def best(record: Record) -> Any:
    """The policy with the highest running return; the first one before any has finished an episode."""
    return jnp.argmax(jnp.where(record.episodes > 0, record.value, -jnp.inf))


def recorded(record: Record, policy: Any, ended: Ended) -> Record:
    """The running means with the whole episodes of a rollout, those of one policy taken together."""
    counts = ended.counts & known(ended.value)
    at = jnp.broadcast_to(policy, counts.shape)
    zeros = jnp.zeros_like(record.value)
    found = zeros.at[at].add(counts)
    total = zeros.at[at].add(jnp.where(counts, ended.value, 0.0))
    weight = jnp.minimum(record.episodes + found, jnp.maximum(RECENT, found))  # of all that the mean is then over
    new = record.value + (total - found * record.value) / jnp.maximum(weight, 1.0)
    return Record(new, record.episodes + found.astype(jnp.int32))
