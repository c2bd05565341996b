"""Learning rules, one a file, each reading like its paper.

A file here offers

* ``Config``: a frozen dataclass whose docstrings are the `--help`;
* ``ACTIONS``: which actions it can choose, of ``"discrete"`` and ``"continuous"``;
* ``CORRECTS``: whether it learns through the corrector it is given;
* where it understands rollouts that end in padding (`types.Rollout.used`), ``PADDED = True``;
* ``fits(config, network, spec) -> str``: why it cannot learn this way from such an environment, ``""`` if it can;
* ``shareable(config) -> str``: why its gradients cannot be left for a runtime to apply elsewhere, ``""`` if they can;
* ``build(config, ingredients) -> types.Agent``; `Ingredients` is what every rule may be given;
* where it does not learn from rollouts through `Agent.update`, ``LEARNS``: ``"exchange"`` (weights written online, of
  which learners exchange parts: `Agent.exchange`) or ``"sums"`` (sums over samples: `Agent.sums`), and ``METRICS``, the
  names of what it measures. A runtime says by its own ``LEARNS`` which it serves; ``"rollouts"`` if it is silent.
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
    streams: int = 1  # B, environments that one learner learns from
    learners: int = 1  # that share the parameters, each with streams of its own
