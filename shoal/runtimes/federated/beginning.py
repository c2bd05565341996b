"""How a federation begins: its names, its server, its carrier, and the checkpoint tree they come to."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from etils import epy

from shoal.core import errors, types
from shoal.formulas import streams
from shoal.runtimes.crew import beside
from shoal.runtimes.federated import (
    audit,
    axis,
    channels,
    compiled,
    consensus,
    hostile,
    message,
    placing,
    privacy,
    processes,
    promises,
    running,
    server,
    telling,
    terms,
    together,
)
from shoal.runtimes.members import dispatch

if TYPE_CHECKING:
    from shoal.runtimes.federated import Config

with epy.lazy_imports():
    import jax


class Opening(NamedTuple):
    """What a run is made of before its first round."""

    names: tuple[str, ...]
    envs: tuple[str, ...]
    programs: compiled.Programs
    rules: server.Rules
    run: bytes  # [16]


# ------------------------------------------------------------------------------------------------ made


def channel_of(config: Config, parts: types.Parts, seed: int) -> channels.Channel | None:
    """What crosses."""
    if config.exchange == "none":
        return None
    if config.exchange == "outputs":
        return consensus.channel(parts.agent, placing.agreement(config, parts, seed))
    agent = parts.agent
    params = jax.eval_shape(agent.init, jax.random.key(0)).params
    if config.exchange == "gradient":
        return channels.gradient(agent, params)
    return channels.delta(agent, params, reset=config.reset_moments)


def opened(config: Config, parts: types.Parts, seed: int, steps: int = 1) -> Opening:
    """What a run is made of.

    Args:
        config: Of the runtime.
        parts: The agent, its environment and the parties.
        seed: Of the run.
        steps: Environment steps of all parties in all; no array's shape depends on them.
    """
    named = parts.parties or tuple(
        types.Party(f"party-{at}", parts.spec.id, parts.rebuild) for at in range(config.parties)
    )
    updates = config.local_updates
    if config.exchange == "none":
        updates = by_themselves(config, parts, len(named), steps)
    elif config.exchange == "outputs":
        consensus.check(parts.agent)
        updates = placing.longest(config, parts)
    shape = together.Shape(len(named), config.environments, updates)
    if privacy.by_trajectory(config):
        parts = parts._replace(agent=streams.mapped(parts.agent, config.environments))
    made = compiled.Programs(parts, shape, channel_of(config, parts, seed))
    held = terms.rules_of(config)._replace(
        env_steps=made.per_update * updates,
        updates=updates,
        coins=hashlib.sha256(f"coins of run {seed}".encode()).digest(),  # secret in a deployment, repeatable here
    )
    held = held._replace(settings=held.settings._replace(local_updates=updates))
    if config.exchange == "outputs":
        held = held._replace(choices=parts.spec.action.n)
    if config.exchange == "gradient":
        held = held._replace(optimiser=terms.numbers(parts.agent))
    run = hashlib.sha256(f"run {seed}".encode()).digest()[:16]
    return Opening(tuple(one.name for one in named), tuple(one.env for one in named), made, held, run)


def by_themselves(config: Config, parts: types.Parts, count: int, steps: int) -> int:
    """Updates in a call of parties that exchange nothing: calls are about alike, and none is longer than a report."""
    each = config.environments * parts.agent.about.rollout_length * count
    updates = math.ceil(steps / each)
    return math.ceil(updates / math.ceil(updates / max(1, running.REPORT // each)))


def spec_of(opening: Opening) -> message.Spec:
    """What crosses, but for masks."""
    channel = opening.programs.channel
    return channel.spec if channel else message.Spec(())


def served(
    opening: Opening, theta: np.ndarray, log: audit.Audit | None = None, promised: promises.Promises | None = None
) -> server.Server:
    """The server before its first round."""
    release, masked = (promised.release, promised.masked) if promised else (None, None)
    return server.Server(
        spec_of(opening), theta, opening.names, opening.rules, opening.run, log=log, release=release, masked=masked
    )


def carrier(
    config: Config,
    opening: Opening,
    seed: int,
    homes: together.Homes,
    block: int,
    promised: promises.Promises | None = None,
) -> axis.Axis:
    """Parties as one axis.

    Args:
        config: Of the runtime.
        opening: Of the run.
        seed: Likewise.
        homes: Where parties are; given away.
        block: Of the `dispatch.Way` that was chosen; -1: none yet.
        promised: What is done to updates before they leave.
    """
    count = opening.programs.shape.parties
    way = dispatch.way(config.dispatch, 0, count)
    if way is None:
        way = dispatch.of(block, count) if block >= 0 else dispatch.Way("vmap", count)
    plan = axis.Plan(
        names=opening.names, environments=config.environments, updates=opening.programs.shape.updates,
        paces=config.paces, apart=config.asynchronous or bool(config.paces),
        leaves=promised.leaves if promised else axis.as_it_is, masked=promised.masked if promised else None,
        before=promised.noised if promised else None,
    )  # fmt: skip
    return axis.Axis(opening.programs, way, plan, seed, homes)


def like(config: Config, parts: types.Parts, seed: int) -> running.Saved:
    """The checkpoint tree as arrays or ShapeDtypeStructs."""
    opening = opened(config, parts, seed)
    made, count = opening.programs, len(opening.names)
    begun = served(opening, np.zeros(made.size, np.float32))
    if (where := placing.chosen(config, parts)) != "axis":
        how = placing.plan(config, parts, opening.run, seed, made.shape.updates)
        apart = placing.like(where, parts, how)
        return running.Saved(apart, begun.kept(), running.fresh(count))
    desk = carrier(config, opening, seed, made.like, -1).desk
    return running.Saved(axis.Saved(made.like, desk), begun.kept(), running.fresh(count))


def policies(config: Config, parts: types.Parts, seed: int, saved: running.Saved) -> tuple[types.Policy, ...]:
    """Of every party in a checkpoint tree: the server's global part with what is its own."""
    opening = opened(config, parts, seed)
    made = opening.programs
    if placing.chosen(config, parts) != "axis":
        how = placing.plan(config, parts, opening.run, seed, made.shape.updates)
        return placing.policies(parts, how, saved.parties, saved.server["theta"])
    every = made.policies(saved.parties.homes, saved.server["theta"])
    return tuple(jax.tree.map(lambda leaf, at=at: leaf[at], every) for at in range(made.shape.parties))


def about(config: Config, parts: types.Parts, opening: Opening, promised: promises.Promises) -> telling.About:
    """What is told of the run besides its rounds."""
    params = jax.eval_shape(parts.agent.init, jax.random.key(0)).params
    own = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) - opening.programs.size
    more: dict[str, Any] = {"simulated": promised.simulated(), "alike": parts.alike}
    if config.paces:
        more["simulated"].append("how slow each party is")
    if config.attack:
        more["simulated"].append(f"attacks ({' '.join(config.attack)})")
    form = form_of(next(iter(parts.agent.about.networks.values())).spec)
    return telling.About(opening.names, opening.envs, form, config.exchange, opening.programs.size, own, more)


def form_of(spec: types.NetworkSpec) -> str:
    """The form of a network (`networks.forms`), from its layers: "A" to "F"; "none": all of it is everybody's."""
    if spec.vectors or spec.terms:
        return "F" if spec.vectors else "D"
    if any(len(seen) > 1 for seen in spec.inputs.values()):
        return "E"
    first = any(layer.name and layer.scope == "local" for layers in spec.trunks.values() for layer in layers)
    last = any(layer.scope == "local" for _, layers in spec.heads.values() for layer in layers)
    return {(True, True): "C", (True, False): "B", (False, True): "A", (False, False): "none"}[first, last]


def _lies(config: Config, opening: Opening, seed: int) -> Sequence[Callable]:
    """What some parties make of their replies; nothing where nobody attacks."""
    attacks = hostile.parsed(config.attack, len(opening.names))
    return [functools.partial(hostile.lies, spec_of(opening), attacks, seed=seed)] if attacks else []


# ------------------------------------------------------------------------------------------------ run


def trained(
    config: Config,
    parts: types.Parts,
    seed: int,
    steps: int,
    observe: types.Observer,
    saved: running.Saved | None,
    wire: axis.Wire = axis.untouched,
) -> types.Result:
    """One life of a run.

    Args:
        config: Of the runtime.
        parts: The agent, its environment and the parties.
        seed: Of the run.
        steps: Environment steps of all parties.
        observe: Who looks on.
        saved: The checkpoint tree to continue from; None for a new run.
        wire: What happens to messages on their way.
    """
    began, log = time.monotonic(), audit.Audit()
    opening = opened(config, parts, seed, steps)
    made = opening.programs
    promised = promises.Promises(config, seed, spec_of(opening))
    where = placing.chosen(config, parts)
    privacy.placed(config, where)
    done = placing.steps(saved.parties) if saved is not None else 0
    look = beside.first(observe, done, done // made.per_update)

    def make() -> running.Carrier:
        if where != "axis":
            how = placing.plan(config, parts, opening.run, seed, made.shape.updates)
            how = how._replace(wire=wire, leaving=promised.leaving)
            apart = placing.opened(where, parts, how, observe.fault)
            if saved is not None:
                apart.resume(saved.parties)
            return apart
        begun = made.begins.load()(made.keys(seed, "init"))
        one = carrier(config, opening, seed, begun, int(saved.standing.block) if saved is not None else -1, promised)
        one.use(wire)
        if saved is not None:
            one.resume(saved.parties)
        return one

    carried = beside.done(make, beside.COMPILING, look)
    if isinstance(carried, axis.Axis):
        block = int(saved.standing.block) if saved is not None else -1
        rounds = math.ceil(max(0, steps - done) / len(opening.names) / made.per_update / made.shape.updates)
        carried.compile(max(1, rounds), look, choose=config.dispatch == "auto" and block < 0)
    if isinstance(carried, processes.Processes) and not carried.begin(lambda: look(carried.stage())):
        carried.close()
        raise errors.NotBegun("asked to end before the first step")
    serving = served(opening, carried.beginning(), log, promised)
    now = running.fresh(len(opening.names))
    if saved is not None:
        serving.resume(saved.server)
        if where == "processes":
            serving.forget()  # who was at a job is sent it again
        now = saved.standing
    plan = running.Plan(
        steps, made.per_update, config.evaluate_every, config.episodes, config.asynchronous,
        terms.joins(config, opening.names), config.exchange == "none",
        *_lies(config, opening, seed),
    )  # fmt: skip
    life = running.Running(carried, serving, plan, seed, about(config, parts, opening, promised), log, promised)
    with contextlib.closing(carried):
        return life(now._replace(block=np.int64(carried.block)), observe, time.monotonic() - began)
