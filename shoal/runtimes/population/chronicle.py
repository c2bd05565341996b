"""What happens to the members of a population, as data, and how it is written down.

The first events (``init``) tell every member's hyperparameters; then each exchange tells of every member its fitness,
its rank and what it took over, a ``failure`` of one, and at the end of the run its ``fitness``. Hyperparameters are
told where they change.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from etils import epy

from shoal.core import types
from shoal.runtimes.population import exchange

with epy.lazy_imports():
    import numpy as np

KINDS = ("init", "exchange", "failure", "fitness", "cem")


class Event(NamedTuple):
    """What happened to one member."""

    event: str  # of `KINDS`
    update: int  # updates of every member before it
    env_steps: int  # environment steps of one member before it
    member: int
    source: int | None = None  # whose weights it went on with; None: its own, or after a failure fresh ones
    fitness: float | None = None  # that was measured; None: there is none
    rank: int | None = None  # 0 is the best
    threshold: float | None = None  # the fitness of the last that stays, where there is such a thing
    copied: tuple[str, ...] = ()  # fields of the state that were taken over
    reset: tuple[str, ...] = ()  # and those that began afresh
    hyperparameters: Mapping[str, float] = {}  # from here on; those that are not named stay
    reason: str = ""  # name of the exchange, "non_finite", ...
    round: int | None = None  # exchanges before it
    hyperparameters_from: int | None = None  # whose hyperparameters it took; None: its own
    explore: bool = False  # whether they were then changed


class Round(NamedTuple):
    """One exchange of all members, as it is done again."""

    round: int
    update: int
    env_steps: int  # of one member
    fitness: types.Array  # f32 [N], NaN where there is none
    plan: exchange.Plan  # NumPy


def initial(hyperparameters: Mapping[str, types.Array], members: int) -> list[Event]:
    """What every member begins with.

    Args:
        hyperparameters: ``[N]`` by the names of leaves.
        members: N.
    """
    return [
        Event("init", 0, 0, member, hyperparameters=_told(hyperparameters, member), reason="prior")
        for member in range(members)
    ]


def exchanged(
    done: Round,
    told: exchange.Told,
    before: Mapping[str, types.Array],
    after: Mapping[str, types.Array],
    reason: str,
    copied: tuple[Sequence[str], Sequence[str]] = ((), ()),
) -> list[Event]:
    """One event a member.

    Args:
        done: When, the fitness and the plan.
        told: By the plan's maker.
        before: Hyperparameters ``[N]`` before it, by the names of leaves.
        after: The same after it.
        reason: Name of the exchange.
        copied: What a member that takes over takes, and what begins afresh (`applying.copied`).
    """
    threshold = _number(told.threshold)
    weights, theirs = np.asarray(done.plan.weights_from), np.asarray(done.plan.hyperparameters_from)
    events = []
    for member in range(len(weights)):
        moves = int(weights[member]) != member
        old, new = _told(before, member), _told(after, member)
        events.append(
            Event(
                event="exchange",
                update=done.update,
                env_steps=done.env_steps,
                member=member,
                source=int(weights[member]) if moves else None,
                fitness=_number(np.asarray(done.fitness)[member]),
                rank=int(np.asarray(told.rank)[member]),
                threshold=threshold,
                copied=tuple(copied[0]) if moves else (),
                reset=tuple(copied[1]) if moves else (),
                hyperparameters={name: value for name, value in new.items() if value != old[name]},
                reason=reason,
                round=done.round,
                hyperparameters_from=int(theirs[member]) if int(theirs[member]) != member else None,
                explore=bool(np.asarray(done.plan.explore)[member]),
            )
        )
    return events


def measured(update: int, env_steps: int, fitness: types.Array) -> list[Event]:
    """How every member stands where nothing is exchanged: at the end of a run.

    Args:
        update: Updates of a member.
        env_steps: Environment steps of a member.
        fitness: ``[N]``, NaN where there is none.
    """
    values = [_number(value) for value in np.asarray(fitness)]
    sunk = [math.inf if value is None else -value for value in values]
    order = sorted(range(len(values)), key=lambda at: (sunk[at], at))
    return [
        Event("fitness", update, env_steps, member, fitness=value, rank=order.index(member), reason="end")
        for member, value in enumerate(values)
    ]


def failed(
    update: int,
    env_steps: int,
    member: int,
    source: int | None,
    hyperparameters: Mapping[str, types.Array],
    reason: str = "non_finite",
    copied: tuple[Sequence[str], Sequence[str]] = ((), ()),
) -> Event:
    """A member that was replaced out of turn.

    Args:
        update: Updates before it.
        env_steps: Environment steps of a member before it.
        member: Which.
        source: Whose weights it goes on with; None: fresh ones.
        hyperparameters: ``[N]`` after it, by the names of leaves.
        reason: Why.
        copied: What it takes, and what begins afresh.
    """
    return Event(
        "failure", update, env_steps, member, source, copied=tuple(copied[0]), reset=tuple(copied[1]),
        hyperparameters=_told(hyperparameters, member), reason=reason,
    )  # fmt: skip


def _told(values: Mapping[str, types.Array], member: int) -> dict[str, float]:
    # The shortest decimals that are the same float32 again.
    return {name: float(str(np.float32(np.asarray(value)[member]))) for name, value in values.items()}


def _number(value: types.Scalar) -> float | None:
    value = float(str(np.float32(value)))
    return value if math.isfinite(value) else None


def line(event: Event) -> str:
    """An event as it is written; what is not there is ``null`` or left out."""
    always = ("event", "update", "env_steps", "member", "source", "fitness")
    there = {
        name: value for name, value in event._asdict().items() if value is not False and value not in (None, (), {}, "")
    }
    kept = {**dict.fromkeys(always), **there}
    return json.dumps(kept, allow_nan=False)


def parsed(text: str) -> Event:
    """An event as `line` wrote it.

    Args:
        text: A line.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: It is none.
    """
    event = Event(**json.loads(text))
    if not all(isinstance(number, int) for number in (event.update, event.env_steps, event.member)):
        raise TypeError("its numbers are not whole")
    values = {name: float(value) for name, value in event.hyperparameters.items()}
    return event._replace(copied=tuple(event.copied), reset=tuple(event.reset), hyperparameters=values)
