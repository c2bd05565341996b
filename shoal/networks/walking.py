"""The one way through a network's rows of layers: what each sees, and what is added to what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from shoal.core import types

OBS = "obs"  # as an input: the observation
SEES_OBS = (OBS,)  # the inputs of a trunk for which none are named


class Ways(NamedTuple):
    """What is done on the way; x is whatever stands for numbers: arrays, their widths, names in a graph."""

    through: Callable[[tuple[types.Layer, ...], Any], Any]  # (layers, x) -> x
    learned: Callable[[types.Layer], Any]  # a learned vector -> x
    joined: Callable[[Sequence[Any]], Any]  # several x, observations among them -> x, one vector
    added: Callable[[Any, Any], Any]  # (x, x) -> x


def outputs(spec: types.NetworkSpec, obs: Any, ways: Ways) -> dict[str, Any]:
    """What each head gives.

    Args:
        spec: The network; a trunk comes after those it sees.
        obs: What stands for the observation.
        ways: How it is done.
    """
    made = {name: ways.learned(layer) for name, layer in spec.vectors.items()}
    made[OBS] = obs
    for trunk, layers in spec.trunks.items():
        seen = [made[name] for name in spec.inputs.get(trunk, SEES_OBS)]
        made[trunk] = ways.through(layers, seen[0] if len(seen) == 1 else ways.joined(seen))
    outputs = {}
    for head, (trunk, layers) in spec.heads.items():
        outputs[head] = ways.through(layers, made[trunk])
        for stood_on, term in spec.terms.get(head, ()):
            outputs[head] = ways.added(outputs[head], ways.through(term, made[stood_on]))
    return outputs


def needed(spec: types.NetworkSpec, heads: Sequence[str]) -> set[str]:
    """Names of the trunks and learned vectors that these heads need."""
    found: set[str] = set()
    for head in heads:
        found |= {spec.heads[head][0], *(trunk for trunk, _ in spec.terms.get(head, ()))}
    for trunk in reversed(tuple(spec.trunks)):
        if trunk in found:
            found.update(spec.inputs.get(trunk, ()))
    return found - {OBS}


def plain(spec: types.NetworkSpec) -> bool:
    """Whether it is rows of layers alone: each trunk sees the observation, and nothing is added."""
    return not (spec.terms or spec.vectors or any(sees != SEES_OBS for sees in spec.inputs.values()))
