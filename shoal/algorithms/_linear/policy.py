"""The policy of a linear rule, q(x, a) = w_a · φ(x), as a `types.Agent` that acts under any runtime and evaluation."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shoal.algorithms._linear import features
from shoal.core import types


class State(NamedTuple):
    """What `types.Agent.init` gives: the policy's parameters; the weights being learned are the runtime's."""

    params: types.Params  # {"w": [A, F] f32}
    optimiser: Any  # (): there is no gradient
    normaliser: Any  # ()
    env_steps: Any  # scalar i32


def policy(weights: np.ndarray, actions: int, epsilon: float) -> types.Policy:
    """Weights ``[A F]`` or ``[A, F]`` as what acts; on the host.

    Args:
        weights: Of one action after the other.
        actions: A.
        epsilon: Probability of a random action while learning.
    """
    params = {"w": np.asarray(weights, np.float32).reshape(actions, -1)}
    return types.Policy(params, (), np.float32(1.0), np.float32(epsilon))


def agent(
    made: features.Features,
    spec: types.EnvSpec,
    epsilon: float,
    *,
    exchange: types.Exchange | None = None,
    sums: types.Sums | None = None,
) -> types.Agent:
    """An agent that acts by these features and learns as `exchange` or `sums` say.

    Args:
        made: The features.
        spec: The environment; discrete actions.
        epsilon: Probability of a random action while learning.
        exchange: How weights are learned and exchanged.
        sums: How weights are learned from sums.
    """
    actions = spec.action.n

    def init(key: types.Key) -> State:
        del key  # weights begin at 0
        return State({"w": jnp.zeros((actions, made.size))}, (), (), jnp.int32(0))

    def snapshot(state: State) -> types.Policy:
        return types.Policy(state.params, (), jnp.float32(1.0), jnp.float32(epsilon))

    def values(params: types.Params, obs: Any) -> Any:
        obs = jnp.asarray(obs, jnp.float32)
        if made.active is not None:
            return params["w"][:, made.active(obs, jnp)].sum(-1)
        return params["w"] @ made.vector(obs, jnp)

    def act(acting: types.Policy, carry: types.Carry, obs: Any, key: types.Key) -> Any:
        whether, which = jax.random.split(key)
        best = jnp.argmax(values(acting.params, obs)).astype(jnp.int32)
        other = jax.random.randint(which, (), 0, actions, jnp.int32)
        wild = (jax.random.uniform(whether) < acting.exploration) & (acting.explore > 0)
        return jnp.where(wild, other, best), (), carry

    def update(state: Any, rollout: types.Rollout, key: types.Key) -> Any:
        del state, rollout, key
        raise TypeError("a linear rule learns as its `exchange` or `sums` say, not from rollouts")

    def apply(params: types.Params, obs: Any, carry: types.Carry) -> Any:
        return {"q": values(params, obs)}, carry

    layers = types.NetworkSpec(spec.observation, {}, {})  # it is no network of layers: nothing to export or shrink
    network = types.Network(lambda key: init(key).params, apply, (), layers)
    about = types.About(rollout_length=1, head="greedy", networks={"policy": network}, exchange=exchange, sums=sums)
    return types.Agent(init=init, snapshot=snapshot, act=act, update=update, about=about)
