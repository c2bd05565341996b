"""Low rank: a dense layer's weights as a product of two thin matrices, W ≈ U V with r columns and rows.

Kept where r (m + n) < m n. The subspace is followed from one policy to the next: one step of orthogonal iteration
(Halko, Martinsson and Tropp 2011, arXiv:0909.4061, algorithm 4.4) from the factor before, so that no singular value
decomposition is needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from etils import epy

from shoal.compress import _transform
from shoal.core import options, types
from shoal.networks import compact

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np

STEPS = 6  # of orthogonal iteration from a random start
STIR = (
    1e-3  # of random numbers in a factor that is followed, so that directions come back that were of no use for a while
)
SMALLEST = 1e-10  # of the largest square of a singular value: what is below is rounding
SECOND = "_second"  # what the name of the second of two layers ends in; the first keeps the name


@dataclasses.dataclass(frozen=True)
class Config:
    """Thin factors of the hidden dense layers."""

    share: float = options.number(0.125, low=0.0, high=1.0)
    """Rank of a layer's weights, as a share of its units; convolutions, LSTM cells and heads stay as they are."""
    engine: Literal["auto", "numba", "onnx", "numpy", "jax"] = "auto"
    """What runs the network: auto takes the fastest on this machine, by a short measurement."""


def transform(config: Config, agent: types.Agent) -> _transform.Transform:
    """See `_transform`; its memory is the second factor of each layer."""
    del agent
    return _transform.Transform(
        name="low_rank",
        level=f"rank {config.share:g} of the width",
        init=lambda seen, network, key: unfactored(config, network),  # noqa: ARG005
        kept=dict,
        resumed=lambda memory, kept: kept,  # noqa: ARG005
        apply=lambda memory, seen, network, key: apply(config, memory, network, key),  # noqa: ARG005
        simulate=lambda spec, params, key: simulated(config, spec, params),  # noqa: ARG005
        refuses=lambda spec: refuses(config, spec),
    )


def build(config: Config, agent: types.Agent) -> types.Compressor:
    """The compressor of an agent's policies."""
    return _transform.compressor(agent, "low_rank", config.engine, transform(config, agent))


def refuses(config: Config, spec: types.NetworkSpec) -> str:
    """See `types.Compressor`; inputs of a network that was not made yet are known from the layer before alone."""
    hidden = [layer for trunk in spec.trunks.values() for layer in trunk if layer.kind == "dense"]
    if not hidden:
        return "there is no hidden dense layer to write as a product of two"
    small = [layer for layer in hidden if round(config.share * layer.size) < 1]
    if small:
        return (
            f"share={config.share:g} of the {small[0].size} units of {small[0].name} is a rank below one; "
            "give more, or a wider network"
        )
    return ""


def unfactored(config: Config, network: compact.Compact) -> dict[str, np.ndarray]:
    """The memory before the first policy: zeros, which stand for no factor yet."""
    shapes = _shapes(network.params)
    ranks = _ranks(config, network.spec, shapes)
    return {name: np.zeros((rank, shapes[name][1]), np.float32) for name, rank in ranks.items()}


def _shapes(params: types.Params) -> dict[str, tuple[int, ...]]:
    return {name: arrays["kernel"].shape for name, arrays in params.items() if "kernel" in arrays}


def apply(
    config: Config, memory: types.Memory, network: compact.Compact, key: types.Key
) -> tuple[types.Memory, compact.Compact]:
    """See `_transform.Transform`."""
    params = {name: dict(arrays) for name, arrays in network.params.items()}
    ranks = _ranks(config, network.spec, _shapes(params))
    generator, followed = np.random.default_rng(np.asarray(jax.random.key_data(key))), {}
    for name, rank in ranks.items():
        whole = params[name]["kernel"]
        random = generator.standard_normal((rank, whole.shape[1]), np.float32)
        before = memory[name]
        if not before.any():
            first, second = factors(whole, random, STEPS)
        else:
            first, second = factors(whole, before + STIR * before.std() * random, 1)
        followed[name] = second
        params[name + SECOND] = {"kernel": second, "bias": params[name]["bias"]}
        params[name] = {"kernel": first, "bias": np.zeros(rank, np.float32)}

    def changed(layer: types.Layer) -> Sequence[types.Layer]:
        if layer.name not in ranks:
            return (layer,)
        return (layer._replace(size=ranks[layer.name]), layer._replace(name=layer.name + SECOND))

    return followed, compact.Compact(compact.replaced(network.spec, changed), params)


def _ranks(config: Config, spec: types.NetworkSpec, shapes: Any) -> dict[str, int]:
    """By name of layer, where two factors have fewer weights than their product."""
    ranks = {}
    for trunk in spec.trunks.values():
        for layer in trunk:
            if layer.kind == "dense":
                (m, n), rank = shapes[layer.name], max(1, round(config.share * layer.size))
                if rank * (m + n) < m * n:
                    ranks[layer.name] = rank
    return ranks


def factors(whole: np.ndarray, warm: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Q ``[m, r]`` with orthonormal columns and Qᵀ W ``[r, n]``, whose product is near W.

    Args:
        whole: W ``[m, n]``.
        warm: ``[r, n]``, the second factor of weights like these, or random numbers.
        steps: Of orthogonal iteration.
    """
    for _ in range(steps):
        first = _basis(whole @ warm.T)
        warm = first.T @ whole
    return first, warm


def _basis(columns: np.ndarray) -> np.ndarray:
    """An orthonormal basis of what columns ``[m, r]`` span, zeros where they are fewer.

    By the eigenvectors of their products with each other, in float64: several times quicker than a QR factorisation.
    """
    wide = columns.astype(np.float64)
    squares, vectors = np.linalg.eigh(wide.T @ wide)
    within = squares > SMALLEST * squares[-1]
    scale = np.where(within, 1.0 / np.sqrt(np.where(within, squares, 1.0)), 0.0)
    return (wide @ (vectors * scale)).astype(np.float32)


def simulated(config: Config, spec: types.NetworkSpec, params: types.Params) -> types.Params:
    """Weights that are products of thin factors multiplied out, inside `jit`."""
    shapes = _shapes(params)
    changed = dict(params)
    for name, rank in _ranks(config, spec, shapes).items():
        whole = params[name]["kernel"]
        near = jax.random.normal(jax.random.key(0), (rank, whole.shape[1]), jnp.float32)
        for _ in range(STEPS):
            first = _orthonormal(whole @ near.T)
            near = first.T @ whole
        changed[name] = {**params[name], "kernel": first @ near}
    return changed


def _orthonormal(columns: Any) -> Any:
    """Columns ``[m, r]`` made orthonormal, each against those before, twice (Gram and Schmidt).

    Of products alone: jaxlib's factorisations, batched, can wait for each other's threads for ever (see
    `networks.layers`).
    """

    def one(at: Any, done: Any) -> Any:
        column = columns[:, at]
        for _ in range(2):
            column = column - done @ (done.T @ column)
        norm = jnp.sqrt(jnp.sum(column * column))
        return done.at[:, at].set(jnp.where(norm > 1e-12, column / jnp.maximum(norm, 1e-12), 0.0))

    return jax.lax.fori_loop(0, columns.shape[1], one, jnp.zeros_like(columns))
