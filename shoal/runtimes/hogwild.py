"""Hogwild: several processes act, learn, and write one shared parameter vector without locks.

Mnih et al. 2016, arXiv:1602.01783 (asynchronous actor-learners, shared RMSProp, annealing on the global step counter);
Niu et al. 2011, arXiv:1106.5730 (no locks). Each worker repeats: read a snapshot, act T steps, one gradient, add it
in place. Spawned processes instead of threads, because threads of one interpreter do not scale.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from etils import epy

from shoal import errors, options, seeds, types

with epy.lazy_imports():
    import jax
    import numpy as np

    from shoal import tree
    from shoal.runtimes import _actor_learner, _pool, _shared


@dataclasses.dataclass(frozen=True)
class Config:
    """Lock-free actor-learners."""

    workers: int = options.number(2, low=1, high=1024)
    """Processes, each with its own environment; about one a core."""
    report_s: float = options.number(0.1, low=0.01)
    """Seconds between two reports of a worker."""


EXACT_RESUME = False  # lock-free: neither the order of applies nor the simulators can be saved
CAPTURES = True  # gradients are left in the state: they are applied to shared memory


def check(config: Config, experiment: Any, opened: Any) -> None:
    """Refuse what this runtime cannot do.

    Raises:
        Refused: An optimiser that has no shared form.
    """
    del config, opened
    rule = experiment.configs["optimiser"].rule
    if rule != "rmsprop":
        raise errors.Refused(
            f"optimiser.rule={rule} cannot be shared without locks; the hogwild runtime offers rmsprop"
        )


def streams(config: Config) -> int:
    """Environments that one learner learns from at a time."""
    del config
    return 1


def build(config: Config) -> types.Runtime:
    """The runtime."""
    return Hogwild(config)


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
        self._config, self._parts, self._seed, self._steps = config, parts, seed, steps
        self._goal, self._observe = goal, observe
        self._state = jax.jit(parts.agent.init)(seeds.key(seed, "init"))
        self._flat = tree.flattener(self._state.params)
        window = goal.window if goal else 1
        seen = self._state.normaliser.mean.size if self._state.normaliser else 0
        self._block = _shared.Block(_actor_learner.layout(self._flat.size, config.workers, window, seen))
        self._block["theta"][:] = self._flat.flatten(self._state.params)
        self._life = 0  # lives of the run: 0, and one more for each resume; keeps seeds from being used twice
        self._metrics: dict[str, float] = {}
        self._rss: dict[int, float] = {}
        self._began: float | None = None  # training has not begun
        self._restarts = 0

    # ---------------------------------------------------------------- checkpoints

    def save(self) -> types.Tree:
        """The checkpoint: shared vectors and counters (a racing writer may be halfway through an apply)."""
        block = self._block
        return {
            "theta": block["theta"].copy(),
            "g": block["g"].copy(),
            "steps": block["steps"].copy(),
            "updates": block["updates"].copy(),
            "lag_sum": block["lag_sum"].copy(),
            "lag_max": block["lag_max"].copy(),
            "normaliser": block["normaliser"].copy(),
            "life": np.int64(self._life),
        }

    def restore(self, saved: types.Tree | None) -> None:
        """Continue from a checkpoint: counters and statistics as they were, episodes anew with unused seeds."""
        if saved is None:
            return
        for name in ("theta", "g", "steps", "updates", "lag_sum", "lag_max", "normaliser"):
            self._block[name][:] = saved[name]
        self._life = int(saved["life"]) + 1

    # ---------------------------------------------------------------- workers

    def pool(self) -> Any:
        """The workers, as a context that never leaves one behind."""
        return _Closing(_pool.Pool(_actor_learner.work, self._job, self._config.workers, self._fault), self._block)

    def _job(self, worker: int, incarnation: int) -> tuple[Any, ...]:
        job = _actor_learner.Job(
            self._block,
            self._parts.rebuild,
            jax.device_get(_actor_learner.without(self._state)),
            jax.eval_shape(lambda: self._state.params),
            self._seed,
            worker,
            self._life * 1_000_000 + incarnation,
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
            faults={"restarts": self._restarts, "non_finite": int(block["non_finite"].sum())},
            save=self.save,
            watches_goal=True,
            solved_at=min((int(at) for at in block["solved_at"] if at), default=None),
        )

    def policy(self) -> types.Policy:
        """The policy that was learned, on the host."""
        params = self._flat.unflatten(self._block["theta"].copy())
        normaliser = _actor_learner.normaliser(self._block, self._state.normaliser)
        state = self._state._replace(params=params, normaliser=normaliser)
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
