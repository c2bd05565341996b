"""One run of a parameter server as its parent sees it: starts shards and bundles, watches them, saves, reports."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from shoal.core import seeds, tree, types
from shoal.runtimes.crew import crew, lags, life, messages, observed, sharing
from shoal.runtimes.experience import finite
from shoal.runtimes.parameter_server import bundle_process, bundle_state, shard_process, transport

SAVED = ("theta", "g", "steps", "updates", "lag_sum", "lag_max", "lags", "normaliser")  # shared arrays in a checkpoint
DRAINED = 10.0  # seconds in which shards must apply what was let in


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
        memory = parts.agent.about.fields.memory  # the bundles' own
        self._state = jax.jit(lambda key: tree.replaced(parts.agent.init(key), memory, ()))(seeds.key(seed, "init"))
        self._flat = tree.flattener(self._state.params)
        observed = self._state.normaliser.mean.size if self._state.normaliser else 0
        rated = bool(jax.tree.leaves(self._state.optimiser.rates))
        size, shards, bundles = self._flat.size, config.shards, config.bundles
        layout = transport.layout(size, shards, config.queue, rated)
        self._block = sharing.Block({**layout, **bundle_state.layout(bundles, observed)})
        self._block["theta"][:] = self._flat.flatten(self._state.params)
        self._settings = bundle_state.Settings(
            max_lag=config.max_lag,
            outlier_sigma=config.outlier_sigma,
            n_fetch=config.n_fetch,
            n_push=config.n_push,
        )
        self._like = bundle_state.kept(parts, self._settings)
        self._areas = [bundle_state.area(self._like) for _ in range(bundles)]
        self._bells: Any = None
        self._life = 0  # lives of the run: 0, and one more for each resume; keeps seeds from being used twice
        self._crew: Any = None  # while it works
        self._watch: Any = None
        self._before = 0  # pushes of earlier lives

    # ---------------------------------------------------------------- checkpoints

    def save(self) -> types.Tree:
        """The checkpoint, while every bundle holds still and all pushes are applied.

        Bundles' states are views; bundles hold still until `watch` lets them go on.
        """
        block = self._block
        whole = self._crew.hold() if self._crew else np.ones(self._config.bundles, bool)
        with block.locked(transport.GATE, reading=True):  # one that is late may push at any moment, but not now
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

    def _left(self, bundle: int) -> bundle_state.Kept:
        return tree.fill(self._like, self._areas[bundle].arrays)

    def _nothing(self) -> bundle_state.Kept:
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

    def _drain(self) -> None:
        """Wait until shards have applied what was let in."""
        block, until = self._block, time.monotonic() + DRAINED
        while self._crew and block["version"].min() < block["tickets"][0] and time.monotonic() < until:
            self._crew.look(0.002)

    # ---------------------------------------------------------------- workers

    def roles(self) -> list[life.Role]:
        """The bundles, and the shards that they wait for."""
        config = self._config
        return [
            life.Role(
                name="bundle", workers=config.bundles, open=bundle_process.Bundle, job=self._bundle, holds=True,
                report_s=config.report_s,
            ),
            life.Role(
                name="shard", workers=config.shards, open=shard_process.Shard, job=self._shard, together=False,
                report_s=shard_process.BEAT,
            ),
        ]  # fmt: skip

    def train(self, began: float, form: Any = crew.Processes) -> types.Result:
        """Work until every bundle is done, and every push applied.

        Args:
            began: ``time.monotonic()`` when the runtime was asked to run.
            form: Of the crew.
        """
        counts = self._config.shards, self._config.bundles
        self._bells = transport.Bells(*([sharing.Bell() for _ in range(count)] for count in counts))
        try:
            with form(self.roles(), self._observe.fault) as self._crew:
                self._watch = crew.Watch(self._crew, "bundle", self._observe)
                startup = self._watch.run(began, self._progress)
                self._crew.stop("shard")
                for bell in self._bells.shards:
                    bell.ring()
                while not self._crew.finished("shard"):
                    self._crew.look(0.1)
                final = self._progress([])
        finally:
            self._crew = None
            self._bells.close()
        return types.Result(policy=self.policy(), final=final, startup_s=startup)

    def _shard(self, shard: int, incarnation: int) -> shard_process.Job:
        del incarnation  # what the last one had is in shared memory
        return shard_process.Job(block=self._block, bells=self._bells, shard=shard, rule=self._state.optimiser.rule)

    def _bundle(self, bundle: int, incarnation: int) -> bundle_process.Job:
        return bundle_process.Job(
            block=self._block,
            bells=self._bells,
            area=self._areas[bundle],
            rebuild=self._parts.rebuild,
            seed=self._seed,
            bundle=bundle,
            incarnation=crew.number(self._life, incarnation),
            steps=self._steps,
            settings=self._settings,
            restore=incarnation == 0 and bool(self._block["kept"][bundle]),
        )

    # ---------------------------------------------------------------- reports

    def _progress(self, episodes: list[types.Episode]) -> types.Progress:
        block, bundles, shards = self._block, self._crew.about("bundle"), self._crew.about("shard")
        pids = bundles["pids"] + shards["pids"]
        dropped = dict(zip(bundle_state.DROPPED, block["dropped"].sum(axis=0).tolist(), strict=True))
        return types.Progress(
            env_steps=int(block["steps"].sum()),
            updates=int(block["updates"].sum()),
            train_s=self._watch.train_s,
            episodes=episodes,
            metrics=self._watch.metrics,
            split=dict(zip(messages.SPLIT, block["split"].sum(axis=0).tolist(), strict=True)),
            workers={**bundles, **lags.told(block), "pids": pids},
            faults={
                "restarts": bundles["restarts"] + shards["restarts"],
                **dropped,
                **finite.faults(*block["unfit"].sum(axis=0)),
            },
            save=self.save,
            policy=self.policy,
            subsystems={"server": self._server(self._watch.train_s, shards["restarts"])},
        )

    def _server(self, train_s: float, restarts: int) -> dict[str, Any]:
        """What the shards did in this life, and how old gradients were when they were offered."""
        block = self._block
        applied, busy = (block["version"] - self._before - block["lost"]).tolist(), block["busy"].tolist()
        offered = block["offered"].sum(axis=0).tolist()
        return {
            "shards": self._config.shards,
            "restarts": restarts,
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
        normaliser = observed.normaliser(block, self._state.normaliser)
        steps = np.int32(block["steps"].sum())
        state = self._state._replace(params=params, normaliser=normaliser, env_steps=steps)
        return jax.device_get(self._parts.agent.snapshot(state))
