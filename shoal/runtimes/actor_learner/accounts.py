"""What is measured of a run of actors and a learner: where the time goes, how old and how damaged policies are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from shoal.core import types
from shoal.monitor import staleness, timing
from shoal.runtimes.actor_learner import actor, publisher, queue, sampling
from shoal.runtimes.crew import sharing

if TYPE_CHECKING:
    from shoal.runtimes import actor_learner

Told = dict[str, Any]  # an object of the summary, as JSON
LATE = 100  # newer versions than the one that acted, from which on a rollout is told as late


class Accounts:
    """All of it."""

    def __init__(self, config: actor_learner.Config, name: str, notes: sharing.Block, first: types.Packed) -> None:
        """Nothing has happened yet.

        Args:
            config: `actor_learner.Config`.
            name: Of the compressor.
            notes: What actors tell (`actor.layout`).
            first: The policy in full precision, packed.
        """
        self._config, self._name, self._notes = config, name, notes
        self.watch = timing.Stopwatch(timing.LEARNER)
        self._ended: dict[str, float] | None = None
        self._late = 0
        self._behind: dict[int, int] = {}  # actors that have fallen behind -> by how many updates when it was told
        self._rollouts = 0
        self._lags = staleness.Staleness()
        self._full_bytes, self._packed_bytes = len(first.payload), len(first.payload)
        self._bytes = self._publishes = self._failed = 0
        self._level, self._share = first.level, 0.0
        self._compress = timing.Quantiles()
        self._study: dict[str, float] = {}
        self.full_us: float | None = None  # of the fastest engine in full precision
        self.decisions: list[dict[str, int | str]] = []  # of the controller

    def begin(self) -> None:
        """Training begins."""
        self.watch = timing.Stopwatch(timing.LEARNER)

    def end(self) -> None:
        """Training is over."""
        self._ended = self.watch.split()

    @property
    def _split(self) -> dict[str, float]:
        return self._ended or self.watch.split()

    def engine(self) -> str:
        """What actors decide with; "" before one has begun."""
        return actor.read(self._notes["engine"][0])

    # ---------------------------------------------------------------- what happens

    def posted(self, packed: types.Packed) -> None:
        """A policy was posted for actors."""
        self._publishes += 1
        self._packed_bytes, self._level, self._share = packed.bytes, packed.level, packed.compressed
        self._bytes += packed.bytes
        self._compress.add(packed.seconds)

    def heard(self, told: publisher.Published) -> None:
        """The compressor has published, or failed to."""
        self._failed += bool(told.failed)
        self._study = told.metrics or self._study
        if told.bytes:
            self.posted(types.Packed(b"", told.version, told.bytes, told.seconds, told.level, "", told.compressed))

    def learnt(self, taken: queue.Taken, before: int) -> list[int]:
        """An update is made from these rollouts; `before`, updates so far.

        Returns:
            Actors that fell `LATE` versions behind, each told once.
        """
        fell = []
        versions = taken.rollout.version[:: self._config.environments].tolist()
        for worker, version in zip(taken.workers, versions, strict=True):
            lag = before - version
            self._lags.add(lag)
            if lag >= LATE * self._config.publish_every:
                self._late += 1
                if worker not in self._behind:
                    self._behind[worker] = lag
                    fell.append(worker)
        self._rollouts += len(taken.workers)
        return fell

    def old(self, worker: int) -> str:
        """What is told of an actor that fell behind."""
        return (
            f"a rollout of actor {worker} is of a policy {self._behind[worker]} updates old, though there is a newer "
            f"one every {self._config.publish_every}: they do not reach it, or take long to compress. Those are "
            "learned from, corrected as the corrector can, and counted as rollouts_late"
        )

    # ---------------------------------------------------------------- what is told

    def metrics(self, sample: sampling.Sampler | None) -> dict[str, float]:
        """Numbers that change as the run goes on."""
        split, wall = self._split, self.watch.wall_s
        told: dict[str, float | None] = {
            **self._study,
            **(sample.latest if sample else {}),
            "staleness": self._lags.quantile(0.5),
            "packed_bytes": self._packed_bytes,
            "publish_share": split["publish_s"] / wall if wall else None,
        }
        acting = self._notes["split"].sum(axis=0)
        if acting.sum():
            told["actor_inference_share"] = float(acting[0] / acting.sum())
        decisions = self._notes["decisions"].sum(axis=0)
        if total := decisions.sum():  # the bin of the median
            middle = int(np.searchsorted(decisions.cumsum(), total / 2))
            told["inference_us"] = 1e6 * timing.FINEST * 10 ** ((middle + 0.5) / timing.PER_DECADE)
        return {name: float(value) for name, value in told.items() if value is not None}

    def split(self) -> dict[str, float]:
        """As other runtimes tell it: actors' seconds, and the learner's."""
        inference, stepping, waiting, loading, other = self._notes["split"].sum(axis=0).tolist()
        mine = self._split
        return {
            "environment": stepping,
            "inference": inference + loading + other,
            "learning": mine["update_s"] + mine["publish_s"] + mine["other_s"],
            "waiting": waiting,
        }

    def faults(self, dropped: int = 0) -> dict[str, int]:
        """What was mended, by kind; nothing of what did not happen.

        Args:
            dropped: Rollouts that could not be learned from.
        """
        told = {
            "rollouts_dropped": dropped,
            "rollouts_late": self._late,
            "snapshots_refused": int(self._notes["refused"].sum()),
            "not_compressed": self._failed,
        }
        return {name: count for name, count in told.items() if count}

    def subsystems(
        self, corrector: str, sample: sampling.Sampler | None, update: Mapping[str, float], dropped: int = 0
    ) -> dict[str, Told]:
        """Objects of the summary.

        Args:
            corrector: Its name, or what stands for it.
            sample: Of rollouts; None where nothing is sampled.
            update: What the last update measured.
            dropped: As of `faults`.
        """
        told = {"actor": self._actor(dropped), "learner": self._learner(), "compression": self._compression(sample)}
        if sample is None:
            return told
        # Only the corrector itself knows which steps it rejects.
        rejected = {name: update.get(name) for name in ("rejected_low", "rejected_high")}
        return {**told, "correction": sample.drift.measured().correction(corrector) | rejected}

    def _actor(self, dropped: int) -> Told:
        notes = self._notes
        each = [dict(zip(_names(actor.SPLIT), row, strict=True)) for row in notes["split"].tolist()]
        split = timing.joined(each)
        decisions = timing.Quantiles(notes["decisions"].sum(axis=0).tolist())
        measured = self._measured()
        return {
            "engine": self.engine(),
            "engines_us": measured,
            "batch": self._config.environments,
            "inference_us": decisions.told(1e-6),
            "split": split,
            "wall_s": sum(split.values()),
            "staleness": self._lags.told(),
            "staleness_histogram": dict(self._lags.histogram()),
            "rollouts": self._rollouts,
            "dropped": dropped,
            "amdahl": self._amdahl(each, decisions.quantile(0.5), measured.get(self.engine())),
        }

    def _measured(self) -> dict[str, float]:
        names = [actor.read(room) for room in self._notes["names"][0]]
        return {name: float(us) for name, us in zip(names, self._notes["measured"][0], strict=True) if name}

    def _amdahl(
        self, each: list[dict[str, float]], decision: float | None, packed_us: float | None
    ) -> dict[str, float | None]:
        """What compressing gains by f and s: the network of a decision changes, what is around it in NumPy does not."""
        if not (self.full_us and packed_us and decision and sum(each[0].values())):
            return timing.amdahl(None, self.full_us, packed_us)
        around = max(decision * 1e6 - packed_us, 0.0)
        s = (self.full_us + around) / (packed_us + around)
        stages = timing.measured_stages(each, self._split)
        made = timing.predict(stages, s, packed=True, synchronous=self._config.lockstep)
        return timing.amdahl(made, self.full_us, packed_us)

    def _learner(self) -> Told:
        split = self._split
        wall = sum(split.values())
        return {"split": split, "wall_s": wall, "publish_share": split["publish_s"] / wall if wall else None}

    def _compression(self, sample: sampling.Sampler | None) -> Told:
        notes, wall = self._notes, sum(self._split.values())
        latency = timing.Quantiles(notes["latency"].sum(axis=0).tolist()).told()
        loads, compress = int(notes["loads"].sum()), self._compress.told()
        return {
            "name": self._name,
            "level": self._level,
            "bytes_full": self._full_bytes,
            "bytes_packed": self._packed_bytes,
            "bytes_per_s": self._bytes / wall if wall else None,
            "compressed_share": self._share,
            "compress_s": compress,
            "publish_latency_s": {
                **latency,
                "compress": compress["median"],
                "transfer": float(notes["transfer"].sum()) / loads if loads else None,
                "load": float(notes["split"][:, 3].sum()) / loads if loads else None,
            },
            "publishes": self._publishes,
            "refused": int(notes["refused"].sum()),
            "kl": float(np.mean(sample.kl)) if sample and sample.kl else None,
            "agreement": sample.drift.measured().action_agreement if sample else None,
            "return_full": None,
            "return_compressed": None,
            "decisions": self.decisions,
        }


class Asked(Mapping[str, Mapping[str, Any]]):
    """What is worked out when somebody asks: at the end, not ten times a second."""

    def __init__(self, make: Callable[[], Mapping[str, Mapping[str, Any]]]) -> None:
        self._make = functools.cache(make)

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        return self._make()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._make())

    def __len__(self) -> int:
        return len(self._make())


def _names(split: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name}_s" for name in split)
