"""Structured pruning: whole neurons and channels go, and what is left is a smaller dense network.

score_j = ‖W_l[:, j]‖₁ ‖W_{l+1}[j, :]‖₁; the largest (1 - p) h of a layer's h units stay, the mean outputs of the others
are folded into the biases of what reads them. What stays is decided anew only now and then, for layers of the same
shape are a copy to an engine, and those of another a new engine.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

from etils import epy

from shoal.compress import _transform
from shoal.core import options, types
from shoal.networks import compact

with epy.lazy_imports():
    import numpy as np

    from shoal.compress import _structure, _units


@dataclasses.dataclass(frozen=True)
class Config:
    """Fewer neurons and channels."""

    share: float = options.number(0.75, low=0.0, high=1.0)
    """Of the units of each hidden layer, how many go."""
    refresh_every: int = options.number(50, low=1)
    """Policies packed between two decisions which units stay."""
    engine: Literal["auto", "numba", "onnx", "numpy", "jax"] = "auto"
    """What runs the network: auto takes the fastest on this machine, by a short measurement."""


class Decided(NamedTuple):
    """Which units stay."""

    kept: Any  # `_units.Kept`
    packed: int  # policies since that decision; -1: there was none yet


def transform(config: Config, agent: types.Agent) -> _transform.Transform:
    """See `_transform`."""
    del agent
    return _transform.Transform(
        name="prune",
        level=f"{100 * config.share:g} % of the units pruned",
        init=lambda seen, network, key: undecided(config, network),  # noqa: ARG005
        apply=lambda memory, seen, network, key: apply(config, memory, seen, network),  # noqa: ARG005
        kept=lambda memory: {"kept": dict(memory.kept), "packed": np.int64(memory.packed)},
        resumed=lambda memory, kept: memory._replace(kept=kept["kept"], packed=int(kept["packed"])),
        simulate=lambda spec, params, key: _units.masked(spec, params, config.share),  # noqa: ARG005
        refuses=lambda spec: _units.refuses(spec, config.share, f"share={config.share:g}"),
    )


def build(config: Config, agent: types.Agent) -> types.Compressor:
    """The compressor of an agent's policies."""
    return _transform.compressor(agent, "prune", config.engine, transform(config, agent))


def undecided(config: Config, network: compact.Compact) -> Decided:
    """Before the first policy; already of the shapes that come."""
    sizes = {link.layer.name: link.layer.size for link in _structure.links(network.spec)}
    return Decided({name: np.zeros(_units.count(size, config.share), int) for name, size in sizes.items()}, -1)


def apply(
    config: Config, memory: Decided, seen: _transform.Seen, network: compact.Compact
) -> tuple[Decided, compact.Compact]:
    """See `_transform.Transform`."""
    if memory.packed < 0 or memory.packed >= config.refresh_every:
        memory = Decided(_units.kept(network.spec, network.params, config.share), 0)
    smaller = _units.removed(network, memory.kept, seen.obs)
    return memory._replace(packed=memory.packed + 1), smaller
