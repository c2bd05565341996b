"""What a checkpoint holds beside the learner and its counters."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from etils import epy

from shoal.core import seeds, tree, types
from shoal.monitor import control
from shoal.runtimes.actor_learner import actor, teacher

with epy.lazy_imports():
    import jax


class Begun(NamedTuple):
    """How a life of a run begins."""

    state: types.State
    updates: int
    env_steps: int
    life: int
    engine: str  # of its actors; "auto": to be measured
    control: control.State


def begun(agent: types.Agent, seed: int, engine: str, saved: types.Tree | None) -> Begun:
    """A new learner, or the saved one.

    Args:
        agent: The rule.
        seed: The run's.
        engine: As asked for; the measurement of an earlier life is taken over.
        saved: The checkpoint tree, or None.
    """
    if saved is None:
        return Begun(jax.jit(agent.init)(seeds.key(seed, "init")), 0, 0, 0, engine, control.State())
    state, told = jax.device_put(saved[0]), saved[1]
    if agent.about.restart:  # the simulators could not be saved: every stream breaks off here
        state = jax.jit(agent.about.restart, donate_argnums=0)(state)
    if engine == "auto":
        engine = actor.read(told["engine"]) or "auto"
    stands = control.State(*map(int, told["control"]))
    return Begun(state, int(told["updates"]), int(told["env_steps"]), int(told["life"]) + 1, engine, stands)


def kept(engine: str, state: control.State, memory: types.Tree = (), remembers: bool = False) -> dict[str, types.Tree]:
    """What a checkpoint keeps beside the learner and its counters.

    Args:
        engine: The actors', by name.
        state: Where the controller stands.
        memory: The compressor's (`types.Compressor.kept`).
        remembers: Whether that is more than a place for one.
    """
    room = np.zeros(16, np.uint8)
    raw = engine.encode()[:16]
    room[: len(raw)] = np.frombuffer(raw, np.uint8)
    told = {"engine": room, "control": np.array(state, np.int64)}
    return {**told, "memory": memory, "remembers": np.int64(remembers)}


def like(parts: types.Parts) -> dict[str, types.Tree]:
    """The same as shapes (`types.Runtime.like`); older checkpoints lack what a compressor remembers."""
    memory: types.Tree = ()
    if parts.compressor is not None and not parts.compressor.here:
        memory = teacher.remembered(parts.agent, parts.compressor)
    told = kept("", control.State())
    added = {"memory": memory, "remembers": told["remembers"]}
    return told | jax.tree.map(lambda leaf: tree.Added(leaf.shape, leaf.dtype.name), added)
