"""Learning rules, one a file, each reading like its paper.

A file here offers

* ``Config``: a frozen dataclass whose docstrings are the `--help`;
* ``traits(config) -> types.Traits``: what the rule can do with these settings, declared;
* ``fits(config, network, spec) -> str``: why it cannot learn this way from such an environment, ``""`` if it can;
* ``build(config, ingredients) -> types.Agent``; `Ingredients` is what every rule may be given.

Rules do not import each other; what several share is in files that begin with ``_``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from shoal.core import types

if TYPE_CHECKING:
    from shoal import networks
    from shoal.formulas import optimise


class Ingredients(NamedTuple):
    """What the wiring hands to a learning rule."""

    spec: types.EnvSpec
    network: networks.Config
    optimiser: optimise.Optimiser
    corrector: types.Corrector
    streams: int = 1  # B, environments that one learner learns from
    learners: int = 1  # that share the parameters, each with streams of its own
    stretches: bool = True  # whether Gaussian policies act in [-1, 1] and are stretched to the box of actions
