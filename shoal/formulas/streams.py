"""An optimiser that sees the gradient of each stream apart: each is clipped, and their noised mean is what is applied.

The update of a rule is mapped over its streams by an axis with a name (`AXIS`), and each stream brings its gradient
here; what comes back to all of them is the same. So whatever follows (the step at home, what is left for a server, all
later decisions) depends on one stream through a sum of which it is a bounded part.

Source: Abadi et al. 2016, arXiv:1607.00133, algorithm 1, with a stream in place of an example.
"""

from __future__ import annotations

from typing import Any

from etils import epy

from shoal.core import types
from shoal.formulas import optimise

with epy.lazy_imports():
    import jax
    import jax.flatten_util
    import jax.numpy as jnp

AXIS = "streams"


def apart(optimiser: optimise.Optimiser, streams: int, most: float) -> optimise.Optimiser:
    """The same optimiser, given (1/B) (sum_b g_b min(1, C / ‖g_b‖) + noise) in place of one gradient.

    A stream whose gradient is not finite brings nothing. The noise is what lies in `OptimiserState.noise`, as large as
    all parameters together; whoever runs the rule puts new one there before every update.

    Args:
        optimiser: What applies it, or leaves it.
        streams: B, of the axis.
        most: C.
    """

    def init(params: types.Params, rates: Any = ()) -> optimise.OptimiserState:
        vector, _ = jax.flatten_util.ravel_pytree(params)
        return optimiser.init(params, rates)._replace(noise=jnp.zeros_like(vector))

    def update(
        gradient: Any,
        state: optimise.OptimiserState,
        params: types.Params,
        env_steps: Any,
        ask: optimise.Step = optimise.PLAIN,
    ) -> Any:
        vector, shaped = jax.flatten_util.ravel_pytree(gradient)
        norm, scale = optimise.clip(vector, jnp.float32(most))
        bounded = jnp.where(jnp.isfinite(norm), vector * scale, 0.0)
        mean = (jax.lax.psum(bounded, AXIS) + state.noise) / streams
        return optimiser.update(shaped(mean), state, params, env_steps, ask)

    return optimise.Optimiser(init, update)


def mapped(agent: types.Agent, streams: int) -> types.Agent:
    """An agent whose `update` brings every stream to an `apart` optimiser by itself.

    Args:
        agent: Built with such an optimiser; it keeps no memory and no statistics of observations.
        streams: B, of its rollouts.
    """

    def update(state: types.State, rollout: types.Rollout, key: types.Key) -> tuple[types.State, types.Metrics]:
        def one(steps: types.Transition, carry: types.Carry, key: types.Key) -> Any:
            alone = jax.tree.map(lambda leaf: leaf[:, None], steps), jax.tree.map(lambda leaf: leaf[None], carry)
            return agent.update(state, types.Rollout(*alone, rollout.used), key)

        every = jax.vmap(one, in_axes=(1, 0, 0), axis_name=AXIS)
        after, metrics = every(rollout.transitions, rollout.carry, jax.random.split(key, streams))
        first: Any = jax.tree.map(lambda leaf: leaf[0], after)  # they differ in nothing
        steps = state.env_steps + streams * (first.env_steps - state.env_steps)
        return first._replace(env_steps=steps), jax.tree.map(lambda leaf: leaf.mean(axis=0), metrics)

    return agent._replace(update=update)
