"""A network with memory along whole streams: layers without memory see all steps at once, cells go from step to step.

What does not wait for the step before is taken out of the loop over steps: convolutions and dense layers, a cell's
product with its input, and the gradient with respect to its recurrent weights, which inside it would be added up in
memory at every step. Numbers are those of `types.Network.apply` step by step but for the order of sums (tested).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epy

from shoal.core import types
from shoal.networks import in_flax, walking

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    from flax import linen

GATES = "ifgo"  # of flax's optimised cell: input, forget, candidate, output

Along = Callable[[types.Params, Any, Any, types.Carry], tuple[dict[str, Any], types.Carry]]


def along(spec: types.NetworkSpec, initialiser: str, start: Mapping[str, tuple[Any, Any]]) -> Along:
    """The network along streams.

    Args:
        spec: Its layers.
        initialiser: Of its weights; only the module's form depends on it.
        start: The recurrent state at the start of an episode, by cell: (c, h), ``[n]`` each.

    Returns:
        See `types.Network.along`.
    """

    def run(params: types.Params, obs: Any, over: Any, carry: Any) -> tuple[dict[str, Any], types.Carry]:
        steps, after = over.shape, {}

        def through(layers: Sequence[types.Layer], x: Any) -> Any:
            for row, cell in _parted(tuple(layers)):
                if row:
                    x = jax.vmap(jax.vmap(functools.partial(_row(row, initialiser).apply, {"params": params})))(x)
                if cell is not None:
                    states = _cell(params[cell.name], x, over, start[cell.name], carry[cell.name])
                    after[cell.name], x = states, states[1]
            return x

        def learned(layer: types.Layer) -> Any:
            return jnp.broadcast_to(params[layer.name]["bias"], (*steps, layer.size))

        def joined(parts: Sequence[Any]) -> Any:
            return jax.vmap(jax.vmap(lambda *each: in_flax.joined(each)))(*parts)

        outputs = walking.outputs(spec, obs, walking.Ways(through, learned, joined, jnp.add))
        return outputs, after

    return run


def _parted(layers: Sequence[types.Layer]) -> list[tuple[tuple[types.Layer, ...], types.Layer | None]]:
    """Rows of layers without memory, each with the cell that follows it; None behind the last."""
    parts: list[tuple[tuple[types.Layer, ...], types.Layer | None]] = []
    row: list[types.Layer] = []
    for layer in layers:
        if layer.kind == "lstm":
            parts.append((tuple(row), layer))
            row = []
        else:
            row.append(layer)
    return [*parts, (tuple(row), None)]


def _row(layers: tuple[types.Layer, ...], initialiser: str) -> Any:
    """Layers without memory as a module that takes its parameters by their names."""

    class Row(linen.Module):  # defined here so that importing this file does not import flax
        @linen.compact
        def __call__(self, x: Any) -> Any:
            for layer in layers:
                x = in_flax.apply(layer, x, {}, initialiser)
            return x

    return Row()


def _cell(cell: Mapping[str, Any], x: Any, over: Any, start: tuple[Any, Any], carry: tuple[Any, Any]) -> Any:
    """(c, h) after each step, ``[T, B, n]`` each, of `linen.OptimizedLSTMCell` with these parameters."""
    seen = jnp.concatenate([cell[f"i{gate}"]["kernel"] for gate in GATES], axis=1)
    recurrent = jnp.concatenate([cell[f"h{gate}"]["kernel"] for gate in GATES], axis=1)
    bias = jnp.concatenate([cell[f"h{gate}"]["bias"] for gate in GATES])
    return _steps()(x @ seen + bias[None, None], recurrent, over, start, carry)


@functools.cache
def _steps() -> Any:
    """``(gates [T, B, 4 n], recurrent [n, 4 n], over [T, B], start [n], carry [B, n]) -> (c, h), [T, B, n] each``.

    Made here so that importing this file does not import JAX.
    """

    def plain(gates: Any, recurrent: Any, over: Any, start: Any, carry: Any) -> Any:
        def step(carry: Any, at: Any) -> Any:
            given, ends = at
            c, h = carry
            i, f, g, o = jnp.split(given + h @ recurrent, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return _anew(start, ends, (c, h)), (c, h)

        return jax.lax.scan(step, carry, (gates, over))[1]

    def forward(gates: Any, recurrent: Any, over: Any, start: Any, carry: Any) -> Any:
        def run(gates: Any, carry: Any) -> Any:
            return plain(gates, recurrent, over, start, carry)

        states, pull = jax.vjp(run, gates, carry)
        _, h = _anew(start, over, states)
        return states, (pull, jnp.concatenate([carry[1][None], h[:-1]]))

    def backward(kept: Any, back: Any) -> Any:
        pull, before = kept
        gates, carry = pull(back)
        recurrent = jnp.einsum("tbn,tbm->nm", before, gates)  # once, instead of at every step
        return gates, recurrent, None, None, carry

    steps = jax.custom_vjp(plain)
    steps.defvjp(forward, backward)
    return steps


def _anew(start: Any, over: Any, states: Any) -> Any:
    """States, or those of a start where an episode is over."""

    def either(first: Any, now: Any) -> Any:
        return jnp.where(over[..., None], jnp.broadcast_to(first, now.shape), now)

    return jax.tree.map(either, start, states)
