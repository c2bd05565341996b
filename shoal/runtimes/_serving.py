"""One run of a parameter server as its parent sees it: starts shards and bundles, watches them, saves, reports."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from shoal import asynchrony, seeds, tree, types
from shoal.runtimes import _actor_learner, _bundle, _bundle_state, _pool, _shard, _shared, _state, _transport

SAVED = ("theta", "g", "steps", "updates", "lag_sum", "lag_max", "lags", "normaliser")  # shared arrays in a checkpoint
STILL = 10.0  # seconds in which bundles must hold still for a checkpoint


class Run:
    """One run of the parent."""

    def __init__(self, config: Any, parts: types.Parts, seed: int, steps: int, observe: Any) -> None:
        """Make what is shared; nothing runs yet.

        Args:
            config: `parameter_server.Config`.
            parts: As of `types.Runtime.run`, like the others.
            seed: The run's.
            steps: Environment steps in all.
            observe: None only where nothing is run.
        """
        self._config, self._parts, self._seed, self._steps, self._observe = config, parts, seed, steps, observe
        self._state = jax.jit(lambda key: _light(parts.agent.init(key)))(seeds.key(seed, "init"))
        self._flat = tree.flattener(self._state.params)
        observed = self._state.normaliser.mean.size if self._state.normaliser else 0
        rated = bool(jax.tree.leaves(self._state.optimiser.rates))
        size, shards, bundles = self._flat.size, config.shards, config.bundles
        layout = _transport.layout(size, shards, config.queue, rated)
        self._block = _shared.Block({**layout, **_bundle_state.layout(bundles, observed)})
        self._block["theta"][:] = self._flat.flatten(self._state.params)
        self._like = _bundle_state.kept(parts, config.n_push, config.n_fetch)
        self._areas = [_bundle_state.area(self._like) for _ in range(bundles)]
        self._bells: Any = None
        self._life = 0  # lives of the run: 0, and one more for each resume; keeps seeds from being used twice
        self._metrics: dict[str, float] = {}
        self._rss: dict[int, float] = {}
        self._began: float | None = None  # training has not begun
        self._bundles: Any = None  # the pools, while they run
        self._shards: Any = None
        self._early: list[Any] = []  # messages that came while a checkpoint was taken
        self._ready: dict[int, int] = {}  # bundle -> the incarnation that has compiled
        self._ended: set[int] = set()  # bundles that are done
        self._restarts = {"bundle": 0, "shard": 0}
        self._asked = 0  # checkpoints that bundles held still for
        self._before = 0  # pushes of earlier lives

    # ---------------------------------------------------------------- checkpoints

    def save(self) -> types.Tree:
        """The checkpoint, while every bundle holds still and all pushes are applied.

        Bundles' states are views; bundles hold still until `watch` lets them go on.
        """
        whole, block = self._hold(), self._block
        with block.locked(_transport.GATE, reading=True):  # one that is late may push at any moment, but not now
            self._drain()
            shared = {name: block[name].copy() for name in SAVED}
            pushes = np.int64(block["version"].min())
        return {
            **shared,
            "pushes": pushes,
            "life": np.int64(self._life),
            "kept": np.where(whole, block["kept"], 0).astype(np.int32),
            "bundles": [self._left(bundle) if whole[bundle] else self._nothing() for bundle in range(len(whole))],
        }

    def _left(self, bundle: int) -> _bundle_state.Kept:
        return tree.fill(self._like, self._areas[bundle].arrays)

    def _nothing(self) -> _bundle_state.Kept:
        """In the place of a state that may be written at any moment; zeros take no memory before they are written."""
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), self._like)

    def restore(self, saved: types.Tree | None) -> None:
        """Continue from a checkpoint: everything as it was but simulators, whose episodes begin anew."""
        if saved is None:
            return
        for name in (*SAVED, "kept"):
            self._block[name][:] = saved[name]
        self._before = int(saved["pushes"])
        for name in ("tickets", "taken", "version"):
            self._block[name][:] = self._before
        for area, left in zip(self._areas, saved["bundles"], strict=True):
            for path, leaf in tree.host(left).items():
                area[path][...] = leaf
        self._life = int(saved["life"]) + 1

    def _hold(self) -> Any:
        """Make all bundles hold still; which of them did (those that do not run have nothing to disturb), ``[W]``."""
        whole = np.ones(self._config.bundles, bool)
        if self._bundles is None or self._began is None:
            return whole
        self._asked += 1
        self._block["pause"][0] = self._asked
        until = time.monotonic() + STILL
        while (late := self._late()) and time.monotonic() < until:
            for bundle, incarnation, message in self._bundles.poll(0.002):
                if getattr(message, "done", False):
                    self._bundles.finish(bundle)  # now: its end, which `poll` may see next, is no death
                self._early.append((bundle, incarnation, message))
            self._mind_shards()
        whole[late] = False  # one that is stuck begins with an empty memory, should the run be resumed from here
        return whole

    def _drain(self) -> None:
        """Wait until shards have applied what was let in."""
        block, until = self._block, time.monotonic() + STILL
        while self._shards is not None and block["version"].min() < block["tickets"][0] and time.monotonic() < until:
            self._mind_shards(0.002)

    def _late(self) -> list[int]:
        """Bundles that run and do not hold still yet."""
        running = [b for b, i in self._ready.items() if b not in self._ended and self._bundles.incarnation(b) == i]
        done = {bundle for bundle, _, message in self._early if getattr(message, "done", False)}
        paused = self._block["paused"]
        return [b for b in running if b not in done and self._bundles.alive(b) and paused[b] != self._asked]

    # ---------------------------------------------------------------- processes

    def __enter__(self) -> Run:
        config, bells = self._config, _transport.Bells
        self._bells = bells(*([_shared.Bell() for _ in range(n)] for n in (config.shards, config.bundles)))
        try:
            self._shards = _pool.Pool(_shard.work, self._shard, config.shards, self._fault("shard"), "shard")
            self._bundles = _pool.Pool(_bundle.work, self._bundle, config.bundles, self._fault("bundle"), "bundle")
        except BaseException:
            self._close(0.0)
            raise
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._close(5.0 if kind is None else 1.0)

    def _close(self, patience: float) -> None:
        """Words first, then patience, then kill; bundles before the shards they wait for."""
        self._block["stop"][0] = self._block["closing"][0] = 1
        self._block["pause"][0] = 0
        for pool in (self._bundles, self._shards):
            if pool is not None:
                pool.close(patience)
        self._bundles = self._shards = None
        self._bells.close()

    def _shard(self, shard: int, incarnation: int) -> tuple[Any, ...]:
        del incarnation  # what the last one had is in shared memory
        return (_shard.Job(self._block, self._bells, shard, self._state.optimiser.rule),)

    def _bundle(self, bundle: int, incarnation: int) -> tuple[Any, ...]:
        config = self._config
        settings = _bundle.Settings(*(getattr(config, name) for name in _bundle.Settings._fields))
        number = self._life * 1_000_000 + incarnation
        restore = incarnation == 0 and bool(self._block["kept"][bundle])
        return (
            _bundle.Job(
                self._block, self._bells, self._areas[bundle], self._parts.rebuild, self._seed, bundle, number,
                self._steps, settings, restore,
            ),
        )  # fmt: skip

    def _fault(self, noun: str) -> Any:
        def fault(kind: str, traceback: str) -> None:
            self._restarts[noun] += 1
            self._observe.fault(kind, traceback)

        return fault

    def wait_until_ready(self, began: float) -> float:
        """Wait until every bundle has compiled, then start them together; returns the seconds it took."""
        while len(self._ready) < self._config.bundles:
            self._mind_shards()
            for bundle, incarnation, message in self._bundles.poll(0.1):
                if isinstance(message, _actor_learner.Ready):
                    self._ready[bundle] = incarnation
                    self._bundles.rests(bundle)
            if not self._observe(self._progress([])):
                self._block["stop"][0] = 1
                break
        self._began = time.monotonic()
        for bundle in range(self._config.bundles):
            self._bundles.send(bundle, "go")
        return self._began - began

    def watch(self) -> types.Progress:
        """Gather reports until every bundle is done, and every push applied."""
        while not self._bundles.finished:
            episodes: list[types.Episode] = []
            early, self._early = self._early, []
            for said in early:
                episodes += self._heard(*said)
            for said in self._bundles.poll(0.0 if early else 0.1):  # one by one: `poll` looks at ends in between
                episodes += self._heard(*said)
            self._mind_shards()
            progress = self._progress(sorted(episodes, key=lambda e: e.env_steps))
            if not self._observe(progress):
                self._block["stop"][0] = 1
            self._block["pause"][0] = 0  # a checkpoint, if one was taken, is written
        self._block["closing"][0] = 1
        for bell in self._bells.shards:
            bell.ring()
        while not self._shards.finished:
            self._mind_shards(0.1)
        return self._progress([])

    def _heard(self, bundle: int, incarnation: int, message: Any) -> list[types.Episode]:
        if isinstance(message, _actor_learner.Ready):  # a restarted one
            self._ready[bundle] = incarnation
            self._bundles.send(bundle, "go")
        if not isinstance(message, _actor_learner.Report):
            return []
        self._bundles.progressed(bundle)
        self._metrics = message.metrics or self._metrics
        self._rss[bundle] = message.rss_mb
        if message.done:
            self._ended.add(bundle)
            self._bundles.finish(bundle)
        return list(message.episodes)

    def _mind_shards(self, timeout: float = 0.0) -> None:
        for shard, _, message in self._shards.poll(timeout):
            if self._block["version"][shard] > self._before:
                self._shards.progressed(shard)
            if message.done:
                self._shards.finish(shard)

    # ---------------------------------------------------------------- reports

    def _progress(self, episodes: list[types.Episode]) -> types.Progress:
        block, pools = self._block, (self._bundles, self._shards)
        updates = int(block["updates"].sum())
        restarts = sum(self._restarts.values())
        workers = {
            "up": self._bundles.up,
            "of": self._config.bundles,
            "restarts": self._restarts["bundle"],
            "env_steps": block["steps"].tolist(),
            "updates": block["updates"].tolist(),
            "lag_mean": float(block["lag_sum"].sum()) / updates if updates else None,
            "lag_max": int(block["lag_max"].max()),
            "lag_histogram": asynchrony.histogram(block["lags"].sum(axis=0).tolist()),
            "rss_mb": sum(self._rss.values()),
            "pids": [pid for pool in pools for pid in pool.pids],
        }
        train_s = time.monotonic() - self._began if self._began else 0.0
        dropped = block["dropped"].sum(axis=0).tolist()
        return types.Progress(
            env_steps=int(block["steps"].sum()),
            updates=updates,
            train_s=train_s,
            episodes=episodes,
            metrics=self._metrics,
            split=dict(zip(_actor_learner.SPLIT, block["split"].sum(axis=0).tolist(), strict=True)),
            workers=workers,
            faults={"restarts": restarts, **dict(zip(_bundle_state.DROPPED, dropped, strict=True))},
            save=self.save,
            subsystems={"server": self._server(train_s)},
        )

    def _server(self, train_s: float) -> dict[str, Any]:
        """What the shards did in this life, and how old gradients were when they were offered."""
        block = self._block
        applied, busy = (block["version"] - self._before - block["lost"]).tolist(), block["busy"].tolist()
        offered = block["offered"].sum(axis=0).tolist()
        return {
            "shards": self._config.shards,
            "restarts": self._restarts["shard"],
            "lost": int(block["lost"].sum()),
            "updates": applied,
            "update_us": [1e6 * spent / count if count else None for spent, count in zip(busy, applied, strict=True)],
            "utilisation": [spent / train_s if train_s else None for spent in busy],
            "offered_by_lag": {**{str(lag): count for lag, count in enumerate(offered[:-1])}, "more": offered[-1]},
        }

    def policy(self) -> types.Policy:
        """The policy that was learned, on the host."""
        block = self._block
        params = self._flat.unflatten(block["theta"].copy())
        normaliser = _state.normaliser(block, self._state.normaliser)
        steps = np.int32(block["steps"].sum())
        state = self._state._replace(params=params, normaliser=normaliser, env_steps=steps)
        return jax.device_get(self._parts.agent.snapshot(state))


def _light(state: Any) -> Any:
    """A learner's state without its replay memory."""
    return state._replace(memory=()) if hasattr(state, "memory") else state
