"""Which engine runs a network: the one asked for, or the fastest on this machine by a short measurement."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import ModuleType

from etils import epy

from shoal.core import errors, types
from shoal.networks import compact, engines

with epy.lazy_imports():
    import numpy as np

    from shoal.networks.engines import in_jax, in_numba, in_numpy, in_onnx

NAMES = ("numba", "onnx", "numpy", "jax")  # files `in_<name>`
SECONDS = 0.05  # that each is measured for, at most
ROUNDS, FEWEST = 20, 3  # in turn, so that a slow moment of the machine meets all; fewer of those that take long


def file(name: str) -> ModuleType:
    """The module of an engine.

    Raises:
        Refused: No such engine.
    """
    modules = {"numba": in_numba, "onnx": in_onnx, "numpy": in_numpy, "jax": in_jax}
    if name not in modules:
        raise errors.unknown("engine", name, NAMES, "auto takes the fastest.")
    return modules[name]


def make(asked: str, network: compact.Compact, batch: int) -> tuple[engines.Engine, Mapping[str, float]]:
    """An engine for this network.

    Args:
        asked: Its name, or "auto".
        network: Whose arrays the engine follows.
        batch: B, observations in a call.

    Returns:
        The engine, and microseconds a call by name of what was measured; nothing where one was asked for.

    Raises:
        Refused: It is not installed, or cannot run this network.
    """
    if asked != "auto":
        module = file(asked)
        if why := module.fits(network, batch):
            raise errors.Refused(f"the engine {asked} cannot run this network: {why}; auto takes the fastest that can")
        return module.make(network, batch), {}
    made = {name: file(name).make(network, batch) for name in NAMES if not file(name).fits(network, batch)}
    measured = microseconds(made, network, batch)
    return made[min(measured, key=lambda name: measured[name])], measured


def microseconds(made: Mapping[str, engines.Engine], network: compact.Compact, batch: int) -> dict[str, float]:
    """What a call of each engine takes, in its best round: what else the machine does only ever adds.

    Args:
        made: By name; of one network.
        network: That they run.
        batch: B.
    """
    obs, carry = seen(network, batch), start(network, batch)
    calls = {name: _calls_in(engine, obs, carry, SECONDS / (ROUNDS + 1)) for name, engine in made.items()}
    taken: dict[str, list[float]] = {name: [] for name in made}  # seconds of a call
    for turn in range(ROUNDS):
        for name, engine in made.items():
            if turn < FEWEST or calls[name] * sum(taken[name]) < SECONDS:
                taken[name].append(_seconds(engine, obs, carry, calls[name]))
    return {name: 1e6 * min(each) for name, each in taken.items()}


def seen(network: compact.Compact, batch: int) -> np.ndarray:
    """Random observations ``[B, *obs]``."""
    observed, rng = network.spec.observation, np.random.default_rng(0)
    shape = (batch, *observed.shape)
    if observed.dtype == "uint8":
        return rng.integers(0, 256, shape, np.uint8)
    return rng.standard_normal(shape).astype(observed.dtype)


def start(network: compact.Compact, batch: int) -> types.Carry:
    """The recurrent state at the start of an episode, leaves ``[B, cells]``; () where there is none."""
    return compact.start(network.spec, batch)


def _calls_in(engine: engines.Engine, obs: np.ndarray, carry: types.Carry, seconds: float) -> int:
    """How many calls fit into so much time; the first, which compiles, is not counted."""
    engine(obs, carry)
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        engine(obs, carry)
        calls += 1
    return max(calls, 1)


def _seconds(engine: engines.Engine, obs: np.ndarray, carry: types.Carry, calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        engine(obs, carry)
    return (time.perf_counter() - began) / calls
