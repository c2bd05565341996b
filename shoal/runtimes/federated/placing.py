"""Where parties are: an axis of one program, in turn in this process, or each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epy

from shoal.core import errors, types
from shoal.runtimes.federated import axis, consensus, party, processes, turns

with epy.lazy_imports():
    import jax


def check(config: Any, experiment: Any, opened: Any) -> None:
    """Refuse settings that do not fit where parties are.

    Raises:
        Refused: Says what to change.
    """
    if config.segment == "episode":
        if config.exchange not in ("outputs", "none") or config.placement == "axis":
            raise errors.Refused(
                f"runtime.segment=episode is for runtime.exchange outputs or none, in turns or processes, but it is "
                f"{config.exchange}, {config.placement}; leave it at fixed"
            )
        if config.environments != 1 or opened.device is None:
            raise errors.Refused(
                f"runtime.segment=episode is of one environment that is pure JAX, but there are {config.environments} of "
                f"{experiment.env}; use --runtime.environments 1 and an id that begins with gymnax:, or leave it at fixed"
            )
    if config.exchange == "outputs" and config.asynchronous:
        raise errors.Refused(
            "runtime.exchange=outputs agrees in rounds; leave --runtime.asynchronous out, or use --runtime.exchange delta"
        )
    secret = config.secure_sum or config.privacy != "none" or config.clip > 0.0
    if secret and config.placement == "processes":
        raise errors.Refused(
            "runtime.placement=processes has no ledger that all processes share, so neither clip nor noise nor masks; "
            "use --runtime.placement axis or turns, or the deployment (shoal federate)"
        )


def chosen(config: Any, parts: types.Parts) -> str:
    """What was asked for; of "auto", an axis where one program serves all, processes for Python simulators, else turns.

    Args:
        config: Of the runtime.
        parts: The parties, and the first one's environment.

    Raises:
        Refused: An axis was asked for, and one program cannot serve all.
    """
    placement, outputs = config.placement, config.exchange == "outputs"
    if placement == "auto":
        if outputs or config.segment == "episode":
            return "turns" if parts.device_env is not None else "processes"
        if parts.alike and parts.device_env is not None:
            return "axis"
        return "turns" if parts.device_env is not None else "processes"
    if placement == "axis" and (outputs or not parts.alike or parts.device_env is None):
        raise errors.Refused(
            "runtime.placement=axis, but one compiled program cannot serve these parties: their networks or "
            "environments differ, are Python simulators, or agree on outputs; use --runtime.placement turns or "
            "processes"
        )
    return placement


def terms(config: Any, parts: types.Parts, run: bytes, seed: int, updates: int) -> party.Terms:
    """What parties know of the run.

    Args:
        config: Of the runtime.
        parts: The parties; the first one's are the public states, where there are any.
        run: Its name, ``[16]``.
        seed: Of the run.
        updates: Local updates of a round at most.
    """
    agreed = agreement(config, parts, seed) if config.exchange == "outputs" else None
    return party.Terms(
        run, 0, seed, config.environments, config.exchange, updates, config.reset_moments, agreed,
        config.segment == "episode",
    )  # fmt: skip


def agreement(config: Any, parts: types.Parts, seed: int) -> consensus.Agreement:
    """What parties agree on (form G).

    Args:
        config: Of the runtime.
        parts: Of the owner who lets some observations be told.
        seed: Of the run.
    """
    states = consensus.public(parts, config.public_from, config.public, seed)
    return consensus.Agreement(states, parts.spec.action.n, config.distil_steps, config.distil_every)


def longest(config: Any, parts: types.Parts) -> int:
    """Updates in which so many episodes have ended for certain; those of a round of outputs at most.

    Raises:
        Refused: The environment has no time limit, so nobody can tell.
    """
    if config.segment == "episode":
        return config.distil_every
    limit = parts.spec.time_limit
    if limit is None:
        raise errors.Refused(
            f"runtime.exchange=outputs agrees after so many episodes, and {parts.spec.id} has no time limit; give it "
            "one (--environment.time-limit), or use --runtime.exchange delta"
        )
    each = parts.agent.about.rollout_length * config.environments
    return -(-(config.distil_every + config.environments) * limit // each)


def plan(config: Any, given: party.Terms) -> turns.Plan:
    """How parties work.

    Args:
        config: Of the runtime.
        given: What they know of the run.
    """
    return turns.Plan(given, config.paces, config.asynchronous or bool(config.paces), given.most)


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
    how = plan(config, terms(config, parts, run, seed, updates))._replace(wire=wire)
    if where == "turns":
        return turns.Turns(parts.parties, how, fault)
    return processes.Processes(parts.parties, how, turns.like(parts.parties, how).parties, fault)


def like(config: Any, parts: types.Parts, run: bytes, seed: int, updates: int) -> Saved:
    """What a checkpoint holds of the parties, as ShapeDtypeStructs or arrays; arguments as in `opened`."""
    found = turns.like(parts.parties, plan(config, terms(config, parts, run, seed, updates)))
    return found if chosen(config, parts) == "turns" else found.parties


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
    given, found = terms(config, parts, run, seed, config.local_updates), []
    for one, kept in zip(parts.parties, kepts(saved), strict=True):
        agent = one.rebuild().agent
        state = party.channel_of(agent, given).install(kept.home.members.state, theta)
        found.append(jax.device_get(agent.snapshot(state)))
    return tuple(found)
