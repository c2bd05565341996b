"""The machine of a population whose simulators are in Python: put together, opened, and closed again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from shoal.core import types
from shoal.runtimes.population import compiling, greedy, on_host, running, simulating, stepping


def machine(
    room: simulating.Room, compiler: compiling.Compiler, learner: Callable, like: types.State, keys: types.Key
) -> running.Machine:
    """Compile what acts and measures; no simulator is opened, and nothing exchanged.

    Args:
        room: Where simulators are stepped.
        compiler: An `on_host.Compiler`.
        learner: An `on_host.Learner`.
        like: The learners' states, shapes are enough.
        keys: ``[N]``, of learning.
    """
    assert isinstance(compiler, on_host.Compiler)
    assert isinstance(learner, on_host.Learner)
    programs = compiler.programs(like, keys)
    simulators = stepping.Stepping(room, learner, programs, compiler.cut)
    policies, shapes = compiler.greedy(like)
    act = programs.act if room.greedy == room.streams else compiler.act(shapes, room.greedy)
    measure = greedy.Greedy(room, policies, act)
    return running.Machine(simulators, measure, None, keys, compiler, simulators, measure)


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
