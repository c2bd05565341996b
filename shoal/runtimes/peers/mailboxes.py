"""What learners of linear weights send each other, how it is merged, and the mailboxes it goes through.

Grounds & Kudenko 2008 exchange information taken from linear weights; the three schemes are our reading. A message
holds entries of the weights: index, value, and how often the feature was active since the sender last told it (n).

average        every entry; w ← Σ n w / Σ n, unchanged where the sum is 0
filtered       the entries that moved by more than a threshold since all knew them; the same sum over those
asynchronous   the same entries, merged with one's own when they are found; nobody waits
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from shoal.runtimes.crew import sharing

INDEX, VALUE, COUNT = 4, 8, 4  # bytes of an entry
ENTRY = INDEX + VALUE + COUNT


class Message(NamedTuple):
    """Some entries of one learner's weights."""

    entry: np.ndarray  # [k] i4, indices, each at most once
    value: np.ndarray  # [k] f8
    visits: np.ndarray  # [k] i4, visits since the sender last told the entry


def whole(weights: np.ndarray, visits: np.ndarray) -> Message:
    """Every entry."""
    return Message(np.arange(len(weights), dtype=np.int32), weights.copy(), visits.astype(np.int32))


def moved(weights: np.ndarray, known: np.ndarray, visits: np.ndarray, threshold: float) -> Message:
    """The entries further than `threshold` from what the others know of them."""
    index = np.flatnonzero(np.abs(weights - known) > threshold).astype(np.int32)
    return Message(index, weights[index], visits[index].astype(np.int32))


def averaged(known: np.ndarray, messages: Sequence[Message]) -> np.ndarray:
    """Σ n w / Σ n of every entry told, in the order of the messages; as `known` where nobody visited.

    Args:
        known: What stands where the sum is 0, ``[size]``.
        messages: One of each learner, always in the same order, so that all come to the same bits.
    """
    total, weight = np.zeros(len(known)), np.zeros(len(known))
    for index, value, count in messages:
        total[index] += count * value
        weight[index] += count
    return np.where(weight > 0, total / np.maximum(weight, 1.0), known)


def size(message: Message, *, dense: bool) -> int:
    """Bytes of a message; one with every entry in order needs no indices."""
    return len(message.entry) * (VALUE + COUNT if dense else ENTRY)


def layout(workers: int, weights: int, slots: int) -> sharing.Layout:
    """The shared arrays of the mailboxes; an array ``[workers]`` has a single writer for each entry.

    A sender keeps its newest messages in a ring, and every receiver its place in it: a mailbox of `slots` messages for
    each pair, whose contents are kept once.

    Args:
        workers: Learners, N.
        weights: Entries of a vector.
        slots: Messages a mailbox holds.
    """
    return {
        "slot_index": ((workers, slots, weights), "i4"),
        "slot_value": ((workers, slots, weights), "f8"),
        "slot_count": ((workers, slots, weights), "i4"),
        "slot_length": ((workers, slots), "i8"),
        "slot_steps": ((workers, slots), "i8"),  # environment steps of the sender when it posted
        "posted": ((workers,), "i8"),  # messages
        "taken": ((workers, workers), "i8"),  # [receiver, sender] the number of the next message to take
        "dropped": ((workers,), "i8"),  # by receiver, those found lost
        "messages": ((workers,), "i8"),  # sent, one for each receiver
        "bytes": ((workers,), "i8"),
    }


class Mailboxes:
    """One learner's view. The lock is held for one copy, never while anybody waits for anybody."""

    def __init__(self, block: sharing.Block, mine: int) -> None:
        self._block, self._mine = block, mine
        self._workers, self._slots = block["slot_length"].shape

    def post(self, message: Message, steps: int, *, dense: bool = False) -> None:
        """Put a message into the mailbox of every other learner; the oldest is lost where one is full.

        Args:
            message: What to tell.
            steps: Environment steps of this learner.
            dense: It holds every entry in order.
        """
        block, mine, length = self._block, self._mine, len(message.entry)
        with block.locked():
            slot = int(block["posted"][mine]) % self._slots
            for name, leaf in zip(("slot_index", "slot_value", "slot_count"), message, strict=True):
                block[name][mine, slot, :length] = leaf
            block["slot_length"][mine, slot], block["slot_steps"][mine, slot] = length, steps
            block["posted"][mine] += 1
        others = self._workers - 1
        block["messages"][mine] += others
        block["bytes"][mine] += others * size(message, dense=dense)

    def everybody_posted(self, number: int) -> bool:
        """Whether message `number` (from 0) of every learner is there."""
        return bool((self._block["posted"] > number).all())

    def round(self, number: int) -> tuple[list[Message], int]:
        """Message `number` of every learner, one's own included, and the steps of all when they posted it."""
        slot = number % self._slots
        with self._block.locked():
            told = [self._copy(sender, slot) for sender in range(self._workers)]
            return told, int(self._block["slot_steps"][:, slot].sum())

    def found(self) -> Iterator[Message]:
        """Takes what others posted since the last time, sender by sender, oldest first; never waits."""
        block, mine = self._block, self._mine
        for sender in range(self._workers):
            if sender == mine:
                continue
            with block.locked():
                posted, taken = int(block["posted"][sender]), int(block["taken"][mine, sender])
                oldest = max(taken, posted - self._slots)
                messages = [self._copy(sender, number % self._slots) for number in range(oldest, posted)]
                block["dropped"][mine] += oldest - taken
                block["taken"][mine, sender] = posted
            yield from messages

    def _copy(self, sender: int, slot: int) -> Message:
        block = self._block
        length = int(block["slot_length"][sender, slot])
        return Message(
            *(block[name][sender, slot, :length].copy() for name in ("slot_index", "slot_value", "slot_count"))
        )


def dropped(block: sharing.Block) -> int:
    """Messages lost in full mailboxes, those not looked for yet included."""
    slots = block["slot_length"].shape[1]
    behind = block["posted"][None, :] - block["taken"] - slots
    np.fill_diagonal(behind, 0)
    return int(block["dropped"].sum() + np.maximum(behind, 0).sum())
