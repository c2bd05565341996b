"""What a deployment's server begins with: the same rules, names and first global part as a simulation's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from etils import epy

from shoal.core import types
from shoal.runtimes.federated import audit, beginning, channels, rounds, server, telling, terms, working

if TYPE_CHECKING:
    from shoal.runtimes.federated import Config

with epy.lazy_imports():
    import jax

    from shoal.core import prng

SHORTEST_S = 240.0  # of a deadline that nobody gave: a job that the carrier lost is handed out again within it


class Opening(NamedTuple):
    """What is settled before the first round."""

    names: tuple[str, ...]
    channel: channels.Channel
    rules: rounds.Rules
    run: bytes  # [16]
    theta: np.ndarray  # [d] f32, its first version
    about: telling.About
    agent: types.Agent

    def served(self, log: audit.Audit | None = None) -> server.Server:
        """The server before its first round."""
        return server.Server(self.channel.spec, self.theta, self.names, self.rules, self.run, log=log)

    def policy(self, theta: types.Array) -> types.Policy:
        """The global part in a policy whose local part nobody trained: the server has no other."""
        state = self.channel.install(self.agent.init(prng.key(0)), theta)
        policy: types.Policy = jax.device_get(self.agent.snapshot(state))
        return policy


def opened(
    config: Config,
    parts: types.Parts,
    seed: int,
    run: bytes,
    more: Mapping[str, types.Scalar | str | None],
    *,
    begin: bool = True,
) -> Opening:
    """What a run is made of.

    Args:
        config: Of the runtime.
        parts: The agent, its environment and the parties.
        seed: Of the run.
        run: Its name.
        more: What is told of it besides, in its summary.
        begin: Whether the first global part is wanted; zeros otherwise, as they have its shape.
    """
    agent, crossing = parts.agent, channel(config, parts, seed)
    rules = terms.rules_of(config)._replace(
        shortest_s=SHORTEST_S, env_steps=config.environments * agent.about.rollout_length * config.local_updates
    )
    if config.exchange == "gradient":
        rules = rules._replace(optimiser=terms.numbers(agent))
    params = jax.eval_shape(agent.init, prng.key(0)).params
    own = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) - crossing.spec.size
    names, envs = tuple(one.name for one in parts.parties), tuple(one.env for one in parts.parties)
    told = {"epsilon": None, "delta": None, "privacy_unit": None, **more}
    form = beginning.form_of(next(iter(agent.about.networks.values())).spec)
    about = telling.About(names, envs, form, config.exchange, crossing.spec.size, own, told)
    theta = first(config, parts, crossing, seed) if begin else np.zeros(crossing.spec.size, np.float32)
    return Opening(names, crossing, rules, run, theta, about, agent)


def channel(config: Config, parts: types.Parts, seed: int) -> channels.Channel:
    """What crosses."""
    found = beginning.channel_of(config, parts, seed)
    assert found is not None, "refused before: parties that exchange nothing need no server"
    return found


def first(config: Config, parts: types.Parts, crossing: channels.Channel, seed: int) -> np.ndarray:
    """The global part that the first party's learner begins with, ``[d]``, to the bit.

    Args:
        config: Of the runtime.
        parts: Of that party, or of all where they are alike.
        crossing: What does.
        seed: Of the run.
    """
    place = working.Place(seed, 0, config.environments, config.local_updates)
    home: working.Home = jax.jit(working.starting(parts, place))(working.key(place, "init"))
    return np.asarray(crossing.beginning(home.members.state))
