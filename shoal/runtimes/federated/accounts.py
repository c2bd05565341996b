"""What parties of one machine tell beside the channel, added up for a report; none of it is ever on the wire."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.core import types
from shoal.runtimes.experience import finite
from shoal.runtimes.federated import network, working


class Accounts:
    """Of all parties, since the beginning of this life and since the last look."""

    def __init__(self, parties: int) -> None:
        """Args: `parties`, N."""
        self.env_steps = [0] * parties
        self._metrics: list[dict[str, float]] = [{} for _ in range(parties)]
        self._skipped = [0] * parties
        self._unfit = [0, 0]
        self._episodes: list[types.Episode] = []

    def begin(self, steps: Sequence[int]) -> None:
        """Go on from so many environment steps of each."""
        self.env_steps = list(steps)

    def take(self, party: int, told: working.Told, env_steps: int) -> None:
        """A round of one party.

        Args:
            party: Its number.
            told: What the round was like.
            env_steps: Of the party, that round included.
        """
        before, each = self.env_steps[party], len(self.env_steps)
        self._episodes += [
            types.Episode((before + one.at) * each, one.episode_return, one.length, party) for one in told.episodes
        ]
        self.env_steps[party], self._metrics[party] = env_steps, dict(told.metrics)
        self._skipped[party] += told.skipped
        self._unfit = [count + more for count, more in zip(self._unfit, told.unfit, strict=True)]

    def told(self, restarts: int = 0) -> network.Told:
        """What happened since the last look; metrics are the latest, counts those of this life."""
        episodes, self._episodes = sorted(self._episodes, key=lambda one: (one.env_steps, one.worker)), []
        faults = {"non_finite": sum(self._skipped), "restarts": restarts, **finite.faults(*self._unfit)}
        return network.Told(episodes, [dict(one) for one in self._metrics], list(self.env_steps), faults)
