"""The machine of a population whose simulators are in Python: put together, opened, and closed again."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from etils import epy

from shoal.core import types
from shoal.runtimes.members import loop
from shoal.runtimes.population import blocks, greedy, on_host, running, simulating, stepping

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


class Site(NamedTuple):
    """A population on the host, before its learners are compiled."""

    room: simulating.Room
    whole: on_host.Compiler  # of all members
    each: on_host.Compiler  # of a block


def site(room: simulating.Room, whole: on_host.Compiler) -> Site:
    """Cut the members into blocks.

    Args:
        room: Where simulators are stepped.
        whole: Compiles for all members.
    """
    return Site(room, whole, whole.part(room.blocks) if room.blocks > 1 else whole)


def begun(at: Site, keys: types.Key, saved: loop.Loop | None) -> blocks.Blocks:
    """The loops of all blocks.

    Args:
        at: Where.
        keys: ``[N]``, of the members' beginnings.
        saved: What they go on from, its episodes apart; None: from the beginning.
    """
    count = at.room.blocks
    if saved is None:
        mine = blocks.shares(keys, count)
        start = at.each.start(mine[0]).load()
        loops = [start(one) for one in mine]
    else:
        anew = jax.jit(functools.partial(on_host.anew, at.room.parts.agent), donate_argnums=0)
        pieces = blocks.shares(saved.members, count)
        loops = [anew(jax.tree.map(jnp.asarray, loop.Loop(one, saved.common))) for one in pieces]
    return blocks.Blocks(tuple(at.each.put(one) for one in loops), at.whole.cut, at.each.cut)


def machine(at: Site, learner: Callable, like: types.State, keys: types.Key) -> running.Machine:
    """Compile what acts and measures; no simulator is opened, and nothing exchanged.

    Args:
        at: Where.
        learner: An `on_host.Learner` of a block.
        like: The learners' states of all members, shapes are enough.
        keys: ``[N]``, of learning.
    """
    assert isinstance(learner, on_host.Learner)
    room, agent = at.room, at.room.parts.agent
    keys_here = jax.device_put(keys, jax.local_devices()[0])  # the whole may be spread over more devices than a block
    mine = [at.each.cut.put(one) for one in blocks.shares(keys_here, room.blocks)]
    states = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((len(mine[0]), *leaf.shape[1:]), leaf.dtype), like)
    programs = at.each.programs(states, mine[0])
    every = [stepping.Block(agent, learner, programs, one, room.streams) for one in mine]
    simulators = stepping.Stepping(room, every)
    policies, shapes = at.whole.greedy(like)
    same = room.greedy == room.streams and room.blocks == 1
    measure = greedy.Greedy(room, policies, programs.act if same else at.whole.act(shapes, room.greedy))
    return running.Machine(simulators, measure, None, keys, at.whole, simulators, measure)


@contextlib.contextmanager
def opened(machine: running.Machine, life: int) -> Iterator[None]:
    """Simulators to learn from are open meanwhile, and none afterwards.

    Args:
        machine: Whose; of compiled environments there are none.
        life: Apart for each life of the run.

    Raises:
        NotBegun: Whoever looks on said that the run is to end.
    """
    with contextlib.ExitStack() as stack:
        if machine.simulators is not None and machine.greedy is not None:
            stack.callback(machine.greedy.close)
            stack.callback(machine.simulators.close)
            machine.simulators.open(life)
        yield
