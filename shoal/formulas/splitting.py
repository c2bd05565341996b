"""Optimisers of owners that train together: what is everybody's is told from what is an owner's.

* `split(rule, is_global)` applies the gradient of an owner's parameters, and leaves that of everybody's to the runtime;
* `proximal(optimiser, is_global)` draws what is everybody's to where it was, while an owner learns by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from etils import epy

from shoal.core import types
from shoal.formulas import optimise

with epy.lazy_imports():
    import jax
    import jax.flatten_util
    import jax.numpy as jnp

    from shoal.core import tree

IsGlobal = Callable[[tuple[Any, ...]], bool]  # a leaf's key path among the parameters -> whether it is everybody's


def split(config: optimise.Config, steps: int, is_global: IsGlobal) -> optimise.Optimiser:
    """Apply the gradient of local parameters, and leave that of global ones in the state, as they are themselves.

    The norm that is clipped is that of the whole gradient, as it is in `optimise.local`; both parts are scaled by one
    factor. Where any of the gradient is not finite, local parameters are not touched and the step counts as skipped;
    what is left of the global ones is NaN then, which nobody may apply.

    Args:
        config: The rule, of the step here and of the one elsewhere.
        steps: Environment steps of the whole run, for annealing.
        is_global: Tells the two apart.
    """
    at_home = paced(optimise.local(config, steps), is_global, config.local_rate)

    def init(params: types.Params, rates: Any = ()) -> optimise.OptimiserState:
        shared, own = tree.parted(params, is_global)
        kept_rates = tree.parted(rates, is_global)[0] if rates else ()
        return at_home.init(own)._replace(gradient=jax.tree.map(jnp.zeros_like, shared), rates=kept_rates)

    def update(
        gradient: Any,
        state: optimise.OptimiserState,
        params: types.Params,
        env_steps: Any,
        ask: optimise.Step = optimise.PLAIN,
    ) -> Any:
        norm, scale = optimise.clip(jax.flatten_util.ravel_pytree(gradient)[0], state.hyper.max_norm)
        finite = jnp.isfinite(norm)  # else the step is skipped as a whole, whoever's gradient it is
        left, mine = tree.parted(jax.tree.map(lambda g: jnp.where(finite, g * scale, jnp.nan), gradient), is_global)
        shared, own = tree.parted(params, is_global)
        shared_rates, own_rates = tree.parted(ask.rates, is_global) if ask.rates else ((), ())
        unclipped = state._replace(hyper=state.hyper._replace(max_norm=jnp.float32(optimise.LARGEST)))
        own, after, _ = at_home.update(mine, unclipped, own, env_steps, ask._replace(rates=own_rates))
        skipped = state.skipped + (~finite).astype(jnp.int32)
        state = state._replace(rule=after.rule, gradient=left, rates=shared_rates, skipped=skipped)
        return tree.whole(shared, own), state, norm

    return optimise.Optimiser(init, update)


def paced(optimiser: optimise.Optimiser, is_global: IsGlobal, factor: float) -> optimise.Optimiser:
    """The same optimiser, whose steps of local parameters are `factor` times as long; itself where that is 1."""
    if factor == 1.0:
        return optimiser

    def rates(params: types.Params, given: Any) -> Any:
        each = jax.tree_util.tree_map_with_path(lambda path, _: 1.0 if is_global(path) else factor, params)
        return jax.tree.map(lambda mine, asked: mine * asked, each, given) if given else each

    def update(
        gradient: Any, state: optimise.OptimiserState, params: types.Params, env_steps: Any, ask: Any = optimise.PLAIN
    ) -> Any:
        return optimiser.update(gradient, state, params, env_steps, ask._replace(rates=rates(params, ask.rates)))

    return optimise.Optimiser(optimiser.init, update)


def proximal(optimiser: optimise.Optimiser, is_global: IsGlobal) -> optimise.Optimiser:
    """The same optimiser, of a loss with ½ mu ‖θ_g - anchor‖² added to it; mu is 0 until somebody sets it (`anchored`).

    Source: FedProx, Li et al. 2020, arXiv:1812.06127, equation 2.

    Args:
        optimiser: What applies the gradient.
        is_global: Of which parameters it is.
    """

    def init(params: types.Params, rates: Any = ()) -> optimise.OptimiserState:
        return anchored(optimiser.init(params, rates), params, is_global, 0.0)

    def update(
        gradient: Any,
        state: optimise.OptimiserState,
        params: types.Params,
        env_steps: Any,
        ask: optimise.Step = optimise.PLAIN,
    ) -> Any:
        shared, own = tree.parted(gradient, is_global)
        at = tree.parted(params, is_global)[0]
        drawn = jax.tree.map(lambda g, theta, anchor: g + state.mu * (theta - anchor), shared, at, state.anchor)
        return optimiser.update(tree.whole(drawn, own), state, params, env_steps, ask)

    return optimise.Optimiser(init, update)


def anchored(
    state: optimise.OptimiserState, params: types.Params, is_global: IsGlobal, mu: Any
) -> optimise.OptimiserState:
    """The state of a `proximal` optimiser from which on global parameters are drawn to where they are now.

    Args:
        state: Of the optimiser.
        params: What it optimises.
        is_global: As the optimiser has it.
        mu: How strongly, >= 0.
    """
    shared = tree.parted(params, is_global)[0]
    return state._replace(mu=jnp.float32(mu), anchor=jax.tree.map(jnp.copy, shared))  # buffers of its own: see donation
