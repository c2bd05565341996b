"""Where parties are: an axis of one program, in turn in this process, or each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from etils import epy

from shoal.core import errors, types
from shoal.runtimes.federated import axis, consensus, party, privacy, processes, turns
from shoal.runtimes.members import fitness

with epy.lazy_imports():
    import jax

if TYPE_CHECKING:
    from shoal.runtimes.federated import Config


def check(config: Config, env: str, *, compiled: bool) -> None:
    """Refuse settings that do not fit where parties are.

    Args:
        config: Of the runtime.
        env: The environment's id.
        compiled: Whether it is pure JAX.

    Raises:
        Refused: Says what to change.
    """
    if config.segment == "episode":
        if config.exchange not in ("outputs", "none") or config.placement == "axis":
            raise errors.Refused(
                f"runtime.segment=episode is for runtime.exchange outputs or none, in turns or processes, but it is "
                f"{config.exchange}, {config.placement}; leave it at fixed"
            )
        if config.environments != 1 or not compiled:
            raise errors.Refused(
                f"runtime.segment=episode is of one environment that is pure JAX, but there are {config.environments} "
                f"of {env}; use --runtime.environments 1 and an id that begins with gymnax:, or leave it at "
                "fixed"
            )
    if config.exchange == "outputs" and config.asynchronous:
        raise errors.Refused(
            "runtime.exchange=outputs agrees in rounds; leave --runtime.asynchronous out, or use --runtime.exchange "
            "delta"
        )
    if config.exchange == "outputs" and (config.clip > 0.0 or config.noise > 0.0 or config.secure_sum):
        raise errors.Refused(
            "runtime.exchange=outputs sends distributions, which a clip, noise or masks would make none; leave them "
            "out, or use --runtime.exchange delta"
        )
    if config.placement != "auto":
        _check_promises(config, config.placement)


def _check_promises(config: Config, where: str) -> None:
    """Refuse what only parties of one program can keep here (`promises`); a deployment can keep it everywhere."""
    inside = config.secure_sum or (config.privacy == "local" and config.unit == "trajectory")
    local = config.clip > 0.0 and config.privacy != "central"
    if (where != "axis" and inside) or (where == "processes" and local):
        raise errors.Refused(
            f"parties in {where} cannot clip, noise or mask what they send as these settings want; use "
            "--runtime.placement axis, or the deployment (shoal federate)"
        )


def chosen(config: Config, parts: types.Parts) -> str:
    """What was asked for; of "auto", an axis where one program serves all, processes for Python simulators, else turns.

    Args:
        config: Of the runtime.
        parts: The parties, and the first one's environment.

    Raises:
        Refused: An axis was asked for, and one program cannot serve all.
    """
    placement, outputs = config.placement, config.exchange == "outputs"
    one = parts.alike and parts.device_env is not None and not outputs and config.segment == "fixed"
    if placement == "axis" and not one:
        raise errors.Refused(
            "runtime.placement=axis, but one compiled program cannot serve these parties: their networks or "
            "environments differ, are Python simulators, or agree on outputs; use --runtime.placement turns or "
            "processes"
        )
    where = placement
    if placement == "auto":
        where = "axis" if one else "turns" if parts.device_env is not None else "processes"
    _check_promises(config, where)
    return where


def suits(config: Config, parts: types.Parts) -> None:
    """Refuse parties that cannot be where they are to be, or cannot exchange what they are to.

    Args:
        config: Of the runtime.
        parts: The parties, and the first one's environment.

    Raises:
        Refused: Says what to change.
    """
    if config.placement not in ("server", "party"):
        privacy.placed(config, chosen(config, parts))
    if config.exchange == "outputs":
        consensus.check(parts.agent)
        if config.public_from == consensus.BOUNDS:
            consensus.edges(parts.spec)


def terms(config: Config, parts: types.Parts, run: bytes, seed: int, updates: int) -> party.Terms:
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


def agreement(config: Config, parts: types.Parts, seed: int) -> consensus.Agreement:
    """What parties agree on (form G).

    Args:
        config: Of the runtime.
        parts: Of the owner who lets some observations be told.
        seed: Of the run.
    """
    states = consensus.public(parts, config.public_from, config.public, seed)
    return consensus.Agreement(states, parts.spec.action.n, config.distil_steps, config.distil_every)


def longest(config: Config, parts: types.Parts) -> int:
    """Updates in which so many episodes have ended for certain; those of a round of outputs at most.

    Args:
        config: Of the runtime.
        parts: The parties.
    """
    if config.segment == "episode":
        return config.distil_every
    limit = parts.spec.time_limit or fitness.LONGEST_FREE  # without a limit a round ends there, whatever has ended
    each = parts.agent.about.rollout_length * config.environments
    return -(-(config.distil_every + config.environments) * limit // each)


def plan(config: Config, parts: types.Parts, run: bytes, seed: int, updates: int) -> turns.Plan:
    """How parties work; arguments as in `terms`."""
    given = terms(config, parts, run, seed, updates)
    return turns.Plan(given, config.paces, config.asynchronous or bool(config.paces), given.most)


Saved = turns.Saved | tuple[party.Kept, ...] | axis.Saved


def opened(
    where: str, parts: types.Parts, how: turns.Plan, fault: Callable[[str, str], None]
) -> turns.Turns | processes.Processes:
    """Parties in turn, or in processes that are being started.

    Args:
        where: "turns" or "processes".
        parts: The parties.
        how: They work.
        fault: Told of what went wrong at one, and of processes that died.
    """
    if where == "turns":
        return turns.Turns(parts.parties, how, fault)
    return processes.Processes(parts.parties, how, turns.like(parts.parties, how).parties, fault)


def like(where: str, parts: types.Parts, how: turns.Plan) -> Saved:
    """What a checkpoint holds of the parties, as ShapeDtypeStructs or arrays; arguments as in `opened`."""
    found = turns.like(parts.parties, how)
    return found if where == "turns" else found.parties


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


def policies(parts: types.Parts, how: turns.Plan, saved: Saved, theta: np.ndarray) -> tuple[types.Policy, ...]:
    """Of every party in a checkpoint: the server's global part with what is its own.

    Args:
        parts: The parties.
        how: They work.
        saved: What the checkpoint holds of them.
        theta: The global part, ``[d]``.
    """
    found = []
    for one, kept in zip(parts.parties, kepts(saved), strict=True):
        agent = one.rebuild().agent
        state = party.channel_of(agent, how.terms).install(kept.home.members.state, theta)
        found.append(jax.device_get(agent.snapshot(state)))
    return tuple(found)
