"""The server of a deployment as a runtime: rounds one after the other over Flower, saved after each.

What decides is `server.Server`, the same object as in a simulation. Here are the clock, who is there, the end.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata

import numpy as np

from shoal.core import errors, types
from shoal.runtimes.crew import beside
from shoal.runtimes.federated import audit, message, rounds, server, tally, telling
from shoal.runtimes.federated.flower import carrier, deploying
from shoal.runtimes.federated.flower import link as links
from shoal.runtimes.federated.flower import opening as openings

LOOK = 0.5  # seconds between two looks of the observer
RETURN = 120.0  # seconds that parties are given to be back after the carrier was lost, in which no deadline runs
FAREWELL = 60.0  # seconds that they are given to take their leave


class Serving:
    """A `types.Runtime` of the server alone; parties are elsewhere."""

    def __init__(
        self,
        opening: Callable[[types.Parts, int, bool], openings.Opening],
        ready: Callable[[], deploying.Place] | None = None,
        invite: Callable[[str], object] = str,
    ) -> None:
        """Nothing is started yet.

        Args:
            opening: (parts, seed, whether it is to begin) -> what is settled before the first round.
            ready: Sees to keys, and says where it listens; None: nothing is run, but a policy is looked at.
            invite: Called when parties may come, with the digest of the app that their nodes will execute.
        """
        self._opening, self._ready, self._invite = opening, ready, invite

    def like(self, parts: types.Parts, seed: int) -> types.Tree:
        """See `types.Runtime`."""
        return self._opening(parts, seed, False).served().kept()

    def policy(self, parts: types.Parts, seed: int, saved: types.Tree) -> types.Policy:
        """See `types.Runtime`: the global part, with a local part that nobody trained."""
        return self._opening(parts, seed, False).policy(saved["theta"])

    def run(
        self, parts: types.Parts, seed: int, steps: int, goal: types.Goal | None, observe: types.Observer,
        saved: types.Tree | None,
    ) -> types.Result:  # fmt: skip
        """See `types.Runtime`."""
        del goal  # returns stay at home
        began = time.monotonic()
        if self._ready is None:
            raise errors.Refused("a server's run is continued by `shoal federate server`, with the same --out")
        look = beside.first(observe)
        opening = beside.done(lambda: self._opening(parts, seed, True), beside.COMPILING, look)
        log = audit.Audit()
        served = opening.served(log)
        if saved is not None:
            served.resume(saved)
            served.forget()  # parties give stored answers again
        with _opened(self._ready(), opening.names, look) as (network, link):
            self._invite(link.fab)
            life = Life(served, network, link.answered, opening, log, steps, observe)
            return life(began)


@contextlib.contextmanager
def _opened(
    place: deploying.Place, names: Sequence[str], look: beside.Look
) -> Iterator[tuple[carrier.Carrier, links.Link]]:
    beside.asked(look, types.Stage("starting the Flower server"))
    with deploying.opened(place, names) as opened:
        yield opened


class Life:
    """One life of a server."""

    def __init__(
        self, served: server.Server, network: carrier.Carrier, answered: Callable[[], None], opening: openings.Opening,
        log: audit.Audit, steps: int, observe: types.Observer,
    ) -> None:  # fmt: skip
        """Args: `answered`, called when a party did; `steps`, of all parties; the others as they are named."""
        self._served, self._network, self._answered, self._opening = served, network, answered, opening
        self._log, self._asked_steps, self._observe = log, steps, observe
        self._telling = telling.Telling(opening.about)
        self._clock, self._looked = 0.0, time.monotonic()
        self._lost_at: float | None = None  # when the carrier was last seen to be away; None: all is well again
        self._expected = frozenset(np.flatnonzero(served.present).tolist())
        self._began = time.monotonic()

    def __call__(self, began: float) -> types.Result:
        """Rounds to the end, and the farewell.

        Args:
            began: ``time.monotonic()`` when the run began.
        """
        going = self._gathered()
        startup, self._began = time.monotonic() - began, time.monotonic()
        while going and not self._over():
            closed = self._step()
            while closed is None and (going := self._observe(self._progress(types.Stage(self._doing())))):
                closed = self._step()
            if closed is not None:
                self._telling.closed(closed)
                going = self._observe(self._progress())  # saved, before anybody is given a job of the next
        if going:
            self._farewell()
        return types.Result(self._policy(), self._progress(), startup)

    # ---------------------------------------------------------------- rounds

    def _step(self) -> tally.Closed | None:
        """Jobs, answers, and a step if it is time for one."""
        served, network = self._served, self._network
        if self._enough():
            for party in served.idle(self._now()):
                if served.rules.asynchronous and self._done(party):
                    continue
                network.send(party, served.job(party))
        for reply in network.poll(LOOK):
            if reply.body is not None:
                self._answered()
            served.take(reply.party, reply.body, self._now())
        return served.close(self._now()) if served.due(self._now()) else None

    def _over(self) -> bool:
        if not self._served.rules.asynchronous:
            return self._steps >= self._asked_steps
        return all(map(self._done, range(len(self._opening.names))))

    def _done(self, party: int) -> bool:
        """Whether a party has used up its share of the steps, where each goes on at its own pace."""
        arrays = self._served.tally.arrays
        return int(arrays["env_steps"][party]) * len(self._opening.names) >= self._asked_steps

    def _enough(self) -> bool:
        """Whether so many are there that a round can be held; without them it waits."""
        here, cohort = self._network.present, self._served.names
        return len(here) >= max(1, self._served.rules.quorum or -(-len(cohort) // 2))

    def _now(self) -> float:
        """Seconds of a clock that stands still while the carrier is lost, or parties are on their way back to it."""
        now, network = time.monotonic(), self._network
        if not network.carried:
            self._lost_at = now
        elif self._lost_at is not None and (self._expected <= network.present or now - self._lost_at > RETURN):
            self._lost_at = None
        if self._lost_at is None:
            self._clock += now - self._looked
        self._looked = now
        return self._clock

    def _gathered(self) -> bool:
        """Wait for all parties; whether to go on."""
        names, network = self._opening.names, self._network
        while len(network.present) < len(names):
            stage = types.Stage("waiting for parties", len(network.present), len(names))
            if not self._observe(self._progress(stage)):
                return False
            network.poll(LOOK)
        return True

    def _farewell(self) -> None:
        """The newest global part for everybody, and no job with it; then their nodes leave before the server does."""
        network = self._network
        until = time.monotonic() + FAREWELL
        waiting = {network.send(party, self._last(party)) for party in sorted(network.present)}
        while (waiting or network.present) and time.monotonic() < until:
            waiting -= {reply.job for reply in network.poll(LOOK)}
            self._observe(self._progress(types.Stage("taking leave of parties")))

    def _last(self, party: int) -> bytes:
        served = self._served
        head = message.Header(self._opening.run, party, served.round, served.version, rounds.KINDS[served.rules.mode])
        settings = served.rules.settings._replace(local_updates=0)
        body = message.encode_down(served.spec, message.Down(head, served.theta, settings))
        self._log.add("down", party, served.round, body, "ok", served.spec.digest)
        return body

    # ---------------------------------------------------------------- told

    @property
    def _steps(self) -> int:
        return int(self._served.tally.arrays["env_steps"].sum())

    def _doing(self) -> str:
        if self._enough():
            return f"round {self._served.round}"
        here = len(self._network.present)
        return f"waiting for a quorum ({here} of {len(self._opening.names)} parties are there)"

    def _policy(self) -> types.Policy:
        return self._opening.policy(self._served.theta)

    def _progress(self, stage: types.Stage | None = None) -> types.Progress:
        served, spent = self._served, time.monotonic() - self._began
        arrays = served.tally.arrays
        count = len(self._opening.names)
        nothing = [0.0] * count, [False] * count
        told = self._telling.summary(served, arrays["env_steps"].tolist(), *nothing)
        metrics = {**self._telling.metrics(()), "federation.present": float(len(self._network.present))}
        return types.Progress(
            env_steps=self._steps, updates=served.version, train_s=spent, episodes=(), metrics=metrics,
            split={"waiting": spent}, workers={}, faults={"non_finite": 0, "foreign": self._network.foreign},
            save=served.kept, policy=self._policy, subsystems={"federation": told},
            artefacts={audit.FILE: self._log}, stage=stage,
        )  # fmt: skip


def version() -> str:
    """Of Flower, as it is installed."""
    return metadata.version("flwr")
