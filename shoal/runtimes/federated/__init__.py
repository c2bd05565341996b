"""Parties train together: everybody updates the global part of the network, its owner alone the local one.

Shi 2021, "A Privacy-preserving Distributed Training Framework for Cooperative Multi-agent Deep Reinforcement Learning",
arXiv:2109.14998: global weights are updated by all collaborators, local weights by the agent they belong to. How the
two are composed and what is sent is not published; here every composition is data (`networks.forms`), and gradients or
weights are sent, in rounds or as they come (McMahan et al. 2017, arXiv:1602.05629; Xie et al. 2019, arXiv:1903.03934).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from etils import epy

from shoal.core import options, types
from shoal.runtimes.crew import threads

with epy.lazy_imports():
    from shoal.runtimes.federated import beginning, effects, placing, privacy, terms, trajectories
    from shoal.runtimes.federated.flower import opening, partaking, serving


RULES = ("adam", "rmsprop", "momentum", "adagrad")  # of optimisers, those that a server knows (`applying`)


@dataclasses.dataclass(frozen=True)
class Config:
    """Who trains together, what is exchanged, and how what is exchanged is joined."""

    parties: int = options.number(4, low=1)
    """Owners (N), each with one agent in an environment of its own; the steps of the run are divided between them."""
    exchange: Literal["gradient", "delta", "outputs", "none"] = "gradient"
    """What a party sends: gradients of the global part, what local updates changed of it (delta), its decisions on
    public states (outputs: no weight is anybody's but the owner's), or nothing (none: parties are alone)."""
    local_updates: int = options.number(1, low=1)
    """Updates that a party makes between a download and its answer (H)."""
    asynchronous: bool = False
    """Whether the global part is stepped as answers come, weighted by their staleness, instead of in rounds."""
    max_lag: int = options.number(8, low=0)
    """Versions of the global part; asynchronously, an answer computed from an older one is dropped."""
    buffer: int = options.number(1, low=1)
    """Answers of a step, asynchronously."""
    aggregator: str = "auto"
    """How answers become one: mean, norm_bound, median, trimmed_mean, krum, multi_krum, nearest_mixing; auto: the mean,
    or nearest_mixing where hostile parties are allowed for."""
    hostile: int = options.number(0, low=0)
    """Parties that may be hostile (f), which the rule must bear."""
    participation: float = options.number(1.0, low=0.0, high=1.0)
    """Chance of a party to be in a round; who is not keeps every bit."""
    quorum: int = options.number(0, low=0)
    """Answers without which a round is failed and changes nothing; 0: half of those asked, and what the rule needs."""
    deadline: float = options.number(0.0, low=0.0)
    """Seconds after which a round is closed with those who answered; 0: 3 median rounds."""
    server: Literal["sgd", "adam"] = "sgd"
    """How the server applies deltas; gradients meet the optimiser of the experiment there."""
    server_rate: float = options.number(0.01, low=0.0, scale="log")
    """Rate of the server's adam (FedAdam)."""
    eta: float = options.number(1.0, low=0.0)
    """What the mean of deltas is multiplied by, in rounds."""
    alpha: float = options.number(0.6, low=0.0, high=1.0)
    """What a step is multiplied by, asynchronously, of gradients as of deltas; besides it (1 + lag)^(-1/2)."""
    mu: float = options.number(0.0, low=0.0)
    """How strongly global layers are drawn to what was downloaded during local updates (FedProx); deltas alone."""
    max_norm: float = options.number(0.0, low=0.0)
    """Norm above which an answer is turned away; 0: three median norms, where hostile parties are allowed for."""
    clip: float = options.number(0.0, low=0.0)
    """Norm that an answer is scaled down to before it leaves; 0: as it is."""
    noise: float = options.number(0.0, low=0.0)
    """Standard deviation of noise on answers, in clips (z); 0: none."""
    privacy: Literal["none", "local", "central"] = "none"
    """Who adds the noise: each party before it sends, or the server to their sum."""
    unit: Literal["party", "trajectory"] = "party"
    """Whose part the noise hides: all that a party sends, or one trajectory within a party."""
    max_epsilon: float = options.number(0.0, low=0.0)
    """Budget of epsilon, which no answer may pass; 0: none."""
    delta: float = options.number(1e-5, low=0.0, high=1.0)
    """The delta that epsilon is told with."""
    secure_sum: bool = False
    """Whether answers are masked, so that the server sees only their sum."""
    reset_moments: bool = False
    """Whether a party's statistics of its optimiser begin anew with each download; deltas alone."""
    environments: int = options.number(1, low=1)
    """Environments of each party, stepped in lock-step (B)."""
    placement: Literal["auto", "axis", "turns", "processes", "server", "party"] = "auto"
    """Where parties are: one axis of one compiled program (axis), one after the other in this process (turns), each in
    a process of its own (processes); auto: axis where networks and environments allow it. (server, party: one side of a
    deployment, which `shoal federate` starts.)"""
    dispatch: Literal["auto", "vmap", "map", "sequential"] = "auto"
    """How an axis of parties is computed: over all at once (vmap), over blocks (map), one after the other, with the
    bits of a party alone (sequential); auto: the one or the other, whichever a short measurement finds faster."""
    paces: tuple[float, ...] = ()
    """Simulated: seconds that a job takes each party, in their order; 1 where none is named."""
    attack: tuple[str, ...] = ()
    """Simulated: parties that attack, e.g. 7:sign_flip; also scaling, noise, nan, zero, alie, ipm, false_counts; with a
    factor of its strength 7:scaling:1e3."""
    join: tuple[str, ...] = ()
    """Parties that come late, e.g. 4:20000: party 4 joins after so many environment steps of the others."""
    evaluate_every: int = options.number(0, low=0)
    """Environment steps of a party between two evaluations of every party; 0: none."""
    episodes: int = options.number(10, low=1)
    """Greedy episodes of each party in such an evaluation."""
    public: int = options.number(500, low=1)
    """States that parties agree on their decisions in (outputs)."""
    public_from: Literal["owner", "bounds"] = "owner"
    """Where they come from: recorded by the first owner, who agrees to have that many observations told to all, or
    drawn from the declared bounds (outputs)."""
    distil_every: int = options.number(5, low=1)
    """Episodes between two such agreements (outputs)."""
    distil_steps: int = options.number(5, low=1)
    """Steps that a party takes towards what was agreed on (outputs)."""
    spread: bool = True
    """Whether parties that no file names have networks, activations and rates of their own, ten unlike ones in turn, as
    in FedHPD (outputs; and none, where a segment is an episode: the same owners, each alone)."""
    segment: Literal["fixed", "episode"] = "fixed"
    """Whether a rollout has always its full length, or ends with its episode (turns and processes, one environment of
    pure JAX): with rollouts as long as the longest episode, every update is of one episode, as REINFORCE has it."""


class Asked(Protocol):
    """What is read of an experiment."""

    @property
    def env(self) -> str:
        """The id of its environment."""
        ...

    @property
    def configs(self) -> Mapping[str, types.Tree]:
        """The settings of its parts, by kind."""
        ...


def ways(config: Config) -> types.Ways:
    """See `types.Ways`."""
    return types.Ways(
        streams=config.environments, parties=1 if config.placement == "party" else config.parties, seeds=True,
        exact_resume=True, threads=0, ahead=True,
        splits=config.exchange == "gradient", proximal=config.exchange == "delta" and config.mu > 0.0,
        processes=config.parties if config.placement in ("auto", "processes") else 0, process_mb=threads.COMPUTES,
        holds_memory=True, compiles=config.placement != "processes", pads=config.segment == "episode",
        spread=effects.spreads(config),
        rules=RULES if config.exchange == "gradient" else None,
        apart=config.clip if privacy.by_trajectory(config) else 0.0,
        fits=trajectories.fits if privacy.by_trajectory(config) else None,
        suits=functools.partial(placing.suits, config), idle=effects.idle(config),
        save_every=0.0 if config.placement in ("server", "party") else None,  # what was answered must outlive a kill
    )  # fmt: skip


class Opened(Protocol):
    """What is read of an environment."""

    @property
    def device(self) -> types.Env | None:
        """It as pure JAX; None: it is a Python simulator."""
        ...


def check(config: Config, experiment: Asked, opened: Opened) -> None:
    """Refuse settings that do not fit together.

    Raises:
        Refused: Says what to change.
    """
    privacy.check(config)
    placing.check(config, experiment.env, compiled=opened.device is not None)
    terms.check(config, experiment)


def build(config: Config) -> types.Runtime:
    """The runtime."""
    if config.placement == "server":
        return serving.Serving(
            lambda parts, seed, begin: opening.opened(config, parts, seed, bytes(16), {}, begin=begin)
        )
    return partaking.Partaking(config) if config.placement == "party" else Federated(config)


class Federated:
    """Rounds until told to stop."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def like(self, parts: types.Parts, seed: int) -> types.Tree:
        """See `types.Runtime`."""
        return beginning.like(self._config, parts, seed)

    def policy(self, parts: types.Parts, seed: int, saved: types.Tree) -> types.Policy:
        """See `types.Runtime`: the first party's."""
        return self.policies(parts, seed, saved)[0]

    def policies(self, parts: types.Parts, seed: int, saved: types.Tree) -> tuple[types.Policy, ...]:
        """Those of all parties in a checkpoint tree, in their order."""
        return beginning.policies(self._config, parts, seed, saved)

    def run(
        self,
        parts: types.Parts,
        seed: int,
        steps: int,
        goal: types.Goal | None,
        observe: types.Observer,
        saved: types.Tree | None,
    ) -> types.Result:
        """See `types.Runtime`."""
        del goal  # the observer sees every report and decides
        return beginning.trained(self._config, parts, seed, steps, observe, saved)

    def run_many(self, parts: types.Parts, places: Sequence[types.Place], steps: int, goal: types.Goal | None) -> None:
        """See `types.ManySeeds`: one federation after the other."""
        for place in places:
            if place.observe is not None:
                place.ended(self.run(parts, place.seed, steps, goal, place.observe, place.saved))


__all__ = ["Config", "Federated", "build", "check", "ways"]
