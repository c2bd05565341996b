"""The host's side of a population: one call after the other, and between two intervals a measurement and an exchange.

Everything that decides what comes next is in `standing.Saved`, so a run that was stopped at any call goes on with the
same bits.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epy

from shoal.core import seeds, types
from shoal.runtimes.experience import finite
from shoal.runtimes.members import dispatch, fitness, loop
from shoal.runtimes.population import (
    applying,
    blocks,
    chronicle,
    compiling,
    exchange,
    failing,
    greedy,
    lineage,
    standing,
    stepping,
    telling,
)

with epy.lazy_imports():
    import jax


class Plan(NamedTuple):
    """How the steps of a member are cut up."""

    per_update: int  # environment steps of one member
    per_call: int  # updates of a member, at most
    interval: int  # updates between two exchanges
    updates: int  # of each member in all

    def next(self, done: int) -> int:
        """Updates of the call after so many: none goes beyond an exchange, and those up to it are about alike."""
        left = min((done // self.interval + 1) * self.interval, self.updates) - done
        return math.ceil(left / math.ceil(left / self.per_call))


def plan(per_update: int, members: int, interval: int, call: int, steps: int) -> Plan:
    """Whole updates.

    Args:
        per_update: Environment steps of one member in an update.
        members: N.
        interval: Environment steps of a member between two exchanges; rounded up.
        call: Environment steps of all members in a call, at most.
        steps: Environment steps of all members in all; rounded up.
    """
    every, updates = math.ceil(interval / per_update), math.ceil(steps / members / per_update)
    return Plan(per_update, max(1, min(call // (per_update * members), every)), every, updates)


def ask(updates: int, *, force: bool = False) -> loop.Ask:
    """What is asked of a call."""
    return loop.Ask(np.int32(updates), np.bool_(force))


class Machine(NamedTuple):
    """What runs on the device."""

    call: Callable
    measure: Callable
    exchange: Callable | None  # None: the run ends before the first
    keys: types.Key  # [N], of learning
    compiler: compiling.Compiler
    simulators: stepping.Stepping | None = None  # that `call` steps on the host; None: there are none
    greedy: greedy.Greedy | None = None  # likewise of `measure`


class Running:
    """One life of a run."""

    def __init__(
        self, parts: types.Parts, rules: compiling.Rules, machine: Machine, cut: Plan, seed: int, way: dispatch.Way
    ) -> None:
        self._agent, self._rules, self._machine, self._plan, self._seed = parts.agent, rules, machine, cut, seed
        self._way = way
        self._accounts = telling.Accounts(rules.members)
        self._lineage = lineage.Lineage()
        self._copied = applying.copied(parts.agent, rules.how)
        self._before_exchange: int | None = None  # programs that had been made then
        self._until = 0  # updates at the end of the call under way

    def __call__(
        self, first: blocks.Held, now: standing.Standing, observe: types.Observer, startup: float, held: telling.Held
    ) -> types.Result:
        """Train to the end.

        Args:
            first: Where it begins.
            now: How they stand then.
            observe: Who looks on.
            startup: Seconds that it took to get here.
            held: What members take.
        """
        self._loop, self._now, self._held, self._observe = first, now, held, observe
        self._update = self._began_at = int(jax.device_get(blocks.common(self._loop).update))
        if self._machine.simulators:
            self._machine.simulators.look = self._look
        self._began = time.monotonic()
        if not self._update:
            values = self._hyperparameters()
            self._lineage.add(chronicle.initial(values, self._rules.members))
        with contextlib.suppress(fitness.Stopped):
            self._train()
        progress = self._progress([])
        at = standing.best(self._now)
        return types.Result(self.policy(at), progress, startup)

    def _train(self) -> None:
        while self._update < self._plan.updates:
            self._settle()
            if not self._observe(self._progress(self._step())):
                break
        if self._update >= self._plan.updates:
            self._measured()
            steps = self._update * self._plan.per_update
            self._lineage.add(chronicle.measured(self._update, steps, standing.known(self._now)))

    def policy(self, at: int) -> types.Policy:
        """A member's, on the host."""
        state = blocks.learner(self._loop, self._machine.compiler.cut, at)
        policy: types.Policy = jax.device_get(self._agent.snapshot(state))
        return policy

    # ---------------------------------------------------------------- an interval

    def _step(self) -> list[types.Episode]:
        """One call, and new members for those that failed in it; one with simulators may come back early."""
        if self._update >= self._until:  # where a call ends is decided when it begins, whatever it takes
            self._until = self._update + self._plan.next(self._update)
        updates = self._until - self._update
        self._loop, told = self._machine.call(self._loop, self._machine.keys, ask(updates))
        told = jax.device_get(told)
        updates = min(updates, told.ended.over.shape[1])
        before = self._update * self._plan.per_update * self._rules.members
        self._update += updates
        found = telling.episodes(told.ended, before, updates)
        self._accounts.take(told, found)
        if not told.finite.all():
            self._mend(~told.finite)
        return found

    def _settle(self) -> None:
        """The exchange that is due."""
        if self._update // self._plan.interval <= self._now.exchanges or self._machine.exchange is None:
            return
        self._measured()
        if self._before_exchange is None:
            self._before_exchange = self._machine.compiler.count.made
        found, rounds = standing.known(self._now), int(self._now.exchanges)
        key = seeds.key(self._seed, "exchange", rounds)
        state, *told = self._machine.exchange(blocks.states(self._loop), found, np.int32(rounds), key)
        self._loop = blocks.with_states(self._loop, state)
        swap, ranks, before, after = jax.device_get(told)
        done = chronicle.Round(rounds, self._update, self._update * self._plan.per_update, found, exchange.Plan(*swap))
        events = chronicle.exchanged(done, ranks, before, after, self._rules.exchange, self._copied)
        self._lineage.add(events)
        self._now = standing.exchanged(self._now, swap.weights_from != np.arange(self._rules.members))

    def _measured(self) -> None:
        """Fitness of the states as they are."""
        if self._now.measured_at == self._update:
            return
        began = time.monotonic()
        compiler = self._machine.compiler
        keys = compiler.cut.put(compiler.keys(seeds.key(self._seed, "fitness", self._update)))
        found, far = jax.device_get(self._machine.measure(blocks.states(self._loop), keys, self._look))
        self._now = standing.take(self._now, found, self._update, float(far))
        self._accounts.measuring += time.monotonic() - began

    def _look(self, stage: types.Stage) -> bool:
        return self._observe(self._progress([])._replace(stage=stage))

    def _mend(self, mask: types.Array) -> None:
        values = self._hyperparameters()
        self._now = standing.lapsed(self._now, mask)
        failing.check(self._now, mask, values, self._update)
        taken = failing.sources(self._now, mask, self._rules.settings.fraction, self._seed, self._update)
        key = seeds.key(self._seed, "failure", self._update)
        mended = self._machine.compiler.mend(blocks.members(self._loop), mask, taken, key)
        self._loop = blocks.with_members(self._loop, mended)
        after = self._hyperparameters()
        copied = applying.copied(self._agent, applying.How(copy="policy"))
        steps = self._update * self._plan.per_update
        for member in np.flatnonzero(mask).tolist():
            source = int(taken[member]) if taken[member] != member else None
            given = copied if source is not None else ((), ("all",))
            self._lineage.add([chronicle.failed(self._update, steps, member, source, after, copied=given)])

    def _hyperparameters(self) -> dict[str, types.Array]:
        names = self._rules.prior
        found: dict[str, types.Array] = jax.device_get(
            applying.hyperparameters(self._agent, names, blocks.states(self._loop))
        )
        return found

    # ---------------------------------------------------------------- told

    def _progress(self, episodes: list[types.Episode]) -> types.Progress:
        spent, accounts, now = time.monotonic() - self._began, self._accounts, self._now
        each = self._plan.per_update * self._rules.members
        compiler = self._machine.compiler
        done = (self._update - self._began_at) * each
        made, later = compiler.count.made, 0
        if self._before_exchange is not None:
            later = made - self._before_exchange
        more: Mapping[str, Any] = {
            "devices": compiler.cut.devices,
            "member_steps_per_s": done / spent if done else None,
            "measuring_s": accounts.measuring,
            "compilations": made,
            "compilations_after_first_exchange": later,
            **self._held.told(),
        }
        if self._machine.simulators:
            more = {**more, "paces": self._machine.simulators.paces()}
        simulators, greedy = self._machine.simulators, self._machine.greedy
        faults = {"non_finite": accounts.non_finite, **finite.faults(*accounts.unfit)}
        if simulators and greedy:
            faults["restarts"] = simulators.restarts + greedy.restarts
        return types.Progress(
            env_steps=self._update * each,
            updates=self._update,
            train_s=spent,
            episodes=episodes,
            metrics=telling.metrics(accounts, now),
            split=dict(simulators.split) if simulators else {"on_device": spent},
            workers=simulators.about() if simulators else {},
            faults=faults,
            save=lambda: standing.Saved(blocks.saved(self._loop), self._now),
            policy=lambda: self.policy(standing.best(self._now)),
            subsystems={"population": telling.summary(accounts, now, self._way, compiler.cut.each, more)},
            artefacts={lineage.FILE: self._lineage},
        )
