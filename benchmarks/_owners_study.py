"""Several federations at once: the parties of all seeds as one axis of one compiled program, each seed with a server.

A seed is data here: one compilation serves all seeds of an arm, and small networks of fifty parties cost little more
than those of five. Nothing else is shared between seeds: a server has its own global part and sees only messages of its
own parties, which are made, checked and counted byte by byte as in any run (`shoal.runtimes.federated`). The
environments of seed s are those of draw s, and party i of seed s has the same keys in every arm, so arms are paired.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shoal import experiment
from shoal.core import seeds as streams
from shoal.core import types
from shoal.environments import _owners_compiled, _owners_sets
from shoal.experiment import presets
from shoal.networks import scopes
from shoal.runtimes.federated import axis, beginning, compiled, server, terms, together
from shoal.runtimes.members import dispatch

PATIENCE = 1.0
POOLED = "pooled"  # of an arm: one learner has the transitions of all parties


class Arm(NamedTuple):
    """One way to train; the same as ``shoal train PRESET --env ENV`` with these settings, for several seeds."""

    preset: str
    env: str  # a set of owners
    parties: int
    steps: int  # environment steps of a party
    settings: Mapping[str, Mapping[str, Any]] = {}
    joins: Mapping[int, int] = {}  # party -> environment steps of the others before it joins
    draw: int = 0  # seed s has the owners of draw `draw` + s
    owners: int = 0  # of the set; 0: as many as there are parties
    members: tuple[int, ...] = ()  # numbers of the owners that take part; () is all
    frozen: bool = False  # global layers are never stepped, and nothing is sent


class Course(NamedTuple):
    """What became of an arm."""

    steps: np.ndarray  # [E] environment steps of a party
    returns: np.ndarray  # [S, N, E] mean of greedy episodes of each party with its own policy
    bytes: np.ndarray  # [S, 2] up and down
    rounds: np.ndarray  # [S]
    lags: np.ndarray  # [S, max_lag + 1] updates applied, by staleness
    params: tuple[int, int]  # global and local of a party
    simulated_s: np.ndarray  # [E] simulated seconds at the evaluations, where parties have paces
    seconds: float
    compile_s: float
    kept: Any  # parties' learners at the end, leaves [S * N, ...], and the global parts [S, d]


class Built(NamedTuple):
    """An arm's parts."""

    config: Any  # of the runtime
    parts: types.Parts
    whole: types.Env  # begins as any owner of any seed, by its number s * N + i


def build(arm: Arm, count: int) -> Built:
    """The parts of an arm for `count` seeds, with the environments of each seed's draw."""
    settings = {**arm.settings, "runtime": {**arm.settings.get("runtime", {})}}
    pooled = bool(settings["runtime"].pop(POOLED, False))
    settings["runtime"]["parties"] = arm.parties
    asked = presets.Request(
        arm.preset, env=arm.env, steps=arm.parties * arm.steps, runtime="federated", settings=settings
    )
    made, opened = presets.resolve(asked)
    parts = experiment.build(made, opened).parts
    whole, learner = owners(arm, opened.spec, count)
    return Built(made.configs["runtime"], parts._replace(device_env=learner if pooled else whole), whole)


def owners(arm: Arm, spec: types.EnvSpec, count: int) -> tuple[types.Env, types.Env]:
    """The environments of all seeds' owners as one; and those of learners who meet another owner at every episode."""
    name = arm.env.partition(":")[2]
    chosen = _owners_sets.COMPILED[name]
    tables = []
    for seed in range(count):
        members = arm.members or range(arm.parties)
        values = chosen.values(_owners_sets.thetas(name, arm.owners or arm.parties, arm.draw + seed))
        tables.append({key: np.asarray(column, float)[list(members)] for key, column in values.items()})
    joined = {key: np.concatenate([one[key] for one in tables]) for key in tables[0]}
    of = _owners_compiled.simulator(arm.env, chosen.simulators[0], spec.time_limit or 0, (), ())
    whole = _owners_compiled.env(of, joined, count * arm.parties, None)
    return whole, _anybody(whole, arm.parties)


def _anybody(whole: types.Env, each: int) -> types.Env:
    """Begins as one of a seed's owners, by the seed's number; streams keep theirs, and are spread over all of them."""
    init = whole.init_as
    assert init is not None

    def init_as(key: types.Key, seed: Any) -> Any:
        return init(key, seed * each + jax.random.randint(jax.random.fold_in(key, 1), (), 0, each))

    return whole._replace(init_as=init_as)


class Study:
    """An arm at work."""

    def __init__(self, arm: Arm, seeds: int, start: Callable[[Any, int], Any] | None = None) -> None:
        """All seeds at their beginning.

        Args:
            arm: What is trained.
            seeds: 0 to this.
            start: (learners ``[S * N, ...]``, d) -> (learners, global parts ``[S, d]`` or None); None: as they begin.
        """
        self.arm, self.seeds = arm, seeds
        made = build(arm, seeds)
        self.config, self.whole, self.parts = made.config, made.whole, made.parts
        self.pooled = bool(arm.settings.get("runtime", {}).get(POOLED))
        self.learners = seeds if self.pooled else seeds * arm.parties
        began = time.monotonic()
        channel = None if arm.frozen else beginning.channel_of(self.config, self.parts, 0)
        if channel is None:
            updates = beginning.by_themselves(self.config, self.parts, arm.parties, arm.parties * arm.steps)
        else:
            updates = self.config.local_updates
        shape = together.Shape(self.learners, self.config.environments, updates)
        self.programs = compiled.Programs(self.parts, shape, channel)
        plan = axis.Plan(
            names=tuple(map(str, range(self.learners))), environments=shape.environments, updates=updates,
            paces=tuple(self.config.paces) * seeds, apart=self.config.asynchronous or bool(self.config.paces),
        )  # fmt: skip
        homes = self.programs.begins.load()(self.programs.keys(0, "init"))
        thetas = self._beginnings(homes)
        if start is not None:
            learners, given = start(homes.members.state, self.programs.size)
            homes = homes._replace(members=homes.members._replace(state=learners))
            thetas = thetas if given is None else given
        self.axis = axis.Axis(self.programs, dispatch.Way("vmap", self.learners), plan, 0, homes)
        self.axis.compile(1, lambda _: True, choose=False)
        self.servers = self._served(thetas) if channel else []
        self._measure = jax.jit(self._measuring())
        self.compile_s = time.monotonic() - began

    def _beginnings(self, homes: Any) -> np.ndarray:
        """The global part of each seed's first party, ``[S, d]``."""
        channel, each = self.programs.channel, self.arm.parties
        if channel is None:
            return np.zeros((self.seeds, 0), np.float32)
        first = jax.tree.map(lambda leaf: leaf[::each], homes.members.state)
        return np.asarray(jax.jit(jax.vmap(channel.beginning))(first), np.float32)

    def _served(self, thetas: np.ndarray) -> list[server.Server]:
        rules = terms.rules_of(self.config)._replace(
            env_steps=self.programs.per_update * self.config.local_updates,
        )
        if self.config.exchange == "gradient":
            rules = rules._replace(optimiser=terms.numbers(self.parts.agent))
        names = tuple(map(str, range(self.arm.parties)))
        spec = self.programs.channel.spec  # type: ignore[union-attr]
        return [
            server.Server(spec, theta, names, rules._replace(coins=f"coins {seed}".encode()), bytes([seed]) * 16)
            for seed, theta in enumerate(thetas)
        ]

    # ---------------------------------------------------------------- at work

    def run(self, evaluations: int, episodes: int) -> Course:
        """Train to the end, evaluating every party on the way and at the beginning.

        Args:
            evaluations: How many, at equal distances, besides that at the beginning.
            episodes: Of every party in each.
        """
        began, told = time.monotonic(), [self._evaluated(episodes, 0)]
        marks = [self.arm.steps * at // evaluations for at in range(1, evaluations + 1)]
        steps, clock = [0], [0.0]
        while marks:
            self._alone() if not self.servers else self._round()
            self.axis.told()
            done = self._done()
            if done >= marks[0]:
                marks = [mark for mark in marks if mark > done]
                told.append(self._evaluated(episodes, done))
                steps.append(done)
                clock.append(self.axis.now())
        tallies = [one.tally for one in self.servers]
        counts = scopes.counts(jax.eval_shape(self.parts.agent.init, jax.random.key(0)).params)
        nothing = np.zeros((self.seeds, 1), int)
        return Course(
            steps=np.array(steps), returns=np.stack(told, axis=-1),
            bytes=np.array([one.arrays["bytes"] for one in tallies] or np.zeros((self.seeds, 2), int)),
            rounds=np.array([int(one.arrays["rounds"][0]) for one in tallies] or [0] * self.seeds),
            lags=np.array([one.arrays["lags"] for one in tallies] or nothing),
            params=(counts.shared, counts.own) if self.servers else (0, counts.shared + counts.own),
            simulated_s=np.array(clock), seconds=time.monotonic() - began,
            compile_s=self.compile_s, kept=(self.axis.homes.members.state, self._thetas()),
        )  # fmt: skip

    def _done(self) -> int:
        """Environment steps of a party: of the slowest seed's median party."""
        each = np.asarray(self.axis.desk.env_steps).reshape(self.seeds, -1)
        there = np.array([one.present for one in self.servers]) if self.servers else np.ones_like(each, bool)
        medians = [np.median(row[here]) for row, here in zip(each, there, strict=True)]
        return int(min(medians)) // (self.arm.parties if self.pooled else 1)

    def _alone(self) -> None:
        self.axis.alone()

    def _round(self) -> None:
        """Jobs for all who have none, the replies that come next, and a step of each server that is due."""
        each, now = self.arm.parties, self.axis.now()
        most = self.arm.steps
        for seed, one in enumerate(self.servers):
            steps = self.axis.desk.env_steps[seed * each : (seed + 1) * each]
            for party, others in self.arm.joins.items():
                come = int(steps.sum() - steps[party]) >= others
                if bool(one.present[party]) != come:
                    one.admit(party, present=come)
            for party in one.idle(now):
                if not self.config.asynchronous or steps[party] < most:
                    self.axis.send(seed * each + party, one.job(party))
        for reply in self.axis.poll(PATIENCE):
            self.servers[reply.party // each].take(reply.party % each, reply.body, self.axis.now())
        for one in self.servers:
            if one.due(self.axis.now()):
                one.close(self.axis.now())

    # ---------------------------------------------------------------- looked at

    def _thetas(self) -> np.ndarray:
        return np.stack([one.theta for one in self.servers]) if self.servers else np.zeros((self.seeds, 0), np.float32)

    def _measuring(self) -> Callable:
        """(learners, global parts ``[S, d]``, keys ``[S * N]``) -> mean returns ``[S * N]``."""
        each, exchanged = self.arm.parties, bool(self.servers)
        parts = self.parts._replace(device_env=self.whole)

        def measure(states: Any, thetas: Any, keys: Any, episodes: Any) -> Any:
            if self.pooled:
                states = jax.tree.map(lambda leaf: jnp.repeat(leaf, each, axis=0), states)
            if exchanged:
                params = jax.vmap(scopes.install)(states.params, jnp.repeat(thetas, each, axis=0))
                states = states._replace(params=params)
            return together.measure(parts, None, len(episodes))(states, jnp.zeros(0), keys).mean(axis=1)

        return measure

    def _evaluated(self, episodes: int, at: int) -> np.ndarray:
        """``[S, N]``."""
        keys = together.keys(streams.key(0, "evaluation", at), self.seeds * self.arm.parties)
        states = self.axis.homes.members.state
        found = self._measure(states, self._thetas(), keys, jnp.zeros(episodes))
        return np.asarray(found, float).reshape(self.seeds, self.arm.parties)
