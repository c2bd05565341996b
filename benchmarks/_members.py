"""Members of a population for the bench `population`: learners of the house on stacked states, and batches for them.

Sizes are HalfCheetah's, data are uniform and random, no episode ends (Flajolet et al. 2022, arXiv:2206.08888).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from shoal import algorithms, networks
from shoal.algorithms import _memory, dqn, sac, td3
from shoal.core import seeds, types
from shoal.formulas import optimise

OBS, ACTIONS = 17, 6
DISCOUNT = 0.99
BATCHES = 8  # that a member has and comes back to
RULES: dict[str, Any] = {"td3": td3, "sac": sac, "dqn": dqn}


def agent(algorithm: str, width: int, batch: int) -> types.Agent:
    """A learner as its preset builds it, but for the sizes.

    Args:
        algorithm: A key of `RULES`.
        width: Units of both hidden layers.
        batch: Transitions of a gradient step.
    """
    discrete = algorithm == "dqn"
    choices = types.ActionSpec(discrete=True, n=ACTIONS, shape=(), low=(), high=())
    box = types.ActionSpec(discrete=False, n=0, shape=(ACTIONS,), low=(-1.0,) * ACTIONS, high=(1.0,) * ACTIONS)
    spec = types.EnvSpec(
        "bench", types.ObservationSpec((OBS,), "float32", False), choices if discrete else box, None, None, True
    )
    adam = optimise.Config(rule="adam", learning_rate=3e-4, anneal=False, decay=0.999, epsilon=1e-8, max_norm=0.0)
    given = algorithms.Ingredients(
        spec=spec,
        network=networks.Config(hidden=(width, width), activation="relu"),
        optimiser=optimise.local(adam, 1),
        corrector=None,  # type: ignore[arg-type]  of these rules none takes one
    )
    rule = RULES[algorithm]
    config = rule.Config(batch=batch, capacity=1000)
    return rule.build(config, given)


def states(learner: types.Agent, members: int, seed: int = 0) -> types.State:
    """Learners [N], without their memories."""
    keys = jax.random.split(seeds.key(seed, "init"), members)
    return jax.jit(jax.vmap(lambda key: learner.init(key)._replace(memory=())))(keys)


def samples(algorithm: str, members: int, updates: int, batch: int, seed: int = 0) -> _memory.Sample:
    """Batches, leaves [N, K, batch, ...]."""
    lead = (members, updates, batch)
    keys = jax.random.split(seeds.key(seed, "samples"), 4)

    def uniform(key: Any, *shape: int) -> Any:
        return jax.random.uniform(key, lead + shape, minval=-1.0)

    action = jax.random.randint(keys[1], lead, 0, ACTIONS) if algorithm == "dqn" else uniform(keys[1], ACTIONS)
    reward = jax.random.uniform(keys[2], lead)
    ones = jnp.ones(lead)
    return _memory.Sample(uniform(keys[0], OBS), action, reward, DISCOUNT * ones, uniform(keys[3], OBS), ones, ())


def updating(learner: types.Agent) -> Callable[..., tuple[types.State, Any]]:
    """One member's gradient steps.

    Returns:
        (state, sample [K, batch, ...], key, steps) -> (state, last loss). Steps may be traced, batches come round
        again; a single one is no loop.
    """
    practice = learner.about.practice
    assert practice is not None

    def several(state: types.State, drawn: _memory.Sample, key: types.Key, steps: Any) -> tuple[types.State, Any]:
        def once(at: Any, now: tuple[types.State, Any]) -> tuple[types.State, Any]:
            mine = jax.tree.map(lambda leaf: leaf[at % len(leaf)], drawn)
            state, _, metrics = practice.learn(now[0], mine, jax.random.fold_in(key, at))
            return state, metrics["loss"]

        first = state, jnp.float32(0.0)
        return once(0, first) if isinstance(steps, int) and steps == 1 else jax.lax.fori_loop(0, steps, once, first)

    return several
