"""A party whose simulators are Python's: stepped here on the host, one rollout an update; the rest is compiled.

Decisions and learning have the keys of `working.Compiled`, so from the same observations it decides and learns
the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epy

from shoal.core import seeds, tree, types
from shoal.formulas import optimise
from shoal.runtimes.crew import closing
from shoal.runtimes.experience import finite, rollouts, vectors
from shoal.runtimes.federated import channels
from shoal.runtimes.federated.working import Asked, Ended, Home, Place, Told, alone, key, sound, starting, with_state
from shoal.runtimes.members import fitness, learning, loop

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

    from shoal.core import prng


Collect = Callable[..., tuple[types.Carry, types.Rollout]]  # as `Simulated._collect`


class Simulated:
    """Simulators of Python's, all in this process; decisions and learning are compiled."""

    def __init__(
        self,
        parts: types.Parts,
        place: Place,
        channel: channels.Channel,
        fault: Callable[[str, str], None],
        beat: Callable[[], None],
    ) -> None:
        """Compile it; simulators are opened by the first round.

        Args:
            parts: Of the party.
            place: Which one it is.
            channel: What crosses, and what it does here.
            fault: Told ``(kind, traceback)`` of simulators that were replaced.
            beat: Called once a step.
        """
        self._parts, self._place, self._channel, self._fault = parts, place, channel, fault
        self._beat = beat
        self._agent, self._life = parts.agent, 0
        self._vector: vectors.Serial | None = None
        self._start = starting(parts, place)
        self._like: Home = jax.eval_shape(self._start, key(place, "init"))
        self._key, learn = key(place, "run"), loop.learn(parts, alone)
        agent, batch = parts.agent, place.environments

        def words(home: Home, key: types.Key) -> Any:
            act_key, learn_key = jax.random.split(jax.random.fold_in(key, home.common.update))
            acting = jax.random.split(act_key, (agent.about.rollout_length, 2, batch))[:, 0]
            return agent.snapshot(home.members.state), jax.random.key_data(acting), learn_key

        def act(policy: types.Policy, carry: types.Carry, obs: types.Obs, words: types.Array) -> Any:
            return rollouts.act_all(agent, policy, carry, obs, prng.wrap(words))

        def update(home: Home, gathered: types.Tree, rollout: types.Rollout, key: types.Key) -> Any:
            members, common, metrics = learn(*home, rollout, key, jnp.bool_(False))
            return Home(members, common), channel.gather(gathered, members.state), metrics

        def begin(home: Home, asked: Asked) -> Home:
            return with_state(home, channel.begin(home.members.state, asked.theta, asked.base, asked.mu))

        def end(before: types.State, home: Home, asked: Asked, gathered: types.Tree, means: types.Metrics) -> Any:
            state, updates = home.members.state, asked.updates.astype(jnp.float32)
            vector = channel.end(state, asked.theta, gathered, updates)
            kept, good = sound(before, state, means)
            return with_state(home, kept), vector, optimise.skipped(state) - optimise.skipped(before), good

        self._words, self._act, self._update = jax.jit(words), jax.jit(act), jax.jit(update)
        self._begin, self._end = jax.jit(begin), jax.jit(end)
        self._greedy = jax.jit(lambda state: agent.snapshot(state)._replace(explore=jnp.float32(0.0)))
        self._one = jax.tree.map(lambda leaf: leaf[None], agent.about.carry)

    @property
    def like(self) -> Home:
        """See `Work`."""
        return self._like

    def begin(self) -> Home:
        """See `Work`; every program of a round is compiled by then, for that is start-up and no training."""
        home: Home = jax.jit(self._start)(key(self._place, "init"))
        theta, updates = np.zeros(self._channel.spec.size, np.float32), np.int32(min(2, self._place.most))
        asked = Asked(theta, np.int32(0), np.float32(0.0), updates)
        jax.block_until_ready(self._round(home, asked, self._imagined, []))  # and thrown away
        return home

    def _opened(self) -> vectors.Serial:
        """The simulators, in their first episodes."""
        seed = seeds.derive(self._place.seed, "party", self._place.party)
        places, first = range(self._place.environments), vectors.first_incarnation(self._life)
        vector = vectors.Serial(self._parts.environment, seed, places, first, self._fault)
        self._finite = finite.Streams()
        self._obs = self._finite.first(vector.reset())
        self._returns, self._lengths = np.zeros(len(places)), np.zeros(len(places), int)
        return vector

    def __call__(self, home: Home, asked: Asked) -> tuple[Home, np.ndarray, Told]:
        """See `Work`."""
        if self._vector is None:
            self._vector = self._opened()
        before = self._finite.rewards, self._finite.observations
        ended: list[Ended] = []
        home, vector, skipped, good, named, done = self._round(home, asked, self._collect, ended)
        after = self._finite.rewards - before[0], self._finite.observations - before[1]
        steps = done * self._agent.about.rollout_length * self._place.environments
        return home, np.asarray(vector), Told(ended, named, int(skipped), after, bool(good), steps, done)

    def _round(self, home: Home, asked: Asked, collect: Collect, ended: list[Ended]) -> Any:
        """A round whose rollouts are given: home after it, what goes up, and what is told of it."""
        each: list[types.Metrics] = []
        first, gathered = home.members.state, self._channel.first
        home = self._begin(home, asked)
        for number in range(int(asked.updates)):
            policy, words, learn_key = self._words(home, self._key)
            carry, rollout = collect(policy, home.members.actors, np.asarray(words), number, ended)
            home = Home(home.members._replace(actors=carry), home.common)
            home, gathered, metrics = self._update(home, gathered, rollout, learn_key)
            each.append(metrics)
            if self._channel.episodes and len(ended) >= self._channel.episodes:
                break
        done = np.int32(len(each))
        whole = jax.device_get(each)
        named = {name: float(np.mean([one[name] for one in whole])) for name in whole[0]}
        home, *rest = self._end(first, home, asked._replace(updates=done), gathered, named)
        return home, *jax.device_get(rest), named, int(done)

    def _imagined(
        self, policy: types.Policy, carry: types.Carry, words: np.ndarray, number: int, ended: list[Ended]
    ) -> tuple[types.Carry, types.Rollout]:
        """A rollout of the shapes of `_collect`'s, of an environment that shows and pays zeros."""
        del number, ended
        spec, batch = self._parts.spec.observation, self._place.environments
        obs = np.zeros((batch, *spec.shape), spec.dtype)
        action, extras, after = self._act(policy, carry, obs, words[0])
        zeros, over = np.zeros(batch, np.float32), np.zeros(batch, bool)
        step = types.Transition(obs, np.asarray(action), zeros, zeros, over, obs, jax.device_get(extras))
        following = restarted(self._agent.about.carry, after, over)
        return following, types.Rollout(jax.tree.map(lambda leaf: np.stack([leaf] * len(words)), step), carry)

    def _collect(
        self, policy: types.Policy, carry: types.Carry, words: np.ndarray, number: int, ended: list[Ended]
    ) -> tuple[types.Carry, types.Rollout]:
        """One rollout ``[T, B]``, and the recurrent state after it."""
        first, steps, vector = carry, [], self._vector
        assert vector is not None
        for t, word in enumerate(words):
            obs = self._obs
            self._beat()
            action, extras, after = self._act(policy, carry, obs, word)
            action = np.asarray(action)
            batch = self._finite.step(obs, vector.step(action))
            self._obs, outcome = batch.obs, batch.outcome
            over = outcome.truncated | (outcome.discount == 0)
            self._count(outcome, over, (number * len(words) + t + 1) * len(obs), ended)
            steps.append(types.Transition(obs, action, *outcome, jax.device_get(extras)))
            carry = restarted(self._agent.about.carry, after, over)
        return carry, types.Rollout(jax.tree.map(lambda *leaves: np.stack(leaves), *steps), first)

    def _count(self, outcome: types.Outcome, over: np.ndarray, at: int, ended: list[Ended]) -> None:
        self._returns += outcome.reward
        self._lengths += 1
        for i in np.flatnonzero(over):
            ended.append(Ended(at, float(self._returns[i]), int(self._lengths[i])))
        self._returns[over], self._lengths[over] = 0.0, 0

    def evaluate(self, state: types.State, words: np.ndarray, episodes: int) -> float:
        """See `Work`: one episode after the other, in a simulator as it is evaluated."""
        env = finite.Guard(self._parts.environment.evaluation())
        policy = self._greedy(state)
        limit = fitness.LONGEST if self._parts.spec.time_limit else fitness.LONGEST_FREE
        total = 0.0
        try:
            for number in range(episodes):
                obs, carry = env.reset(seeds.derive(int(words[0]), int(words[1]), number)), self._one
                for step in range(limit):
                    word = np.array([[words[0] ^ np.uint32(number), words[1] + np.uint32(step)]], np.uint32)
                    action, _, carry = self._act(policy, carry, obs[None], word)
                    obs, outcome = env.step(np.asarray(action)[0])
                    total += float(outcome.reward)
                    if outcome.truncated or outcome.discount == 0:
                        break
        finally:
            closing.told(env.close, self._fault)
        return total / episodes

    def resumed(self, home: Home, life: int) -> Home:
        """See `Work`: simulators cannot be saved, so every stream breaks off; seeds are ones not used before."""
        self.close()
        self._life = life
        return anew(self._agent, home)

    def close(self) -> None:
        """See `Work`."""
        vector, self._vector = self._vector, None
        if vector is not None:
            closing.told(vector.close, self._fault)


def anew(agent: types.Agent, home: Home) -> Home:
    """Home where all streams begin new episodes out of turn (`About.restart`)."""
    restart, kept_here, members = agent.about.restart, learning.learns(agent), home.members
    batch = len(jax.tree.leaves(members.actors)[0]) if agent.about.carry else 0
    actors = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (batch, *leaf.shape)), agent.about.carry)
    members = members._replace(actors=actors)
    if restart is None:
        return home._replace(members=members)
    if kept_here is None:
        return home._replace(members=members._replace(state=restart(members.state)))
    field = str(agent.about.fields.memory)
    whole = restart(tree.replaced(members.state, field, learning.joined(members.memory, home.common.memory)))
    kept = tree.field(whole, field)
    own = learning.parted(kept, kept_here.memory.common(kept))[0]
    return home._replace(members=members._replace(state=tree.replaced(whole, field, ()), memory=own))


def restarted(first: types.Carry, carry: types.Carry, over: np.ndarray) -> types.Carry:
    """The recurrent state ``[B, ...]`` after a step, that of streams that ended anew."""

    def one(start: types.Array, now: types.Array) -> types.Array:
        now = np.asarray(now)
        return np.where(over.reshape(-1, *[1] * (now.ndim - 1)), np.asarray(start), now)

    return jax.tree.map(one, first, carry)
