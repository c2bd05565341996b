"""The epsilon ledger: what each release of noised numbers costs, written down before the first byte of it leaves.

One JSON line a release, appended and fsynced. A crash between line and release counts as spent, so a resumed run keeps
every line that is there, also those after its checkpoint. The budget is held against Rényi accounting (Mironov 2017,
arXiv:1702.07476), which composes in microseconds; the privacy loss distribution, about 7 % tighter, is what is
reported. Both are dp-accounting's; equal events are composed together. Nothing is claimed for sampling (q = 1).
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from shoal.core import errors
from shoal.runtimes.federated import accounting

FILE = "ledger.jsonl"
META = "ledger_lines"
NOTHING = 100.0  # an epsilon that promises nothing, and takes the tight accountant long: the quick bound is told
SERVER = -1  # stands for a party where the server releases
PARTY, OWNER, TRAJECTORY = "party", "owner", "trajectory"


class Relation(NamedTuple):
    """Which two data sets are neighbours, and by how many C a release of one differs from that of the other."""

    words: str
    sensitivity: float


RELATIONS: dict[str, Relation] = {
    PARTY: Relation("replace one update of the owner by any other", 2.0),  # local: one message is all there is
    OWNER: Relation("add or remove one owner", 1.0),  # central: of the sum over owners
    TRAJECTORY: Relation("count as nothing what one trajectory had part in", 1.0),  # of the sum over streams
}


class Spent(errors.Refused):
    """A release would pass the budget: it does not happen, and a runtime ends its run before it."""


class Event(NamedTuple):
    """One release."""

    party: int  # whose; `SERVER`
    turn: int  # which of that party's, counted from the beginning of the run
    multiplier: float  # of the Gaussian mechanism at sensitivity 1: z / how many C neighbours differ by
    noise: float  # z
    clip: float  # C
    unit: str  # of `RELATIONS`


class Total(NamedTuple):
    """What was spent, of the party that spent most."""

    epsilon: float | None  # by PLD, beyond `NOTHING` by RDP; None: nothing was released
    epsilon_rdp: float | None  # what the budget is held against
    delta: float
    unit: str
    relation: str
    releases: int  # of all parties
    party: int | None  # whose epsilon it is


class Ledger:
    """Charges releases; as the artefact of a run (`types.Artefact`) where one gives it a folder later."""

    def __init__(self, folder: Path | None, *, delta: float, max_epsilon: float, unit: str) -> None:
        """Begin, or go on from the lines that are there.

        Args:
            folder: Where the file lies; None: nowhere yet (`take_up`), or nowhere at all.
            delta: Of (epsilon, delta).
            max_epsilon: The budget of every party by itself; 0: there is none.
            unit: Of `RELATIONS`.
        """
        self._delta, self._most, self._unit = delta, max_epsilon or math.inf, unit
        self._spent: dict[int, Counter[float]] = {}  # party -> multiplier -> releases
        self._unwritten: list[str] = []  # of a run that has no folder
        self._lines = 0
        self._folder: Path | None = None
        if folder is not None:
            self._open(folder)

    # -------------------------------------------------------------------------------------------- charging

    def charge(self, events: Sequence[Event]) -> float:
        """Write releases down, all of them or none; they are spent then, whatever happens after.

        Args:
            events: Of one round.

        Returns:
            The largest epsilon (Rényi) among the parties that release.

        Raises:
            Spent: A party would pass its budget; nothing was written.
            OSError: The file cannot be written; nothing may leave.
        """
        after = self._after(events)
        epsilons = {party: accounting.epsilon(spent, self._delta) for party, spent in after.items()}
        for party, epsilon in epsilons.items():
            if epsilon > self._most:
                raise Spent(self._refusal(party, epsilon))
        self._append([self._line(event, epsilons[event.party]) for event in events])
        self._spent |= after
        return max(epsilons.values(), default=0.0)

    def affords(self, events: Sequence[Event]) -> bool:
        """Whether these releases would stay within the budget: asked before a round computes anything."""
        return all(accounting.epsilon(spent, self._delta) <= self._most for spent in self._after(events).values())

    def left(self, event: Event) -> int | None:
        """How many more releases like this one the party can afford; None: there is no budget."""
        if math.isinf(self._most):
            return None
        low, high = 0, 1
        while self.affords([event] * high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.affords([event] * middle) else (low, middle)
        return low

    def total(self, *, tight: bool = True) -> Total:
        """What was spent so far.

        Args:
            tight: Whether the privacy loss distribution is composed, which may take a second; else the bound is told.
        """
        known = {party: accounting.epsilon(spent, self._delta) for party, spent in self._spent.items()}
        worst = max(known, key=lambda party: (known[party], -party), default=None)
        by = "pld" if tight and worst is not None and known[worst] <= NOTHING else "rdp"
        return Total(
            epsilon=None if worst is None else accounting.epsilon(self._spent[worst], self._delta, by=by),
            epsilon_rdp=None if worst is None else known[worst],
            delta=self._delta,
            unit=self._unit,
            relation=RELATIONS[self._unit].words,
            releases=sum(spent.total() for spent in self._spent.values()),
            party=worst,
        )

    def _after(self, events: Iterable[Event]) -> dict[int, Counter[float]]:
        after: dict[int, Counter[float]] = {}
        for event in events:
            spent = after.setdefault(event.party, Counter(self._spent.get(event.party, ())))
            spent[event.multiplier] += 1
        return after

    def _refusal(self, party: int, epsilon: float) -> str:
        who = "the server" if party == SERVER else f"party {party}"
        return (
            f"the next release of {who} would bring epsilon to {epsilon:.3g}, beyond max_epsilon={self._most:g} "
            f"(delta={self._delta:g}, unit: {self._unit}); the run ends here"
        )

    def _line(self, event: Event, epsilon: float) -> str:
        told = event._asdict() | {"event": f"Gaussian({event.multiplier:g})", "q": 1.0}
        told |= {"relation": RELATIONS[event.unit].words, "epsilon": round(epsilon, 6), "delta": self._delta}
        return json.dumps(told, allow_nan=False)

    # -------------------------------------------------------------------------------------------- the file

    def _append(self, lines: list[str]) -> None:
        """On the disk, not in a cache, when this returns."""
        self._lines += len(lines)
        if self._folder is None:
            self._unwritten += lines
            return
        path = self._folder / FILE
        fresh = not path.exists()
        with path.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        if fresh:
            _sync(self._folder)

    def _open(self, folder: Path) -> None:
        """Go on in a folder: what its file says was spent is spent."""
        events = read(folder)
        _mend(folder / FILE)
        self._folder, self._lines = folder, len(events)
        pending, self._unwritten = self._unwritten, []
        self._spent = self._after(events)
        for line in pending:
            self._spent |= self._after([parsed(line)])
        if pending:
            self._append(pending)

    def take_up(self, folder: Path, meta: Mapping[str, object]) -> None:
        """See `types.Artefact`; but what came after the checkpoint did happen: it was released, or counts as if it was.

        Args:
            folder: Of the run.
            meta: What the checkpoint says; empty in a new run.

        Raises:
            Refused: The file is lost, damaged, or shorter than at the checkpoint.
        """
        wanted = int(str(meta.get(META, 0)))
        self._open(folder)
        if self._lines < wanted:
            raise errors.Refused(
                f"{folder}/{FILE} holds {self._lines} of {wanted} releases; restore it: what was spent is not known"
            )

    def write(self, folder: Path, about: Mapping[str, object]) -> dict[str, int]:
        """See `types.Artefact`: every line is there already, unless nobody gave it the folder before."""
        del about
        if self._folder is None:
            self._open(folder)
        return {META: self._lines}


def read(folder: Path) -> list[Event]:
    """The releases of a folder, oldest first; none where there is no file.

    A last line that a crash cut is left out: its end was not on the disk, so nothing of that release left.

    Raises:
        Refused: The file is damaged.
    """
    path = Path(folder) / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise errors.Refused(f"{path} cannot be read ({error}); restore it: what was spent is not known") from None
    events = []
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            events.append(parsed(line))
        except (ValueError, TypeError, KeyError) as error:
            raise errors.Refused(f"{path}, line {number} is no release ({error}); restore the file") from None
    return events


def parsed(line: str) -> Event:
    """A release as it was written.

    Raises:
        ValueError, TypeError, KeyError: It is none.
    """
    told = json.loads(line)
    event = Event(**{name: told[name] for name in Event._fields})
    if event.unit not in RELATIONS or not event.multiplier > 0.0:
        raise ValueError("its numbers are out of range")
    return event


def _mend(path: Path) -> None:
    """Cut off a line without an end, so that the next one does not go on from it."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        data = file.read()
        if not data.endswith(b"\n"):
            file.truncate(data.rfind(b"\n") + 1)
            os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
