"""What takes long and cannot be interrupted, such as compiling, done in a thread beside while the caller looks up.

Python answers signals between two steps of its main thread, and a call into XLA is one step of many seconds. A wait is
many short ones, in which the observer is told what is going on (`types.Stage`) and may say that the run is to end. Then
nobody waits any longer: a call that compiles cannot be called off, and what it would return is not wanted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from shoal.core import errors, types

LOOK = 0.1  # seconds between two looks of the observer
STACK = 16 * 2**20  # bytes: compilers recurse, and some systems give a thread much less than the first one has
COMPILING = types.Stage("compiling")

Look = Callable[[types.Stage], bool]  # told what is being done; whether to go on

T = TypeVar("T")

_left: list[threading.Thread] = []  # those that nobody waits for


def done(make: Callable[[], T], stage: types.Stage, look: Look) -> T:
    """Do it in a thread, looking up meanwhile.

    Args:
        make: Does it; what it raises is raised here.
        stage: What is being done.
        look: Called at once, then every `LOOK` seconds. What it raises ends the wait too.

    Raises:
        NotBegun: It said that the run is to end. The thread is left to itself, and an interpreter that exits in the
            ordinary way waits for it.
    """
    made: list[T] = []
    raised: list[BaseException] = []

    def work() -> None:
        try:
            made.append(make())
        except BaseException as error:  # noqa: BLE001  raised again where it is waited for
            raised.append(error)

    thread = threading.Thread(target=work, name="shoal-beside")
    asked(look, stage)
    before = threading.stack_size(STACK)
    thread.start()
    threading.stack_size(before)
    try:
        thread.join(LOOK)
        while thread.is_alive():
            asked(look, stage)
            thread.join(LOOK)
    finally:
        if thread.is_alive():
            _left.append(thread)
    if raised:
        raise raised[0]
    return made[0]


def asked(look: Look, stage: types.Stage) -> None:
    """Look up once.

    Raises:
        NotBegun: The run is to end.
    """
    if not look(stage):
        raise errors.NotBegun("asked to end before the first step")


def left() -> bool:
    """Whether a thread still works that nobody waits for."""
    _left[:] = [thread for thread in _left if thread.is_alive()]
    return bool(_left)


def first(observe: types.Observer, env_steps: int = 0, updates: int = 0) -> Look:
    """A look that tells an observer of a stage before the first step of this life.

    Args:
        observe: Who is told.
        env_steps: Environment steps of earlier lives.
        updates: Likewise.
    """
    before = types.Progress(
        env_steps=env_steps, updates=updates, train_s=0.0, episodes=[], metrics={}, split={}, workers={}, faults={},
        save=_nothing,
    )  # fmt: skip
    return lambda stage: observe(before._replace(stage=stage))


def together(looks: Sequence[Look]) -> Look:
    """One look for several observers: all are told, and all must want to go on."""

    def look(stage: types.Stage) -> bool:
        wanted = [each(stage) for each in looks]
        return all(wanted)

    return look


def _nothing() -> Any:
    raise RuntimeError("there is nothing to save before the first step")
