"""LSTD, LSPI, TD and TDC from a fixed batch of samples, as sums over shards (MapReduce).

Li & Schuurmans 2011, "MapReduce for Parallel Reinforcement Learning": mappers read shards of the samples, the reducer
adds up, the driver solves. Samples are taken by choosing actions at random; `lstd`, `td` and `tdc` learn the value of
doing so, `lspi` improves the policy until it stays. Formulas: `_linear.least_squares`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

from etils import epy

from shoal import algorithms
from shoal.core import options, types

with epy.lazy_imports():
    import numpy as np

    from shoal import networks
    from shoal.algorithms._linear import features, least_squares, policy

ROUNDS = {"lstd": 1, "lspi": 50, "td": 5000, "tdc": 5000}
SOLVED = ("lstd", "lspi")  # for all weights at once
WEIGHTS = 10_000  # that are solved for, at most: a mapper's matrix has the square of it, 0.8 GB
FEWER = {
    "raw": "",
    "polynomial": "lower algorithm.degree, or ",
    "tiles": "lower algorithm.tiles or algorithm.tilings, or ",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Linear values from a batch of samples."""

    method: Literal["lstd", "lspi", "td", "tdc"] = "lspi"
    """lstd, td, tdc: the value of random actions, solved for, by steps, by corrected steps; lspi: the best policy."""
    features: Literal["polynomial", "tiles", "raw"] = "raw"
    """Products of the numbers observed, tile coding, or the numbers themselves (one-hot ones make a table)."""
    degree: int = options.number(2, low=0, high=16)
    """Of the highest product (polynomial)."""
    tilings: int = options.number(4, low=1, high=1024)
    """Shifted grids (tiles)."""
    tiles: int = options.number(4, low=1, high=1024)
    """Tiles of a grid along each number observed (tiles)."""
    low: tuple[float, ...] = ()
    """Smallest value of each number observed (polynomial, tiles); smaller ones count as it."""
    high: tuple[float, ...] = ()
    """Largest value of each number observed (polynomial, tiles); larger ones count as it."""
    discount: float = options.number(0.95, low=0.0, high=1.0)
    """Gamma."""
    ridge: float = options.number(1e-3, low=0.0)
    """Added to the diagonal before solving (lstd, lspi)."""
    step_size: float = options.number(0.5, low=0.0)
    """Step size of the weights, of the mean over samples (td, tdc)."""
    correction_step_size: float = options.number(0.5, low=0.0)
    """Step size of the correction's weights (tdc)."""
    rounds: int = options.number(0, low=0)
    """Rounds of map and solve at most; 0: 1 of lstd, 50 of lspi (which may go round in circles), 5000 of td and tdc."""
    tolerance: float = options.number(1e-6, low=0.0)
    """The weights stay when they move by less than this in a round."""


def fits(config: Config, network: networks.Config, spec: types.EnvSpec) -> str:
    """See `algorithms`."""
    if network != type(network)():
        return "it is linear and has no network; leave the options of --network out"
    if reason := features.refusal(spec.observation, config.low, config.high, needed=config.features != "raw"):
        return reason
    weights = _size(config, spec.observation.shape[0]) * spec.action.n
    most = WEIGHTS if config.method in SOLVED else features.LARGEST
    if weights > most:
        return (
            f"{weights:,} weights of {config.features} features are more than the {most:,} that {config.method} takes; "
            f"{FEWER[config.features]}choose numbers with --environment.observe"
        )
    return ""


def _size(config: Config, numbers: int) -> int:
    """Features of so many numbers observed; counted, not made."""
    if config.features == "raw":
        return numbers
    if config.features == "polynomial":
        return math.comb(numbers + config.degree, config.degree)
    return config.tilings * (config.tiles + 1) ** numbers


def traits(config: Config) -> types.Traits:
    """See `algorithms`."""
    del config
    return types.Traits(
        actions=("discrete",),
        learns="sums",
        unshareable="it solves for its weights and leaves no gradient",
        metrics=("change", "bellman_error"),
    )


def _features(config: Config, spec: types.EnvSpec) -> features.Features:
    if config.features == "raw":
        return features.raw(spec.observation.shape[0])
    if config.features == "polynomial":
        return features.polynomial(config.low, config.high, config.degree)
    return features.tiles(config.low, config.high, config.tilings, config.tiles)


def build(config: Config, given: algorithms.Ingredients) -> types.Agent:
    """The rule.

    Args:
        config: The rule's numbers.
        given: Environment spec; network, optimiser and corrector are not used.
    """
    actions, made = given.spec.action.n, _features(config, given.spec)
    numbers = least_squares.Numbers(
        config.method,
        config.discount,
        config.ridge,
        config.step_size,
        config.correction_step_size,
        config.tolerance,
    )

    def behave(chance: np.random.Generator) -> Any:
        return chance.integers(actions, dtype=np.int32)

    def act_by(memory: Mapping[str, np.ndarray]) -> types.Policy:
        return policy.policy(memory["w"], actions, 0.0)

    sums = types.Sums(
        begin=functools.partial(least_squares.begin, config.method, actions, made.size),
        behave=behave,
        prepare=functools.partial(least_squares.prepare, made, config.discount),
        map=functools.partial(least_squares.map_chunk, numbers, actions),
        solve=functools.partial(least_squares.solve, numbers),
        rounds=config.rounds or ROUNDS[config.method],
        policy=act_by,
        sample_bytes=least_squares.sample_bytes(made.size),
    )
    return policy.agent(made, given.spec, 0.0, sums=sums)
