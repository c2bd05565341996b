"""What parties that train together tell: episodes, means of what they measure, and the summary's `federation`."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from shoal.core import types
from shoal.runtimes.federated import network, server, tally

LAST = 100  # training episodes of a party that its return is the mean of


class About(NamedTuple):
    """What is known of a run before its first round."""

    names: tuple[str, ...]
    envs: tuple[str, ...]
    form: str  # of the networks
    mode: str  # what is exchanged
    shared: int  # numbers in the global part
    own: int  # numbers of a party's parameters that are its own
    more: Mapping[str, types.Scalar | str | None]  # what else is told, e.g. of privacy


class Telling:
    """What adds up over a life of the run."""

    def __init__(self, about: About) -> None:
        self._about = about
        self._returns: list[collections.deque[float]] = [collections.deque(maxlen=LAST) for _ in about.names]
        self._episodes: list[types.Episode] = []
        self._metrics: Sequence[Mapping[str, float]] = ()
        self._closed: tally.Closed | None = None
        self.faults: Mapping[str, int] = {}
        self.evaluating_s = 0.0

    def take(self, told: network.Told) -> None:
        """What happened beside the channel."""
        for episode in told.episodes:
            self._returns[episode.worker].append(episode.episode_return)
        self._episodes += told.episodes
        self._metrics, self.faults = told.metrics, told.faults

    def closed(self, closed: tally.Closed) -> None:
        """A round is over."""
        self._closed = closed

    def episodes(self) -> list[types.Episode]:
        """Finished since they were asked for last."""
        found, self._episodes = self._episodes, []
        return found

    def metrics(self, evaluated: Sequence[float], served: server.Server | None = None) -> dict[str, float]:
        """Means over parties of what they measured last, and of rounds.

        Args:
            evaluated: Returns of the last evaluation on the way.
            served: The server; None: rounds are not told of.
        """
        there = [one for one in self._metrics if one]
        names = there[0] if there else ()
        told = {name: float(np.mean([one[name] for one in there if name in one])) for name in names}
        if self._closed is not None and served is not None:
            counted, closed = served.tally.told(), self._closed
            told |= {f"federation.{name}": float(counted[name]) for name in ("rounds", "bytes_up", "bytes_down")}
            told["federation.version"] = float(closed.version)
            told["federation.participation"] = len(closed.took) / len(self._about.names)
            told["federation.rejected"] = float(sum(counted["rejected"].values()))
            if closed.took:
                told["federation.update_norm"] = float(np.median(closed.norms)) if len(closed.norms) else math.nan
                told["federation.staleness"] = float(np.mean(closed.lags))
        if len(evaluated):
            told |= {"federation.mean": float(np.mean(evaluated)), "federation.worst": float(np.min(evaluated))}
        return {name: value for name, value in told.items() if math.isfinite(value)}

    def summary(
        self, served: server.Server, each: Sequence[int], returns: Sequence[float], measured: Sequence[bool]
    ) -> dict[str, object]:
        """The summary's object; what was not measured is None.

        Args:
            served: The server.
            each: Environment steps of every party.
            returns: Of the last evaluation on the way.
            measured: Whether there was one.
        """
        about = self._about
        every = [
            {
                "name": name, "env": env, "env_steps": int(steps), "return": mean, "on_the_way": value if ok else None,
                "evaluation": None,
            }
            for name, env, steps, mean, value, ok in zip(
                about.names, about.envs, each, self._means(), map(float, returns), measured, strict=True
            )
        ]  # fmt: skip
        return {
            "owners": len(about.names),
            "form": about.form,
            "mode": about.mode,
            "aggregator": served.rules.aggregator,
            "asynchronous": served.rules.asynchronous,
            "local_updates": served.rules.settings.local_updates,
            "version": served.version,
            "global_params": about.shared,
            "local_params": about.own,
            "spec_hash": served.spec.digest.hex()[:16],
            **served.tally.told(),
            **about.more,
            "evaluating_s": self.evaluating_s,
            "parties": every,
            "evaluation": None,
        }

    def _means(self) -> list[float | None]:
        return [float(np.mean(one)) if one else None for one in self._returns]
