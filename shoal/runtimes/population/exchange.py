"""Who takes over from whom, as data: pure functions from fitness to a plan, which `applying` carries out.

The lineage keeps a plan, and a replay repeats it. Fitness is larger where a member is better; NaN and infinities stand
for none. Members are ordered by fitness, of equals the one with the lower number first, those without fitness last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from etils import epy

from shoal.core import errors, types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

LEAST = 4  # members of a sub-population: one in each quarter


class Settings(NamedTuple):
    """What shapes a plan; static."""

    fraction: float = 0.4  # of the members, those that `truncation` replaces
    intervals: tuple[int, ...] = (1, 10, 25, 50)  # rounds between two evolutions of each sub-population (`mf_pbt`)
    burn_in: int = 0  # first rounds after which nobody takes over from anybody


class Plan(NamedTuple):
    """What becomes of every member; a member that names itself stays as it is."""

    weights_from: types.Array  # i32 [N], the member whose weights it goes on with
    hyperparameters_from: types.Array  # i32 [N], the member whose hyperparameters it takes
    explore: types.Array  # bool [N]: whether these are then changed


class Told(NamedTuple):
    """How the plan came about, for the lineage."""

    rank: types.Array  # i32 [N], 0 is the best
    threshold: types.Scalar  # f32, the fitness of the last that stays; NaN where there is no such thing


class Order(NamedTuple):
    """Members by fitness."""

    fitness: types.Array  # f32 [N], -inf where there is none
    members: types.Array  # i32 [N], best first
    rank: types.Array  # i32 [N], the place of each in it
    fit: types.Array  # bool [N], whether it has a fitness


def truncation(settings: Settings, fitness: types.Array, round: types.Scalar, key: types.Key) -> tuple[Plan, Told]:
    """The last ⌊fraction N⌋ (one at least) and all without fitness each take over from a random one of the others.

    Args:
        settings: Its `fraction`.
        fitness: ``[N]``.
        round: Exchanges before this one; every round is alike.
        key: Consumed.

    Source: Jaderberg et al. 2017, arXiv:1711.09846; threshold and fraction as in instadeepai/fastpbrl.
    """
    del round
    order, everybody = ordered(fitness), jnp.arange(len(fitness))
    winners = jnp.minimum(len(fitness) - losers(settings, len(fitness)), order.fit.sum())
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, everybody)
    place = jax.vmap(lambda key: jax.random.randint(key, (), 0, jnp.maximum(winners, 1)))(keys)
    loses = (order.rank >= winners) & (winners > 0)  # where nobody has a fitness nobody is replaced
    source = jnp.where(loses, order.members[place], everybody)
    last = order.fitness[order.members[jnp.maximum(winners - 1, 0)]]
    return Plan(source, source, loses), Told(order.rank, jnp.where(winners > 0, last, jnp.nan))


def losers(settings: Settings, members: int) -> int:
    """How many `truncation` replaces where all have a fitness."""
    return min(max(1, int(settings.fraction * members + 1e-9)), members - 1)


def mf_pbt(settings: Settings, fitness: types.Array, round: types.Scalar, key: types.Key) -> tuple[Plan, Told]:
    """Sub-populations that evolve at intervals of their own, and migrants between them.

    When one evolves, its last quarter takes over from its best quarter and explores. The quarter above takes the
    weights of the best outsiders, one each, where those are better; the hyperparameters with them only from
    sub-populations that evolve less often, else from the best at home. Migrants do not explore.

    Args:
        settings: Its `intervals`, of which `groups` says how many are used.
        fitness: ``[N]``.
        round: Exchanges before this one.
        key: Not needed: nothing is random.

    Source: Doulazmi et al. 2025, arXiv:2506.03225; WaelDLZ/MF-PBT. There equals migrate too, and 4 divides the size.
    """
    del key
    members = len(fitness)
    count = groups(settings, members)
    size = members // count
    order, everybody = ordered(fitness), jnp.arange(members)
    plan = Plan(everybody, everybody, jnp.zeros(members, bool))
    for group in range(count):
        local = group * size + jnp.argsort(-order.fitness[group * size : (group + 1) * size], stable=True)
        evolves = (jnp.asarray(round) + 1) % settings.intervals[group] == 0
        plan = _exploited(plan, order, local, evolves)
        if count > 1:
            plan = _migrated(plan, order, local, evolves, settings.intervals[:count], group)
    return plan, Told(order.rank, jnp.float32(jnp.nan))


def groups(settings: Settings, members: int) -> int:
    """Into how many sub-populations of equal size `mf_pbt` divides: one for each interval, if each gets four members.

    With fewer members the longer intervals are left out.
    """
    most = min(len(settings.intervals), members // LEAST)
    return next((count for count in range(most, 0, -1) if members % count == 0), 1)


def _exploited(plan: Plan, order: Order, local: types.Array, evolves: types.Scalar) -> Plan:
    quarter = max(1, len(local) // 4)
    if len(local) < 2:
        return plan
    best, worst = local[:quarter], local[-quarter:]
    source = jnp.where(order.fit[best], best, local[0])
    takes = evolves & order.fit[source]
    source = jnp.where(takes, source, worst)
    return Plan(
        plan.weights_from.at[worst].set(source),
        plan.hyperparameters_from.at[worst].set(source),
        plan.explore.at[worst].set(takes),
    )


def _migrated(
    plan: Plan, order: Order, local: types.Array, evolves: types.Scalar, intervals: tuple[int, ...], group: int
) -> Plan:
    size, quarter = len(local), len(local) // 4
    home = order.members // size == group
    outsiders = order.members[jnp.argsort(home, stable=True)]  # best first, those at home behind them
    every, taken = jnp.asarray(intervals), jnp.int32(0)
    for member in local[size - 2 * quarter : size - quarter]:
        migrant = outsiders[taken]
        better = evolves & (order.fitness[migrant] > order.fitness[member])
        theirs = every[migrant // size]
        at_home = jnp.where(order.fit[local[0]], local[0], migrant)
        source = jnp.where(theirs > intervals[group], migrant, jnp.where(theirs < intervals[group], at_home, member))
        plan = plan._replace(
            weights_from=plan.weights_from.at[member].set(jnp.where(better, migrant, member)),
            hyperparameters_from=plan.hyperparameters_from.at[member].set(jnp.where(better, source, member)),
        )
        taken = taken + better
    return plan


def none(settings: Settings, fitness: types.Array, round: types.Scalar, key: types.Key) -> tuple[Plan, Told]:
    """Nobody takes over from anybody: random search over the priors.

    Args:
        settings: Not needed.
        fitness: ``[N]``.
        round: Not needed.
        key: Not needed.
    """
    del settings, round, key
    everybody = jnp.arange(len(fitness))
    return Plan(everybody, everybody, jnp.zeros(len(fitness), bool)), Told(ordered(fitness).rank, jnp.float32(jnp.nan))


def ordered(fitness: types.Array) -> Order:
    """Members by fitness ``[N]``; equals by their numbers, those without fitness last."""
    fit = jnp.isfinite(fitness)
    value = jnp.where(fit, fitness, -jnp.inf).astype(jnp.float32)
    members = jnp.argsort(-value, stable=True).astype(jnp.int32)
    return Order(value, members, jnp.argsort(members).astype(jnp.int32), fit)


PLANS: Mapping[str, Callable[[Settings, types.Array, types.Scalar, types.Key], tuple[Plan, Told]]] = {
    "truncation": truncation,
    "mf_pbt": mf_pbt,
    "none": none,
}


def planned(
    exchange: str, settings: Settings, fitness: types.Array, round: types.Scalar, key: types.Key
) -> tuple[Plan, Told]:
    """The plan of an exchange; before ``settings.burn_in`` rounds are over nobody takes over from anybody.

    Args:
        exchange: Name in `PLANS`.
        settings: Of it.
        fitness: ``[N]``.
        round: Exchanges before this one.
        key: Consumed.

    Source: the burn-in of Ray Tune's PopulationBasedTraining; "ready" in Jaderberg et al. 2017, arXiv:1711.09846.
    """
    plan, told = PLANS[exchange](settings, fitness, round, key)
    if not settings.burn_in:
        return plan, told
    still, _ = none(settings, fitness, round, key)
    early = jnp.asarray(round) < settings.burn_in
    plan = Plan(*(jnp.where(early, before, after) for before, after in zip(still, plan, strict=True)))
    return plan, told._replace(threshold=jnp.where(early, jnp.float32(jnp.nan), told.threshold))


def check(exchange: str, settings: Settings, members: int) -> None:
    """Refuse what makes no plan.

    Args:
        exchange: Name in `PLANS`.
        settings: Of it.
        members: N.

    Raises:
        Refused: An unknown name, or numbers it cannot be done with.
    """
    if exchange not in PLANS:
        raise errors.unknown("exchange", exchange, PLANS)
    if exchange != "none" and members < 2:
        raise errors.Refused(
            f"{exchange} needs two members to exchange anything, but there is {members}; use more, or none"
        )
    if exchange == "truncation" and not 0.0 < settings.fraction < 1.0:
        raise errors.Refused(f"fraction={settings.fraction:g} is out of range; it must be above 0 and below 1")
    intervals = settings.intervals
    if exchange == "mf_pbt" and (not intervals or min(intervals) < 1 or list(intervals) != sorted(set(intervals))):
        raise errors.Refused(f"intervals={intervals} must be whole numbers from 1 on that rise, e.g. (1, 10, 25, 50)")
