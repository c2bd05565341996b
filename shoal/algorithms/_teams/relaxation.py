"""Units that never stop: asynchronous MAP propagation, tick by tick, with traces that know of no phases.

Every hidden unit relaxes at every tick towards what the layers next to it ask for, whether the output is drawn anew or
held. A unit learns the less the faster it moves, so that it learns most where it has settled. One stream; `vmap`
outside. "Asynchronous" is simulated: every layer relaxes exactly once a tick.

Source: Chung 2021, arXiv:2010.07893, asynchronous MAP propagation (earlier version of the text).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from etils import epy

from shoal.algorithms._teams import units
from shoal.core import types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


class Flow(NamedTuple):
    """A network between two ticks; all zero when an episode begins."""

    hidden: tuple[Any, ...]  # L - 1 arrays [units]
    output: Any  # [outputs] one-hot or value
    speed: tuple[Any, ...]  # L arrays: running mean of each unit's moves; of a choice, [1] of its changes


class Clock(NamedTuple):
    """Numbers of the ticks; f32 scalars."""

    decay: Any  # β of the speed
    weight: Any  # α
    floor: Any  # ε


class Body(NamedTuple):
    """A network at one observation."""

    kind: units.Kind
    law: units.Law
    params: types.Params
    obs: Any  # [features]


class Heard(NamedTuple):
    """What the layers saw and made of it over K ticks; layer by layer."""

    inputs: tuple[Any, ...]  # L arrays [K, units below]
    errors: tuple[Any, ...]  # L arrays [K, units], divided by ε + α g²


def still(sizes: Sequence[int], outputs: int, choices: bool = False) -> Flow:
    """A network before the first tick.

    Args:
        sizes: Units of the hidden layers.
        outputs: Numbers that come out.
        choices: They are one choice, which has one speed.
    """
    hidden = tuple(jnp.zeros(size) for size in sizes)
    return Flow(hidden, jnp.zeros(outputs), (*hidden, jnp.zeros(1 if choices else outputs)))


def relax(
    body: Body, flow: Flow, outputs: Any, choose: Callable[[Any, Any, Any], Any], clock: Clock, gate: Any = None
) -> tuple[Flow, Any, Heard]:
    """K ticks.

    In each, the output is chosen and its layer's error taken; then all hidden layers move from the old values,
    H ← H + ΔH with ΔH = ½σ² (below + above), g ← β g + (1 - β) ΔH, and their errors are taken.

    Args:
        body: The network and its observation.
        flow: Where it begins.
        outputs: Leaves ``[K, ...]`` given to `choose`, one a tick.
        choose: (mean of the output, output before, one of `outputs`) to the output of this tick.
        clock: How speeds are kept and weighed.
        gate: (output, mean, errors) to gated errors; None: as they are.

    Returns:
        The network after the last tick, the outputs ``[K, outputs]``, and what the traces are made of.
    """
    kind, law, params = body.kind, body.law, body.params
    pot = units.potential(params[kind.names[0]], body.obs)

    def tick(at: tuple[Flow, units.Activity], given: Any) -> tuple[Any, Any]:
        flow, activity = at
        output = choose(activity.mean[-1], flow.output, given)
        moved = output - flow.output
        if kind.softmax:
            moved = jnp.max(jnp.abs(moved), keepdims=True)  # 1 if the choice changed
        problem = units.Problem(kind, law, params, body.obs, flow.hidden, output)
        hidden = units.ascend(problem, activity, flow.hidden)
        moves = (*(new - old for new, old in zip(hidden, flow.hidden, strict=True)), moved)
        speed = tuple(clock.decay * g + (1.0 - clock.decay) * move for g, move in zip(flow.speed, moves, strict=True))
        last = units.errors(kind, law, activity, flow.hidden, output)  # the output learns before the others move
        after = units.sweep_from(kind, law, params, pot, hidden)
        own = units.errors(kind, law, after, hidden, output)
        if gate is not None:
            last, own = gate(output, activity.mean[-1], last), gate(output, after.mean[-1], own)
        errors = tuple(
            e / (clock.floor + clock.weight * g * g) for e, g in zip((*own[:-1], last[-1]), speed, strict=True)
        )
        inputs = (*hidden[:-1], flow.hidden[-1])
        return (Flow(hidden, output, speed), after), (output, inputs, errors)

    start = flow, units.sweep_from(kind, law, params, pot, flow.hidden)
    (flow, _), (drawn, inputs, errors) = jax.lax.scan(tick, start, outputs)
    ticks = drawn.shape[0]
    return flow, drawn, Heard((jnp.broadcast_to(body.obs, (ticks, *body.obs.shape)), *inputs), errors)


def traced(kind: units.Kind, traces: types.Params, heard: Heard, fade: Any) -> types.Params:
    """Traces after K ticks, z ← γλ z + h e at each, as one product: the weights do not change meanwhile.

    Args:
        kind: The network.
        traces: z of one stream, like its parameters.
        heard: Of the ticks.
        fade: γλ, per tick.
    """
    ticks = heard.errors[0].shape[0]
    left = fade ** jnp.arange(ticks - 1, -1, -1, dtype=heard.errors[0].dtype)  # [K]
    found = {}
    for name, below, error in zip(kind.names, heard.inputs, heard.errors, strict=True):
        faded = error * left[:, None]
        z = jax.tree.map(lambda leaf: fade**ticks * leaf, traces[name])
        found[name] = {"kernel": z["kernel"] + below.T @ faded, "bias": z["bias"] + faded.sum(axis=0)}
    return found
