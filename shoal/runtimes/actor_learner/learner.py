"""One run as its parent sees it: it takes rollouts, updates, publishes, watches the crew and reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from shoal.core import errors, seeds, types
from shoal.formulas import optimise
from shoal.monitor import control
from shoal.runtimes.actor_learner import (
    accounts,
    jobs,
    precision,
    publisher,
    queue,
    sampling,
    saving,
    shared,
    taking,
    teacher,
    watching,
)
from shoal.runtimes.crew import beside, crew, turns
from shoal.runtimes.experience import finite
from shoal.runtimes.members import compiled, lanes

if TYPE_CHECKING:
    from shoal.runtimes import actor_learner

REPORT_S = 0.1  # seconds between two reports, at least
ONE_ROUND = 1e-5  # seconds in which workers that take turns here take one each
PATIENCE = 30.0  # seconds that a checkpoint in lock-step waits for the compressor


class Run:
    """One run."""

    def __init__(
        self,
        config: actor_learner.Config,
        parts: types.Parts,
        seed: int,
        steps: int,
        observe: types.Observer,
        saved: types.Tree | None,
    ) -> None:
        """A new learner, or the saved one.

        Args:
            config: `actor_learner.Config`.
            parts: As of `types.Runtime.run`, like the others.
            seed: The run's.
            steps: Environment steps in all.
            observe: Told of progress and faults.
            saved: The checkpoint tree, or None.
        """
        assert parts.compressor is not None
        self._config, self._parts, self._seed, self._steps, self._observe = config, parts, seed, steps, observe
        self._compressor, agent = parts.compressor, parts.agent
        self._rollouts = config.rollouts or config.workers
        begun = saving.begun(agent, seed, self._compressor.engine, saved)
        self._updates, self._env_steps, self._life, self.engine = (
            begun.updates,
            begun.env_steps,
            begun.life,
            begun.engine,
        )
        learning = precision.packed(agent, self._compressor) if config.precision == "packed" else agent
        self._made = compiled.Compiled(learning, several=False)
        self._skipped = int(optimise.skipped(begun.state))  # before this life
        self._kept = self._made.keep(begun.state)
        self._words = [seeds.derive(seed, "update", i) for i in range(2)]
        self._metrics: Mapping[str, Any] = {}
        self._episodes: list[types.Episode] = []
        self._told = 0.0
        self._began: float | None = None
        self._ended: float | None = None
        self._crew: Any = None
        self._update: Any = None  # compiled
        self._here = True  # the crew takes turns in this process
        self._going = False  # it has been told to begin, and not to end

        policy = self.policy()
        self._first = first = self._compressor.plain(policy)._replace(version=self._updates)
        self.shared = shared.Shared(config, parts, policy, first)
        if self.shared.teacher is not None:
            self.shared.teacher.give(policy, self._updates)  # so that the compressor is ready when actors are
            if saved is not None and saved[1]["remembers"]:
                self.shared.teacher.keep(saved[1]["memory"], 0)
        self._queues, self._notes = self.shared.queues, self.shared.notes
        self.jobs = jobs.Jobs(config, parts, self.shared, jobs.Named(seed, self._life, self.engine))
        self._taking = taking.Taking(config, self.shared, agent.about.streams_matter)
        self.accounts = accounts.Accounts(config, self._compressor.name, self._notes, first)
        self._watch = watching.begun(config, self._compressor.name, begun.control) if config.controller else None
        if self._watch is not None:
            self.accounts.decisions = self._watch.decisions
            if self.shared.teacher is not None:
                self.shared.teacher.level(plain=self._watch.plain)
        self._sampler: sampling.Sampler | None = None
        if config.monitor:
            kept = sampling.versions(len(first.payload), config)
            self._sampler = sampling.Sampler(parts, self.shared.board, kept, config.environments)
            self._sampler.keep(policy, self._updates)

    # ---------------------------------------------------------------- checkpoints

    def save(self) -> types.Tree:
        """The checkpoint: the learner and its counters."""
        state = jax.device_get(self._made.state(self._kept))
        counters = lanes.counters(self._updates, self._env_steps, self._life)
        control_ = self._watch.state if self._watch else control.State()
        memory: tuple[types.Tree, bool] = ((), False)
        if self.shared.teacher is not None:
            self._catch_up(self.shared.teacher)
            memory = self.shared.teacher.memory()
        return state, counters | saving.kept(self.accounts.engine(), control_, *memory)

    def _catch_up(self, teacher: teacher.Teacher) -> None:
        """In lock-step, wait until the compressor has seen what it was given, so that its memory is of that version."""
        until = time.monotonic() + PATIENCE
        while self._config.lockstep and self._going and teacher.done < teacher.given and time.monotonic() < until:
            self._hear(ONE_ROUND if self._here else 0.002)

    def policy(self) -> types.Policy:
        """The policy in full precision, on the host."""
        return self._made.policy(self._kept)

    # ---------------------------------------------------------------- the loop

    def train(self, began: float, form: Callable[..., crew.Crew] = crew.Processes) -> types.Result:
        """Learn until there are enough steps, or the observer has seen enough.

        Args:
            began: ``time.monotonic()`` when the runtime was asked to run.
            form: Of the crew.
        """
        self._here = self.jobs.here = form is turns.Turns
        if not self._here:
            self.jobs.rebuild = self._parts.rebuild
        with form(self.jobs.roles(), self._observe.fault) as self._crew:
            beside.done(self._compile, beside.COMPILING, self._look)  # while the actors start
            going = self._crew.begin(lambda: self._look(self._crew.stage()))
            if not going:
                raise errors.NotBegun("asked to end before the first step")
            self._began, self._going = time.monotonic(), True
            self.accounts.begin()
            watch = self.accounts.watch
            while going and self._env_steps < self._steps:
                taken = self._next()
                watch.lap("wait")
                if taken is None:
                    break
                if self._sampler is not None and self._sampler.due():
                    self._look_at(taken)
                    watch.lap("other")
                self._learn(taken)
                watch.lap("update")
                self._settle()
                watch.lap("publish")
                going = self._report()
                watch.lap("other")
            self._ended = time.monotonic()
            self.accounts.end()
            if self.shared.teacher is not None:
                self._catch_up(self.shared.teacher)
            self._going = False
            self._crew.stop("actor")
            if self.shared.teacher is not None:
                self._crew.stop("compressor")
            self.shared.ring()
            while not self._crew.finished("actor"):
                self._hear(0.02)
            final = self._progress()
        packed = self.shared.board.read().packed if self._compressor.unpack is None else None
        return types.Result(policy=self.policy(), final=final, startup_s=self._began - began, packed=packed)

    def _look(self, stage: types.Stage) -> bool:
        """Tell of a stage before the first step; whether to go on."""
        return self._observe(self._progress()._replace(stage=stage))

    def _compile(self) -> None:
        """The update; and how fast the network is in full precision, which compressors are held against."""
        if self._config.monitor and self._compressor.unpack is None:
            runner = self._compressor.runner(self._first, self._config.environments, "auto")
            self.accounts.full_us = min(runner.measured.values(), default=None)
        one = queue.like(self._parts, self._config.environments)._replace(version=())
        rollout = queue.joined(one, self._rollouts)
        if self._sampler is not None:
            self._sampler.warm(one)
        words = jax.ShapeDtypeStruct((3,), np.uint32)
        self._update = self._made.update.lower(self._kept, rollout, words).compile()

    def _next(self) -> queue.Taken | None:
        """The rollouts of the next update; None: the observer says stop."""
        while True:
            workers = self._chosen()
            if workers is not None:
                return self._queues.take(workers)
            if self._here:
                self._crew.look(ONE_ROUND)
            else:
                self.shared.bell.wait(0.02)
            self.accounts.watch.lap("wait")  # before telling reads the watch
            going = self._report()
            self.accounts.watch.lap("other")
            if not going:
                return None

    def _chosen(self) -> list[int] | None:
        """Whose rollouts are next; None: too few wait."""
        return self._taking.chosen(self._updates)

    def _look_at(self, taken: queue.Taken) -> None:
        """A sample of what acts, and what the controller makes of it."""
        assert self._sampler is not None
        self._sampler.look(taken, self.policy())
        if self._watch is not None and self._watch.check(self._sampler, self._updates):
            assert self.shared.teacher is not None
            self.shared.teacher.level(plain=self._watch.plain)
            self.shared.press.ring()

    def _learn(self, taken: queue.Taken) -> None:
        """One update."""
        for worker in self.accounts.learnt(taken, self._updates):
            self._observe.fault(f"actor {worker} acts with an old policy", self.accounts.old(worker))
        if taken.begun and self._parts.agent.about.restart:
            state = self._parts.agent.about.restart(self._made.state(self._kept))
            self._kept = self._made.keep(state)
        for worker in {*taken.workers}:
            self.shared.bells[worker].ring()
        words = np.array([*self._words, self._updates], np.uint32)
        rollout = taken.rollout._replace(version=())
        self._kept, self._metrics = self._update(self._kept, rollout, words)
        jax.block_until_ready(self._kept)
        self._updates += 1
        self._episodes += taking.episodes(taken, self._env_steps)
        self._env_steps += taken.rollout.transitions.reward.size
        if self.shared.teacher is not None:
            obs = taken.rollout.transitions.obs
            self.shared.teacher.show(obs.reshape(-1, *obs.shape[2:]))

    def _settle(self) -> None:
        """Publish, where it is due."""
        if self._updates % self._config.publish_every:
            return
        policy = self.policy()
        if self.shared.teacher is None:
            packed = self._compressor.plain(policy)._replace(version=self._updates)
            self.shared.board.post(packed)
            self.accounts.posted(packed)
            for bell in self.shared.bells:
                bell.ring()
        else:
            self.shared.teacher.give(policy, self._updates)
            self.shared.press.ring()
        if self._sampler is not None:
            self._sampler.keep(policy, self._updates)

    # ---------------------------------------------------------------- reports

    def _hear(self, seconds: float) -> None:
        told = self._crew.gather(seconds)
        for _, _, _, message in told.said:
            if isinstance(message, publisher.Published):
                self.accounts.heard(message)
                if message.failed:
                    self._observe.fault("the policy could not be compressed", message.failed)
            else:
                self._observe.fault(*message)

    def _report(self) -> bool:
        """Tell the observer, if there is something to tell or it is time to; whether to go on."""
        now = time.monotonic()
        if now - self._told < REPORT_S and not self._here:
            return True
        self._hear(0.0)
        self._told = now
        return self._observe(self._progress())

    def _progress(self) -> types.Progress:
        episodes, self._episodes = self._episodes, []
        about = self._crew.about("actor") if self._crew else {}
        metrics, skipped = jax.device_get((self._metrics or {}, self._made.told(self._kept)))
        measured = {name: float(value) for name, value in metrics.items()}
        spent = (self._ended or time.monotonic()) - self._began if self._began is not None else 0.0
        restarts = int(self._notes["restarts"].sum())
        restarts += sum(self._crew.about(role.name)["restarts"] for role in self.jobs.roles()) if self._crew else 0
        return types.Progress(
            env_steps=self._env_steps,
            updates=self._updates,
            train_s=spent,
            episodes=episodes,
            metrics={**measured, **self.accounts.metrics(self._sampler)},
            split=self.accounts.split(),
            workers=about,
            faults={
                "restarts": restarts,
                "non_finite": int(skipped) - self._skipped,
                **self.accounts.faults(self._taking.dropped),
                **finite.faults(*self._notes["unfit"].sum(axis=0)),
            },
            save=self.save,
            policy=self.policy,
            subsystems=accounts.Asked(
                lambda: self.accounts.subsystems(self._parts.corrector, self._sampler, measured, self._taking.dropped)
            ),
        )
