"""No compression: the policy as it is, run by one jitted call a decision."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from etils import epy

from shoal import types

with epy.lazy_imports():
    import jax

    from shoal import tree


@dataclasses.dataclass(frozen=True)
class Config:
    """No settings."""


def build(config: Config, agent: types.Agent) -> types.Compressor:
    """The compressor."""
    del config
    act = jax.jit(agent.act)

    def compress(policy: types.Policy, spec: types.NetworkSpec, sample_obs: Any, key: types.Key) -> types.Packed:
        del spec, sample_obs, key
        return types.Packed(policy, tree.bytes(policy), 0.0)

    def runner(packed: types.Packed) -> Callable[[types.Carry, Any, types.Key], Any]:
        return functools.partial(act, packed.payload)

    return types.Compressor(compress, runner)
