"""What a bundle compiles: its policy, and an update that leaves a gradient, with the parameters fetched."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shoal.core import prng, seeds, tree, types
from shoal.runtimes.parameter_server import bundle_state


class Learning:
    """An agent's functions on a bundle's state, which is without what is fetched and pushed."""

    def __init__(self, agent: types.Agent) -> None:
        """Compile nothing yet."""
        params = jax.eval_shape(agent.init, seeds.key(0)).params
        self.agent, self.flat = agent, tree.flattener(params)
        self.sizes = [int(np.prod(leaf.shape)) for leaf in tree.paths(params).values()]  # of each leaf
        self.names: list[str] = []  # of the metrics, once an update was traced
        self.policy, self.update = jax.jit(self._snapshot), jax.jit(self._learn, donate_argnums=0)

    def lean(self, state: Any) -> Any:
        """The state without what acting never needs: every array that enters a compiled call costs time."""
        return tree.replaced(state, self.agent.about.fields.memory, ())

    def first(self, seed: int, bundle: int, theta: np.ndarray) -> Any:
        """The state of a new bundle: an empty memory, and the server's parameters in the target network too.

        Args:
            seed: The run's.
            bundle: Its number.
            theta: ``[size]`` as fetched; copied.
        """
        fields = self.agent.about.fields
        state = tree.replaced(jax.jit(self.agent.init)(seeds.key(seed, "init")), fields.stream, jnp.int32(bundle))
        if fields.own_target:
            state = tree.replaced(state, fields.own_target, self._copied(theta))
        if fields.target:
            slow = tree.field(state, fields.target)
            state = tree.replaced(state, fields.target, slow._replace(params=self._copied(theta)))
        return bundle_state.without(state)

    def continued(self, left: Any, *, broken: bool) -> Any:
        """The state that an earlier bundle left.

        Args:
            left: Its arrays; copied.
            broken: The simulator could not be saved: the stream breaks off here.
        """
        state, restart = jax.tree.map(jnp.array, left), self.agent.about.restart
        return jax.jit(restart, donate_argnums=0)(state) if restart and broken else state

    def _copied(self, theta: np.ndarray) -> types.Params:
        return jax.tree.map(jnp.array, self.flat.unflatten(theta))

    def _informed(self, state: Any, theta: Any, numbers: Any, normaliser: Any) -> Any:
        """The learner's state with the fetched parameters, and what it must know of the others' work."""
        params, steps, fields = self.flat.unflatten(theta), numbers[3].astype(jnp.int32), self.agent.about.fields
        if fields.target:
            slow = tree.field(state, fields.target)
            state = tree.replaced(state, fields.target, _followed(slow, params, state.env_steps, steps))
        state = state._replace(
            params=params,
            optimiser=state.optimiser._replace(gradient=jax.tree.map(jnp.zeros_like, params)),
            env_steps=steps,
            normaliser=normaliser or state.normaliser,
        )
        return tree.replaced(state, fields.updates, numbers[4].astype(jnp.int32))

    def _snapshot(self, state: Any, theta: Any, numbers: Any, normaliser: Any) -> types.Policy:
        return self.agent.snapshot(self._informed(state, theta, numbers, normaliser))

    def _learn(self, state: Any, theta: Any, numbers: Any, normaliser: Any, rollout: types.Rollout) -> Any:
        """One update: ``[gradient | metrics | norm]``, the factors of the rate of each leaf, and the state."""
        informed = self._informed(state, theta, numbers, normaliser)
        after, metrics = self.agent.update(informed, rollout, prng.counted(numbers[:3]))
        gradient = self.flat.flatten(after.optimiser.gradient)
        self.names = sorted(metrics)
        told = jnp.stack([metrics[name] for name in self.names])
        norm = jnp.sqrt(jnp.sum(gradient * gradient))  # finite exactly when the gradient is
        return jnp.concatenate([gradient, told, norm[None]]), after.optimiser.rates, bundle_state.without(after)


def _followed(slow: types.Target, params: types.Params, before: Any, now: Any) -> types.Target:
    """The target network, copied where others' steps passed a multiple of its period; `update` sees only its own."""
    period = slow.period.astype(jnp.int32)
    due = now // period > before // period
    return slow._replace(params=jax.tree.map(lambda new, old: jnp.where(due, new, old), params, slow.params))
