"""Sets of environments that differ by owner, ``owners:SET``: what is trained on together across owners.

``owners:CartPole-lengths`` is the set, ``owners:CartPole-lengths/2`` the environment of owner 2 alone, counted from 0,
for any runtime. A runtime that knows no parties and is given the set meets another owner at every episode: that is
pooled experience, which breaks the boundary between owners.

Source: Jin et al. 2022, arXiv:2204.02634 (lengths, links, thighs, legs); Xie and Song 2022, arXiv:2204.08125
(gravity); D'Eramo et al. 2020, arXiv:2401.09561 (spaces). Time limits are Gymnasium's, and truncate.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util

from shoal import environments
from shoal.core import errors, options
from shoal.environments import _device, _owners_compiled, _owners_sets, _owners_simulated

PREFIX = "owners"


@dataclasses.dataclass(frozen=True)
class Config(environments.Config):
    """How many owners there are, how they differ, and how their environments are shown to the agent."""

    parties: int = options.number(5, low=1, high=100_000)
    """Owners in the set. Where parties train together there are as many as the runtime says."""
    draw: int = options.number(0, low=_owners_sets.GRID, high=2**31 - 1)
    """Which draw of what differs between owners, from 0; -1: evenly spaced over the whole range."""


def _in_python(env_id: str) -> bool:
    """The sets on MuJoCo are no pure JAX."""
    return _split(env_id)[0] in _owners_simulated.SIMULATED


@functools.lru_cache(maxsize=8)  # asked for again and again, and there may be very many
def _owned(env_id: str, config: environments.Config) -> environments.Owned:
    """Whose environments a set holds; nobody's where it is one owner's, or no set."""
    name, given = _split(env_id)
    if given is not None or name not in {*_owners_sets.COMPILED, *_owners_simulated.SIMULATED}:
        return environments.Owned()
    count = environments.own(config, Config).parties
    called = _owners_sets.COMPILED[name].simulators if name in _owners_sets.COMPILED else ()
    names = [one.partition("-")[0] for one in called] if len(called) == count > 1 else map(str, range(count))
    return environments.Owned(
        tuple(environments.Owner(one, f"{env_id}/{at}") for at, one in enumerate(names)), alike=len(called) == 1
    )


ADAPTER = environments.Adapter(
    prefix=PREFIX, pure_jax=True, config=Config, sources=("gymnax",), in_python=_in_python, owned=_owned
)


def names() -> list[str]:
    """Every set whose simulators are installed, with the prefix; each has its owners besides."""
    simulated = _owners_simulated.SIMULATED if importlib.util.find_spec("mujoco") else ()
    return sorted(f"{PREFIX}:{name}" for name in (*_owners_sets.COMPILED, *simulated))


def open(env_id: str, config: environments.Config) -> environments.Opened:
    """Open a set, or one owner's environment (see `environments.open`)."""
    mine = environments.own(config, Config)
    name, owner = _named(env_id, mine)
    theta = _owners_sets.thetas(name, mine.parties, mine.draw)
    if name in _owners_simulated.SIMULATED:
        return _owners_simulated.open(env_id, _owners_simulated.SIMULATED[name], theta, owner, mine)
    chosen = _owners_sets.COMPILED[name]
    if owner is None and not chosen.alike:
        raise errors.Refused(
            f"{env_id} has owners who see and do different things, so no single learner fits it; give one of them, "
            f"e.g. {env_id}/0, or use --runtime federated"
        )
    kind = chosen.simulators[(owner or 0) % len(chosen.simulators)]
    notes = (f"owners differ in: {chosen.differs}",)
    simulator = _owners_compiled.simulator(env_id, kind, mine.time_limit, mine.observe, notes)
    env = _owners_compiled.env(simulator, chosen.values(theta), mine.parties, owner)
    return environments.Opened(spec=env.spec, device=env, make_host=_device.host(env))


def _split(env_id: str) -> tuple[str, str | None]:
    """The name of the set, and what stands behind its slash."""
    name, slash, given = env_id.removeprefix(f"{PREFIX}:").partition("/")
    return name, given if slash else None


def _named(env_id: str, config: Config) -> tuple[str, int | None]:
    """The set of an id, and its owner's number; None: the id is the set's.

    Raises:
        Refused: No such set, or no such owner.
    """
    name, given = _split(env_id)
    if name not in {*_owners_sets.COMPILED, *_owners_simulated.SIMULATED}:
        raise errors.unknown("environment", env_id, names(), "An owner's own is owners:SET/0, the next owners:SET/1.")
    if given is None:
        return name, None
    if not (given.isascii() and given.isdecimal() and int(given) < config.parties):
        raise errors.Refused(
            f"{env_id}: there is no owner {given!r}, they are numbered 0 to {config.parties - 1}; give one of them, or "
            "more of them by --environment.parties"
        )
    return name, int(given)
