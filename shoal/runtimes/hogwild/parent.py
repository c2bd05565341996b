"""One run of hogwild as its parent sees it: what is shared, what is saved, what is told."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shoal.core import seeds, tree, types
from shoal.formulas import in_place
from shoal.monitor import asynchrony
from shoal.runtimes.crew import crew, lags, life, messages, observed, sharing
from shoal.runtimes.experience import finite
from shoal.runtimes.hogwild import learning, process, shared_state, staleness, ticketing


class Begun(NamedTuple):
    """What a run begins with."""

    state: Any  # of the learner
    flat: tree.Flattener
    given: learning.Start
    sizes: shared_state.Sizes
    layout: sharing.Layout  # of what is shared and applies change
    first: dict[str, np.ndarray]  # what is not zero of it


def begin(config: Any, parts: types.Parts, seed: int) -> Begun:
    """What a run of these settings (`hogwild.Config`) begins with."""
    state = jax.jit(parts.agent.init)(seeds.key(seed, "init"))
    fields = parts.agent.about.fields
    flat, target = tree.flattener(state.params), learning.target(state, fields)
    given = learning.Start(
        rest=jax.device_get(learning.without(state, fields)),
        shapes=jax.eval_shape(lambda: state.params),
        seed=seed,
        staleness=staleness.Policy(config.max_lag, config.on_stale == "block"),
        padded=config.segment == "paper",
        games=config.games,
    )
    seen = state.normaliser.mean.size if state.normaliser else 0
    room = in_place.room(state.optimiser.rule, flat.size)
    apart = config.statistics == "worker"
    sizes = shared_state.Sizes(flat.size, seen, apart=apart, target=target is not None, statistics=room)
    first = {"theta": np.asarray(flat.flatten(state.params))}
    if target:
        first["target"] = np.asarray(flat.flatten(target.params))
    return Begun(state, flat, given, sizes, shared_state.layout(sizes, config.workers), first)


class Run:
    """One run of the parent."""

    def __init__(
        self,
        config: Any,  # hogwild.Config
        parts: types.Parts,
        seed: int,
        steps: int,
        goal: types.Goal | None,
        observe: Any,  # types.Observer; None only where nothing is run
    ) -> None:
        self._config, self._parts, self._steps = config, parts, steps
        self._goal, self._observe = goal, observe
        self._start = begin(config, parts, seed)
        self._flat, self._state = self._start.flat, self._start.state
        window = (goal or types.Goal(0.0)).window
        # Each ticket holds a segment, and those of a worker's games are begun only while steps are left.
        least = 1 if config.segment == "paper" else parts.agent.about.rollout_length
        tickets = -(-steps // least) + config.workers * config.games if config.replayable else 0
        state = self._start.layout
        self._saved_names = [*state, *process.KEPT]
        self._block = sharing.Block(process.layout(self._start.sizes, config.workers, window, tickets))
        for name, values in self._start.first.items():
            self._block[name][:] = values
        self._block["reading"][:] = staleness.IDLE
        self._tickets = ticketing.Tickets(self._block, len(state)) if config.replayable else None
        self._watched = staleness.watched(self._flat.size)
        self._marks: list[asynchrony.Mark] = []
        self._artefacts = {asynchrony.FILE: asynchrony.Journal(self.record)} if self._tickets else {}
        self._first = 0  # tickets of earlier lives
        self._before = {"non_finite": 0, "stale": 0}  # dropped in earlier lives; those are counted already
        self._life = 0  # lives of the run: 0, and one more for each resume; keeps seeds from being used twice
        self._crew: Any = None  # while it works
        self._watch: Any = None

    # ---------------------------------------------------------------- checkpoints

    def save(self) -> types.Tree:
        """The checkpoint: shared vectors and counters (lock-free, a writer may be halfway through an apply)."""
        with self._tickets or contextlib.nullcontext():
            saved: dict[str, Any] = {name: self._block[name].copy() for name in self._saved_names}
        if self._tickets:
            tickets = int(saved["tickets"][0])
            if not self._marks or self._marks[-1].tickets < tickets:
                self._marks.append(asynchrony.Mark(tickets, tree.sha256(self._flat.unflatten(saved["theta"]))))
        saved["returns"] = saved["returns"].view(np.int64)  # their bits: a simulator may pay NaN, and that is kept
        return saved | {"life": np.int64(self._life)}

    def restore(self, saved: types.Tree | None) -> None:
        """Continue from a checkpoint: counters and statistics as they were, episodes anew with unused seeds."""
        if saved is None:
            return
        for name in self._saved_names:
            self._block[name][:] = saved[name].view(self._block[name].dtype)
        self._life = int(saved["life"]) + 1
        self._first = int(saved["tickets"][0])
        self._before = {name: int(saved[name].sum()) for name in self._before}

    def record(self) -> tuple[asynchrony.Record, list[asynchrony.Mark]]:
        """What this life adds to the record: its tickets, and what the parameters were whenever they were saved."""
        assert self._tickets is not None
        return self._tickets.record(self._first), self._marks

    # ---------------------------------------------------------------- workers

    def train(self, began: float, form: Any = crew.Processes) -> types.Result:
        """Work until every worker is done.

        Args:
            began: ``time.monotonic()`` when the runtime was asked to run.
            form: Of the crew.
        """
        config = self._config
        role = life.Role(
            name="worker", workers=config.workers, open=process.ActorLearner, job=self.job, report_s=config.report_s
        )
        with form([role], self._observe.fault) as self._crew:
            self._watch = crew.Watch(self._crew, "worker", self._observe)
            startup = self._watch.run(began, self._progress)
            final = self._progress([])
        return types.Result(policy=self.policy(), final=final, startup_s=startup)

    def job(self, worker: int, incarnation: int) -> process.Job:
        """What an actor-learner is told, and what is set right where it takes the place of one that died."""
        slots = self._block["applying"]
        slots[worker] += slots[worker] & 1  # one that died is not applying any more,
        self._block["reading"][worker] = staleness.IDLE  # and nobody waits for it
        return process.Job(
            block=self._block,
            rebuild=self._parts.rebuild,
            start=self._start.given,
            worker=worker,
            incarnation=crew.number(self._life, incarnation),
            steps=self._steps,
            goal=self._goal,
        )

    # ---------------------------------------------------------------- reports

    def _progress(self, episodes: list[types.Episode]) -> types.Progress:
        block = self._block
        updates, about = int(block["updates"].sum()), self._crew.about("worker")
        workers = {
            **about,
            **lags.told(block),
            "overlapped": int(block["overlapped"].sum()),
            "contended_share": float(block["contended"].sum()) / updates / self._watched if updates else None,
        }
        faults = {
            "restarts": about["restarts"],
            "non_finite": self._dropped("non_finite"),
            **finite.faults(*block["unfit"].sum(axis=0)),
        }
        return types.Progress(
            env_steps=int(block["steps"].sum()),
            updates=updates,
            train_s=self._watch.train_s,
            episodes=episodes,
            metrics=self._watch.metrics,
            split=dict(zip(messages.SPLIT, block["split"].sum(axis=0).tolist(), strict=True)),
            workers=workers,
            faults=faults | ({"stale": self._dropped("stale")} if self._config.max_lag else {}),
            save=self.save,
            artefacts=self._artefacts,
            policy=self.policy,
            watches_goal=True,
            solved_at=min((int(at) for at in block["solved_at"] if at), default=None),
        )

    def _dropped(self, why: str) -> int:
        """Gradients dropped in this life."""
        return int(self._block[why].sum()) - self._before[why]

    def policy(self) -> types.Policy:
        """The policy that was learned, on the host."""
        params = self._flat.unflatten(self._block["theta"].copy())
        normaliser = observed.normaliser(self._block, self._state.normaliser)
        steps = jnp.int32(self._block["steps"].sum())
        state = self._state._replace(params=params, normaliser=normaliser, env_steps=steps)
        return jax.device_get(self._parts.agent.snapshot(state))
