"""From what a compressor does to a network to all that a runtime needs of it: packing, the runner, the simulation.

A file of a compressor offers ``transform(config, agent) -> Transform``, which `chain` puts behind one another, and
``build``, which is `compressor` of that one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from etils import epy

from shoal.core import errors, types
from shoal.networks import compact

with epy.lazy_imports():
    import jax
    import numpy as np

    from shoal.compress import _payload, _structure
    from shoal.networks.engines import choosing

INSEPARABLE = "network and decision of this rule are one, so no engine can run its network alone"
PROBED = 4  # observations that a packed network is tried on


class Seen(NamedTuple):
    """What a transform may look at."""

    original: compact.Compact  # of the learner, in full precision
    obs: types.Obs  # recent observations [N, *obs]; N may be 0
    head: str  # how outputs become an action (`types.About.head`)


def _keep(memory: types.Memory, seen: Seen, network: compact.Compact, key: types.Key) -> Any:
    del seen, key
    return memory, network


def _as_it_is(spec: types.NetworkSpec, params: types.Params, key: types.Key) -> types.Params:
    del spec, key
    return params


class Transform(NamedTuple):
    """One step of compression; NumPy in, NumPy out, unless it says otherwise."""

    name: str
    level: str  # how strongly, in words: "int8 dynamic"
    init: Callable[[Seen, compact.Compact, types.Key], types.Memory] = lambda seen, network, key: ()  # noqa: ARG005
    # (seen, without observations; network as it comes from the step before; key) -> memory
    apply: Callable[[types.Memory, Seen, compact.Compact, types.Key], tuple[types.Memory, compact.Compact]] = _keep
    # (memory, seen, network as it comes from the step before, key) -> (memory, network)
    study: Callable[[types.Memory, Seen, types.Key], tuple[types.Memory, types.Metrics]] | None = None
    # see `types.Compressor`
    simulate: Callable[[types.NetworkSpec, types.Params, types.Key], types.Params] | None = _as_it_is
    # (the layers that deciding needs; the network's parameters as JAX arrays; key) -> parameters of the same shapes,
    # inside `jit`; None: there is no such form
    needs_obs: bool = False
    kept: Callable[[types.Memory], types.Tree] = lambda memory: ()  # noqa: ARG005
    resumed: Callable[[types.Memory, types.Tree], types.Memory] = lambda memory, kept: memory  # noqa: ARG005
    # see `types.Compressor`
    refuses: Callable[[types.NetworkSpec], str] = lambda spec: ""  # noqa: ARG005
    # (the layers that deciding needs, in full) -> why it cannot be used with them, "" if it can


def compressor(agent: types.Agent, name: str, engine: str, *steps: Transform) -> types.Compressor:
    """Transforms one after the other.

    Args:
        agent: Whose policies are compressed.
        name: Of the compressor.
        engine: That runs the result, or "auto".
        *steps: Each works on what the one before left; none: full precision.
    """
    acting, head = agent.about.acting, agent.about.head
    level = ", ".join(step.level for step in steps) or "full precision"
    if acting is None:
        return types.Compressor(
            name=name,
            init=_refused,
            compress=_refused,
            runner=_refused,
            plain=_refused,
            engine=engine,
            refuses=INSEPARABLE,
        )
    spec = agent.about.networks[acting.network].spec
    needed = compact.part(spec, acting.heads)

    def network_of(policy: types.Policy) -> compact.Compact:
        return compact.of(spec, policy, acting.heads)

    def init(policy: types.Policy, key: types.Key) -> types.Memory:
        network, keys = network_of(policy), jax.random.split(key, 2 * len(steps) or 1)
        seen, memories = Seen(network, _nothing(spec), head), []
        for i, step in enumerate(steps):
            memory = step.init(seen, network, keys[2 * i])
            if i + 1 < len(steps):  # what needs observations to change a network comes last
                _, network = step.apply(memory, seen, network, keys[2 * i + 1])
            memories.append(memory)
        return tuple(memories)

    def compress(
        memory: types.Memory, policy: types.Policy, obs: types.Obs, key: types.Key
    ) -> tuple[types.Memory, types.Packed]:
        began = time.perf_counter()
        original = network = network_of(policy)
        check(original)
        seen, after, keys = Seen(original, obs, head), [], jax.random.split(key, len(steps) or 1)
        with np.errstate(all="ignore"):  # what comes out is looked at
            for i, step in enumerate(steps):
                kept, network = step.apply(memory[i], seen, network, keys[i])
                after.append(kept)
        check(network, obs)
        payload = _payload.dumps(network, policy)
        share = saved(original, network)
        return tuple(after), _payload.packed(payload, time.perf_counter() - began, level, share)

    def plain(policy: types.Policy) -> types.Packed:
        began = time.perf_counter()
        payload = _payload.dumps(network_of(policy), policy)
        return _payload.packed(payload, time.perf_counter() - began, "full precision")

    def simulate(policy: types.Policy, key: types.Key) -> types.Policy:
        params = policy.params
        for step, one in zip(steps, jax.random.split(key, len(steps) or 1), strict=False):
            assert step.simulate is not None
            params = step.simulate(needed, params, one)
        return policy._replace(params=params)

    def study(
        memory: types.Memory, policy: types.Policy, obs: types.Obs, key: types.Key
    ) -> tuple[types.Memory, types.Metrics]:
        seen, after = Seen(network_of(policy), obs, head), list(memory)
        told: dict[str, types.Scalar] = {}
        for i, (step, one) in enumerate(zip(steps, jax.random.split(key, len(steps)), strict=True)):
            if step.study is not None:
                after[i], metrics = step.study(memory[i], seen, one)
                told |= metrics
        return tuple(after), told

    def kept(memory: types.Memory) -> types.Tree:
        return tuple(step.kept(one) for step, one in zip(steps, memory, strict=True))

    def resumed(memory: types.Memory, kept: types.Tree) -> types.Memory:
        return tuple(step.resumed(one, of) for step, one, of in zip(steps, memory, kept, strict=True))

    return types.Compressor(
        name=name,
        init=init,
        compress=compress,
        runner=lambda packed, batch, name: Runner(_payload.like(agent), packed, batch, name),
        plain=plain,
        here=not steps,
        engine=engine,
        simulate=simulate if steps and all(step.simulate is not None for step in steps) else None,
        study=study if any(step.study is not None for step in steps) else None,
        needs_obs=any(step.needs_obs for step in steps),
        kept=kept,
        resumed=resumed,
        refuses=next((why for step in steps if (why := step.refuses(needed))), ""),
    )


def check(network: compact.Compact, obs: types.Obs = ()) -> None:
    """See that a network can be acted with.

    Args:
        network: It.
        obs: ``[N, *obs]`` that it is tried on; N may be 0.

    Raises:
        Unfit: A number in it, or of what it gives, is not finite.
    """
    for layer, arrays in network.params.items():
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise errors.Unfit(f"{name} of {layer} is not finite")
    if len(obs):
        for head, output in _structure.outputs(network, obs, PROBED).items():
            if not np.isfinite(output).all():
                raise errors.Unfit(f"what {head} gives for recent observations is not finite")


def saved(original: compact.Compact, network: compact.Compact) -> float:
    """Share of the original's multiply-adds that are left out, or done in eight bits."""
    before = sum(compact.multiply_adds(original).values())
    eight = {layer.name for layer in compact.layers(network) if layer.kind.endswith("8")}
    full = sum(count for name, count in compact.multiply_adds(network).items() if name not in eight)
    return 1.0 - full / before if before else 0.0


def _nothing(spec: types.NetworkSpec) -> np.ndarray:
    return np.zeros((0, *spec.observation.shape), spec.observation.dtype)


def _refused(*_: Any) -> Any:
    raise errors.Refused(INSEPARABLE)


class Runner:
    """See `types.Runner`."""

    def __init__(self, shapes: types.Policy, packed: types.Packed, batch: int, engine: str) -> None:
        """Open an engine.

        Args:
            shapes: Of the agent's policy.
            packed: The first one.
            batch: B, observations in a call.
            engine: Its name; "auto": the fastest here, by a short measurement.

        Raises:
            Refused: No such engine, or it cannot run this network.
            ValueError: The payload is damaged.
        """
        self._shapes, self._batch, self._asked = shapes, batch, engine
        self.measured: Mapping[str, float] = {}  # microseconds a call, by engine; empty where one was asked for
        self._open(packed)

    def _open(self, packed: types.Packed) -> None:
        _payload.check(packed)
        room = _payload.Room(packed.payload)
        made, self.measured = choosing.make(self._asked, room.network, self._batch)
        self._room, self._engine = room, made
        self.engine, self.version = made.name, packed.version
        self.policy = _payload.rest(self._shapes, room)

    def load(self, packed: types.Packed) -> None:
        """See `types.Runner`."""
        _payload.check(packed)
        if self._room.take(packed.payload):
            self._engine.refresh()
            self.version = packed.version
        else:
            self._open(packed)

    def __call__(self, obs: types.Obs, carry: types.Carry) -> tuple[Mapping[str, np.ndarray], types.Carry]:
        """See `types.Runner`."""
        return self._engine(obs, carry)
