"""Where parties are: an axis of one program, in turn in this process, or each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epy

from shoal.core import errors, types
from shoal.runtimes.federated import axis, party, processes, promises, turns

with epy.lazy_imports():
    import jax


def chosen(placement: str, parts: types.Parts) -> str:
    """What was asked for; of "auto", an axis where one program serves all, processes for Python simulators, else turns.

    Args:
        placement: "auto", "axis", "turns" or "processes".
        parts: The parties, and the first one's environment.

    Raises:
        Refused: An axis was asked for, and the parties are not alike.
    """
    if placement == "auto":
        if parts.alike and parts.device_env is not None:
            return "axis"
        return "turns" if parts.device_env is not None else "processes"
    if placement == "axis" and not (parts.alike and parts.device_env is not None):
        raise errors.Refused(
            "runtime.placement=axis, but one compiled program cannot serve these parties: their networks or "
            "environments differ in shape, or are Python simulators; use --runtime.placement turns or processes"
        )
    return placement


def terms(config: Any, run: bytes, seed: int, updates: int) -> party.Terms:
    """What parties know of the run.

    Args:
        config: Of the runtime.
        run: Its name, ``[16]``.
        seed: Of the run.
        updates: Local updates of a round at most.
    """
    return party.Terms(run, 0, seed, config.environments, config.exchange, updates, config.reset_moments)


def plan(config: Any, given: party.Terms) -> turns.Plan:
    """How parties work.

    Args:
        config: Of the runtime.
        given: What they know of the run.
    """
    apart = config.asynchronous or bool(config.paces)
    return turns.Plan(given, config.paces, apart, given.most, promises.at_home(config, given.seed))


Saved = turns.Saved | tuple[party.Kept, ...] | axis.Saved


def opened(
    where: str,
    config: Any,
    parts: types.Parts,
    run: bytes,
    seed: int,
    updates: int,
    fault: Callable[[str, str], None],
    wire: axis.Wire = axis.untouched,
) -> turns.Turns | processes.Processes:
    """Parties in turn, or in processes that are being started.

    Args:
        where: "turns" or "processes".
        config: Of the runtime.
        parts: The parties.
        run: The run's name, ``[16]``.
        seed: Of the run.
        updates: Local updates of a round.
        fault: Told of what went wrong at one, and of processes that died.
        wire: What happens to messages on their way.
    """
    how = plan(config, terms(config, run, seed, updates))._replace(wire=wire)
    if where == "turns":
        return turns.Turns(parts.parties, how, fault)
    return processes.Processes(parts.parties, how, turns.like(parts.parties, how).parties, fault)


def like(config: Any, parts: types.Parts, run: bytes, seed: int, updates: int) -> Saved:
    """What a checkpoint holds of the parties, as ShapeDtypeStructs or arrays; arguments as in `opened`."""
    found = turns.like(parts.parties, plan(config, terms(config, run, seed, updates)))
    return found if chosen(config.placement, parts) == "turns" else found.parties


def kepts(saved: Saved) -> Sequence[party.Kept]:
    """Of every party what was saved, in turns or in processes."""
    if isinstance(saved, turns.Saved):
        return saved.parties
    assert not isinstance(saved, axis.Saved)
    return saved


def steps(saved: Saved) -> int:
    """Environment steps of all parties in a checkpoint."""
    if isinstance(saved, axis.Saved):
        return int(saved.desk.env_steps.sum())
    return sum(int(kept.counts[party.COUNTS.index("env_steps")]) for kept in kepts(saved))


def policies(
    config: Any, parts: types.Parts, run: bytes, seed: int, saved: Saved, theta: np.ndarray
) -> tuple[types.Policy, ...]:
    """Of every party in a checkpoint: the server's global part with what is its own.

    Args:
        config: Of the runtime.
        parts: The parties.
        run: The run's name, ``[16]``.
        seed: Of the run.
        saved: What the checkpoint holds of them.
        theta: The global part, ``[d]``.
    """
    given, found = terms(config, run, seed, config.local_updates), []
    for one, kept in zip(parts.parties, kepts(saved), strict=True):
        agent = one.rebuild().agent
        state = party.channel_of(agent, given).install(kept.home.members.state, theta)
        found.append(jax.device_get(agent.snapshot(state)))
    return tuple(found)
