"""Hogwild: several processes act, learn, and write one shared parameter vector without locks.

Mnih et al. 2016, arXiv:1602.01783 (asynchronous actor-learners, shared RMSProp, a shared target network, annealing on
the global step counter); Niu et al. 2011, arXiv:1106.5730 (no locks). Each worker repeats: read a snapshot, act T
steps, one gradient, add it in place. Spawned processes instead of threads, because threads of one interpreter do not
scale. With `replayable`, applies take turns and their order is recorded (docs/asynchrony.md).
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from etils import epy

from shoal import asynchrony, errors, options, seeds, types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np

    from shoal import tree
    from shoal.runtimes import _actor_learner, _learner, _pool, _sequential, _shared, _staleness, _state, _tickets


@dataclasses.dataclass(frozen=True)
class Config:
    """Actor-learners that share one parameter vector."""

    workers: int = options.number(2, low=1, high=1024)
    """Processes, each with its own environment; about one a core."""
    segment: Literal["fixed", "paper"] = "fixed"
    """fixed: segments of algorithm.rollout_length steps, which may cross an episode's end; paper: they end with the
    episode, so that an update follows every end, as in the pseudo-code of Mnih et al. 2016."""
    report_s: float = options.number(0.1, low=0.01)
    """Seconds between two reports of a worker."""
    statistics: Literal["shared", "worker"] = "shared"
    """Whether all workers write one vector of optimiser statistics, or each has its own."""
    max_lag: int = options.number(0, low=0)
    """Applies of others that may come between a worker's read and its apply; 0: no limit."""
    on_stale: Literal["drop", "block"] = "drop"
    """drop: a gradient beyond max_lag is thrown away; block: workers wait, so that none gets there."""
    replayable: bool = False
    """Apply one gradient at a time and record the order, so that `shoal replay` can repeat the run."""


EXACT_RESUME = False  # lock-free: neither the order of applies nor the simulators can be saved
CAPTURES = True  # gradients are left in the state: they are applied to shared memory
RULES = ("rmsprop", "momentum", "adagrad")  # that apply in place, without locks


def check(config: Config, experiment: Any, opened: Any) -> None:
    """Refuse what this runtime cannot do.

    Raises:
        Refused: An optimiser that has no form for shared memory, or a limit that would leave every worker waiting.
    """
    del opened
    least = config.workers - 1
    if config.on_stale == "block" and 0 < config.max_lag < least:
        raise errors.Refused(
            f"runtime.max_lag={config.max_lag} with on_stale=block: {config.workers} workers that read at once must "
            f"wait for each other; give at least {least}, or runtime.on_stale=drop"
        )
    rule = experiment.configs["optimiser"].rule
    if rule not in RULES:
        raise errors.Refused(
            f"optimiser.rule={rule} cannot be shared without locks; the hogwild runtime offers {', '.join(RULES)}"
        )
    if rule == "momentum" and config.statistics == "shared":
        raise errors.Refused(
            "optimiser.rule=momentum, but a momentum is each worker's own; add --runtime.statistics worker, "
            "or use rmsprop"
        )


def pads(config: Config) -> bool:
    """Whether rollouts may end in padding."""
    return config.segment == "paper"


def streams(config: Config) -> int:
    """Environments that one learner learns from at a time."""
    del config
    return 1


def learners(config: Config) -> int:
    """Learners that share the parameters."""
    return config.workers


def build(config: Config) -> types.Runtime:
    """The runtime."""
    return Hogwild(config)


def replays(config: Config) -> bool:
    """Whether a run keeps what `replayer` needs."""
    return config.replayable


def replayer(config: Config, parts: types.Parts, seed: int) -> _sequential.Sequence:
    """What does in one process, one ticket after the other, what workers did at once.

    Args:
        config: Of the run; its workers are logical ones here.
        parts: The agent and its environment.
        seed: Of the run.
    """
    start = _begin(config, parts, seed)
    return _sequential.Sequence(parts, start.given, start.layout, start.first)


def replay(
    config: Config, parts: types.Parts, seed: int, record: asynchrony.Record, looks: list[int]
) -> Iterator[tuple[int, str | None]]:
    """Do the record of a run in one process of its own.

    Args:
        config: Of the run.
        parts: The agent and its environment.
        seed: Of the run.
        record: Of the run.
        looks: Tickets after which the parameters are wanted, ascending.

    Returns:
        How many tickets are done, a few times a second and at each of `looks`, there with the parameters' SHA-256.
    """
    start = _begin(config, parts, seed)
    return _sequential.apart(_sequential.Job(parts.rebuild, start.given, start.layout, start.first, record, looks))


class _Begun(NamedTuple):
    """What a run begins with."""

    state: Any  # of the learner
    flat: tree.Flattener
    given: _learner.Start
    sizes: _state.Sizes
    layout: _shared.Layout  # of what is shared and applies change
    first: dict[str, np.ndarray]  # what is not zero of it


def _begin(config: Config, parts: types.Parts, seed: int) -> _Begun:
    state = jax.jit(parts.agent.init)(seeds.key(seed, "init"))
    flat, target = tree.flattener(state.params), _learner.target(state)
    shapes = jax.eval_shape(lambda: state.params)
    staleness = _staleness.Policy(config.max_lag, config.on_stale == "block")
    given = _learner.Start(jax.device_get(_learner.without(state)), shapes, seed, staleness, pads(config))
    seen = state.normaliser.mean.size if state.normaliser else 0
    sizes = _state.Sizes(flat.size, seen, config.statistics == "worker", target is not None)
    first = {"theta": np.asarray(flat.flatten(state.params))}
    if target:
        first["target"] = np.asarray(flat.flatten(target.params))
    return _Begun(state, flat, given, sizes, _state.layout(sizes, config.workers), first)


class Hogwild:
    """The parent's side: starts workers, watches them, reports."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def like(self, parts: types.Parts, seed: int) -> types.Tree:
        """See `types.Runtime`."""
        return _Run(self._config, parts, seed, 0, None, None).save()

    def policy(self, parts: types.Parts, seed: int, saved: types.Tree) -> types.Policy:
        """See `types.Runtime`."""
        run = _Run(self._config, parts, seed, 0, None, None)
        run.restore(saved)
        return run.policy()

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
        began = time.monotonic()
        run = _Run(self._config, parts, seed, steps, goal, observe)
        run.restore(saved)
        with run.pool() as pool:
            startup = run.wait_until_ready(pool, began)
            final = run.watch(pool)
        return types.Result(run.policy(), final, startup)


class _Run:
    """One run of the parent."""

    def __init__(
        self,
        config: Config,
        parts: types.Parts,
        seed: int,
        steps: int,
        goal: types.Goal | None,
        observe: Any,  # types.Observer; None only where nothing is run
    ) -> None:
        self._config, self._parts, self._steps = config, parts, steps
        self._goal, self._observe = goal, observe
        self._start = _begin(config, parts, seed)
        self._flat, self._state = self._start.flat, self._start.state
        window = (goal or types.Goal(0.0)).window
        # Each ticket holds a segment, and one is begun only while steps are left.
        least = 1 if pads(config) else parts.agent.rollout_length
        tickets = -(-steps // least) + config.workers if config.replayable else 0
        state = self._start.layout
        self._saved_names = [*state, *_actor_learner.KEPT]
        self._block = _shared.Block(_actor_learner.layout(self._start.sizes, config.workers, window, tickets))
        for name, values in self._start.first.items():
            self._block[name][:] = values
        self._block["reading"][:] = _staleness.IDLE
        self._tickets = _tickets.Tickets(self._block, len(state)) if config.replayable else None
        self._watched = _staleness.watched(self._flat.size)
        self._marks: list[asynchrony.Mark] = []
        self._first = 0  # tickets of earlier lives
        self._before = {"non_finite": 0, "stale": 0}  # dropped in earlier lives; those are counted already
        self._life = 0  # lives of the run: 0, and one more for each resume; keeps seeds from being used twice
        self._metrics: dict[str, float] = {}
        self._rss: dict[int, float] = {}
        self._began: float | None = None  # training has not begun
        self._restarts = 0

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

    def pool(self) -> Any:
        """The workers, as a context that never leaves one behind."""
        return _Closing(_pool.Pool(_actor_learner.work, self._job, self._config.workers, self._fault), self._block)

    def _job(self, worker: int, incarnation: int) -> tuple[Any, ...]:
        slots = self._block["applying"]
        slots[worker] += slots[worker] & 1  # one that died is not applying any more,
        self._block["reading"][worker] = _staleness.IDLE  # and nobody waits for it
        job = _actor_learner.Job(
            self._block,
            self._parts.rebuild,
            self._start.given,
            worker,
            self._life * _learner.LIVES + incarnation,
            self._steps,
            self._goal,
            self._config.report_s,
        )
        return (job,)

    def _fault(self, kind: str, traceback: str) -> None:
        self._restarts += 1
        self._observe.fault(kind, traceback)

    def wait_until_ready(self, pool: _pool.Pool, began: float) -> float:
        """Wait until every worker has compiled, then start them together; returns the seconds it took."""
        waiting = set(range(self._config.workers))
        while waiting:
            for worker, _, message in pool.poll(0.1):
                if isinstance(message, _actor_learner.Ready):
                    waiting.discard(worker)
                    pool.rests(worker)
            if not self._observe(self._progress([], pool)):
                self._block["stop"][0] = 1
                break
        self._began = time.monotonic()
        for worker in range(self._config.workers):
            pool.send(worker, "go")
        return self._began - began

    def watch(self, pool: _pool.Pool) -> types.Progress:
        """Gather reports until every worker is done."""
        while not pool.finished:
            episodes: list[types.Episode] = []
            for worker, _, message in pool.poll(0.1):
                if isinstance(message, _actor_learner.Ready):  # a restarted one
                    pool.send(worker, "go")
                if isinstance(message, _actor_learner.Report):
                    pool.progressed(worker)
                    episodes += message.episodes
                    self._metrics = message.metrics or self._metrics
                    self._rss[worker] = message.rss_mb
                    if message.done:
                        pool.finish(worker)
            progress = self._progress(sorted(episodes, key=lambda e: e.env_steps), pool)
            if not self._observe(progress):
                self._block["stop"][0] = 1
        return self._progress([], pool)

    # ---------------------------------------------------------------- reports

    def _progress(self, episodes: list[types.Episode], pool: _pool.Pool) -> types.Progress:
        block = self._block
        updates = int(block["updates"].sum())
        workers = {
            "up": pool.up,
            "of": self._config.workers,
            "restarts": self._restarts,
            "env_steps": block["steps"].tolist(),
            "updates": block["updates"].tolist(),
            "lag_mean": float(block["lag_sum"].sum()) / updates if updates else None,
            "lag_max": int(block["lag_max"].max()),
            "lag_histogram": asynchrony.histogram(block["lags"].sum(axis=0).tolist()),
            "overlapped": int(block["overlapped"].sum()),
            "contended_share": float(block["contended"].sum()) / updates / self._watched if updates else None,
            "rss_mb": sum(self._rss.values()),
            "pids": pool.pids,
        }
        return types.Progress(
            env_steps=int(block["steps"].sum()),
            updates=updates,
            train_s=time.monotonic() - self._began if self._began else 0.0,
            episodes=episodes,
            metrics=self._metrics,
            split=dict(zip(_actor_learner.SPLIT, block["split"].sum(axis=0).tolist(), strict=True)),
            workers=workers,
            faults={
                "restarts": self._restarts,
                "non_finite": int(block["non_finite"].sum()) - self._before["non_finite"],
                **({"stale": int(block["stale"].sum()) - self._before["stale"]} if self._config.max_lag else {}),
            },
            save=self.save,
            record=self.record if self._tickets else None,
            watches_goal=True,
            solved_at=min((int(at) for at in block["solved_at"] if at), default=None),
        )

    def policy(self) -> types.Policy:
        """The policy that was learned, on the host."""
        params = self._flat.unflatten(self._block["theta"].copy())
        normaliser = _state.normaliser(self._block, self._state.normaliser)
        steps = jnp.int32(self._block["steps"].sum())
        state = self._state._replace(params=params, normaliser=normaliser, env_steps=steps)
        return jax.device_get(self._parts.agent.snapshot(state))


class _Closing:
    """Closes a pool whatever happens: stop flag first, then patience, then kill."""

    def __init__(self, pool: _pool.Pool, block: _shared.Block) -> None:
        self._pool, self._block = pool, block

    def __enter__(self) -> _pool.Pool:
        return self._pool

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._block["stop"][0] = 1
        self._pool.close(5.0 if kind is None else 1.0)
