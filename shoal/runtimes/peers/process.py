"""One learner of the peers runtime: plays episodes, and exchanges weights between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from shoal.core import seeds, types
from shoal.runtimes.crew import life, sharing
from shoal.runtimes.experience import finite
from shoal.runtimes.peers import mailboxes

AT_ONCE = 1000  # steps of a stretch: between two looks at the stop flag, at most
PATIENCE = 2e-4  # seconds between two looks at mailboxes that are waited for
SPLIT = ("environment", "learning", "waiting")
KEPT = (  # what a checkpoint holds; the mailboxes are left out
    "weights", "visits", "told", "heard", "known", "steps", "episodes", "exchanges", "non_finite", "messages", "bytes",
    "dropped",
)  # fmt: skip


class Job(NamedTuple):
    """What a learner is told when it starts; all of it can be pickled."""

    block: sharing.Block
    rebuild: Callable[[], types.Parts]
    seed: int
    worker: int
    incarnation: int
    steps: int
    scheme: str
    period: int
    threshold: float
    stretch_s: float  # seconds of a stretch at most; infinite where learners take turns


def layout(workers: int, weights: int, slots: int) -> sharing.Layout:
    """The shared arrays; those ``[workers, ...]`` have one writer each.

    Args:
        workers: Learners.
        weights: Entries of a weight vector.
        slots: Messages a mailbox holds.
    """
    each = (workers, weights)
    return {
        "weights": (each, "f8"),
        "visits": (each, "i8"),  # how often each feature was active, ever
        "told": (each, "i8"),  # of those, when the others were last told
        "heard": (each, "i8"),  # and when others were last heard of it (asynchronous)
        "known": (each, "f8"),  # what the others know of these weights
        "steps": ((workers,), "i8"),
        "episodes": ((workers,), "i8"),
        "since": ((workers,), "i8"),  # episodes since the last exchange
        "then": ((workers,), "i8"),  # steps of this learner at the last exchange
        "exchanges": ((workers,), "i8"),
        "waits": ((workers,), "i8"),  # 1: posted, and waits for the others
        "agreed": ((workers,), "i8"),  # steps of all at the last exchange: the same number for everybody
        "non_finite": ((workers,), "i8"),
        "unfit": ((workers, 2), "i8"),  # rewards and observations that were not finite, of this life
        "split": ((workers, len(SPLIT)), "f8"),  # seconds
        **mailboxes.layout(workers, weights, slots),
    }


class Learner(life.Worker):
    """One learner. All that it is stands in shared memory, so a restarted one goes on from there."""

    def __init__(self, job: Job, parent: life.Parent) -> None:
        """Open its simulator."""
        parts = job.rebuild()
        assert parts.agent.about.exchange is not None
        self._parent, self._env = parent, finite.Guard(parts.environment.host())
        self._job, self._block, self.worker = job, job.block, job.worker
        mine = {name: job.block[name][job.worker] for name in ("weights", "visits", "told", "heard", "known")}
        self._weights, self._visits, self._told, self._heard, self._known = mine.values()
        self._stream = parts.agent.about.exchange.open(self._env, self._weights, self._visits)
        self._mailboxes = mailboxes.Mailboxes(job.block, job.worker)
        self._playing = False
        self._counted = 0  # steps of the episode under way
        self._told_seconds = 0.0
        self._episodes: list[types.Episode] = []

    @property
    def over(self) -> bool:
        """Whether the run is to end: the parent's word, or enough steps.

        Where learners wait for each other, all must see the same number, or one would wait for those that left.
        """
        block = self._block
        taken = block["steps"].sum() if self._job.scheme == "asynchronous" else block["agreed"][self.worker]
        return self._parent.stopped or int(taken) >= self._job.steps

    @property
    def steps(self) -> int:
        """Taken by this learner."""
        return int(self._block["steps"][self.worker])

    @property
    def _left(self) -> int:
        """Steps until the next exchange at the latest.

        Learners that wait for each other share what was left of the run at the last exchange; so all end with the same
        one, also where an episode never does, and what each has learned by then does not depend on timing.
        """
        if self._job.scheme == "asynchronous":
            return AT_ONCE
        block, me, workers = self._block, self.worker, len(self._block["steps"])
        share = -(-(self._job.steps - int(block["agreed"][me])) // workers)
        return share - (self.steps - int(block["then"][me]))

    def turn(self) -> bool:
        """A stretch of an episode, or an exchange; False: nothing can be done until others have posted."""
        block, me, began = self._block, self.worker, time.perf_counter()
        if block["waits"][me]:
            if not self._mailboxes.everybody_posted(int(block["exchanges"][me])):
                return False
            self._merge_round()
        elif block["since"][me] >= self._job.period or self._left <= 0:
            self._exchange()
        else:
            self._play()
        seconds, inside = time.perf_counter() - began, self._stream.environment_s - self._told_seconds
        self._told_seconds += inside
        block["split"][me] += inside, seconds - inside, 0.0
        return True

    def wait(self) -> None:
        """Let time pass until others have posted."""
        began = time.perf_counter()
        time.sleep(PATIENCE)
        self._block["split"][self.worker, 2] += time.perf_counter() - began

    def report(self) -> tuple[list[types.Episode], Mapping[str, float]]:
        """See `life.Worker`."""
        episodes, self._episodes = self._episodes, []
        return episodes, self._stream.metrics()

    def close(self) -> None:
        """See `life.Worker`."""
        self._env.close()

    # ---------------------------------------------------------------- episodes

    def _play(self) -> None:
        block, me = self._block, self.worker
        if not self._playing:
            number = int(block["episodes"][me])
            self._stream.begin(seeds.derive(self._job.seed, "peer", me, self._job.incarnation, "episode", number))
            self._playing, self._counted = True, 0
        ended = self._stream.advance(min(AT_ONCE, self._left), self._job.stretch_s)
        block["steps"][me] += self._stream.length - self._counted
        self._counted = self._stream.length
        block["non_finite"][me] += self._stream.non_finite
        self._stream.non_finite = 0
        block["unfit"][me] += self._env.take()
        if ended is not None:
            block["episodes"][me] += 1
            block["since"][me] += 1
            self._playing = False
            self._episodes.append(ended._replace(env_steps=int(block["steps"].sum()), worker=me))

    # ---------------------------------------------------------------- exchanges

    def _exchange(self) -> None:
        block, me, scheme = self._block, self.worker, self._job.scheme
        if len(block["steps"]) == 1:  # nobody to tell
            block["agreed"][me] = self.steps
            self._done()
            return
        if scheme == "asynchronous":
            self._merge(list(self._mailboxes.found()))
            message = self._news()
            self._mailboxes.post(message, self.steps)
            self._known[message.entry] = message.value
            self._told[message.entry] = self._visits[message.entry]
            self._done()
            return
        fresh = self._visits - self._told
        message = mailboxes.whole(self._weights, fresh) if scheme == "average" else self._news()
        self._mailboxes.post(message, self.steps, dense=scheme == "average")
        block["waits"][me] = 1

    def _news(self) -> mailboxes.Message:
        return mailboxes.moved(self._weights, self._known, self._visits - self._told, self._job.threshold)

    def _merge_round(self) -> None:
        """What all said at once; everybody comes to the same `known`."""
        block, me = self._block, self.worker
        messages, total = self._mailboxes.round(int(block["exchanges"][me]))
        after, mine = mailboxes.averaged(self._known, messages), messages[me].entry
        drift = self._weights - self._known  # what was too little to tell is kept
        drift[mine] = 0.0
        self._weights[:] = after + drift
        self._known[:] = after
        self._told[mine] = self._visits[mine]
        block["agreed"][me] = total
        self._done()
        block["waits"][me] = 0

    def _merge(self, messages: Sequence[mailboxes.Message]) -> None:
        """All news at once, by visits, with one's own since a peer was last heard of the entry.

        One after the other would not do: the second message would find nothing of one's own left to weigh against.
        """
        if not messages:
            return
        before = self._weights.copy()
        own = mailboxes.whole(before, self._visits - self._heard)
        after = mailboxes.averaged(before, [own, *messages])
        told = np.zeros(len(before), bool)
        for message in messages:
            told[message.entry] = True
        self._weights[told] = after[told]
        self._known[told] += (after - before)[told]  # not one's own news: nobody is told of it again
        self._heard[told] = self._visits[told]

    def _done(self) -> None:
        self._block["exchanges"][self.worker] += 1
        self._block["since"][self.worker] = 0
        self._block["then"][self.worker] = self.steps
