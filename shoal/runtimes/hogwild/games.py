"""The games of one worker: a learner each, which read the same parameters, and whose gradients are applied in turn.

With two games a worker does what two workers do that read at the same moment. Where a decision is a jitted call, it is
one for all games (`together.Together`); gradients are found one after the other, for those of two segments in one call
cost as much as two calls (docs/decisions/0044). No process, lock or clock is known here: a replay does the same.
"""

from __future__ import annotations

import collections
from typing import NamedTuple, cast

from etils import epy

from shoal.core import types
from shoal.runtimes.experience import segments
from shoal.runtimes.hogwild import learning

with epy.lazy_imports():
    from shoal.runtimes.experience import together


class Due(NamedTuple):
    """A gradient that was found and is to be settled."""

    learner: learning.Learner
    segment: segments.Segment


class Games:
    """What a worker reads, computes and settles."""

    def __init__(self, compiled: learning.Compiled, worker: int, incarnation: int) -> None:
        games = range(compiled.start.games)
        self.learners = [learning.Learner(compiled, worker, incarnation, game) for game in games]
        for other in self.learners[1:]:
            other.left = self.learners[0].left  # the worker's: whichever game applies first
        self.due: collections.deque[Due] = collections.deque()  # in the order of settling
        self._together: together.Together | None = None
        if len(games) > 1 and _at_once(compiled):
            streams = [cast(segments.HostSegments, one.segments) for one in self.learners]
            self._together = together.Together(compiled.programs, streams)

    def warm_up(self, arrays: types.Tree) -> None:
        """Compile everything, without moving a stream."""
        self.learners[0].warm_up(arrays, self._together.rehearse if self._together else None)

    def read(self, arrays: types.Tree) -> None:
        """See `learning.Learner.read`: one snapshot for all games."""
        first, *others = self.learners
        first.read(arrays)
        for other in others:
            other.follow(first)

    def compute(self) -> list[segments.Segment]:
        """Act a segment of every game, and find their gradients; all of them are `due` then."""
        if self._together is None:
            found = [learner.compute() for learner in self.learners]
        else:
            found = self._together.collect(self.learners[0].policy())
            for learner, segment in zip(self.learners, found, strict=True):
                learner.differentiate(segment)
        self.due.extend(map(Due, self.learners, found))
        return found

    def close(self) -> None:
        """Release the simulators."""
        for learner in self.learners:
            learner.segments.close()


def _at_once(compiled: learning.Compiled) -> bool:
    """Whether all games decide with one policy, in a jitted call a step."""
    alike = not compiled.parts.agent.about.fields.stream  # or each explores by a draw of its own
    return compiled.needs_policy and not compiled.device and alike
