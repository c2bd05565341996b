"""On device: acting, stepping, learning in one compiled program; for pure-JAX environments.

The loop of Podracer's Anakin (Hessel et al. 2021, arXiv:2104.06272) on one device: scan over updates, each a scan over
steps of B environments and one update. The host sees a chunk of updates at a time; chunks do not change a single bit.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from etils import epy

from shoal.core import errors, options, programs, seeds, types
from shoal.formulas import optimise

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np

    from shoal.runtimes.crew import beside
    from shoal.runtimes.experience import rollouts
    from shoal.runtimes.members import chunks, dispatch, spread


@dataclasses.dataclass(frozen=True)
class Config:
    """The whole loop compiled."""

    environments: int = options.number(64, low=1)
    """Environments stepped in lock-step (B)."""
    threads: int = options.number(0, low=0)
    """Threads of the compiled program on a CPU; 0: one where a gradient step is small, else one a core."""
    chunk_steps: int = options.number(16384, low=1)
    """Environment steps between two looks of the host: progress, checkpoints, and the goal are seen this often."""


def ways(config: Config) -> types.Ways:
    """See `types.Ways`."""
    return types.Ways(
        streams=config.environments, seeds=True, exact_resume=True, threads=config.threads, spreads=True, ahead=True,
        simulates=True,
    )  # fmt: skip


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

    state: types.State  # the learner
    actors: rollouts.Actors  # [B]
    update: types.Scalar  # u32, updates done; keys are folded from it


class OnDevice:
    """Runs chunks of updates until told to stop."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def like(self, parts: types.Parts, seed: int) -> types.Tree:
        """See `types.Runtime`."""
        return self._starting(parts, seeds.key(seed, "init")).returns

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
        done = int(saved.update) if saved is not None else 0
        plan = _plan(self._config, parts.agent.about.rollout_length, steps, done)

        def make() -> tuple[Loop, Chunk]:
            init, key = seeds.key(seed, "init"), seeds.key(seed, "run")
            start = self._starting(parts, init)
            with _beside(lambda: start.load()(init) if saved is None else jax.tree.map(jnp.asarray, saved)) as loop:
                chunk = _compiled(parts, "chunk", _chunk(parts, plan), start.returns, key)
            return loop.result(), chunk

        loop, chunk = beside.done(make, beside.COMPILING, beside.first(observe, done * plan.per_update, done))
        results: list[types.Result] = []
        chunks.Drive(_program(parts, plan, chunk), [(observe, results.append)], began)(loop)
        return results[0]

    def _starting(self, parts: types.Parts, key: Any) -> programs.Compiled:
        """The program that makes the first loop."""
        return _shelf(parts).compiled("start", _start(parts, self._config.environments), key)

    def run_many(
        self,
        parts: types.Parts,
        places: Sequence[types.Place],
        steps: int,
        goal: types.Goal | None,
    ) -> None:
        """See `types.ManySeeds`: `run` with an axis over the seeds in front of everything."""
        del goal
        began = time.monotonic()
        done = [int(place.saved.update) if place.saved is not None else 0 for place in places]
        plan = _plan(self._config, parts.agent.about.rollout_length, steps, min(done))
        lane = jax.jit(lambda tree, at: jax.tree.map(lambda leaf: leaf[at], tree))

        def make() -> tuple[Loop, Chunk, spread.Cut]:
            init = _keys(places, "init")
            start = _shelf(parts).compiled("starts", jax.vmap(_start(parts, self._config.environments)), init)
            # Under vmap a replay memory is copied at every step, and a rule that learns now and then learns always.
            remembers = parts.agent.about.fields.memory is not None
            cut = spread.Cut(len(places), fill=not remembers)
            keys = cut.put(_keys(places, "run"))
            with _beside(lambda: cut.put(_joined(lambda: start.load()(init), places, lane))) as loop:
                every = cut.over((dispatch.in_turn if remembers else jax.vmap)(_chunk(parts, plan)))
                chunk = _compiled(parts, "chunks", every, cut.like(start.returns), keys)
            return loop.result(), chunk, cut

        looks = [
            beside.first(place.observe, updates * plan.per_update, updates)
            for place, updates in zip(places, done, strict=True)
            if place.observe
        ]
        loop, chunk, cut = beside.done(make, beside.COMPILING, beside.together(looks))
        observers = [(place.observe, place.ended) if place.observe else None for place in places]
        program = _program(parts, plan, chunk)._replace(lane=lambda tree, at: lane(*cut.share(tree, at)))
        chunks.Drive(program, observers, began)(loop)


def _joined(start: Callable[[], Loop], places: Sequence[types.Place], lane: Callable[[Any, int], Any]) -> Loop:
    """The loops of all seeds as one: as they were saved, and from the beginning where nothing was."""
    if all(place.saved is not None for place in places):
        return jax.tree.map(_stack, *(place.saved for place in places))
    fresh = start()
    if all(place.saved is None for place in places):
        return fresh
    loops = [lane(fresh, at) if place.saved is None else place.saved for at, place in enumerate(places)]
    return jax.tree.map(_stack, *loops)


def _shelf(parts: types.Parts) -> types.Programs:
    return parts.programs or programs.Shelf()


class Chunk(NamedTuple):
    """A chunk's program."""

    run: Callable[[Loop, Any], tuple[Loop, chunks.Told]]
    key: types.Key
    ahead: bool  # see `chunks.Program`


def _compiled(parts: types.Parts, what: str, chunk: Callable[[Loop, Any], Any], like: Loop, key: Any) -> Chunk:
    ahead = chunks.fits_twice(like)
    return Chunk(_shelf(parts).compiled(what, chunk, like, key, donate=not ahead).load(), key, ahead)


@contextlib.contextmanager
def _beside(make: Callable[[], Loop]) -> Iterator[concurrent.futures.Future[Loop]]:
    """The first loop is made in a thread while the block compiles the next program: XLA leaves a core free."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        yield pool.submit(make)


def _keys(places: Sequence[types.Place], purpose: str) -> Any:
    return jnp.stack([seeds.key(place.seed, purpose) for place in places])


def _stack(*leaves: Any) -> Any:
    return jnp.asarray(np.stack(leaves))


class Plan(NamedTuple):
    """How the steps asked for are cut up."""

    per_update: int  # environment steps
    per_chunk: int  # updates
    updates: int  # in all, whole chunks


def _plan(config: Config, rollout_length: int, steps: int, done: int = 0) -> Plan:
    """Equal chunks, so that one program serves all; the total is rounded up to whole chunks.

    Args:
        config: Of the runtime.
        rollout_length: Of the agent.
        steps: Environment steps in all.
        done: Updates of earlier lives. Where they are no whole chunks the run was to end there and goes on now, and
            what is left is cut up by itself.
    """
    per_update = config.environments * rollout_length
    updates = math.ceil(steps / per_update)

    def cut(updates: int) -> tuple[int, int]:
        count = math.ceil(updates / max(1, config.chunk_steps // per_update))
        return math.ceil(updates / count), count

    per_chunk, count = cut(updates)
    if done % per_chunk == 0 or done >= updates:
        return Plan(per_update, per_chunk, per_chunk * count)
    per_chunk, count = cut(updates - done)
    return Plan(per_update, per_chunk, done + per_chunk * count)


def _start(parts: types.Parts, batch: int) -> Callable[[Any], Loop]:
    def start(key: Any) -> Loop:
        learner, world = jax.random.split(key)
        assert parts.device_env is not None
        actors = rollouts.start(parts.agent, parts.device_env, batch, world)
        return Loop(parts.agent.init(learner), actors, jnp.uint32(0))

    return start


def _chunk(parts: types.Parts, plan: Plan) -> Callable[[Loop, Any], tuple[Loop, chunks.Told]]:
    agent, env = parts.agent, parts.device_env
    simulate = parts.compressor.simulate if parts.compressor else None
    assert env is not None

    def one(loop: Loop, key: Any) -> tuple[Loop, Any]:
        act_key, learn_key = jax.random.split(jax.random.fold_in(key, loop.update))
        policy = agent.snapshot(loop.state)
        if simulate is not None:  # who acts has what a compressor would have made of it
            act_key, simulate_key = jax.random.split(act_key)
            policy = simulate(policy, simulate_key)
        actors, rollout, ended = rollouts.collect(agent, env, policy, loop.actors, act_key)
        state, metrics = agent.update(loop.state, rollout, learn_key)
        ended = ended._replace(unfit=ended.unfit.sum(axis=(0, 1), dtype=jnp.int32))
        return Loop(state, actors, loop.update + 1), (metrics, ended)

    def chunk(loop: Loop, key: Any) -> tuple[Loop, chunks.Told]:
        loop, (metrics, ended) = jax.lax.scan(lambda at, _: one(at, key), loop, None, plan.per_chunk)
        told = chunks.Told(jax.tree.map(lambda leaf: leaf.mean(), metrics), ended, optimise.skipped(loop.state))
        return loop, told

    return chunk


def _program(parts: types.Parts, plan: Plan, chunk: Chunk) -> chunks.Program:
    updates, policy = plan.updates, lambda loop: parts.agent.snapshot(loop.state)
    return chunks.Program(
        lambda loop: chunk.run(loop, chunk.key), None, policy, chunk.ahead, plan.per_update, plan.per_chunk, updates
    )
