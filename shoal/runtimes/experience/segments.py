"""Experience from one environment inside a worker, one segment of fixed size after another, ``[T, 1]``.

A stream of padded segments ends each with its episode, as the pseudo-code of Mnih et al. 2016 does: what is left of
its T steps is padding, which never happened.

`HostSegments` steps a Python simulator; `DeviceSegments` runs a pure-JAX environment, the whole segment in one
compiled call. Both give the same `types.Rollout` and the same account of finished episodes and of time.
"""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple, Protocol

import numpy as np
from etils import epy

from shoal.core import prng, seeds, types

with epy.lazy_imports():
    import jax

    from shoal.networks import in_numpy
    from shoal.runtimes.experience import finite, rollouts


LARGEST = 3.4028234663852886e38  # of float32; `finite` is imported when the first stream is made


class Finished(NamedTuple):
    """An episode that ended inside a segment."""

    at: int  # steps into the segment, 1 for its first
    episode_return: float
    length: int


class Segment(NamedTuple):
    """What one call of `collect` gives."""

    payload: Any  # the rollout [T, 1] where it is not in the room given at the start; else ()
    finished: list[Finished]
    steps: int  # that happened: T, or fewer of a padded one
    environment_s: float  # seconds in the simulator
    inference_s: float  # seconds deciding
    unfit: tuple[int, int] = (0, 0)  # rewards and observations that were not finite (`finite.Unfit`)


class Segments(Protocol):
    """One stream of segments."""

    def collect(self, policy: types.Policy | None) -> Segment:
        """Act ``T`` steps with `policy` (None: with the NumPy state given at the start)."""
        ...

    def rehearse(self, policy: types.Policy | None) -> Any:
        """Compile what `collect` runs, without moving the stream; returns a payload of the right shapes."""
        ...

    def save(self) -> types.Tree:
        """What the stream's next segment depends on, as far as it can be saved (see `kept`)."""
        ...

    def restore(self, saved: types.Tree) -> None:
        """Go on from what `save` gave."""
        ...

    def close(self) -> None:
        """Release the simulator."""
        ...


class Programs:
    """The compiled functions of streams, one for all of a process."""

    def __init__(self, parts: types.Parts, padded: bool = False) -> None:
        """Args: `parts`, what is run; `padded`, whether a segment ends with its episode."""
        agent, env = parts.agent, parts.device_env

        def act(policy: types.Policy, carry: types.Carry, obs: Any, words: Any) -> Any:
            return agent.act(policy, carry, obs, prng.counted(words))

        def segment(policy: types.Policy, actors: Any, words: Any) -> Any:
            assert env is not None
            collect = rollouts.collect_padded if padded else rollouts.collect
            return collect(agent, env, policy, actors, prng.counted(words))

        self.parts = parts
        self.act, self.segment = jax.jit(act), jax.jit(segment)
        self.act_all = jax.jit(jax.vmap(act, in_axes=(None, 0, 0, 0)))  # the streams of one policy, at once


class HostSegments:
    """A Python simulator; small networks decide in NumPy, others by one jitted call a step."""

    def __init__(self, programs: Programs, state: Any, room: types.Rollout, seed: int, *place: int | str) -> None:
        """Open the simulator.

        Args:
            programs: Of the agent and its environment.
            state: The learner's, as NumPy views that follow it, for networks that decide in NumPy.
            room: NumPy arrays ``[T, 1, ...]`` that each segment is written into; segments are padded if it has `used`.
            seed: The run's.
            *place: Of this stream, for `seeds.derive`.
        """
        agent = self._agent = programs.parts.agent
        self._env = finite.Guard(programs.parts.environment.host())
        self.obs = self._env.reset(seeds.derive(seed, *place, "environment"))
        self._return, self._length = 0.0, 0
        self._generator = np.random.default_rng(seeds.derive(seed, *place, "action"))
        self._small = in_numpy.deciding(agent.about, state, self._generator)
        self.key = np.array([seeds.derive(seed, *place, "key", i) for i in range(2)] + [0], np.uint32)
        self._carry = agent.about.carry
        self._act = programs.act
        self._carry_room, self._used = room.carry, room.used
        self._remembers = bool(jax.tree.leaves(room.carry))
        self._padded = not isinstance(room.used, tuple)
        self._room = jax.tree.map(lambda leaf: leaf[:, 0], room.transitions)

    def _decide(self, policy: types.Policy | None, obs: np.ndarray) -> tuple[Any, Any]:
        self.key[2] += 1
        action, extras, self._carry = self._act(policy, self._carry, obs, self.key)
        return np.asarray(action), extras

    def collect(self, policy: types.Policy | None) -> Segment:
        """See `Segments`."""
        small, step, clock = self._small, self._env.unguarded, time.perf_counter
        look, mend, isfinite = self._env.looks, self._env.mend, math.isfinite
        to, finished, padded = self._room, [], self._padded
        obs_to, action_to, next_to = to.obs, to.action, to.next_obs
        rewards, discounts, cuts, extras_of = [], [], [], []
        if self._remembers:
            jax.tree.map(_put, self._carry_room, self._carry)
        environment, started = 0.0, clock()
        obs, paid, lasted = self.obs, self._return, self._length  # of the episode under way
        for t in range(len(action_to)):
            action, extras = small(obs) if small else self._decide(policy, obs)
            before = clock()
            following, outcome = step(action)
            environment += clock() - before
            reward, discount, truncated, next_obs = outcome
            over = truncated or discount == 0.0
            # Said once more here, for a call a step is dear: `finite.Guard.step` is this and what it leads to.
            if (
                not -LARGEST <= reward <= LARGEST
                or (look and not isfinite(look(next_obs, next_obs)))
                or (over and look and not isfinite(look(following, following)))
            ):
                following, (reward, discount, truncated, next_obs) = mend(obs, following, outcome)
            obs_to[t], action_to[t] = obs, action
            rewards.append(reward)
            discounts.append(discount)
            cuts.append(truncated)
            extras_of.append(extras)
            paid += reward
            if over:
                next_to[t] = next_obs
                finished.append(Finished(t + 1, paid, lasted + t + 1))
                paid, lasted, self._carry = 0.0, -t - 1, self._agent.about.carry
            obs = following
            if padded and finished:
                break
        happened = len(rewards)
        self.obs, self._return, self._length = obs, paid, lasted + happened
        self._fill(rewards, discounts, cuts, extras_of, [f.at - 1 for f in finished])
        return Segment((), finished, happened, environment, clock() - started - environment, self._env.take())

    # ---------------------------------------------------------------- one step at a time: `together.Together`

    @property
    def length(self) -> int:
        """``T``."""
        return len(self._room.action)

    def enter(self, carry: types.Carry) -> None:
        """Begin a segment with this recurrent state."""
        jax.tree.map(_put, self._carry_room, carry)

    def step(self, t: int, action: types.Action) -> tuple[float, float, bool, Finished | None]:
        """Act once, ``t`` steps into the segment: reward, discount, whether it was cut, and the episode if it ended."""
        to, finished = self._room, None
        to.obs[t], to.action[t] = self.obs, action
        self.obs, (reward, discount, truncated, next_obs) = self._env.step(action)
        self._return += reward
        if truncated or discount == 0.0:
            to.next_obs[t] = next_obs
            finished = Finished(t + 1, self._return, self._length + t + 1)
            self._return, self._length = 0.0, -t - 1
        return reward, discount, truncated, finished

    def leave(self, rewards: list, discounts: list, cuts: list, extras_of: list, finished: list[Finished]) -> None:
        """End a whole segment."""
        self._length += len(rewards)
        self._fill(rewards, discounts, cuts, extras_of, [f.at - 1 for f in finished])

    def unfit(self) -> tuple[int, int]:
        """Rewards and observations that were not finite since the last call."""
        return self._env.take()

    def _fill(self, rewards: list, discounts: list, cuts: list, extras_of: list, ends: list[int]) -> None:
        """What is cheaper to write at once: scalars, and successors where no episode ended (the next observation)."""
        to = self._room
        if self._padded:
            self._used[...] = len(rewards)
            _pad(to, rewards, discounts, cuts, extras_of)
        to.reward[:], to.discount[:], to.truncated[:] = rewards, discounts, cuts
        for room, leaves in zip(to.extras, zip(*extras_of, strict=True), strict=True):
            room[:] = leaves
        kept = to.next_obs[ends] if ends else None
        to.next_obs[:-1] = to.obs[1:]
        to.next_obs[-1] = self.obs
        if ends:
            to.next_obs[ends] = kept

    def rehearse(self, policy: types.Policy | None) -> Any:
        """See `Segments`."""
        if not self._small:
            before = self.key.copy()
            self._decide(policy, self.obs)
            self._carry = self._agent.about.carry
            self.key[:] = before  # a replay does not rehearse, and must draw the same actions
        return ()

    def save(self) -> types.Tree:
        """See `Segments`; simulators cannot be saved, so the two random streams are all."""
        return {"key": self.key.copy(), "generator": _words_of(self._generator)}

    def restore(self, saved: types.Tree) -> None:
        """See `Segments`; the episode begins anew."""
        self.key[:] = saved["key"]
        _set_words(self._generator, saved["generator"])

    def close(self) -> None:
        """Release the simulator."""
        self._env.close()


class DeviceSegments:
    """A pure-JAX environment; a segment is one compiled call."""

    def __init__(self, programs: Programs, seed: int, *place: int | str) -> None:
        env = programs.parts.device_env
        assert env is not None
        self._actors = rollouts.start(programs.parts.agent, env, 1, seeds.key(seed, *place, "environment"))
        self._key = np.array([seeds.derive(seed, *place, "key", i) for i in range(2)] + [0], np.uint32)
        self._segment = programs.segment

    def collect(self, policy: types.Policy | None) -> Segment:
        """See `Segments`; simulator and decisions are one program, so all its time counts as the environment's."""
        started = time.perf_counter()
        self._actors, rollout, ended = self._segment(policy, self._actors, self._key.copy())
        happened = len(rollout.transitions.reward) if isinstance(rollout.used, tuple) else int(rollout.used)
        self._key[2] += 1  # the copy above: a compiled call may read its argument's memory after it has returned
        over = np.asarray(ended.over)[:, 0]
        finished = [
            Finished(int(t) + 1, float(ended.episode_return[t, 0]), int(ended.length[t, 0]))
            for t in np.flatnonzero(over[:happened])
        ]
        rewards, observations = np.asarray(ended.unfit)[:happened, 0].sum(axis=0).tolist()
        return Segment(rollout, finished, happened, time.perf_counter() - started, 0.0, (rewards, observations))

    def rehearse(self, policy: types.Policy | None) -> Any:
        """See `Segments`."""
        return self._segment(policy, self._actors, self._key)[1]

    def save(self) -> types.Tree:
        """See `Segments`; it is all there is."""
        return {"key": self._key.copy(), "actors": jax.device_get(self._actors)}

    def restore(self, saved: types.Tree) -> None:
        """See `Segments`."""
        self._key[:] = saved["key"]
        self._actors = jax.device_put(jax.tree.map(np.array, saved["actors"]))  # copied: the room may be written again

    def close(self) -> None:
        """Nothing to release."""


def like(parts: types.Parts, padded: bool = False) -> types.Rollout:
    """Shapes and dtypes of a rollout ``[T, 1]``, of padded segments or of whole ones."""
    agent, seen = parts.agent, parts.spec.observation
    state = jax.eval_shape(agent.init, seeds.key(0))
    policy = jax.eval_shape(agent.snapshot, state)
    obs = jax.ShapeDtypeStruct(seen.shape, seen.dtype)
    action, extras, _ = jax.eval_shape(agent.act, policy, agent.about.carry, obs, seeds.key(0))

    def over_time(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct((agent.about.rollout_length, 1, *leaf.shape), leaf.dtype)

    number, flag = jax.ShapeDtypeStruct((), np.float32), jax.ShapeDtypeStruct((), np.bool_)
    step = types.Transition(obs, action, number, number, flag, obs, extras)
    carry = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), agent.about.carry)
    used = jax.ShapeDtypeStruct((), np.int32) if padded else ()
    return types.Rollout(jax.tree.map(over_time, step), carry, used)


def kept(parts: types.Parts) -> types.Tree:
    """Shapes and dtypes of what `Segments.save` gives."""
    key, env = jax.ShapeDtypeStruct((3,), np.uint32), parts.device_env
    if env is None:
        return {"key": key, "generator": jax.ShapeDtypeStruct((10,), np.uint32)}
    return {"key": key, "actors": jax.eval_shape(lambda: rollouts.start(parts.agent, env, 1, seeds.key(0)))}


def _words_of(generator: np.random.Generator) -> np.ndarray:
    """The state of a PCG64 generator, ``[10]`` u32: state and increment, low words first; a half-used draw."""
    state = generator.bit_generator.state
    long = [state["state"][name] >> (32 * i) & 0xFFFFFFFF for name in ("state", "inc") for i in range(4)]
    return np.array([*long, state["has_uint32"], state["uinteger"]], np.uint32)


def _set_words(generator: np.random.Generator, words: np.ndarray) -> None:
    *long, half, rest = (int(word) for word in words)
    whole = [sum(word << (32 * i) for i, word in enumerate(long[at : at + 4])) for at in (0, 4)]
    inner = {"state": whole[0], "inc": whole[1]}
    generator.bit_generator.state = {
        "bit_generator": "PCG64", "state": inner, "has_uint32": half, "uinteger": rest
    }  # fmt: skip


def _pad(to: types.Transition, rewards: list, discounts: list, cuts: list, extras_of: list) -> None:
    """Fill the rest of a segment with what cannot do harm: its own first step, which pays and continues nothing."""
    happened, rest = len(rewards), len(to.action) - len(rewards)
    to.obs[happened:] = to.next_obs[happened:] = to.obs[0]
    to.action[happened:] = to.action[0]
    rewards += [0.0] * rest
    discounts += [0.0] * rest
    cuts += [False] * rest
    extras_of += [extras_of[0]] * rest


def _put(room: np.ndarray, leaf: Any) -> None:
    room[0] = leaf
