"""All parties as one axis of one compiled program, reached like any others: bytes down, bytes up (`network`).

A job is worked on when its reply is the next to arrive, together with all other jobs on hand: what a party answers
depends on its own state and on what came down, not on when it is computed. So simulated time costs nothing, and parties
that answer in any order still share one call. Every vector really becomes a message, and every message is checked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epy

from shoal.core import types
from shoal.runtimes.crew import beside
from shoal.runtimes.experience import finite, rollouts
from shoal.runtimes.federated import compiled, desk, message, network, together
from shoal.runtimes.members import dispatch

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

    from shoal.runtimes.federated import choosing

UP, DOWN = "up", "down"
Wire = Callable[[str, int, bytes], bytes | None]  # (direction, party, body) -> what arrives; None: it is lost
Leaves = Callable[[int, np.ndarray, message.Down], np.ndarray]  # (party, update, what came down) -> as it may leave


def untouched(direction: str, party: int, body: bytes) -> bytes | None:
    """A channel that loses and changes nothing."""
    del direction, party
    return body


def as_it_is(party: int, vector: np.ndarray, down: message.Down) -> np.ndarray:
    """Nothing is done to an update before it leaves."""
    del party, down
    return vector


class Saved(NamedTuple):
    """The parties' private state and the jobs on hand."""

    homes: together.Homes
    desk: desk.Desk


@dataclasses.dataclass(frozen=True)
class Plan:
    """How parties work; plain data, but for what is done to messages."""

    names: tuple[str, ...]
    environments: int  # B, of each
    updates: int  # H of a job
    paces: tuple[float, ...] = ()  # of parties, simulated seconds of a job; 1 where none is named
    apart: bool = False  # replies come one by one (`desk.takes`)
    leaves: Leaves = as_it_is
    masked: message.Spec | None = None  # of what is sent, where it is not the channel's
    before: Callable[[together.Homes, Mapping[int, int]], together.Homes] | None = None
    # (parties, party -> its round) -> parties as they are to begin with it
    wire: Wire = untouched


class Axis:
    """A `network.Network` and its `network.Beside`."""

    def __init__(
        self, made: compiled.Programs, way: dispatch.Way, plan: Plan, seed: int, homes: together.Homes
    ) -> None:
        """Parties at their beginning, or as they were saved (`resume`).

        Args:
            made: Their programs.
            way: How they are computed.
            plan: How they work.
            seed: Of the run.
            homes: Theirs; given away.
        """
        self._made, self._way, self._plan, self._seed = made, way, plan, seed
        self._keys, self.homes = made.keys(seed, "run"), homes
        spec = made.channel.spec if made.channel else None
        down, up = (spec.bytes_down, spec.bytes_up) if spec else (0, 0)
        self.desk = desk.fresh(made.shape.parties, down, up)
        self._calls: dict[bool, Callable] = {}
        self._theta = np.zeros(made.size, np.float32)
        self._metrics: list[Mapping[str, float]] = [{} for _ in plan.names]
        self._episodes: list[types.Episode] = []
        self._faults: dict[str, int] = {"non_finite": 0}
        self._unfit = np.zeros(2, int)

    @property
    def block(self) -> int:
        """Of the way in which parties are computed, as `dispatch.of` takes it."""
        return self._way.block

    def use(self, wire: Wire) -> None:
        """Messages go through `wire` from here on."""
        self._plan = dataclasses.replace(self._plan, wire=wire)

    def compile(self, rounds: int, look: beside.Look, *, choose: bool) -> None:
        """Make the program of a call in which all are at work.

        Args:
            rounds: That are to come, about.
            look: Told how far it is.
            choose: Whether the fastest way is looked for.
        """
        if choose:
            self._way, self._calls[True] = choosing.fastest(self._made, self.homes, self._keys, rounds, look)
        else:
            self._calls[True] = beside.done(lambda: self._made.work(self._way, whole=True), beside.COMPILING, look)

    def beginning(self) -> np.ndarray:
        """The global part that a run begins with, ``[d]``."""
        return self._made.beginning(self.homes)

    # ---------------------------------------------------------------- network.Network

    def parties(self) -> Sequence[str]:
        """See `network.Network`."""
        return self._plan.names

    def send(self, party: int, body: bytes) -> int:
        """See `network.Network`; a job that the party has on hand is dropped for it."""
        number = int(self.desk.counts[0]) + 1
        arrived = self._plan.wire(DOWN, party, body)
        takes = desk.takes(self._plan.paces, self._seed, party, number, apart=self._plan.apart)
        if arrived is None or len(arrived) != self.desk.down.shape[1]:
            desk.given(self.desk, party, bytes(self.desk.down.shape[1]), takes)
            self.desk.status[party] = desk.LOST
        else:
            desk.given(self.desk, party, arrived, takes)
        return number

    def poll(self, seconds: float) -> list[network.Reply]:
        """See `network.Network`: those that arrive next, at the same moment of simulated time."""
        arrived = desk.next_to_arrive(self.desk, seconds)
        if any(self.desk.status[party] == desk.ASKED for party in arrived):
            self._work(np.flatnonzero(self.desk.status == desk.ASKED).tolist())
        return [self._reply(party) for party in arrived]

    def close(self) -> None:
        """See `network.Network`."""

    def now(self) -> float:
        """Simulated seconds."""
        return float(self.desk.clock[0])

    def _reply(self, party: int) -> network.Reply:
        whole = self.desk.status[party] == desk.DONE
        body = self._plan.wire(UP, party, self.desk.up[party].tobytes()) if whole else None
        self.desk.status[party] = desk.IDLE
        return network.Reply(party, int(self.desk.job[party]), body)

    # ---------------------------------------------------------------- at work

    def _work(self, who: Sequence[int]) -> None:
        """Everybody with a job does it."""
        channel = self._made.channel
        assert channel is not None
        asked, downs = self._made.asked(), {}
        for party in who:
            try:
                downs[party] = down = message.decode_down(channel.spec, self.desk.down[party].tobytes())
            except message.Malformed:
                self.desk.status[party] = desk.LOST
                continue
            asked.theta[party], asked.base[party] = down.vector, down.header.base
            asked.mu[party], asked.active[party] = down.settings.mu, True
        if self._plan.before is not None:
            self.homes = self._plan.before(self.homes, {party: down.header.round for party, down in downs.items()})
        told = self.advance(asked)
        for party, down in downs.items():
            up = self._up(party, down, told.vector[party], good=bool(told.finite[party]))
            spec = self._plan.masked or channel.spec
            self.desk.up[party] = np.frombuffer(message.encode_up(spec, up), np.uint8)
            self.desk.status[party] = desk.DONE

    def _up(self, party: int, down: message.Down, vector: np.ndarray, *, good: bool) -> message.Up:
        steps, updates = self._steps(), self._plan.updates
        nothing = np.zeros(len(vector), self._plan.masked.dtype if self._plan.masked else vector.dtype)
        if not good:
            return message.Up(down.header, nothing, outcome=message.FAILED)
        if not np.isfinite(vector).all() or not vector.any():  # nothing was learned from, or it was skipped at home too
            return message.Up(down.header, nothing, steps, updates, message.SKIPPED)
        return message.Up(down.header, self._plan.leaves(party, vector, down), steps, updates, message.OK)

    def _steps(self) -> int:
        """Environment steps of a job."""
        return self._made.per_update * self._plan.updates

    def advance(self, asked: together.Asked) -> together.Told:
        """A call, and what is told of it beside the channel."""
        whole = bool(asked.active.all())
        if whole not in self._calls:
            self._calls[whole] = self._made.work(self._way, whole=whole)
        self.homes, told = self._calls[whole](self.homes, self._keys, asked)
        told = jax.device_get(told)
        before = int(self.desk.env_steps.sum())
        self.desk.env_steps[asked.active] += self._steps()
        self._episodes += episodes(told.ended, before, np.flatnonzero(asked.active))
        for party in np.flatnonzero(asked.active & told.finite).tolist():
            self._metrics[party] = {name: float(value[party]) for name, value in told.metrics.items()}
        self._faults["non_finite"] += int(told.skipped[told.finite].sum() + (~told.finite).sum())
        self._unfit += told.ended.unfit.sum(axis=0)
        return told

    # ---------------------------------------------------------------- network.Beside

    def told(self) -> network.Told:
        """See `network.Beside`."""
        found, self._episodes = self._episodes, []
        faults = {**self._faults, **finite.faults(*self._unfit)}
        return network.Told(found, self._metrics, self.desk.env_steps.tolist(), faults)

    def alone(self) -> None:
        """Every party learns for a call, and nothing is sent."""
        asked = self._made.asked()
        asked.active[:] = True
        self.advance(asked)

    def install(self, theta: np.ndarray) -> None:
        """The global part that parties are looked at with."""
        self._theta = theta

    def evaluate(self, key: types.Key, episodes: int) -> types.Array:
        """See `network.Beside`."""
        keys = together.keys(key, self._made.shape.parties)
        return self._made.measure(self.homes, self._theta, keys, episodes).mean(axis=1)

    def policies(self) -> tuple[types.Policy, ...]:
        """See `network.Beside`."""
        every = self._made.policies(self.homes, self._theta)
        return tuple(jax.tree.map(lambda leaf, at=at: leaf[at], every) for at in range(self._made.shape.parties))

    def saved(self) -> Saved:
        """See `network.Beside`."""
        return Saved(jax.device_get(self.homes), jax.tree.map(np.copy, self.desk))

    def resume(self, saved: Saved) -> None:
        """See `network.Beside`."""
        self.homes = jax.tree.map(jnp.asarray, saved.homes)
        self.desk = desk.Desk(*(np.array(leaf) for leaf in saved.desk))


def episodes(ended: rollouts.Ended, before: int, active: np.ndarray) -> list[types.Episode]:
    """Finished episodes of a call in the order of steps; a party is their worker.

    Args:
        ended: ``[N, K, T, B]``.
        before: Environment steps of all parties before it.
        active: Numbers of those who were at work.
    """
    batch, count = ended.over.shape[3], len(active)
    lanes = [np.moveaxis(leaf[active], 0, 2).reshape(-1) for leaf in ended[:3]]  # [K, T, active, B]
    over, each = np.flatnonzero(lanes[0]), count * batch
    steps, who = before + (over // each + 1) * each, active[over % each // batch]
    return [
        types.Episode(int(step), float(value), int(size), int(party))
        for step, value, size, party in zip(steps, lanes[1][over], lanes[2][over], who, strict=True)
    ]
