"""One party by itself: the bytes of a download in, the bytes of its reply out, and a private state that stays here.

What comes in is checked as strictly as what the server takes: a message that is malformed, of another run or party, not
finite, or older than one before is refused, and the party keeps its last good global part. Whatever goes wrong here is
written to the party's own log; what crosses is the outcome ``failed`` and zeros.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from etils import epy

from shoal.core import types
from shoal.runtimes.federated import channels, keeping, message, simulated, working

with epy.lazy_imports():
    import jax

    from shoal.core import prng
    from shoal.runtimes.members import fitness

Log = Callable[[str, str], None]  # (what, traceback or a line): the party's own


class Terms(NamedTuple):
    """What a party knows of the run before its first round; plain numbers, so all of it can be pickled."""

    run: bytes  # [16], the name of the run
    party: int  # its number
    seed: int  # of the run
    environments: int = 1  # B, of each party
    exchange: str = "gradient"  # or "delta"; of "outputs" see `consensus`
    most: int = 1  # local updates of a round (H): no more are done, whatever a server asks
    reset_moments: bool = False  # whether statistics of the optimiser begin anew with each download


class Leaves(Protocol):
    """What is done to an update before it leaves (`leaving.Leaving`): clipped, noised, and written down."""

    def __call__(self, vector: np.ndarray, settings: message.Settings) -> np.ndarray:
        """The update as it may leave, ``[d]`` f32."""
        ...


def as_it_is(vector: np.ndarray, settings: message.Settings) -> np.ndarray:
    """Nothing is done to it: neither a clip nor noise was asked for."""
    del settings
    return vector


class Refused(Exception):
    """What came in is not taken; the party stays as it was."""


class Kept(NamedTuple):
    """All of a party that must outlive its process; NumPy arrays. It stays with the party."""

    home: working.Home
    theta: np.ndarray  # [d] f32, the last good global part
    reply: np.ndarray  # [bytes] u8 of the last reply, to be sent again if the same round is asked for once more
    counts: np.ndarray  # [6] i64: round, base version, environment steps, local updates, messages refused, failed


class Party:
    """See the module."""

    def __init__(
        self,
        parts: types.Parts,
        terms: Terms,
        leaving: Leaves = as_it_is,
        log: Log = lambda what, story: None,
        channel: channels.Channel | None = None,
    ) -> None:
        """Compile what a round needs.

        Args:
            parts: Its agent and environment.
            terms: Of the run.
            leaving: What is done to an update before it leaves.
            log: The party's own log; what is told there never crosses.
            channel: What crosses; None: what `terms.exchange` names.
        """
        self.terms, self._leaving, self._log, self._agent = terms, leaving, log, parts.agent
        self.channel = channel or channel_of(parts.agent, terms)
        place = working.Place(terms.seed, terms.party, terms.environments, terms.most)
        self._parts, self._place = parts, place
        self._work: working.Work = (
            working.Compiled(parts, place, self.channel)
            if parts.device_env is not None
            else simulated.Simulated(parts, place, self.channel, log)
        )
        self._home = self._work.begin()
        self._theta = np.zeros(self.channel.spec.size, np.float32)
        self._round, self._base, self.env_steps, self.updates = -1, -1, 0, 0
        self.refused = self.failed = 0
        self._reply = np.zeros(self.spec.bytes_up, np.uint8)
        self.told: working.Told | None = None  # of the last round; beside the channel
        self._measure: Any = None

    @property
    def spec(self) -> message.Spec:
        """What the tensors of its messages are."""
        return self.channel.spec

    # ---------------------------------------------------------------- the channel

    def handle(self, body: bytes) -> bytes:
        """Answer one download.

        Args:
            body: As it came.

        Returns:
            A reply of `message.Spec.bytes_up` bytes, whatever happened; never an exception.
        """
        try:
            down = self._checked(body)
            if down is None:
                return self._reply.tobytes()
            return self._answered(down)
        except (message.Malformed, Refused) as error:
            self.refused += 1
            self._log(f"a message was refused: {error}", "")
        except Exception:  # noqa: BLE001  whatever it was stays in this party's log
            self.failed += 1
            self._log("a round failed", traceback.format_exc())
        return self._nothing()

    def _checked(self, body: bytes) -> message.Down | None:
        """What came in; None where it is the round that was answered last."""
        down = message.decode_down(self.spec, body)
        header, terms = down.header, self.terms
        if (header.run, header.party, header.kind) != (terms.run, terms.party, self.channel.kind):
            raise Refused("it is of another run, for another party or of another kind")
        if not 1 <= down.settings.local_updates <= terms.most:
            raise Refused(f"{down.settings.local_updates} local updates; this party does 1 to {terms.most}")
        if (header.round, header.base) == (self._round, self._base):
            return None
        if header.round <= self._round or header.base < self._base:
            raise Refused(f"round {header.round}, version {header.base}: older than one before")
        return down

    def _answered(self, down: message.Down) -> bytes:
        header, settings = down.header, down.settings
        theta = np.array(down.vector, np.float32)
        asked = working.Asked(
            theta, np.int32(min(header.base, 2**31 - 1)), np.float32(settings.mu), np.int32(settings.local_updates)
        )
        home, vector, told = self._work(self._home, asked)
        steps = settings.local_updates * self._agent.about.rollout_length * self.terms.environments
        self._home, self._theta, self.told = home, theta, told
        self._round, self._base = header.round, header.base
        self.env_steps, self.updates = self.env_steps + steps, self.updates + settings.local_updates
        if np.isfinite(vector).all():
            vector = self._leaving(vector, settings)
            up = message.Up(header, vector, steps, settings.local_updates, message.OK)
        else:  # the optimiser skipped it too
            up = message.Up(header, np.zeros_like(theta), steps, settings.local_updates, message.SKIPPED)
        reply = message.encode_up(self.spec, up)
        self._reply = np.frombuffer(reply, np.uint8)
        return reply

    def _nothing(self) -> bytes:
        """The outcome ``failed``, the same whatever went wrong."""
        header = message.Header(
            self.terms.run, self.terms.party, max(0, self._round), max(0, self._base), self.channel.kind
        )
        zeros = np.zeros(self.spec.size, self.spec.dtype)
        return message.encode_up(self.spec, message.Up(header, zeros, outcome=message.FAILED))

    # ---------------------------------------------------------------- at home

    def theta(self) -> np.ndarray:
        """The global part that its own learner began with, ``[d]``: where a run may begin."""
        vector: np.ndarray = np.asarray(self.channel.beginning(self._home.members.state))
        return vector

    def policy(self) -> types.Policy:
        """What acts: the global part as it is here, with the local part and the normaliser; on the host."""
        policy: types.Policy = jax.device_get(self._agent.snapshot(self._home.members.state))
        return policy

    def evaluate(self, words: np.ndarray, episodes: int) -> float:
        """Mean return of so many greedy episodes in its own environment, which is pure JAX.

        Args:
            words: Of a key, ``[2]`` u32.
            episodes: How many.
        """
        if self._measure is None or self._measure[0] != episodes:
            self._measure = episodes, jax.jit(fitness.program(self._parts, episodes))
        states = jax.tree.map(lambda leaf: leaf[None], self._home.members.state)
        return float(self._measure[1](states, prng.wrap(words)[None])[0][0])

    def like(self) -> Kept:
        """What `kept` gives, as ShapeDtypeStructs or arrays."""
        counts = np.zeros(6, np.int64)
        return Kept(self._work.like, self._theta, self._reply, counts)

    def kept(self) -> Kept:
        """Its private state; it is written to the party's own folder, or to a checkpoint of a simulation."""
        counts = [self._round, self._base, self.env_steps, self.updates, self.refused, self.failed]
        return Kept(jax.device_get(self._home), self._theta, self._reply, np.array(counts, np.int64))

    def resume(self, kept: Kept) -> None:
        """Go on from there."""
        self._home = self._work.resumed(jax.device_put(kept.home))
        self._theta, self._reply = np.asarray(kept.theta), np.asarray(kept.reply)
        self._round, self._base, self.env_steps, self.updates, self.refused, self.failed = map(int, kept.counts)

    def save(self, folder: Path) -> None:
        """Write the private state to a folder that is this party's alone.

        Raises:
            OSError: It could not be written; what was there is intact.
        """
        keeping.write(folder, self.kept())

    def load(self, folder: Path) -> bool:
        """Go on from the folder; False where nothing was ever written to it.

        Raises:
            Damaged: What was written cannot be read.
        """
        kept = keeping.read(folder, self.like())
        if kept is not None:
            self.resume(kept)
        return kept is not None

    def close(self) -> None:
        """Let go of simulators."""
        self._work.close()


def channel_of(agent: types.Agent, terms: Terms) -> channels.Channel:
    """The channel that the terms name."""
    params = jax.eval_shape(agent.init, prng.key(0)).params
    if terms.exchange == "gradient":
        return channels.gradient(agent, params)
    return channels.delta(agent, params, reset=terms.reset_moments)
