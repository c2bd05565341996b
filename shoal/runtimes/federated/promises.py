"""What a run of parties on one machine promises of privacy, and keeps: between its rounds and its wire.

Noise and masks come from the run's seed here, so that a run can be repeated and goes on with the same bits: whoever
knows the seed can take them off. They are told as simulated everywhere. A deployment uses `leaving` and `masks` with
the system's secure source at each party instead.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from shoal.core import types
from shoal.runtimes.federated import (
    agreement,
    leaving,
    ledger,
    masks,
    message,
    privacy,
    rounds,
    trajectories,
    unmasking,
)

if TYPE_CHECKING:
    from shoal.runtimes.federated import Config, party, together

WIDE = 6.0  # standard deviations of noise that a masked number has room for


def at_home(config: Config, seed: int) -> leaving.Leaving:
    """What is done to updates of any party before they leave, but for masks; the runtime charges the ledger.

    Args:
        config: Of the runtime, checked.
        seed: Of the run.
    """
    inside = privacy.by_trajectory(config)  # then all of it was done within the update (`trajectories`)
    noise = config.noise if config.privacy == "local" and not inside else 0.0
    return leaving.Leaving(leaving.Settings(0.0 if inside else config.clip, noise), leaving.Seeded(seed), None)


class Promises:
    """Of one life of a run; nothing is kept but the ledger."""

    def __init__(self, config: Config, seed: int, spec: message.Spec) -> None:
        """Begin.

        Args:
            config: Of the runtime, checked (`privacy.check`).
            seed: Of the run.
            spec: Of the global part.
        """
        self._config = config
        unit = ledger.OWNER if config.privacy == "central" else config.unit
        self._settings = leaving.Settings(config.clip, config.noise, unit)
        self.ledger = (
            ledger.Ledger(None, delta=config.delta, max_epsilon=config.max_epsilon, unit=unit) if config.noise else None
        )
        draws = leaving.Seeded(seed)
        self._leaving, self._draws = at_home(config, seed), draws
        self._central = (
            leaving.Central(self._settings, max(1, round(config.participation * config.parties)), draws, self.ledger)
            if self.ledger and config.privacy == "central"
            else None
        )
        bound = config.clip * (1.0 + WIDE * (config.noise if config.privacy == "local" else 0.0))
        self._sums = unmasking.Simulated(seed, spec.size, bound) if config.secure_sum else None
        self.masked = spec._replace(dtype=masks.TYPES[32]) if config.secure_sum else None

    # ---------------------------------------------------------------- before a round

    def begins(self, round: int, who: Collection[int]) -> bool:
        """Whether these parties may be asked; the ledger is charged for what they are about to release.

        Args:
            round: Its number.
            who: Parties that are to be given a job.
        """
        if not who:
            return True
        if self._sums is not None:
            self._sums.begin(round, who)
        if self.ledger is None:
            return True
        central = self._config.privacy == "central"
        events = leaving.events(self._settings, [ledger.SERVER] if central else sorted(who), turn=round - 1)
        if not self.ledger.affords(events):
            return False
        if not central:  # the server's own release is charged when it is made
            self.ledger.charge(events)
        return True

    # ---------------------------------------------------------------- at a party

    def noised(self, homes: together.Homes, rounds: Mapping[int, int]) -> together.Homes:
        """Parties that are about to learn, with the noise of their next update where it is added within.

        Args:
            homes: Of all.
            rounds: Party -> its round.
        """
        if not privacy.by_trajectory(self._config):
            return homes
        return trajectories.noised(homes, rounds, self._config.clip * self._config.noise, self._draws)

    @property
    def leaving(self) -> party.Leaves:
        """What a party by itself does to an update, without masks (`party.Leaves`)."""
        return self._leaving

    def leaves(self, party: int, vector: np.ndarray, down: message.Down) -> np.ndarray:
        """An update as it leaves its party, ``[d]`` of the dtype of what is sent."""
        vector = self._leaving(vector, party=party, turn=down.header.round - 1)
        if self._sums is None:
            return vector
        return self._sums.masked(down.header.round, party, vector)

    # ---------------------------------------------------------------- at the server

    @property
    def release(self) -> rounds.Release | None:
        """What takes the place of the server's rule; None: its rule does."""
        return self._released if self._sums is not None or self._central is not None else None

    def _released(self, came: rounds.Came) -> np.ndarray | None:
        """See `rounds.Release`."""
        if self._sums is None:
            assert self._central is not None
            return self._central(came.updates, turn=came.round - 1)
        try:
            total = self._sums.total(came.round, dict(zip(came.parties, came.updates, strict=True)))
        except masks.Aborted:
            return None
        if self._central is not None:
            return self._central.noised(total, turn=came.round - 1)
        return (total / len(came.parties)).astype(np.float32)

    # ---------------------------------------------------------------- told

    @property
    def artefacts(self) -> Mapping[str, types.Artefact]:
        """The ledger, where there is one."""
        return {ledger.FILE: self.ledger} if self.ledger is not None else {}

    def summary(self, *, last: bool) -> dict[str, object]:
        """Keys of ``federation``; what does not hold, or was not measured, is None.

        Args:
            last: Whether the run is over: epsilon is then told by the tight accountant.
        """
        config = self._config
        total = self.ledger.total(tight=last) if self.ledger is not None else None
        return {
            "privacy": config.privacy,
            "epsilon": total.epsilon if total else None,
            "epsilon_rdp": total.epsilon_rdp if total else None,
            "delta": total.delta if total else None,
            "privacy_unit": total.unit if total else None,
            "privacy_relation": total.relation if total else None,
            "max_epsilon": config.max_epsilon or None,
            "releases": total.releases if total else None,
            "secure_sum": config.secure_sum,
            "privacy_warning": privacy.warning(config) or None,
            **self._told(),
        }

    def _told(self) -> dict[str, float | None]:
        """Of the norms before the clip, where they were seen: parties in processes of their own keep them."""
        told = self._leaving.told()
        return told if told["clip_fraction"] is not None and self._config.clip else {"clip_fraction": None}

    def simulated(self) -> list[str]:
        """What of it is only played here."""
        return [
            *([leaving.SIMULATED] if self._config.noise else []),
            *([agreement.SIMULATED] if self._config.secure_sum else []),
        ]
