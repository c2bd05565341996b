"""A population: members that share nothing are trained as one program, and the better ones take over from the worse.

Flajolet et al. 2022, "Fast Population-Based Reinforcement Learning on a Single Machine", arXiv:2206.08888; what is
exchanged is that of population based training (Jaderberg et al. 2017, arXiv:1711.09846).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from etils import epy

from shoal.core import errors, options, seeds, types
from shoal.runtimes.crew import threads
from shoal.runtimes.population import exchange, priors

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

    from shoal.core import tree
    from shoal.runtimes.crew import beside
    from shoal.runtimes.members import dispatch, loop
    from shoal.runtimes.population import (
        applying,
        blocks,
        compiling,
        hosting,
        on_host,
        repeating,
        running,
        simulating,
        standing,
        telling,
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """Members in one compiled program, their exchange, and how they are computed."""

    members: int = options.number(8, low=1)
    """Learners (N); the environment steps of the run are divided between them."""
    environments: int = options.number(1, low=1)
    """Environments of each member, stepped in lock-step (B)."""
    exchange: Literal["truncation", "mf_pbt", "none"] = "truncation"
    """Who takes over from whom: the last from the others (truncation), within and between sub-populations that evolve
    at intervals of their own (mf_pbt), or nobody (none: random search)."""
    interval: int = options.number(10_000, low=1)
    """Environment steps of a member between two exchanges."""
    episodes: int = options.number(10, low=1)
    """Greedy episodes that a member's fitness is the mean of."""
    fraction: float = options.number(0.4, low=0.0, high=1.0)
    """Of the members, those that truncation replaces."""
    intervals: tuple[int, ...] = (1, 10, 25, 50)
    """Rounds between two evolutions of each sub-population of mf_pbt; those for which there are not enough members are
    left out."""
    burn_in: int = options.number(0, low=0)
    """Intervals at the start after which nobody takes over from anybody: what a member does first is mostly luck."""
    copy: Literal["policy", "all"] = "policy"
    """What is taken over: the policy (critics and replay memory stay the member's own), or all but the memory."""
    explore: Literal["resample", "perturb"] = "resample"
    """How hyperparameters change that were taken over: drawn anew from their priors, or multiplied by a factor."""
    factors: tuple[float, float] = (0.8, 1.25)
    """The factors of perturb, one below 1 (but above 0) and one above."""
    prior: tuple[str, ...] = ()
    """Distributions of hyperparameters, e.g. algorithm.entropy_cost=log_uniform(1e-4,1e-1); also uniform(LOW,HIGH),
    integer(LOW,HIGH), choice(A,B,...)."""
    dispatch: Literal["auto", "vmap", "map", "sequential"] = "auto"
    """How members are computed: with an axis over all (vmap), over blocks of them (map), one after the other
    (sequential), or whichever of them a short measurement finds fastest (auto)."""
    block: int = options.number(0, low=0)
    """Members in a block of map, on each device; 0: 4, or what divides them."""
    chunk_steps: int = options.number(16384, low=1)
    """Environment steps of all members between two looks of the host, at most."""
    threads: int = options.number(0, low=0)
    """Threads of the compiled program on a CPU; 0: one where a gradient step is small, else one a core."""
    processes: int = options.number(-1, low=-1, high=1024)
    """Processes that step Python simulators, each a block of members; 0 steps here, -1 measures which is faster."""


def ways(config: Config) -> types.Ways:
    """See `types.Ways`; as many processes again step the simulators that members are evaluated in."""
    return types.Ways(
        streams=config.environments, members=config.members, seeds=True, exact_resume=True, threads=config.threads,
        ahead=True, fits=functools.partial(_fits, config), repeats=True, processes=2 * max(0, config.processes),
        process_mb=threads.STEPS, measures=config.processes < 0, compiles=True,
    )  # fmt: skip


def check(config: Config, experiment: Any, opened: Any) -> None:
    """Refuse settings that do not fit together.

    Raises:
        Refused: Says what to change.
    """
    if opened.device is not None and config.processes > 0:
        raise errors.Refused(
            f"runtime.processes={config.processes}, but {experiment.env} is compiled with the members and steps in no "
            "process of its own; leave it out"
        )
    exchange.check(config.exchange, _settings(config), config.members)
    _prior(config)
    less, more = config.factors
    if not 0.0 < less < 1.0 < more < math.inf:
        raise errors.Refused(
            f"runtime.factors={config.factors}: hyperparameters are made smaller by the first, larger by the second; "
            "give one between 0 and 1, and one above 1, e.g. 0.8 1.25"
        )
    if config.block and config.members % config.block:
        raise errors.Refused(
            f"runtime.block={config.block} does not divide {config.members} members; give one of "
            f"{', '.join(str(one) for one in range(1, config.members + 1) if config.members % one == 0)}"
        )


def _fits(config: Config, agent: types.Agent) -> None:
    priors.check(_prior(config), agent.about.hyper)


def _prior(config: Config) -> dict[str, priors.Prior]:
    return priors.read(config.prior)


def _settings(config: Config) -> exchange.Settings:
    return exchange.Settings(config.fraction, tuple(config.intervals), config.burn_in)


def build(config: Config) -> types.Runtime:
    """The runtime."""
    return Population(config)


class Population:
    """Runs calls until told to stop."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._rules = compiling.Rules(
            members=config.members, episodes=config.episodes, exchange=config.exchange, settings=_settings(config),
            how=applying.How(config.copy, config.explore, config.factors), prior=_prior(config),
        )  # fmt: skip

    def like(self, parts: types.Parts, seed: int) -> types.Tree:
        """See `types.Runtime`."""
        compiler = self._compiler(parts, 1)
        keys = compiler.keys(seeds.key(seed, "init"))
        return standing.Saved(compiler.start(keys).returns, standing.fresh(self._rules.members))

    def policy(self, parts: types.Parts, seed: int, saved: types.Tree) -> types.Policy:
        """See `types.Runtime`: the best member's, by the fitness that was measured last."""
        del seed
        at = standing.best(saved.standing)
        return parts.agent.snapshot(jax.tree.map(lambda leaf: leaf[at], saved.loop.members.state))

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
        del goal  # the observer sees every call and decides
        now = standing.fresh(self._config.members) if saved is None else saved.standing
        return self._trained(parts, seed, steps, observe, saved, now, running.Running)

    def repeat(
        self, parts: types.Parts, seed: int, steps: int, observe: types.Observer, again: repeating.Again
    ) -> types.Result:
        """See `types.Repeats`."""
        now = standing.fresh(self._config.members)
        now = now._replace(block=again.standing.block, timed=again.standing.timed)
        going = functools.partial(repeating.Repeating, again)
        return self._trained(parts, seed, steps, observe, None, now, going)

    def _trained(
        self,
        parts: types.Parts,
        seed: int,
        steps: int,
        observe: types.Observer,
        saved: types.Tree | None,
        now: standing.Standing,
        going: Callable[..., running.Running],
    ) -> types.Result:
        """Train from a checkpoint or from the beginning, with what goes through the calls of a life."""
        began, config = time.monotonic(), self._config
        done = int(saved.loop.common.update) if saved is not None else 0
        per_update = config.environments * parts.agent.about.rollout_length
        cut = running.plan(per_update, config.members, config.interval, config.chunk_steps, steps)
        look = beside.first(observe, done * per_update * config.members, done)
        compiler = self._compiler(parts, cut.per_call)
        site = None
        if isinstance(compiler, on_host.Compiler):
            site = hosting.site(self._room(parts, seed, observe.fault, look), compiler)
        learner = site.each if site else compiler  # who compiles what is timed
        init = compiler.keys(seeds.key(seed, "init"))
        start = compiler.start(init)
        keys = compiler.cut.put(compiler.keys(seeds.key(seed, "run")))
        way, call, now = self._chosen(learner, seed, cut, look, now)

        def make() -> tuple[blocks.Held, running.Machine, float | None]:
            load = start.load() if saved is None and site is None else None
            state = start.returns.members.state
            swap = compiler.exchange(state) if cut.updates > cut.interval else None
            if site is not None:
                machine = hosting.machine(site, call, state, keys)._replace(exchange=swap)
                before = telling.before_mb()
                return hosting.begun(site, init, saved and saved.loop), machine, before
            machine = running.Machine(call, compiler.measure(state, keys), swap, keys, compiler)
            before = telling.before_mb()  # from here on it is members that take more
            whole = load(init) if load else jax.tree.map(jnp.asarray, saved.loop)  # type: ignore[union-attr]
            return compiler.put(whole), machine, before

        first, machine, before = beside.done(make, beside.COMPILING, look)
        with hosting.opened(machine, done):
            each = tree.bytes(start.returns.members) // config.members
            life = going(parts, self._rules, machine, cut, seed, way)
            return life(first, now, observe, time.monotonic() - began, telling.Held(each, before))

    def _room(
        self, parts: types.Parts, seed: int, fault: Callable[[str, str], None], look: beside.Look
    ) -> simulating.Room:
        config = self._config
        room = simulating.Room(
            parts, config.members, config.environments, config.episodes, config.processes, seed, fault, look
        )
        return room._replace(processes=simulating.processes(room))

    def run_many(self, parts: types.Parts, places: Sequence[types.Place], steps: int, goal: types.Goal | None) -> None:
        """See `types.ManySeeds`: one population after the other."""
        for place in places:
            if place.observe is not None:
                place.ended(self.run(parts, place.seed, steps, goal, place.observe, place.saved))

    def _compiler(self, parts: types.Parts, updates: int) -> compiling.Compiler:
        kind = compiling.Compiler if parts.device_env else on_host.Compiler
        return kind(parts, loop.Shape(self._config.environments, updates), self._rules)

    def _chosen(
        self,
        compiler: compiling.Compiler,
        seed: int,
        cut: running.Plan,
        look: beside.Look,
        now: standing.Standing,
    ) -> tuple[dispatch.Way, Callable[..., Any], standing.Standing]:
        """How members are computed, and the program that does."""
        init = compiler.keys(seeds.key(seed, "init"))
        keys = compiler.cut.put(compiler.keys(seeds.key(seed, "run")))
        start, each = compiler.start(init), compiler.cut.each
        like, block = start.returns, int(now.block)
        asked = self._config.block
        way = dispatch.way(self._config.dispatch, asked if asked and each % asked == 0 else 0, each)
        if way is None and block >= 0 and (block == 0 or each % block == 0):
            way = dispatch.of(block, each)
        several = dispatch.candidates(each)
        if way is None and len(several) == 1:
            way = several[0]
        if way is not None:
            call = beside.done(functools.partial(compiler.call, like, keys, way), beside.COMPILING, look)
            return way, call, standing.chosen(now, way, standing.times(now, each))
        clock, made, at = dispatch.Clock(cut.updates), {}, [compiler.put(start.load()(init))]
        for number, one in enumerate(several):
            if not clock.worth():
                break
            stage = types.Stage("choosing how to compute members", number, len(several))
            began = time.monotonic()
            made[one] = beside.done(functools.partial(compiler.call, like, keys, one), stage, look)
            compiling_s = time.monotonic() - began

            def again(updates: int, program: Callable[..., Any] = made[one]) -> None:
                at[0], told = program(at[0], keys, running.ask(updates, force=True))  # what it learns is thrown away
                jax.block_until_ready(told)

            beside.done(functools.partial(clock.take, one, again, cut.per_call, compiling_s), stage, look)
        way = clock.best.way
        return way, made[way], standing.chosen(now, way, clock.timed)


__all__ = ["Config", "Population", "build", "check", "ways"]
