"""Form G: networks that are their owners' alone, and agreement on decisions in states that everybody may know.

Kong et al. 2025, "FedHPD: Heterogeneous Federated Reinforcement Learning via Policy Distillation", arXiv:2502.00870.
Every party sends how likely its policy is to choose each action in the public states, the server sends back the mean,
and each takes a few steps on KL(mean ‖ own) with its own optimiser. No weight crosses, so networks may have any shape.

What crosses tells how a policy decides in the public states, and nothing of who was met elsewhere; with many states
that is much of the policy. Public states themselves are told to all parties: recorded, they are observations of one
owner, who must agree to that; drawn from declared bounds, they are nobody's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from etils import epy

from shoal.core import errors, seeds, tree, types
from shoal.formulas import optimise, rules
from shoal.runtimes.federated import channels, message

with epy.lazy_imports():
    import jax
    import jax.flatten_util
    import jax.numpy as jnp

    from shoal.formulas import normalise

LARGEST = 1e6  # a bound beyond this is none: nothing is drawn from it
DECIDES = "categorical"  # the head whose distributions can be agreed on
OWNER, BOUNDS = "owner", "bounds"


class Agreement(NamedTuple):
    """What parties agree on, and how; plain data, so it can be pickled."""

    states: np.ndarray  # [S, *obs], the public ones
    actions: int  # A
    steps: int  # on KL(mean ‖ own) after each download
    episodes: int  # of a party between two agreements

    @property
    def spec(self) -> message.Spec:
        """What a message holds."""
        return message.Spec((("public/policy", (len(self.states), self.actions)),))


def channel(agent: types.Agent, given: Agreement) -> channels.Channel:
    """What crosses, and what it does at home.

    Args:
        agent: Of the party; its head is categorical.
        given: What is agreed on.
    """
    states, shape = given.states, (len(given.states), given.actions)
    step = _step(agent, states)

    def begin(state: types.State, mean: types.Array, base: types.Scalar, mu: types.Scalar) -> types.State:
        del mu
        goal = mean.reshape(shape)

        def towards(state: types.State) -> types.State:
            return jax.lax.fori_loop(0, given.steps, lambda _, now: step(now, goal), state)

        return jax.lax.cond(base > 0, towards, lambda state: state, state)  # nobody has said anything before version 1

    def end(state: types.State, theta: types.Array, total: types.Tree, updates: types.Scalar) -> types.Array:
        del theta, total, updates
        policy = agent.snapshot(state)
        return jnp.exp(log_chances(agent, policy, policy.params, states)).reshape(-1)

    even = np.full(given.spec.size, 1.0 / given.actions, np.float32)
    return channels.Channel(
        kind=message.OUTPUTS,
        spec=given.spec,
        beginning=lambda state: jnp.asarray(even),  # noqa: ARG005
        begin=begin,
        install=lambda state, theta: state,  # noqa: ARG005
        first=(),
        gather=lambda total, state: total,  # noqa: ARG005
        end=end,
        episodes=given.episodes,
    )


def log_chances(agent: types.Agent, policy: types.Policy, params: types.Params, states: types.Obs) -> types.Array:
    """How likely each action is in each state, logarithms ``[S, A]``.

    Args:
        agent: Whose network it is.
        policy: Its statistics of observations are the party's own.
        params: Of the network.
        states: ``[S, *obs]``, as the environment shows them.
    """
    acting = agent.about.acting
    assert acting is not None
    network = agent.about.networks[acting.network]

    def one(obs: types.Obs) -> types.Array:
        seen = normalise.apply(policy.normaliser, obs) if policy.normaliser else obs
        return network.apply(params, seen, agent.about.carry)[0][acting.heads[0]]

    return jax.nn.log_softmax(jax.vmap(one)(jnp.asarray(states)), axis=-1)


def divergence(
    agent: types.Agent, policy: types.Policy, params: types.Params, states: types.Obs, mean: types.Array
) -> types.Scalar:
    """KL(mean ‖ own) in nats, the mean over public states; arguments as in `log_chances`, and `mean` ``[S, A]``."""
    own = log_chances(agent, policy, params, states)
    known = jnp.where(mean > 0.0, mean, 1.0)
    return jnp.where(mean > 0.0, mean * (jnp.log(known) - own), 0.0).sum(axis=-1).mean()


def _step(agent: types.Agent, states: types.Obs) -> Callable[[types.State, types.Array], types.State]:
    """(learner, mean ``[S, A]``) -> the learner after one step of its own optimiser on the divergence.

    Leaves on which the divergence does not depend, a critic's, stay as they are, and so do their moments.
    """
    fields = agent.about.fields
    name = next(one for one in fields.optimisers if not (fields.critics and one == fields.critics[1]))

    def step(state: types.State, mean: types.Array) -> types.State:
        policy, before = agent.snapshot(state), tree.field(state, name)
        part = state.params[fields.policy] if fields.policy else state.params
        gradient = jax.grad(lambda params: divergence(agent, policy, params, states, mean))(part)
        rule = optimise.local(optimise.Config(rule=_named(before)), 1)
        after, kept, _ = rule.update(gradient, before, part, state.env_steps)
        moved = jax.tree.map(lambda leaf: jnp.broadcast_to(jnp.any(leaf != 0), leaf.shape), gradient)
        after = jax.tree.map(jnp.where, moved, after, part)
        statistics = jax.tree.map(lambda new, old: _chosen(moved, new, old), kept.rule, before.rule)
        state = state._replace(**{name: kept._replace(rule=statistics)})
        return state._replace(params={**state.params, fields.policy: after} if fields.policy else after)

    return step


def _chosen(moved: types.Tree, new: types.Array, old: types.Array) -> types.Array:
    """Statistics of the leaves that moved, where there is one for each parameter; a count goes on."""
    flat = jax.flatten_util.ravel_pytree(moved)[0]
    return jnp.where(flat, new, old) if new.shape == flat.shape else new


def _named(state: optimise.OptimiserState) -> str:
    kept = type(state.rule)
    return next(name for name, rule in rules.RULES.items() if rule.kept is kept)


def check(agent: types.Agent) -> None:
    """Refuse who cannot agree on decisions so.

    Raises:
        Refused: It does not choose among actions by their chances, or its optimiser is one of optax.
    """
    if agent.about.head != DECIDES or agent.about.acting is None or agent.about.carry:
        raise errors.Refused(
            "runtime.exchange=outputs is of policies that give each of some actions a chance, without recurrent state "
            "(actor_critic, ppo on discrete actions); use --runtime.exchange delta"
        )
    state = jax.eval_shape(agent.init, seeds.key(0))
    if type(tree.field(state, agent.about.fields.optimisers[0]).rule) not in [one.kept for one in rules.RULES.values()]:
        raise errors.Refused(
            f"runtime.exchange=outputs takes its steps with the party's own optimiser, one of {', '.join(rules.RULES)}"
        )


# ------------------------------------------------------------------------------------------------ public states


def public(parts: types.Parts, source: str, count: int, seed: int) -> np.ndarray:
    """States that all parties are told, ``[count, *obs]`` f32.

    Args:
        parts: Of the owner who agrees to have some of its observations told ("owner"); of any party ("bounds").
        source: "owner": recorded while actions are drawn at random; "bounds": drawn from the declared bounds.
        count: How many.
        seed: Of the run.

    Raises:
        Refused: There are no bounds to draw from.
    """
    generator = np.random.default_rng(seeds.derive(seed, "public"))
    return _drawn(parts.spec, count, generator) if source == BOUNDS else _recorded(parts, count, seed, generator)


def edges(spec: types.EnvSpec) -> tuple[np.ndarray, np.ndarray]:
    """The declared bounds of what is seen, ``[*obs]`` f64 each.

    Raises:
        Refused: There are none to draw from.
    """
    seen = spec.observation
    low, high = (
        np.broadcast_to(np.asarray(edge or (np.inf,), np.float64), seen.shape) for edge in (seen.low, seen.high)
    )
    if not (np.abs([low, high]) < LARGEST).all():
        raise errors.Refused(
            f"runtime.public_from=bounds, but {spec.id} declares no finite bounds of what is seen; use owner, who then "
            "agrees to have so many of its observations told"
        )
    return low, high


def _drawn(spec: types.EnvSpec, count: int, generator: np.random.Generator) -> np.ndarray:
    low, high = edges(spec)
    return generator.uniform(low, high, (count, *low.shape)).astype(np.float32)


def _recorded(parts: types.Parts, count: int, seed: int, generator: np.random.Generator) -> np.ndarray:
    """Every state on the way of random actions, as many episodes as it takes."""
    env, found = parts.environment.host(), []
    try:
        obs = env.reset(seeds.derive(seed, "public", "environment"))
        for _ in range(count):
            found.append(np.array(obs, np.float32))
            obs, _ = env.step(int(generator.integers(parts.spec.action.n)))
    finally:
        env.close()
    whole = np.stack(found)
    return np.where(np.isfinite(whole), whole, 0.0).astype(np.float32)
