"""Members that are not finite: each is replaced alone, the others keep every bit.

A faulty member begins anew in its place, with hyperparameters drawn anew, new episodes, and the policy of a member with
a good fitness, if there is one. Its memory stays, unless what it did while it was faulty is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epy

from shoal.core import errors, seeds, tree, types
from shoal.runtimes.members import loop
from shoal.runtimes.population import applying, exchange, priors, standing

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

STRIKES = 3  # failures of one member without a whole interval between them that end the run


def mend(parts: types.Parts, begin: Callable, prior: Mapping[str, priors.Prior]) -> Callable:
    """A function that replaces members.

    Args:
        parts: The agent.
        begin: Makes a loop (`loop.start`).
        prior: Of the hyperparameters.

    Returns:
        (`loop.Members`, mask ``[N]``, source of each ``[N]``, keys ``[N]``, key) -> `loop.Members`, its memories as
        they were.
    """
    agent = parts.agent

    def every(members: loop.Members, mask: Any, source: Any, keys: types.Key, key: types.Key) -> loop.Members:
        fresh = begin(keys).members
        states = _chosen(mask, _counting(agent, members.state, fresh.state), members.state)
        everybody = jnp.arange(len(mask))
        plan = exchange.Plan(jnp.where(mask, source, everybody), everybody, jnp.zeros_like(mask))
        states = applying.apply(agent, prior, applying.How(copy="policy"), plan, states, key)
        return loop.Members(states, members.memory, _chosen(mask, fresh.actors, members.actors))

    return every


def _chosen(mask: types.Array, new: types.Tree, old: types.Tree) -> types.Tree:
    return jax.tree.map(lambda a, b: jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)


def _counting(agent: types.Agent, old: types.State, new: types.State) -> types.State:
    """What it has counted goes on, for schedules follow it."""
    for name in ("env_steps", agent.about.fields.updates):
        new = tree.replaced(new, name, name and tree.field(old, name))
    return new


def tainted(memory: types.Tree) -> types.Array:
    """Which memories hold numbers that are not finite, bool ``[N]``."""
    return ~jax.vmap(tree.all_finite)(memory)


def copied(memory: types.Tree, at: types.Scalar, source: types.Scalar) -> types.Tree:
    """The memories with one of them replaced by another."""
    return jax.tree.map(lambda leaf: leaf.at[at].set(leaf[source]), memory)


# ------------------------------------------------------------------------------------------------ on the host


def sources(now: standing.Standing, mask: types.Array, fraction: float, seed: int, update: int) -> types.Array:
    """Whose policy each faulty member takes: a random one of those that would not be replaced; itself: none.

    Args:
        now: How they stand.
        mask: Faulty ones, bool ``[N]``.
        fraction: That an exchange replaces.
        seed: Of the run.
        update: Updates of a member.

    Returns:
        i32 ``[N]``.
    """
    fit = np.flatnonzero(now.measured & ~mask)
    ranked = fit[np.argsort(-now.fitness[fit], kind="stable")]
    winners = ranked[: max(1, round((1 - fraction) * len(mask)))]
    taken = np.arange(len(mask), dtype=np.int32)
    for member in np.flatnonzero(mask) if len(winners) else ():
        taken[member] = winners[seeds.derive(seed, "failure", update, int(member)) % len(winners)]
    return taken


def check(now: standing.Standing, mask: types.Array, values: Mapping[str, types.Array], update: int) -> None:
    """Give up where it does not help.

    Args:
        now: How they stand, these failures included.
        mask: Faulty ones, bool ``[N]``.
        values: Hyperparameters ``[N]`` that they failed with, by the names of leaves.
        update: Updates of a member.

    Raises:
        GaveUp: More than half failed in one interval, or one three times without a whole interval between.
    """
    members = len(mask)
    again = np.flatnonzero(mask & (now.strikes >= STRIKES))
    if now.lapses * 2 <= members and not len(again):
        return
    named = again if len(again) else np.flatnonzero(mask)
    told = "; ".join(
        f"member {member}: {', '.join(f'{name}={value[member]:.3g}' for name, value in values.items()) or 'as set'}"
        for member in named.tolist()[:3]
    )
    why = (
        f"member {again[0]} was not finite {STRIKES} times in a row"
        if len(again)
        else f"{now.lapses} failures of {members} members in one interval"
    )
    raise errors.GaveUp(f"{why} (update {update:,}; {told}); narrow the priors, or lower the learning rates")
