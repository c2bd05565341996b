"""The other side of a secure sum: the server of a round, and both sides together for simulations (see `masks`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from shoal.runtimes.federated import agreement, masks, shares

# ------------------------------------------------------------------------------------------------ the server


class Sum:
    """The server in one round: it carries what it cannot read, adds up, and takes off what is left of the masks."""

    def __init__(self, settings: masks.Settings, kit: agreement.Kit) -> None:
        """Args: `settings`, of the round; `kit`, how keys agree (none of its secrets is drawn)."""
        self._settings, self._kit = settings, kit
        self._hellos: dict[int, masks.Hello] = {}
        self._boxes: dict[int, dict[int, bytes]] = {}  # to whom -> from whom -> sealed
        self._senders: list[int] = []  # of shares, ascending
        self._closed = False  # whether boxes were opened: all must have masks with the same others
        self._masked: dict[int, np.ndarray] = {}
        self._shown: dict[int, masks.Shown] = {}

    def hello(self, party: int, hello: masks.Hello) -> None:
        """Keys of a party; the first count."""
        if party in self._settings.cohort:
            self._hellos.setdefault(party, hello)

    def hellos(self) -> dict[int, masks.Hello]:
        """Those of all, for all.

        Raises:
            Aborted: There are too few.
        """
        self._settings.enough(self._hellos)
        return dict(sorted(self._hellos.items()))

    def shared(self, party: int, sealed: Mapping[int, bytes]) -> None:
        """Shares of a party; too late once boxes are opened."""
        if self._closed or party not in self._hellos:
            return
        self._senders = sorted({*self._senders, party})
        for to, data in sealed.items():
            self._boxes.setdefault(to, {})[party] = data

    def inbox(self, party: int) -> dict[int, bytes]:
        """What there is for a party.

        Raises:
            Aborted: Too few sent shares.
        """
        self._settings.enough(self._senders)
        self._closed = True
        return dict(sorted(self._boxes.get(party, {}).items()))

    def take(self, party: int, masked: np.ndarray) -> None:
        """A masked update, ``[d]``; the first counts."""
        if party in self._senders and masked.shape == (self._settings.size,):
            self._masked.setdefault(party, masked)

    def asks(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Whose update arrived, and whose will not: what those who are left must be told.

        Raises:
            Aborted: Too few arrived.
        """
        self._settings.enough(self._masked)
        return tuple(sorted(self._masked)), tuple(one for one in self._senders if one not in self._masked)

    def shown(self, party: int, shown: masks.Shown) -> None:
        """What a party shows."""
        if party in self._masked:
            self._shown.setdefault(party, shown)

    def total(self) -> np.ndarray:
        """The sum of the whole numbers of those who arrived, ``[d]``.

        Raises:
            Aborted: Too few showed their shares, or a share is wrong.
        """
        arrived, lost = self.asks()
        self._settings.enough(self._shown)
        holders = sorted(self._shown)[: self._settings.threshold]
        factors = shares.weights([party + 1 for party in holders])
        total = np.zeros(self._settings.size, self._settings.dtype)
        try:
            for party in arrived:
                values = {one + 1: self._shown[one].alone[party] for one in holders}
                total += self._masked[party] - masks.stream(shares.joined(values, factors), self._settings)
            for party in lost:
                values = {one + 1: self._shown[one].keys[party] for one in holders}
                keys = self._kit.keys(shares.joined(values, factors))
                if keys.public != self._hellos[party].masking:
                    raise ValueError("a secret that is not behind its public key")
                for other in arrived:  # what `other` added for its mask with the lost one, it takes back
                    total += masks.between(self._settings, keys, party, other, self._hellos[other].masking)
        except (KeyError, ValueError) as wrong:
            raise masks.Aborted(
                "the masks cannot be taken off: a share is missing or wrong; the round fails"
            ) from wrong
        return total


# ------------------------------------------------------------------------------------------------ a simulation


class Simulated:
    """Both sides of every round in one process, with keys from the run's seed: the same numbers, no protection."""

    def __init__(self, seed: int, size: int, bound: float, bits: int = 32) -> None:
        """Args: `seed`, of the run; `size`, d; `bound`, c; `bits`, b."""
        self._seed, self._size, self._bound, self._bits = seed, size, bound, bits
        self._open: dict[int, tuple[masks.Settings, dict[int, masks.Member], Sum]] = {}  # round -> it

    def begin(self, round_: int, cohort: Collection[int]) -> None:
        """The first two exchanges of a round: keys, and shares of secrets; a second call of a round is nothing."""
        if round_ in self._open:
            return
        parties = tuple(sorted(cohort))
        settings = masks.Settings(
            parties, masks.threshold(len(parties)), self._bound, self._size, round_, bits=self._bits
        )
        kits = {one: agreement.simulated(self._seed, one, round_) for one in parties}
        members = {one: masks.Member(one, settings, kits[one]) for one in parties}
        server = Sum(settings, agreement.simulated(self._seed, "server", round_))
        for one, member in members.items():
            server.hello(one, member.hello())
        if len(parties) >= settings.threshold:
            for one, member in members.items():
                server.shared(one, member.shared(server.hellos()))
        self._open = {round_: (settings, members, server)}  # a round that is over is forgotten

    def masked(self, round_: int, party: int, vector: np.ndarray) -> np.ndarray:
        """What a party sends, ``[d]``; zeros where the round is aborted before it began."""
        settings, members, server = self._open[round_]
        if len(members) < settings.threshold:
            return np.zeros(self._size, settings.dtype)
        return members[party].masked(vector, server.inbox(party))

    def total(self, round_: int, sent: Mapping[int, np.ndarray]) -> np.ndarray:
        """The sum of the updates of those who sent, f64 ``[d]``.

        Raises:
            Aborted: There are too few of them.
        """
        if round_ not in self._open:
            raise masks.Aborted("nobody was asked; the round fails")
        settings, members, server = self._open.pop(round_)
        for party, vector in sorted(sent.items()):
            server.take(party, vector)
        arrived, lost = server.asks()
        for party in arrived:
            server.shown(party, members[party].shown(arrived, lost))
        return masks.restored(server.total(), len(arrived), settings)
