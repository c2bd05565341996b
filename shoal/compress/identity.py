"""No compression: the policy in full precision, on the fastest engine. The baseline that others are held against.

On the engine ``jax`` the policy is sent whole and `Agent.act` itself acts with it, in one compiled call; on the others
it is the network alone (`networks.compact`).
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from etils import epy

from shoal.core import options, types

with epy.lazy_imports():
    import jax
    import numpy as np

    from shoal.compress import _payload, _transform
    from shoal.formulas import normalise


@dataclasses.dataclass(frozen=True)
class Config:
    """Full precision."""

    engine: Literal["auto", "numba", "onnx", "numpy", "jax"] = options.later("auto")
    """What runs the network: auto takes the fastest on this machine, by a short measurement."""


def transform(config: Config, agent: types.Agent) -> _transform.Transform:
    """Nothing is changed."""
    del config, agent
    return _transform.Transform(name="identity", level="full precision")


def build(config: Config, agent: types.Agent) -> types.Compressor:
    """The compressor of an agent's policies."""
    made = _transform.compressor(agent, "identity", config.engine)
    if config.engine != "jax" or made.refuses:
        return made
    shapes = functools.cache(lambda: _payload.like(agent))

    def plain(policy: types.Policy) -> types.Packed:
        began = time.perf_counter()
        payload = _payload.dumps_whole(policy)
        return _payload.packed(payload, time.perf_counter() - began, "full precision")

    def compress(
        memory: types.Memory, policy: types.Policy, obs: types.Obs, key: types.Key
    ) -> tuple[types.Memory, types.Packed]:
        del obs, key
        return memory, plain(policy)

    return made._replace(
        compress=compress,
        plain=plain,
        runner=lambda packed, batch, engine: Runner(agent, shapes(), packed),  # noqa: ARG005  any batch, this engine
        unpack=lambda packed: _payload.whole(shapes(), packed),
    )


class Runner:
    """See `types.Runner`; the engine is XLA, the network the agent's own."""

    engine = "jax"
    measured: Mapping[str, float] = MappingProxyType({})

    def __init__(self, agent: types.Agent, shapes: types.Policy, packed: types.Packed) -> None:
        """Raises: ValueError, where the payload is damaged."""
        acting = agent.about.acting
        assert acting is not None
        network, self._shapes = agent.about.networks[acting.network], shapes

        def run(policy: types.Policy, obs: Any, carry: types.Carry) -> Any:
            def one(obs: Any, carry: types.Carry) -> Any:
                seen = normalise.apply(policy.normaliser, obs) if policy.normaliser else obs
                return network.apply(policy.params, seen, carry)

            return jax.vmap(one)(obs, carry)

        self._run = jax.jit(run)
        self.load(packed)

    def load(self, packed: types.Packed) -> None:
        """See `types.Runner`."""
        policy = _payload.whole(self._shapes, packed)
        self._policy, self.version = jax.device_put(policy), packed.version
        self.policy = policy._replace(params=(), normaliser=())

    def __call__(self, obs: Any, carry: types.Carry) -> tuple[Mapping[str, np.ndarray], types.Carry]:
        """See `types.Runner`."""
        outputs, carry = self._run(self._policy, obs, carry)
        return {name: np.asarray(output) for name, output in outputs.items()}, carry
