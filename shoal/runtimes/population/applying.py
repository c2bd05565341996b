"""A plan carried out on stacked states: one gather, and fresh values where the plan asks for them.

Nothing leaves the device and nothing is compiled anew: hyperparameters are leaves of the states. Every member gathers
from the states as they were when the fitness was measured, so no exchange reads what another one has just written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from etils import epy

from shoal.core import tree, types
from shoal.runtimes.population import exchange, priors

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


class How(NamedTuple):
    """What is copied, and how new hyperparameters come about; static."""

    copy: Literal["policy", "all"] = "policy"
    explore: Literal["resample", "perturb"] = "resample"
    factors: tuple[float, float] = (0.8, 1.25)  # of "perturb"


def apply(
    agent: types.Agent,
    prior: Mapping[str, priors.Prior],
    how: How,
    plan: exchange.Plan,
    states: types.State,
    key: types.Key,
) -> types.State:
    """The states after an exchange.

    Copying the *policy* takes over the policy, its copy in the target network, and the normaliser; what belongs to
    neither policy nor critics (the policy's optimiser, a temperature and its optimiser) is fresh; critics, replay and
    counters stay the member's own. Copying *all* takes everything but the memory and the counters. Rules without
    critics of their own always copy all.

    Args:
        agent: The members' rule.
        prior: Distributions of the hyperparameters that may change.
        how: See `How`.
        plan: Whose weights and hyperparameters each member takes.
        states: Leaves ``[N, ...]``; without memory (the field that `Fields.memory` names is ``()``).
        key: Consumed.
    """
    everybody = jnp.arange(len(plan.explore))
    fresh_keys, explore_keys = jnp.unstack(
        jax.vmap(lambda at: jax.random.split(jax.random.fold_in(key, at)))(everybody), axis=1
    )
    source = jax.tree.map(lambda leaf: leaf[plan.weights_from], states)
    taken = _whole(agent, states, source) if copies_all(agent, how) else _policy(agent, states, source, fresh_keys)
    moves = plan.weights_from != everybody
    values = hyperparameters(agent, agent.about.hyper, states)
    values = {name: value[plan.hyperparameters_from] for name, value in values.items()}
    states = jax.tree.map(lambda new, old: _where(moves, new, old), taken, states)
    explored = jax.vmap(lambda own, key: _explored(prior, how, own, key))(
        {name: values[name] for name in prior}, explore_keys
    )
    values |= {name: jnp.where(plan.explore, value, values[name]) for name, value in explored.items()}
    return set_hyperparameters(agent, states, values)


def copies_all(agent: types.Agent, how: How) -> bool:
    """Whether an exchange copies all of a learner: it is to, or the rule has no critics to leave behind."""
    return how.copy == "all" or agent.about.fields.critics is None


def copied(agent: types.Agent, how: How) -> tuple[list[str], list[str]]:
    """What an exchange takes from the source and what it begins afresh, by fields of the state, for the lineage."""
    fields = agent.about.fields
    if copies_all(agent, how) or fields.critics is None:
        return ["all"], []
    reset = [name for name in fields.optimisers if name != fields.critics[1]]
    return [str(fields.policy), "normaliser"], reset


def hyperparameters(agent: types.Agent, names: Iterable[str], states: types.State) -> dict[str, types.Array]:
    """What leaves are, ``[N]`` each.

    Args:
        agent: The members' rule.
        names: Of leaves in `types.About.hyper`, e.g. the priors.
        states: Leaves ``[N, ...]``.
    """
    return {name: jax.vmap(agent.about.hyper[name].get)(states) for name in names}


def set_hyperparameters(agent: types.Agent, states: types.State, values: Mapping[str, types.Array]) -> types.State:
    """The states with other hyperparameters.

    Args:
        agent: The members' rule.
        states: Leaves ``[N, ...]``.
        values: ``[N]`` by the names of leaves.
    """
    for name, value in values.items():
        states = jax.vmap(agent.about.hyper[name].put)(states, value)
    return states


def _whole(agent: types.Agent, own: types.State, source: types.State) -> types.State:
    about = agent.about
    for name in ("env_steps", about.fields.memory, about.fields.stream):
        source = tree.replaced(source, name, name and tree.field(own, name))
    source = _counting(agent, own, source)
    if about.restart is not None and about.fields.memory is None:  # what it remembers of streams was not this member's
        source = jax.vmap(about.restart)(source)
    return source


def _policy(agent: types.Agent, own: types.State, source: types.State, keys: types.Key) -> types.State:
    fields, name = agent.about.fields, agent.about.fields.policy
    assert name
    assert fields.critics is not None
    critics, their_optimiser = fields.critics
    fresh = jax.vmap(agent.init)(keys)
    params = {**fresh.params, name: source.params[name], critics: own.params[critics]}
    state = own._replace(params=params, normaliser=source.normaliser)
    for optimiser in fields.optimisers:
        if optimiser != their_optimiser:
            state = tree.replaced(state, optimiser, tree.field(fresh, optimiser))
    slow = tree.field(own, fields.own_target) if fields.own_target else None
    if isinstance(slow, Mapping) and name in slow:
        state = tree.replaced(state, fields.own_target, {**slow, name: source.params[name]})
    return _counting(agent, own, state)


def _counting(agent: types.Agent, own: types.State, state: types.State) -> types.State:
    """What was counted of a member's own faults goes on."""
    for name in agent.about.fields.optimisers:
        kept = tree.field(state, name)._replace(skipped=tree.field(own, name).skipped)
        state = tree.replaced(state, name, kept)
    return state


def _explored(
    prior: Mapping[str, priors.Prior], how: How, own: Mapping[str, types.Scalar], key: types.Key
) -> dict[str, types.Scalar]:
    """One member's new hyperparameters."""
    if how.explore == "resample":
        return priors.draw(prior, key)
    up = {name: jax.random.bernoulli(priors.of(key, name)) for name in prior}
    return {name: priors.perturbed(prior[name], own[name], up[name], how.factors) for name in prior}


def _where(moves: types.Array, new: types.Array, old: types.Array) -> types.Array:
    return jnp.where(moves.reshape(-1, *[1] * (new.ndim - 1)), new, old)
