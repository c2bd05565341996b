"""Applies one at a time, in an order that is written down: what a replayable run does instead of racing.

Whoever holds the lock takes the next ticket. A worker may be killed at any instant, also halfway through an apply; so
the state before it is kept in a journal until the ticket is done, and whoever takes the lock next puts it back. Every
reader thus sees the state after a whole number of tickets, and the record never names one that was not finished.
"""

from __future__ import annotations

from shoal.monitor import asynchrony
from shoal.runtimes.crew import sharing


def layout(state: sharing.Layout, tickets: int) -> sharing.Layout:
    """What a replayable run needs beside its state.

    Args:
        state: The arrays that tickets change; they come first in the block.
        tickets: The most there can be; memory is taken only as they come.
    """
    return {
        "journal": ((sharing.size(state),), "u1"),  # the state before the ticket under way
        "open": ((1,), "i4"),  # 1 while a ticket is under way
        "record": ((tickets,), asynchrony.ROW),
    }


class Tickets:
    """The lock, the journal and the record of one run.

    ``with tickets:`` nothing changes but by the one inside, and the state is that after the last ticket that was
    finished.
    """

    def __init__(self, block: sharing.Block, state: int) -> None:
        """Args: `block`, laid out with `layout`; `state`, how many of its arrays tickets change."""
        self._lock, self._state = block.locked(), block.leading(state)
        self._journal, self._open = block["journal"], block["open"]
        self._count, self._record = block["tickets"], block["record"]

    def __enter__(self) -> None:
        self._lock.__enter__()
        if self._open[0]:  # its holder died, or failed
            self._state[:] = self._journal
            self._open[0] = 0

    def __exit__(self, *_: object) -> None:
        self._lock.__exit__()

    def begin(self) -> None:
        """The next ticket, for whoever is inside: what changes from here on counts only with `finish`."""
        self._journal[:] = self._state
        self._open[0] = 1

    def finish(self, worker: int, incarnation: int, read: int, steps: int, flag: int) -> None:
        """Write the ticket's row, and let its changes count."""
        n = int(self._count[0])
        self._record[n] = (worker, incarnation, read, steps, flag)
        self._count[0] = n + 1
        self._open[0] = 0

    def record(self, first: int) -> asynchrony.Record:
        """The tickets so far, from the one numbered `first` on."""
        with self:
            return asynchrony.rows(self._record[first : int(self._count[0])])
