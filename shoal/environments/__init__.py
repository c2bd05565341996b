"""Environment adapters: each file owns one simulator library and hides its habits.

A file here offers

* ``PREFIX``: what stands before the colon in an id (``"gymnax"``), or before the slash of ``ALE/Pong-v5``; ``""`` for
  Gymnasium's plain ids;
* ``PURE_JAX``: whether its environments can be compiled, whole loop and all;
* ``EXTRA``: the extra of Shoal that installs its library, ``""`` when it belongs to the core;
* ``names() -> list[str]``: the ids it knows, prefix included, for `shoal list envs` and "did you mean";
* ``open(id, config) -> Opened``: the environment as data, and the ways to run it;
* optionally ``Config``, a subclass of `Config` here with settings of its own (`config_class`, `own`);
* optionally ``SOURCES``, of pure-JAX environments: the packages whose code is traced, so that compiled programs may be
  kept and are made again when it changes (``()``: Shoal's own code alone);
* optionally ``audit(id, config, steps) -> Audit``: what its library's own checks say, for `shoal check-env`.

Every environment is opened through `open`, so an unknown id, a missing package and an unsupported space are refused
in one place, before anything is created.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from shoal import errors, registry, types


@dataclasses.dataclass(frozen=True)
class Config:
    """How an environment is shown to the agent."""

    observe: tuple[int, ...] = ()
    """Indices of the flattened observation vector the agent sees; empty shows all.
    Hiding velocities makes a memory task."""
    time_limit: int = 0
    """Steps after which an episode is truncated; 0 keeps the simulator's own limit."""


C = TypeVar("C", bound=Config)


class Opened(NamedTuple):
    """An environment, ready to be run either way."""

    spec: types.EnvSpec
    device: types.Env | None  # None: not a pure-JAX environment
    make_host: Callable[[], types.HostEnv]  # one simulator in the calling process
    make_eval: Callable[[], types.HostEnv] | None = None  # as it is evaluated, where that differs
    make_vector: Callable[[int, int], types.HostVector] | None = None  # (seed, B): where the library steps many at once


class Audit(NamedTuple):
    """What a simulator library's own checks say about one environment, a line each."""

    problems: tuple[str, ...]  # broken promises
    remarks: tuple[str, ...]  # worth knowing


def split(env_id: str) -> tuple[str, str]:
    """``"gymnax:CartPole-v1"`` -> (adapter file name, id as typed).

    Plain ids and ``module:Env-v0`` are Gymnasium's, but for the games of the Arcade Learning Environment.
    """
    if env_id.startswith("ALE/"):
        return "atari", env_id
    prefix = env_id.partition(":")[0] if ":" in env_id else ""
    return (prefix, env_id) if prefix in registry.names("environment") else ("gymnasium", env_id)


def open(env_id: str, config: Config) -> Opened:
    """Open an environment by id.

    Args:
        env_id: ``CartPole-v1``, ``module:Env-v0``, ``ALE/Pong-v5``, ``gymnax:ID``, ``probe:NAME``...
        config: How it is shown to the agent: a plain `Config`, or the adapter's own (`config_class`).

    Raises:
        Refused: Unknown id, missing package (names the extra), unsupported space, or a wrong `config`.
    """
    adapter, env_id = split(env_id)
    return registry.load("environment", adapter).open(env_id, config)


def repeats(opened: Opened, steps: int = 300) -> bool:
    """Whether the same seed and actions give the same twice; what is compiled from keys always does.

    Args:
        opened: The environment.
        steps: Random actions to take, twice.
    """
    from shoal.environments import _walk

    if opened.device is not None:
        return True
    walk, again = (_walk.walk(opened, steps, seed=0) for _ in range(2))
    return not walk.raised and _walk.same(walk, again)


def config_class(env_id: str) -> type[Config]:
    """The settings an environment takes: its adapter's own class, or `Config`; opens nothing."""
    found: type[Config] = getattr(registry.load("environment", split(env_id)[0]), "Config", Config)
    return found


def own(config: Config, cls: type[C]) -> C:
    """A config as an adapter's own class; the adapter's settings are at their defaults where it was a plain one."""
    return config if isinstance(config, cls) else cls(observe=config.observe, time_limit=config.time_limit)


def pure_jax(env_id: str) -> bool:
    """Whether the environments of this id's adapter can be compiled; opens nothing."""
    return bool(registry.load("environment", split(env_id)[0]).PURE_JAX)


def sources(env_id: str) -> tuple[str, ...] | None:
    """Packages whose code is traced when an environment of this id's adapter is compiled; None: not known."""
    return getattr(registry.load("environment", split(env_id)[0]), "SOURCES", None)


def names() -> list[str]:
    """Every id of every adapter whose library is installed."""
    found: list[str] = []
    for adapter in registry.names("environment"):
        try:
            found += registry.load("environment", adapter).names()
        except errors.Refused:  # its package is missing: nothing to list
            continue
    return found
