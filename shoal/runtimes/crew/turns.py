"""A crew in this process: workers take turns, in an order that nothing but their work decides.

Nothing is spawned and nothing races, so whatever the workers compute repeats. Contracts of runtimes are tested in this
form; a runtime may also offer it (`peers`, `map_reduce`: ``--runtime.no-spawn``).
"""

from __future__ import annotations

import collections
import functools
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shoal.core import errors, types
from shoal.runtimes.crew import closing, crew, life, supervise


class _Place:
    """One worker, and `life.Parent` as it sees it."""

    def __init__(self, team: Turns, role: life.Role, number: int) -> None:
        self._team, self.role, self.number = team, role, number
        self.incarnation, self.deaths, self.done = 0, 0, False
        self.inbox: collections.deque[Any] = collections.deque()
        self.worker: Any = None

    @property
    def stopped(self) -> bool:
        return self.role.name in self._team.told_to_end

    def stop(self) -> None:
        self._team.told_to_end.add(self.role.name)

    def gone(self) -> bool:
        return False

    def tell(self, message: Any) -> None:
        self._team._said.append((self.role.name, self.number, self.incarnation, message))

    def next(self) -> Any:
        return self.inbox.popleft() if self.inbox else None


class Turns(crew.Team):
    """See `crew.Crew`."""

    def __init__(
        self,
        roles: Sequence[life.Role],
        on_fault: crew.OnFault,
        order: Callable[[life.Worker], Any] | None = None,
    ) -> None:
        """Open nothing yet.

        Args:
            roles: The kinds of workers.
            on_fault: Told of every worker that raised and was replaced, and of simulators that could not be closed.
            order: Who is asked first, by a key of the worker: one turn each time; None: all take a turn, one after the
                other.
        """
        super().__init__(roles, on_fault)
        self._order, self._held = order, False
        self._places = [_Place(self, role, i) for role in roles for i in range(role.workers)]
        self.told_to_end: set[str] = set()
        self._said: list[tuple[str, int, int, Any]] = []
        self._episodes: list[types.Episode] = []
        self._metrics: dict[str, float] = {}

    def begin(self, going: crew.Going) -> bool:
        """See `crew.Crew`."""
        for place in self._places:
            self._attempt(place, lambda: None)
            if not going():
                return False
        return True

    def gather(self, seconds: float = crew.LOOK) -> crew.Gathered:
        """See `crew.Crew`; raises RuntimeError where nobody can go on."""
        self.look(seconds)
        for place in self._places:
            if place.worker is not None and not place.role.serves:
                self._take(place)
        told = crew.Gathered(
            episodes=sorted(self._episodes, key=lambda episode: episode.env_steps),
            metrics=self._metrics,
            said=self._said,
        )
        self._episodes, self._metrics, self._said = [], {}, []
        return told

    def look(self, seconds: float) -> None:
        """See `crew.Crew`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._said:
            going = [place for place in self._places if not place.done and not (self._held and place.role.holds)]
            if not going or not self._round(going):
                break

    def _round(self, going: list[_Place]) -> bool:
        """One turn, or one of each; whether anybody moved."""
        if self._order is not None:
            order = self._order
            going = sorted(going, key=lambda place: order(place.worker))
        moved = False
        for place in going:
            moved |= bool(self._attempt(place, functools.partial(self._turn, place)))
            if moved and self._order is not None:
                return True
        if not (moved or self._held or any(place.role.serves or not place.role.together for place in going)):
            raise RuntimeError("no worker can go on: each waits for another")
        return moved

    def _turn(self, place: _Place) -> bool:
        worker = place.worker
        if worker.over:
            worker.finish()
            self._take(place)
            closing.told(worker.close, self._on_fault)
            place.done, place.worker = True, None
            return True
        moved = bool(worker.turn())
        place.deaths = 0 if moved else place.deaths
        return moved

    def _attempt(self, place: _Place, act: Callable[[], Any]) -> Any:
        """Open the worker if need be and let it act; one that raises is replaced, as a process would be."""
        try:
            if place.worker is None:
                place.worker = place.role.open(place.role.job(place.number, place.incarnation), place)
            return act()
        except Exception:  # noqa: BLE001  whatever it raised is told
            story = traceback.format_exc()
            place.worker, place.deaths = None, place.deaths + 1
            place.incarnation += 1
            name = f"{place.role.name} {place.number}"
            if place.deaths >= supervise.DEATHS:
                raise errors.GaveUp(
                    f"{name} died {place.deaths} times without progress; the last time:\n{story}"
                ) from None
            self._fault(place.role.name)(f"{name} raised; another takes its place", story)
            return True

    def _take(self, place: _Place) -> None:
        """What it would report."""
        episodes, metrics = place.worker.report()
        self._episodes += episodes
        self._metrics = dict(metrics) or self._metrics

    def send(self, role: str, worker: int, message: Any) -> None:
        """See `crew.Crew`."""
        next(place for place in self._places if (place.role.name, place.number) == (role, worker)).inbox.append(message)

    def hold(self) -> np.ndarray:
        """See `crew.Crew`: between turns everybody holds still."""
        self._held, first = True, self._places[0].role
        for place in self._places:
            if place.role is first and first.holds and place.worker is not None:
                place.worker.keep()
        return np.ones(first.workers, bool)

    def release(self) -> None:
        """See `crew.Crew`."""
        self._held = False

    def stop(self, role: str) -> None:
        """See `crew.Crew`."""
        self.told_to_end.add(role)

    def finished(self, role: str) -> bool:
        """See `crew.Crew`."""
        return all(place.done for place in self._places if place.role.name == role)

    def said(self, seconds: float) -> Sequence[tuple[str, int, int, Any]]:
        """See `crew.Crew`."""
        self.look(seconds)
        told, self._said = self._said, []
        return told

    def answered(self, role: str, worker: int, *, progress: bool = True) -> None:
        """See `crew.Crew`."""

    def incarnation(self, role: str, worker: int) -> int:
        """How often this place was filled anew."""
        return next(p.incarnation for p in self._places if (p.role.name, p.number) == (role, worker))

    def stage(self) -> types.Stage:
        """See `crew.Crew`."""
        return self._stage(place.role.name for place in self._places if place.worker is not None)

    def about(self, role: str) -> dict[str, Any]:
        """See `crew.Crew`; there are no processes."""
        return self._about(role, sum(not place.done for place in self._places if place.role.name == role), [])

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, *_: Any) -> None:
        for place in self._places:
            if place.worker is not None:
                closing.told(place.worker.close, self._on_fault)
