"""One party by itself: the bytes of a download in, the bytes of its reply out, and a private state that stays here.

What comes in is checked as strictly as what the server takes: a message that is malformed, of another run or party, not
finite, or older than one before is refused, and the party keeps its last good global part. Whatever goes wrong here is
written to the party's own log; what crosses is the outcome ``failed`` and zeros.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epy

from shoal.core import types
from shoal.runtimes.federated import channels, consensus, keeping, message, simulated, working
from shoal.runtimes.federated.given import Leaves, Log, Terms, as_it_is, nowhere, still

with epy.lazy_imports():
    import jax

    from shoal.core import prng


class Refused(Exception):
    """What came in is not taken; the party stays as it was."""


class Kept(NamedTuple):
    """All of a party that must outlive its process; NumPy arrays. It stays with the party."""

    home: working.Home
    theta: np.ndarray  # [d] f32, the last good global part
    reply: np.ndarray  # [bytes] u8 of the last reply, to be sent again if the same round is asked for once more
    counts: np.ndarray  # [8] i64: `COUNTS`


# Of a party, as they are saved.
COUNTS = ("round", "base", "env_steps", "updates", "releases", "refused", "failed", "lives")


class Party:
    """See the module."""

    def __init__(
        self,
        parts: types.Parts,
        terms: Terms,
        leaving: Leaves = as_it_is,
        log: Log = nowhere,
        channel: channels.Channel | None = None,
        beat: Callable[[], None] = still,
    ) -> None:
        """Compile what a round needs.

        Args:
            parts: Its agent and environment.
            terms: Of the run.
            leaving: What is done to an update before it leaves.
            log: The party's own log; what is told there never crosses.
            channel: What crosses; None: what `terms.exchange` names.
            beat: Called now and then while Python simulators are stepped.
        """
        self.terms, self._leaving, self._log, self._agent = terms, leaving, log, parts.agent
        self.channel = channel or channel_of(parts.agent, terms)
        place = place_of(terms)
        self._parts, self._place = parts, place
        self._work: working.Work = (
            working.Compiled(parts, place, self.channel)
            if parts.device_env is not None
            else simulated.Simulated(parts, place, self.channel, log, beat)
        )
        self._home = self._work.begin()
        self._theta = np.zeros(self.channel.spec.size, np.float32)
        self.counts = dict.fromkeys(COUNTS, 0) | {"round": -1, "base": -1}
        self._reply = np.zeros(self.spec.bytes_up, np.uint8)
        self.told: working.Told | None = None  # of the last round; beside the channel

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
            self.counts["refused"] += 1
            self._log(f"a message was refused: {error}", "")
        except Exception:  # noqa: BLE001  whatever it was stays in this party's log
            self._failed()
        return self._nothing()

    def _failed(self) -> None:
        """Tell what is being raised; nothing of the round has changed anything."""
        self.counts["failed"] += 1
        self._log("a round failed", traceback.format_exc())

    def _checked(self, body: bytes) -> message.Down | None:
        """What came in; None where it is the round that was answered last."""
        down = message.decode_down(self.spec, body)
        header, terms = down.header, self.terms
        if (header.run, header.party, header.kind) != (terms.run, terms.party, self.channel.kind):
            raise Refused("it is of another run, for another party or of another kind")
        if not 1 <= down.settings.local_updates <= terms.most:
            raise Refused(f"{down.settings.local_updates} local updates; this party does 1 to {terms.most}")
        if (header.round, header.base) == (self.counts["round"], self.counts["base"]):
            return None
        if header.round <= self.counts["round"] or header.base < self.counts["base"]:
            raise Refused(f"round {header.round}, version {header.base}: older than one before")
        return down

    def _answered(self, down: message.Down) -> bytes:
        """Learn, and say what became of it; where this raises, the party is as it was before."""
        header, settings, counts = down.header, down.settings, self.counts
        theta = np.array(down.vector, np.float32)
        base = np.int32(min(header.base, 2**31 - 1))
        asked = working.Asked(theta, base, np.float32(settings.mu), np.int32(settings.local_updates))
        home, vector, told = self._work(self._home, asked)
        # How long episodes were is what was earned, on many tasks: it crosses only where it is the same in every round.
        steps = 0 if self.channel.episodes or self.terms.padded else told.env_steps
        up = message.Up(header, np.zeros_like(theta), steps, settings.local_updates, message.SKIPPED)
        if not told.finite:
            up = message.Up(header, np.zeros_like(theta), outcome=message.FAILED)
        elif np.isfinite(vector).all() and vector.any():  # else its optimiser took no step, or nothing was learned from
            counts["releases"] += 1  # whatever happens next, this one is never done twice
            vector = self._leaving(vector, party=self.terms.party, turn=counts["releases"] - 1)
            up = up._replace(vector=vector, outcome=message.OK)
        reply = message.encode_up(self.spec, up)
        self._theta, self._reply = theta, np.frombuffer(reply, np.uint8)
        counts |= {"round": header.round, "base": header.base}
        self._learned(home, told)
        return reply

    def _learned(self, home: working.Home, told: working.Told) -> None:
        self._home, self.told = home, told
        self.counts["env_steps"] += told.env_steps
        self.counts["updates"] += told.updates

    def _nothing(self) -> bytes:
        """The outcome ``failed``, the same whatever went wrong."""
        header = message.Header(
            self.terms.run,
            self.terms.party,
            max(0, self.counts["round"]),
            max(0, self.counts["base"]),
            self.channel.kind,
        )
        zeros = np.zeros(self.spec.size, self.spec.dtype)
        return message.encode_up(self.spec, message.Up(header, zeros, outcome=message.FAILED))

    # ---------------------------------------------------------------- at home

    def alone(self, updates: int) -> None:
        """Learn for so many updates; nothing comes in and nothing goes out. What is raised is this party's own too."""
        asked = working.Asked(self._theta, np.int32(0), np.float32(0.0), np.int32(updates))
        try:
            home, _, told = self._work(self._home, asked)
        except Exception:  # noqa: BLE001  as in `handle`
            self._failed()
        else:
            self._learned(home, told)

    def theta(self) -> np.ndarray:
        """What a run may begin with, from this party's own learner, ``[d]``; before its first round."""
        return np.asarray(self.channel.beginning(self._home.members.state))

    def policy(self, theta: np.ndarray | None = None) -> types.Policy:
        """What acts: the global part with the local part and the normaliser of this party; on the host.

        Args:
            theta: The global part ``[d]``; None: as it is here.
        """
        policy: types.Policy = jax.device_get(self._agent.snapshot(self._state(theta)))
        return policy

    def evaluate(self, words: np.ndarray, episodes: int, theta: np.ndarray | None = None) -> float:
        """Mean return of so many greedy episodes in its own environment.

        Args:
            words: Of a key, ``[2]`` u32.
            episodes: How many.
            theta: As in `policy`.
        """
        return self._work.evaluate(self._state(theta), words, episodes)

    def _state(self, theta: np.ndarray | None) -> types.State:
        state = self._home.members.state
        return state if theta is None else self.channel.install(state, theta)

    def like(self) -> Kept:
        """What `kept` gives, as ShapeDtypeStructs or arrays."""
        return _kept(self._work.like, self.spec)

    def kept(self) -> Kept:
        """Its private state; it is written to the party's own folder, or to a checkpoint of a simulation."""
        counts = np.array([self.counts[name] for name in COUNTS], np.int64)
        return Kept(jax.device_get(self._home), self._theta, self._reply, counts)

    def resume(self, kept: Kept) -> None:
        """Go on from there."""
        self.counts = dict(zip(COUNTS, map(int, kept.counts), strict=True))
        self.counts["lives"] += 1
        self._home = self._work.resumed(jax.device_put(kept.home), self.counts["lives"])
        self._theta, self._reply = np.asarray(kept.theta), np.asarray(kept.reply)

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


def like(parts: types.Parts, terms: Terms) -> Kept:
    """What `Party.kept` will give, as ShapeDtypeStructs or arrays; nothing is compiled.

    Args:
        parts: Of the party.
        terms: Of the run.
    """
    place = place_of(terms)
    home = jax.eval_shape(working.starting(parts, place), prng.key(0))
    return _kept(home, channel_of(parts.agent, terms).spec)


def place_of(terms: Terms) -> working.Place:
    """What fixes a party's programs."""
    return working.Place(terms.seed, terms.party, terms.environments, terms.most, terms.padded)


def _kept(home: working.Home, spec: message.Spec) -> Kept:
    zeros = np.zeros(spec.size, np.float32), np.zeros(spec.bytes_up, np.uint8), np.zeros(len(COUNTS), np.int64)
    return Kept(home, *zeros)


def channel_of(agent: types.Agent, terms: Terms) -> channels.Channel:
    """The channel that the terms name."""
    if terms.exchange == "none":
        return channels.nothing()
    if terms.agreement is not None:
        return consensus.channel(agent, terms.agreement)
    params = jax.eval_shape(agent.init, prng.key(0)).params
    if terms.exchange == "gradient":
        return channels.gradient(agent, params)
    return channels.delta(agent, params, reset=terms.reset_moments)


__all__ = [
    "COUNTS", "Kept", "Leaves", "Log", "Party", "Refused", "Terms", "as_it_is", "channel_of", "like", "nowhere",
    "place_of", "still",
]  # fmt: skip
