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
    gates = _flat(x) @ seen + bias[None]
    return _steps()(gates.reshape(*over.shape, -1), recurrent, over, start, carry)


@functools.cache
def _steps() -> Any:
    """``(gates [T, B, 4 n], recurrent [n, 4 n], over [T, B], start [n], carry [B, n]) -> (c, h), [T, B, n] each``.

    Made here so that importing this file does not import JAX.
    """

    def forward(gates: Any, recurrent: Any, over: Any, start: Any, carry: Any) -> Any:
        def step(carry: Any, at: Any) -> Any:
            given, ends = at
            given = given + carry[1] @ recurrent
            i, f, g, o = _opened(given)
            c = f * carry[0] + i * g
            h = o * jnp.tanh(c)
            return _anew(start, ends, (c, h)), (given, c, h)

        _, (gates, c, h) = jax.lax.scan(step, carry, (gates, over))
        return (c, h), (gates, recurrent, over, start, carry, c, h)

    def backward(kept: Any, back: Any) -> Any:
        gates, recurrent, over, start, carry, c, h = kept
        behind = _anew(start, over, (c, h))
        before = [jnp.concatenate([first[None], then[:-1]]) for first, then in zip(carry, behind, strict=True)]
        turned = recurrent.T

        def step(later: Any, at: Any) -> Any:
            gates, ends, c, before, back = at
            i, f, g, o = _opened(gates)
            squashed = jnp.tanh(c)
            of_c, of_h = (mine + jnp.where(ends[:, None], 0.0, next) for mine, next in zip(back, later, strict=True))
            of_c = of_c + of_h * o * (1.0 - squashed**2)
            each = of_c * g * i * (1.0 - i), of_c * before * f * (1.0 - f), of_c * i * (1.0 - g**2)
            of_gates = jnp.concatenate([*each, of_h * squashed * o * (1.0 - o)], axis=1)
            return (of_c * f, of_gates @ turned), of_gates

        at = gates, over, c, before[0], back
        of_carry, of_gates = jax.lax.scan(step, jax.tree.map(jnp.zeros_like, carry), at, reverse=True)
        of_recurrent = _flat(before[1]).T @ _flat(of_gates)  # once, instead of added up at every step
        return of_gates, of_recurrent, None, None, of_carry

    steps = jax.custom_vjp(lambda *given: forward(*given)[0])
    steps.defvjp(forward, backward)
    return steps


def _opened(gates: Any) -> tuple[Any, Any, Any, Any]:
    """Input, forget, candidate and output of a cell, from their sums."""
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)


def _flat(x: Any) -> Any:
    """``[T, B, n]`` as ``[T B, n]``: a product over two axes is none of those that XLA hands to its fast library."""
    return x.reshape(-1, x.shape[-1])


def _anew(start: Any, over: Any, states: Any) -> Any:
    """States, or those of a start where an episode is over."""

    def either(first: Any, now: Any) -> Any:
        return jnp.where(over[..., None], jnp.broadcast_to(first, now.shape), now)

    return jax.tree.map(either, start, states)
