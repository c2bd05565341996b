"""Environment adapters: each file owns one simulator library and hides its habits.

A file here offers

* ``ADAPTER``, an `Adapter`: all that it declares of itself;
* ``names() -> list[str]``: the ids it knows, prefix included, for `shoal list envs` and "did you mean";
* ``open(id, config) -> Opened``: the environment as data, and the ways to run it.

Every environment is opened through `open`, so an unknown id, a missing package and an unsupported space are refused
in one place, before anything is created. A process that only steps simulators is sent an `Opener`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from shoal.core import errors, registry, types


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
    hands: Callable[[], types.Hands] | None = None  # where the library's observations or actions are not the agent's


class Audit(NamedTuple):
    """What a simulator library's own checks say about one environment, a line each."""

    problems: tuple[str, ...]  # broken promises
    remarks: tuple[str, ...]  # worth knowing


def anywhere(env_id: str) -> str:
    """Of a library whose ids are the same in every process."""
    del env_id
    return ""


def no_audit(env_id: str, config: Config, steps: int) -> Audit:
    """Of a library that has no checks."""
    del env_id, config, steps
    return Audit(problems=(), remarks=())


class Owner(NamedTuple):
    """One of those to whom a set of environments belongs."""

    name: str
    env: str  # the id of his own environment, which takes the set's settings


def always_compiled(env_id: str) -> bool:
    """Of a library whose environments are all of one kind."""
    del env_id
    return False


class Owned(NamedTuple):
    """To whom an environment belongs."""

    owners: tuple[Owner, ...] = ()  # (): it is no set
    alike: bool = True  # whether one compiled program serves all of them (`types.Env.init_as`)


def nobodys(env_id: str, config: Config) -> Owned:
    """Of a library that has no sets."""
    del env_id, config
    return Owned()


class Adapter(NamedTuple):
    """What an adapter declares of itself."""

    prefix: str  # before the colon of an id ("gymnax"), or the slash of ALE/Pong-v5; "": Gymnasium's plain ids
    pure_jax: bool  # its environments can be compiled, whole loop and all
    extra: str = ""  # the extra of Shoal that installs its library; "": it belongs to the core
    config: type[Config] = Config  # its own, where it has settings of its own (`config_class`, `own`)
    sources: tuple[str, ...] | None = None
    # packages whose code is traced, so that compiled programs may be kept until it changes; (): Shoal's own code alone;
    # None: not known, and nothing is kept
    elsewhere: Callable[[str], str] = anywhere  # id -> why another process cannot open it; "" if it can
    audit: Callable[[str, Config, int], Audit] = no_audit  # (id, config, steps) -> what its library's checks say
    in_python: Callable[[str], bool] = always_compiled  # id -> whether it is none of those that can be compiled
    owned: Callable[[str, Config], Owned] = nobodys  # (id, config) -> of a set, its owners


@dataclasses.dataclass(frozen=True)
class Opener:
    """How to open one environment, as plain data; see `types.Opener`. Each process opens it once, when first asked."""

    id: str
    """As for `open`."""
    config: Config
    """How it is shown to the agent."""
    here: Opened | None = dataclasses.field(default=None, repr=False, compare=False)
    """It is open in this process already; stays behind when the rest is sent to another."""

    def __reduce__(self) -> tuple[type[Opener], tuple[str, Config]]:
        return Opener, (self.id, self.config)

    @functools.cached_property
    def _opened(self) -> Opened:
        return self.here or open(self.id, self.config)

    def open(self) -> Opened:
        """The environment, opened in this process.

        Raises:
            Refused: As `environments.open`.
        """
        return self._opened

    @property
    def steps_many(self) -> bool:
        """See `types.Opener`."""
        return self._opened.make_vector is not None

    def host(self) -> types.HostEnv:
        """See `types.Opener`."""
        return self._opened.make_host()

    def evaluation(self) -> types.HostEnv:
        """See `types.Opener`."""
        return (self._opened.make_eval or self._opened.make_host)()

    def vector(self, seed: int, count: int) -> types.HostVector:
        """See `types.Opener`."""
        assert self._opened.make_vector is not None, "its library steps one at a time"
        return self._opened.make_vector(seed, count)

    @property
    def elsewhere(self) -> str:
        """See `types.Opener`."""
        return elsewhere(self.id)

    def hands(self) -> types.Hands:
        """See `types.Opener`."""
        return self._opened.hands() if self._opened.hands else _bare_hands(self._opened.spec)


def _bare_hands(spec: types.EnvSpec) -> types.Hands:
    """Of a simulator that shows what the agent sees, and takes what it does."""
    import numpy as np  # here: not every process that opens environments needs it

    def see(obs: Any) -> np.ndarray:
        return np.asarray(obs, spec.observation.dtype).reshape(spec.observation.shape)

    return types.Hands(see, int if spec.action.kind == "discrete" else np.asarray)


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
    opened: Opened = _module(env_id).open(env_id, config)
    return opened


def _module(env_id: str) -> Any:
    """The adapter's file."""
    return registry.load("environment", split(env_id)[0])


def adapter(env_id: str) -> Adapter:
    """What the adapter of an id declares; opens nothing."""
    declared: Adapter = _module(env_id).ADAPTER
    return declared


def elsewhere(env_id: str) -> str:
    """Why another process cannot open an environment; "" if it can. Opens nothing."""
    return adapter(env_id).elsewhere(env_id)


def config_class(env_id: str) -> type[Config]:
    """The settings an environment takes: its adapter's own class, or `Config`; opens nothing."""
    return adapter(env_id).config


def own(config: Config, cls: type[C]) -> C:
    """A config as an adapter's own class; the adapter's settings are at their defaults where it was a plain one."""
    return config if isinstance(config, cls) else cls(observe=config.observe, time_limit=config.time_limit)


def full(env_id: str) -> str:
    """An id with its version: ``CartPole`` is Gymnasium's ``CartPole-v1``. Others, known or not, stay as they are."""
    if split(env_id)[0] != "gymnasium" or ":" in env_id or re.search(r"-v\d+$", env_id):
        return env_id
    found: str = registry.load("environment", "gymnasium").newest(env_id)
    return found


def pure_jax(env_id: str) -> bool:
    """Whether this environment can be compiled; opens nothing."""
    declared = adapter(env_id)
    return declared.pure_jax and not declared.in_python(env_id)


def owned(env_id: str, config: Config) -> Owned:
    """To whom the environments of a set belong; none where the id is no set's. Opens nothing."""
    return adapter(env_id).owned(env_id, config)


def sources(env_id: str) -> tuple[str, ...] | None:
    """Packages whose code is traced when an environment of this id's adapter is compiled; None: not known."""
    return adapter(env_id).sources


def plain_names() -> list[str]:
    """The ids without a prefix, which are Gymnasium's: loads no other library."""
    found: list[str] = registry.load("environment", "gymnasium").names()
    return found


def names() -> list[str]:
    """Every id of every adapter whose library is installed."""
    found: list[str] = []
    for name in registry.names("environment"):
        try:
            found += registry.load("environment", name).names()
        except errors.Refused:  # its package is missing: nothing to list
            continue
    return found
