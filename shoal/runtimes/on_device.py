"""On device: acting, stepping, learning in one compiled program; for pure-JAX environments.

The loop of Podracer's Anakin (Hessel et al. 2021, arXiv:2104.06272) on one device: scan over updates, each a scan over
steps of B environments and one update. The host sees a chunk of updates at a time; chunks do not change a single bit.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from etils import epy

from shoal import errors, options, seeds, types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

    from shoal.runtimes import _rollout


@dataclasses.dataclass(frozen=True)
class Config:
    """The whole loop compiled."""

    environments: int = options.number(64, low=1)
    """Environments stepped in lock-step (B)."""
    chunk_steps: int = options.number(16384, low=1)
    """Environment steps between two looks of the host: progress, checkpoints, and the goal are seen this often."""


EXACT_RESUME = True
CAPTURES = False


def check(config: Config, experiment: Any, opened: Any) -> None:
    """Refuse environments that cannot be compiled.

    Raises:
        Refused: The environment is not pure JAX.
    """
    del config
    if opened.device is None:
        raise errors.Refused(
            f"the on_device runtime needs a pure-JAX environment, but {experiment.env} is a Python simulator; "
            "use --runtime host, or an id that begins with gymnax: or probe:"
        )


def build(config: Config) -> types.Runtime:
    """The runtime."""
    return OnDevice(config)


class Loop(NamedTuple):
    """All that makes the next update what it is; exactly this is checkpointed."""

    state: Any  # the learner
    actors: _rollout.Actors  # [B]
    update: Any  # scalar u32, updates done; keys are folded from it


class OnDevice:
    """Runs chunks of updates until told to stop."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def like(self, parts: types.Parts, seed: int) -> types.Tree:
        """See `types.Runtime`."""
        return jax.eval_shape(_start(parts, self._config.environments), seeds.key(seed, "init"))

    def policy(self, parts: types.Parts, seed: int, saved: types.Tree) -> types.Policy:
        """See `types.Runtime`."""
        del seed
        return parts.agent.snapshot(saved.state)

    def run(
        self,
        parts: types.Parts,
        seed: int,
        steps: int,
        goal: types.Goal | None,
        observe: types.Observer,
        saved: types.Tree | None,
    ) -> types.Result:
        """See `types.Runtime`."""
        del goal  # the observer sees every chunk and decides
        began = time.monotonic()
        plan = _plan(self._config, parts.agent.rollout_length, steps)
        start = jax.jit(_start(parts, self._config.environments))
        loop = start(seeds.key(seed, "init")) if saved is None else jax.tree.map(jnp.asarray, saved)
        chunk = jax.jit(_chunk(parts, plan), donate_argnums=0).lower(loop, seeds.key(seed, "run")).compile()
        return _drive(_Drive(parts, plan, chunk, seed, observe, began), loop)


class Plan(NamedTuple):
    """How the steps asked for are cut up."""

    per_update: int  # environment steps
    per_chunk: int  # updates
    chunks: int


def _plan(config: Config, rollout_length: int, steps: int) -> Plan:
    """Equal chunks, so that one program serves all; the total is rounded up to whole chunks."""
    per_update = config.environments * rollout_length
    updates = math.ceil(steps / per_update)
    chunks = math.ceil(updates / max(1, config.chunk_steps // per_update))
    return Plan(per_update, math.ceil(updates / chunks), chunks)


def _start(parts: types.Parts, batch: int) -> Callable[[Any], Loop]:
    def start(key: Any) -> Loop:
        learner, world = jax.random.split(key)
        assert parts.device_env is not None
        actors = _rollout.start(parts.agent, parts.device_env, batch, world)
        return Loop(parts.agent.init(learner), actors, jnp.uint32(0))

    return start


def _chunk(parts: types.Parts, plan: Plan) -> Callable[[Loop, Any], tuple[Loop, Any]]:
    agent, env = parts.agent, parts.device_env
    assert env is not None

    def one(loop: Loop, key: Any) -> tuple[Loop, Any]:
        act_key, learn_key = jax.random.split(jax.random.fold_in(key, loop.update))
        actors, rollout, ended = _rollout.collect(agent, env, agent.snapshot(loop.state), loop.actors, act_key)
        state, metrics = agent.update(loop.state, rollout, learn_key)
        return Loop(state, actors, loop.update + 1), (metrics, ended)

    def chunk(loop: Loop, key: Any) -> tuple[Loop, Any]:
        loop, (metrics, ended) = jax.lax.scan(lambda at, _: one(at, key), loop, None, plan.per_chunk)
        return loop, (jax.tree.map(lambda leaf: leaf.mean(), metrics), ended)

    return chunk


class _Drive(NamedTuple):
    """What the host side of the loop needs."""

    parts: types.Parts
    plan: Plan
    chunk: Callable[[Loop, Any], tuple[Loop, Any]]
    seed: int
    observe: types.Observer
    began: float


def _drive(drive: _Drive, loop: Loop) -> types.Result:
    key = seeds.key(drive.seed, "run")
    updates = int(loop.update)
    started = time.monotonic()
    startup = started - drive.began

    def progress(metrics: Any, ended: Any, at: Loop) -> types.Progress:
        spent = time.monotonic() - started
        return types.Progress(
            env_steps=updates * drive.plan.per_update,
            updates=updates,
            train_s=spent,
            episodes=_episodes(ended, (updates - drive.plan.per_chunk) * drive.plan.per_update) if ended else [],
            metrics={name: float(value) for name, value in metrics.items()},
            split={"on_device": spent},  # one program: its parts cannot be timed apart
            workers={},
            faults={"non_finite": int(at.state.optimiser.skipped)},
            save=lambda: jax.device_get(at),
        )

    latest = progress({}, None, loop)
    while updates < drive.plan.chunks * drive.plan.per_chunk:
        loop, (metrics, ended) = drive.chunk(loop, key)
        updates = int(loop.update)  # waits for the chunk
        latest = progress(jax.device_get(metrics), jax.device_get(ended), loop)
        if not drive.observe(latest):
            break
    policy = jax.device_get(drive.parts.agent.snapshot(loop.state))
    return types.Result(policy, latest._replace(episodes=[]), startup)


def _episodes(ended: _rollout.Ended, before: int) -> list[types.Episode]:
    """Finished episodes of a chunk ``[K, T, B]`` in the order of steps."""
    batch = ended.over.shape[2]
    over = np.flatnonzero(ended.over.reshape(-1))
    steps = before + (over // batch + 1) * batch
    returns, lengths = ended.episode_return.reshape(-1)[over], ended.length.reshape(-1)[over]
    return [
        types.Episode(int(at), float(value), int(size), 0)
        for at, value, size in zip(steps, returns, lengths, strict=True)
    ]
