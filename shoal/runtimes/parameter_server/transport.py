"""How bundles and the shards of a parameter server reach each other on one machine: shared memory and bells.

The rules live elsewhere (`shoal.formulas.in_place`, `guards`); a transport between machines offers the same two ends:

* a bundle's: `Client.fetch` (K slices, K versions), `Client.push` (a gradient with the versions it was taken at) and
  `Client.settled` (whether every push of its own is applied);
* a shard's: `Inbox.take` (the next push), `Inbox.writing` (around its apply; the version counts up) and `Inbox.wait`.

Every gradient that is let in takes the next *ticket*, and every shard applies tickets in their order at its own pace:
its version is the number it has applied. So the lag that a gradient will meet at each shard is known when it asks to be
let in, and it is refused whole or not at all. What a shard is behind is its queue, bounded by the ring they all read.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from shoal.formulas import optimise
from shoal.runtimes.crew import sharing

GATE = 0  # place of the lock under which tickets are given out; a shard's slice has the place 1 + its number,
# and what bundles share among themselves the one after


class Bells(NamedTuple):
    """One for every process that sleeps."""

    shards: list[sharing.Bell]
    bundles: list[sharing.Bell]

    def close(self) -> None:
        """Let go of them."""
        for bell in (*self.shards, *self.bundles):
            bell.close()


class Push(NamedTuple):
    """What a shard needs to apply its part of a gradient."""

    gradient: np.ndarray  # [slice] f32
    hyper: optimise.Hyper  # Python floats
    eta: Any  # the step size: a float, or one for each parameter of the slice


class Answer(NamedTuple):
    """What became of a gradient that was offered."""

    taken: bool
    lag: int  # versions that the slowest fetched slice is behind the ticket that was up


def layout(size: int, shards: int, queue: int, rated: bool) -> sharing.Layout:
    """The shared arrays of the server; every element has a single writer, or is written under a lock.

    Args:
        size: Parameters.
        shards: K.
        queue: Pushes that a shard may be behind.
        rated: Whether a push brings a step size for every parameter.
    """
    return {
        "theta": ((size,), "f4"),  # parameters
        "g": ((size,), "f4"),  # the rule's statistic of each
        "tickets": ((1,), "i8"),  # pushes let in; under the gate
        "taken": ((shards,), "i8"),  # tickets a shard has begun
        "version": ((shards,), "i8"),  # tickets it has done with; under its slice's lock
        "lost": ((shards,), "i8"),  # tickets it died over
        "busy": ((shards,), "f8"),  # seconds it was not waiting
        "gradients": ((queue, size), "f4"),  # the ring
        "rates": ((queue, size if rated else 0), "f4"),  # likewise, factors of the step size
        "numbers": ((queue, len(optimise.Hyper._fields) + 1), "f8"),  # likewise, the rule's numbers and the step size
        "sender": ((queue,), "i8"),  # likewise, the bundle
    }


def slices(size: int, shards: int) -> list[slice]:
    """Disjoint contiguous parts of the flat vector, one a shard, as equal as can be."""
    ends = [size * shard // shards for shard in range(shards + 1)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]


class Client:
    """A bundle's end."""

    def __init__(self, block: sharing.Block, bells: Bells, bundle: int) -> None:
        """Nothing is pushed yet."""
        self._block, self._bells, self._bundle = block, bells, bundle
        self._slices = slices(len(block["theta"]), len(block["version"]))
        self._mine = 0  # tickets up to the last push of this bundle

    def fetch(self, room: np.ndarray) -> np.ndarray:
        """The parameters into `room` ``[size]``, each slice whole; returns their versions ``[K]``."""
        block, versions = self._block, np.empty(len(self._slices), np.int64)
        for shard, part in enumerate(self._slices):
            with block.locked(1 + shard, reading=True):
                room[part] = block["theta"][part]
                versions[shard] = block["version"][shard]
        return versions

    def push(
        self, gradient: np.ndarray, versions: np.ndarray, hyper: optimise.Hyper, eta: float, rates: Any, max_lag: int
    ) -> Answer | None:
        """Offer a gradient; None while a queue is full.

        Args:
            gradient: ``[size]`` f32.
            versions: ``[K]`` of the slices it was computed from.
            hyper: The rule's numbers.
            eta: Step size.
            rates: ``[size]`` factors of it, or None.
            max_lag: It is refused whole where any of its slices is more versions behind; 0 takes everything.
        """
        block = self._block
        queue = len(block["sender"])
        with block.locked(GATE):
            ticket = int(block["tickets"][0])
            lag = ticket - int(versions.min())  # every shard has version `ticket` when this one's turn comes
            if max_lag and lag > max_lag:
                return Answer(taken=False, lag=lag)
            if ticket - int(block["version"].min()) >= queue:
                return None
            slot = ticket % queue
            block["gradients"][slot] = gradient
            if rates is not None:
                block["rates"][slot] = rates
            block["numbers"][slot] = (*hyper, eta)
            block["sender"][slot] = self._bundle
            block["tickets"][0] = self._mine = ticket + 1  # last: a bundle that dies before leaves nothing
        for bell in self._bells.shards:
            bell.ring()
        return Answer(taken=True, lag=lag)

    def settled(self) -> bool:
        """Whether all pushes of this bundle are applied everywhere: then a fetch reads its own writes."""
        return int(self._block["version"].min()) >= self._mine

    def sleep(self, seconds: float) -> None:
        """Sleep until a shard has applied something of this bundle's, so many seconds at most."""
        self._bells.bundles[self._bundle].wait(seconds)

    def among_bundles(self) -> sharing.Lock:
        """For what bundles share besides the server: ``with`` it, one of them at a time."""
        return self._block.locked(1 + len(self._slices))


class Inbox:
    """A shard's end."""

    def __init__(self, block: sharing.Block, bells: Bells, shard: int) -> None:
        self._block, self._bells, self._shard = block, bells, shard
        self.part = slices(len(block["theta"]), len(block["version"]))[shard]
        self._let_in = 0

    def recover(self) -> None:
        """Begin where an earlier process of this shard ended; what it died over may be applied in part, never twice."""
        block, shard = self._block, self._shard
        with block.locked(1 + shard):
            lost = int(block["taken"][shard] - block["version"][shard])
            block["lost"][shard] += lost
            block["version"][shard] = block["taken"][shard]

    def take(self) -> Push | None:
        """The next push in the order of tickets; None if there is none now."""
        block, shard = self._block, self._shard
        ticket = int(block["version"][shard])
        if ticket >= self._let_in:
            with block.locked(GATE, reading=True):
                self._let_in = int(block["tickets"][0])
            if ticket >= self._let_in:
                return None
        block["taken"][shard] = ticket + 1
        slot = ticket % len(block["sender"])
        *hyper, eta = block["numbers"][slot].tolist()
        factors = block["rates"][slot]
        return Push(
            block["gradients"][slot, self.part],
            optimise.Hyper(*hyper),
            np.float32(eta) * factors[self.part] if factors.size else eta,
        )

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Around the apply of what was taken last: nobody reads the slice meanwhile, and then its version is new."""
        block, shard = self._block, self._shard
        ticket = int(block["version"][shard])
        sender = int(block["sender"][ticket % len(block["sender"])])
        with block.locked(1 + shard):
            yield
            block["version"][shard] = ticket + 1
        self._bells.bundles[sender].ring()

    def wait(self, seconds: float) -> None:
        """Sleep until something may have come."""
        self._bells.shards[self._shard].wait(seconds)
