"""Sarsa(λ) with tile coding, learned by several agents that exchange weights.

Grounds & Kudenko 2008, "Parallel Reinforcement Learning with Linear Function Approximation": several agents learn the
same task, each in its own simulation, and exchange information taken from their linear weights. How they exchange it is
the business of the `peers` runtime; the learner is Sarsa(λ) (Sutton & Barto 2018, section 12.7).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from etils import epy

from shoal import algorithms
from shoal.core import options, types

with epy.lazy_imports():
    import numpy as np

    from shoal import networks
    from shoal.algorithms._linear import features, policy, sarsa


@dataclasses.dataclass(frozen=True)
class Config:
    """Sarsa(λ) with tile coding."""

    tilings: int = options.number(8, low=1, high=1024)
    """Grids, each shifted against the others (m)."""
    tiles: int = options.number(8, low=1, high=1024)
    """Tiles of a grid along each number observed."""
    low: tuple[float, ...] = ()
    """Smallest value of each number observed; smaller ones count as it."""
    high: tuple[float, ...] = ()
    """Largest value of each number observed; larger ones count as it."""
    step_size: float = options.number(0.5, low=0.0)
    """Step size of the value of a state; that of one weight is it / tilings."""
    trace: float = options.number(0.9, low=0.0, high=1.0)
    """Decay of the eligibility traces (lambda)."""
    traces: Literal["accumulating", "replacing"] = "replacing"
    """What a visit does to a trace: adds 1, or makes it 1."""
    discount: float = options.number(1.0, low=0.0, high=1.0)
    """Gamma."""
    epsilon: float = options.number(0.0, low=0.0, high=1.0)
    """Probability of a random action while learning; weights that begin at 0 are hopeful where rewards are negative."""


def fits(config: Config, network: networks.Config, spec: types.EnvSpec) -> str:
    """See `algorithms`."""
    if network != type(network)():
        return "it is linear and has no network; leave the options of --network out"
    if reason := features.refusal(spec.observation, config.low, config.high, needed=True):
        return reason
    numbers = spec.observation.shape[0]
    size = config.tilings * (config.tiles + 1) ** numbers * spec.action.n
    if size > features.LARGEST:
        return (
            f"{config.tilings} grids of {config.tiles} tiles along each of {numbers} numbers make {size:,} weights, "
            f"more than {features.LARGEST:,}; lower algorithm.tiles, or choose numbers with --environment.observe"
        )
    return ""


def traits(config: Config) -> types.Traits:
    """See `algorithms`."""
    del config
    return types.Traits(
        actions=("discrete",),
        learns="exchange",
        unshareable="Sarsa(λ) writes its weights itself and leaves no gradient",
        metrics=("td_error", "steps_per_episode"),
    )


def build(config: Config, given: algorithms.Ingredients) -> types.Agent:
    """The rule.

    Args:
        config: The rule's numbers.
        given: Environment spec; network, optimiser and corrector are not used.
    """
    actions = given.spec.action.n
    made = features.tiles(config.low, config.high, config.tilings, config.tiles)
    numbers = sarsa.Numbers(
        config.step_size / config.tilings,
        config.trace,
        config.discount,
        config.epsilon,
        config.traces == "replacing",
    )

    def open(env: types.HostEnv, weights: np.ndarray, visits: np.ndarray) -> types.Stream:
        assert made.active is not None
        return sarsa.Learner(numbers, made.active, env, weights, visits, actions)

    def act_by(weights: Any) -> types.Policy:
        return policy.policy(weights, actions, config.epsilon)

    exchange = types.Exchange(actions * made.size, open, act_by)
    return policy.agent(made, given.spec, config.epsilon, exchange=exchange)
