"""What a message holds and what it does at home, as values: gradients of the global part, or its change.

A channel is pure functions on one party's learner, so the same one serves a party by itself and an axis of parties.
What crosses is decided here and nowhere else; form G has one of its own (`consensus`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from etils import epy

from shoal.core import types
from shoal.runtimes.federated import message

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

    from shoal.core import tree
    from shoal.formulas import splitting
    from shoal.networks import scopes


class Channel(NamedTuple):
    """One way of exchange; ``[d]`` is `message.Spec.size`."""

    kind: int  # of `message.KINDS`
    spec: message.Spec
    beginning: Callable[[types.State], types.Array]  # a new learner -> [d] f32, as a run may begin with
    begin: Callable[[types.State, types.Array, types.Scalar, types.Scalar], types.State]
    # (learner, what came down [d] f32, version it is of, mu) -> learner: a download
    install: Callable[[types.State, types.Array], types.State]
    # (learner, what came down) -> the learner as it acts with it; all else is bit for bit as before
    first: types.Tree  # what `gather` begins with
    gather: Callable[[types.Tree, types.State], types.Tree]  # (gathered, learner after a local update) -> gathered
    end: Callable[[types.State, types.Array, types.Tree, types.Scalar], types.Array]
    # (learner, what came down, gathered, local updates) -> what goes up [d] f32
    episodes: int = 0  # after which a round ends, if before its updates; 0: it has all of them


def specified(params: types.Params) -> message.Spec:
    """The global part of a learner's parameters as a specification; shapes are enough."""
    return message.Spec(scopes.layout(params))


def _global_part(state: types.State) -> types.Array:
    return scopes.vector(state.params)


def _installed(state: types.State, theta: types.Array) -> types.State:
    return state._replace(params=scopes.install(state.params, theta))


def gradient(agent: types.Agent, params: types.Params) -> Channel:
    """Gradients of the global part at what came down, their mean over the local updates; local layers learn meanwhile.

    Args:
        agent: Its optimiser leaves the gradient of global layers in the state (`splitting.split`).
        params: Like the learner's, shapes are enough.

    Source: Mnih et al. 2016, arXiv:1602.01783 (gradients to one place); Fan et al. 2021, arXiv:2110.14074.
    """
    del agent
    spec = specified(params)

    def begin(state: types.State, theta: types.Array, base: types.Scalar, mu: types.Scalar) -> types.State:
        del base, mu
        state = _installed(state, theta)
        nothing = jax.tree.map(jnp.zeros_like, state.optimiser.gradient)  # an update that learns nothing sends nothing
        return state._replace(optimiser=state.optimiser._replace(gradient=nothing))

    def gather(total: types.Tree, state: types.State) -> types.Tree:
        return total + scopes.vector(state.optimiser.gradient)

    def end(state: types.State, theta: types.Array, total: types.Tree, updates: types.Scalar) -> types.Array:
        del state, theta
        return total / updates

    return Channel(message.GRADIENT, spec, _global_part, begin, _installed, jnp.zeros(spec.size), gather, end)


def delta(agent: types.Agent, params: types.Params, *, reset: bool = False) -> Channel:
    """What the local updates made of the global part, less what came down.

    Args:
        agent: Whose rule steps all layers at home.
        params: Like the learner's, shapes are enough.
        reset: Whether the statistics of its optimisers begin anew with every download.

    Source: McMahan et al. 2017, arXiv:1602.05629; with mu > 0, FedProx (Li et al. 2020, arXiv:1812.06127).
    """
    spec = specified(params)

    def begin(state: types.State, theta: types.Array, base: types.Scalar, mu: types.Scalar) -> types.State:
        del base
        state = _installed(state, theta)
        return drawn(agent, anew(agent, state) if reset else state, mu)

    def gather(total: types.Tree, state: types.State) -> types.Tree:
        del state
        return total

    def end(state: types.State, theta: types.Array, total: types.Tree, updates: types.Scalar) -> types.Array:
        del total, updates
        return scopes.vector(state.params) - theta

    return Channel(message.DELTA, spec, _global_part, begin, _installed, (), gather, end)


def nothing() -> Channel:
    """Parties that are alone: no number crosses."""
    zeros = jnp.zeros(0)
    return Channel(
        kind=message.DELTA,
        spec=message.Spec(()),
        beginning=lambda state: zeros,  # noqa: ARG005
        begin=lambda state, theta, base, mu: state,  # noqa: ARG005
        install=lambda state, theta: state,  # noqa: ARG005
        first=(),
        gather=lambda total, state: total,  # noqa: ARG005
        end=lambda state, theta, total, updates: zeros,  # noqa: ARG005
    )


def drawn(agent: types.Agent, state: types.State, mu: types.Scalar) -> types.State:
    """The learner whose global layers are drawn to where they are now (`splitting.proximal`), if its optimisers can."""
    fields = agent.about.fields
    for name in fields.optimisers:
        optimiser = tree.field(state, name)
        if isinstance(optimiser.mu, tuple):
            continue
        part = fields.critics[0] if fields.critics and name == fields.critics[1] else fields.policy
        params = state.params[part] if part else state.params
        state = state._replace(**{name: splitting.anchored(optimiser, params, scopes.is_global, mu)})
    return state


def anew(agent: types.Agent, state: types.State) -> types.State:
    """The learner with optimisers that have seen no gradient yet."""
    for name in agent.about.fields.optimisers:
        optimiser = tree.field(state, name)
        rule = jax.tree.map(jnp.zeros_like, optimiser.rule)
        state = state._replace(**{name: optimiser._replace(rule=rule)})
    return state
