"""A run that starts from the policy of another one: weights and statistics of observations, nothing else of it."""

from __future__ import annotations

from typing import Any

from etils import epy

from shoal.core import errors, types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np

    from shoal.core import tree


def kept(policy: types.Policy) -> types.Tree:
    """What is taken of a policy, and kept in the run folder."""
    return {"params": policy.params, "normaliser": policy.normaliser}


def like(agent: types.Agent) -> types.Tree:
    """Shapes and dtypes of what an agent can start from."""
    return kept(jax.eval_shape(lambda key: agent.snapshot(agent.init(key)), jax.random.key(0)))


def check(agent: types.Agent, start: types.Tree, source: str) -> None:
    """Refuse a policy that does not fit.

    Args:
        agent: That is to start from it.
        start: As `kept`.
        source: Where it is from, for messages.

    Raises:
        Refused: Another shape of networks, or observations that were normalised there and are not here.
    """
    if agent.about.fields.policy is None:
        raise errors.Refused(
            f"--from {source}: this rule's policy is not its weights as they are; train without --from"
        )
    wanted = like(agent)
    if start["normaliser"] != () and wanted["normaliser"] == ():
        raise errors.Refused(
            f"--from {source}: its policy sees normalised observations; add --algorithm.normalise-observations"
        )
    given, shapes = tree.paths(start["params"]), tree.paths(wanted["params"])
    for path in sorted({*given, *shapes}):
        there, here = (list(np.shape(found[path])) if path in found else None for found in (given, shapes))
        if there != here:
            raise errors.Refused(
                f"--from {source}: its policy does not fit: {path} is {_shown(there)} there and {_shown(here)} here; "
                "the environment's shapes and --network must be the same"
            )


def _shown(shape: list[int] | None) -> str:
    return "missing" if shape is None else str(shape)


def warm(agent: types.Agent, start: types.Tree) -> types.Agent:
    """The agent with a first state that has another's policy; its critics, memory and optimisers begin as always.

    Args:
        agent: For which `check` holds.
        start: As `kept`.
    """
    fields = agent.about.fields

    def init(key: types.Key) -> types.State:
        state = agent.init(key)
        policy = jax.tree.map(jnp.asarray, start["params"])
        state = state._replace(params={**state.params, fields.policy: policy} if fields.policy else policy)
        if start["normaliser"] != () and state.normaliser != ():
            state = state._replace(normaliser=jax.tree.map(jnp.asarray, start["normaliser"]))
        for name in (fields.target, fields.own_target):
            if name is not None:
                state = tree.replaced(state, name, _target(tree.field(state, name), state.params))
        return state

    return agent._replace(init=init)


def _target(target: Any, params: types.Params) -> Any:
    """A target network that agrees with the parameters; one of critics alone does already."""
    if isinstance(target, types.Target):
        return target._replace(params=_target(target.params, params))
    if not isinstance(target, dict) or not set(target) <= set(params):
        return target
    return jax.tree.map(jnp.copy, {name: params[name] for name in target})
