"""Learning rules, one a file, each reading like its paper.

A file here offers ``Config`` (a frozen dataclass whose docstrings are the `--help`) and
``build(config, ingredients) -> types.Agent``; `Ingredients` is what every rule may be given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from shoal import types

if TYPE_CHECKING:
    from shoal import networks, optimise


class Ingredients(NamedTuple):
    """What the wiring hands to a learning rule."""

    spec: types.EnvSpec
    network: networks.Config
    optimiser: optimise.Optimiser
    corrector: types.Corrector
