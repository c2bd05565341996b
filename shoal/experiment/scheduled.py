"""An agent alone whose numbers follow a schedule: that of the weights that won a population.

The schedule is data of the experiment, kept in ``config.json``: environment steps of the learner from which on, and the
leaves (`types.About.hyper`) that change then. It is applied where the rule's own functions are, so that every runtime
acts and learns with it; a change compiles nothing anew.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epy

from shoal.core import errors, types

with epy.lazy_imports():
    import jax.numpy as jnp

    from shoal.runtimes.population import lineage

Schedule = tuple[tuple[int, Mapping[str, float]], ...]  # ascending; the first names every leaf, and is in force at once


class Found(NamedTuple):
    """What a population's run tells."""

    schedule: Schedule
    steps: int  # environment steps that one member had in all
    members: int
    winner: int


def read(folder: str | Path) -> Found:
    """The schedule of the member that won, along its ancestry.

    Args:
        folder: Of the run.

    Raises:
        Refused: It has no lineage.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise errors.Refused(f"--from-schedule {folder}: there is no such folder; give that of a population's run")
    try:
        events = lineage.read(folder)
    except errors.Refused as problem:
        raise errors.Refused(f"--from-schedule {problem}") from None
    best, members = lineage.winner(events), lineage.members(events)
    found = lineage.schedule(events, best)
    if not found[0][1]:
        raise errors.Refused(f"--from-schedule {folder}: its members had no hyperparameters of their own to follow")
    return Found(tuple(found), _steps(folder) // members, members, best)


def _steps(folder: Path) -> int:
    try:
        return int(json.loads((folder / "config.json").read_text())["steps"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.Refused(f"--from-schedule {folder}: config.json cannot be read ({error}); restore it") from None


def plain(schedule: Schedule) -> list[Any]:
    """As ``config.json`` holds it."""
    return [[steps, dict(values)] for steps, values in schedule]


def made(given: Sequence[Any]) -> Schedule:
    """The same, read back.

    Raises:
        ValueError, TypeError: It is no schedule.
    """
    points = tuple((int(steps), {str(name): float(value) for name, value in values.items()}) for steps, values in given)
    if any(later <= sooner for (sooner, _), (later, _) in itertools.pairwise(points)):
        raise ValueError("the steps of the schedule do not rise")
    if any(not math.isfinite(value) for _, values in points for value in values.values()):
        raise ValueError("the schedule holds a value that is not finite")
    return points


def told(schedule: Schedule) -> str:
    """What a person is told of it; "" without one."""
    if not schedule:
        return ""
    names = sorted(schedule[0][1])
    changes = len(schedule) - 1
    when = f", the last at {schedule[-1][0]:,} environment steps" if changes else ""
    return f"follows a schedule of {', '.join(names)}: {changes} {'change' if changes == 1 else 'changes'}{when}"


def check(schedule: Schedule, agent: types.Agent, rule: str, how: types.Ways, runtime: str) -> None:
    """Refuse a schedule that an agent, or the runtime it is to train in, cannot follow.

    Args:
        schedule: As `read` found it.
        agent: That is to follow it.
        rule: Its name.
        how: Of the runtime.
        runtime: Its name.

    Raises:
        Refused: An unknown leaf, a value out of its range, a population, or rates that the runtime does not look up.
    """
    if how.members > 1:
        raise errors.Refused(
            f"--from-schedule trains one agent alone, but {runtime} has {how.members} members; "
            "use --runtime on_device or host"
        )
    hyper = agent.about.hyper
    for name, value in ((name, value) for _, values in schedule for name, value in values.items()):
        if name not in hyper:
            raise errors.Refused(
                f"--from-schedule: the schedule sets {name}, which {rule} does not have; use a preset of the rule that "
                "the population trained"
            )
        if not hyper[name].low <= value <= hyper[name].high:
            raise errors.Refused(
                f"--from-schedule: the schedule sets {name} to {value:g}, but it must be between {hyper[name].low:g} "
                f"and {hyper[name].high:g}"
            )
        if how.captures and name.partition(".")[0] in agent.about.fields.optimisers:
            raise errors.Refused(
                f"--from-schedule: the schedule changes {name}, but the {runtime} runtime applies gradients itself and "
                "does not look it up again; use --runtime on_device or host"
            )


def follow(agent: types.Agent, schedule: Schedule) -> types.Agent:
    """The agent with its leaves as the schedule says at its count of environment steps.

    Args:
        agent: For which `check` holds.
        schedule: As `read` found it.
    """
    columns = {name: _column(schedule, name) for name in {name for _, values in schedule for name in values}}

    def due(state: types.State) -> types.State:
        for name, (steps, values) in sorted(columns.items()):
            at = jnp.maximum(jnp.sum(state.env_steps >= jnp.asarray(steps)) - 1, 0)
            state = agent.about.hyper[name].put(state, jnp.asarray(values, jnp.float32)[at])
        return state

    def update(state: types.State, rollout: types.Rollout, key: types.Key) -> tuple[types.State, types.Metrics]:
        state, metrics = agent.update(due(state), rollout, key)
        return due(state), metrics  # what acts next is read from it, maybe without asking the agent

    about, practice = agent.about, agent.about.practice
    if practice is not None:
        prepare = practice.prepare
        practice = practice._replace(prepare=lambda state, rollout: prepare(due(state), rollout))
    return agent._replace(
        init=lambda key: due(agent.init(key)),
        snapshot=lambda state: agent.snapshot(due(state)),
        update=update,
        about=about._replace(practice=practice),
    )


def _column(schedule: Schedule, name: str) -> tuple[list[int], list[float]]:
    """When a leaf changes, and to what."""
    points = [(steps, values[name]) for steps, values in schedule if name in values]
    return [steps for steps, _ in points], [value for _, value in points]
