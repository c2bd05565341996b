"""Several compressors one after the other, each on what the one before left: at first prune, distil, quantise."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from shoal.compress import _transform
from shoal.core import errors, options, registry, types

NAME = "chain"
LAST = ("quantise",)  # what nothing else can work on


@dataclasses.dataclass(frozen=True)
class Config:
    """Several compressors one after the other."""

    members: tuple[str, ...] = ("prune", "distil", "quantise")
    """Their names, in order."""
    settings: str = options.keywords()
    """Their settings by name, a JSON object: '{"prune": {"share": 0.5}}'."""
    engine: Literal["auto", "numba", "onnx", "numpy", "jax"] = "auto"
    """What runs the network: auto takes the fastest on this machine, by a short measurement."""


def transforms(config: Config, agent: types.Agent) -> list[_transform.Transform]:
    """The members' steps.

    Raises:
        Refused: A member that is not known, that is a chain, or that stands where it cannot; settings of none of them.
    """
    known = [name for name in registry.names("compressor") if name != NAME]
    if not config.members:
        raise errors.Refused("compressor.members is empty; name at least one of " + ", ".join(known))
    for at, name in enumerate(config.members):
        if name == NAME:
            raise errors.Refused("compressor.members: a chain in a chain is one chain; name its members")
        if name not in known:
            raise errors.unknown("member of a chain", name, known)
        if name in config.members[:at]:
            raise errors.Refused(f"compressor.members names {name} twice; once is enough")
        if name in LAST and at + 1 < len(config.members):
            raise errors.Refused(
                f"compressor.members: {config.members[at + 1]} cannot work on what {name} leaves; put {name} last"
            )
    given = options.read_keywords(config.settings, "compressor.settings")
    for name in given:
        if name not in config.members:
            raise errors.unknown("member in compressor.settings", name, config.members)
    return [_member(name, given.get(name, {}), agent) for name in config.members]


def _member(name: str, settings: Any, agent: types.Agent) -> _transform.Transform:
    path, module = f"compressor.settings.{name}", registry.load("compressor", name)
    if not isinstance(settings, dict):
        raise errors.Refused(f"{path}={settings!r} is not a JSON object; give names and values")
    if "engine" in settings:
        raise errors.Refused(f"{path}.engine: one engine runs what the whole chain makes; give --compressor.engine")
    made: _transform.Transform = module.transform(options.build(module.Config, settings, path), agent)
    return made


def build(config: Config, agent: types.Agent) -> types.Compressor:
    """The compressor of an agent's policies.

    Raises:
        Refused: See `transforms`.
    """
    return _transform.compressor(agent, NAME, config.engine, *transforms(config, agent))
