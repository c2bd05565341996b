"""The programs of a population whose simulators are in Python: decisions and learning, compiled apart.

Between them the simulators are stepped on the host (`stepping`). Keys are those of the loop on the device, so a member
decides and learns what it would there from the same observations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epy

from shoal.core import prng, tree, types
from shoal.formulas import optimise
from shoal.runtimes.experience import rollouts
from shoal.runtimes.members import dispatch, fitness, learning, loop
from shoal.runtimes.population import compiling

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np


class Programs(NamedTuple):
    """What is compiled beside learning; trees have the members in front."""

    begin: Callable  # (states, keys, update) -> (policies, words of the decisions [N, T, B, 2], keys to learn with)
    act: Callable  # (policies, carry, observations [N, B, ...], words [N, B, 2]) -> (actions, extras, carry)
    skipped: Callable  # states -> gradients that were dropped so far [N]
    finite: Callable  # states -> whether all their numbers are finite [N]


class Learner:
    """(loop, rollouts ``[N, T, B]``, keys, force) -> (loop, metrics ``[N]``); the loop is given away."""

    def __init__(self, program: Callable, blank: types.Rollout) -> None:
        self.learn, self._blank = program, blank

    def __call__(self, at: loop.Loop, keys: types.Key, ask: loop.Ask) -> tuple[loop.Loop, types.Metrics]:
        """Some updates from nothing, to be timed."""
        told: types.Metrics = {}
        for _ in range(int(ask.updates)):
            at, told = self.learn(at, self._blank, keys, ask.force)
        return at, told


class Compiler(compiling.Compiler):
    """Makes them, of one run."""

    def part(self, blocks: int) -> Compiler:
        """The same for as many members as there are in one of so many blocks; programs are counted together."""
        made = Compiler(self._parts, self._shape, self._rules._replace(members=self._rules.members // blocks))
        made.count = self.count
        return made

    def _blank(self) -> types.Rollout:
        """Rollouts as ShapeDtypeStructs, as simulators and decisions fill them."""
        agent, spec = self._parts.agent, self._parts.spec
        lead = (self._rules.members, agent.about.rollout_length, self._shape.environments)

        def of(shape: tuple[int, ...], dtype: Any) -> Any:
            return jax.ShapeDtypeStruct((*lead, *shape), dtype)

        policy = jax.eval_shape(lambda key: agent.snapshot(agent.init(key)), prng.key(0))
        obs = jax.ShapeDtypeStruct(spec.observation.shape, spec.observation.dtype)
        action, extras, _ = jax.eval_shape(agent.act, policy, agent.about.carry, obs, prng.key(0))
        action, extras = jax.tree.map(lambda leaf: of(leaf.shape, leaf.dtype), (action, extras))
        seen, number = of(obs.shape, obs.dtype), of((), "float32")
        steps = types.Transition(seen, action, number, number, of((), bool), seen, extras)
        return types.Rollout(steps, self._carry(self._shape.environments))

    def _carry(self, streams: int) -> types.Carry:
        first = (self._rules.members, streams)
        carry = self._parts.agent.about.carry
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*first, *leaf.shape), leaf.dtype), carry)

    def call(self, like: loop.Loop, keys: types.Key, way: dispatch.Way) -> Callable:
        """See `Learner`."""
        every = self.cut.over(_learning(self._parts, way), (True, False, True, False), (True, False, True))

        def learn(at: loop.Loop, rollout: types.Rollout, keys: types.Key, force: types.Scalar) -> Any:
            (members, _), common, metrics = every((at.members, rollout), at.common, keys, force)
            return loop.Loop(members, common), metrics

        blank = self._blank()
        given = self._like(like), self.cut.like(blank), keys, jax.ShapeDtypeStruct((), bool)
        program = self.count.one(
            self._shelf.compiled(f"population {self._shape} learn {way}", learn, *given, donate=True)
        )
        return Learner(program, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), blank))

    def programs(self, like: types.State, keys: types.Key) -> Programs:
        """The others.

        Args:
            like: The learners' states.
            keys: Of learning.
        """
        agent, batch = self._parts.agent, self._shape.environments
        states, update = self.cut.like(like), jax.ShapeDtypeStruct((), "uint32")

        def begin(state: types.State, key: types.Key, update: types.Scalar) -> Any:
            act_key, learn_key = jax.random.split(jax.random.fold_in(key, update))
            words = jax.random.split(act_key, (agent.about.rollout_length, 2, batch))[:, 0]
            return agent.snapshot(state), jax.random.key_data(words), learn_key

        def ready(state: types.State) -> tuple[types.Array]:
            return (tree.all_finite(state),)

        def skipped(state: types.State) -> tuple[types.Array]:
            return (optimise.skipped(state),)

        begun = self._shelf.compiled(
            f"population {self._shape} begin",
            self.cut.over(jax.vmap(begin, in_axes=(0, 0, None)), (True, True, False), (True, True, True)),
            states, keys, update,
        )  # fmt: skip
        looks = [
            self.count.one(
                self._shelf.compiled(f"population {name}", self.cut.over(jax.vmap(one), (True,), (True,)), states)
            )
            for name, one in (("skipped", skipped), ("finite", ready))
        ]
        act = self.act(begun.returns[0], batch)
        return Programs(self.count.one(begun), act, *looks)

    def act(self, policies: types.Policy, streams: int) -> Callable:
        """Decisions of all members, in so many streams each (see `Programs`)."""
        agent, seen = self._parts.agent, self._parts.spec.observation
        lead = (self._rules.members, streams)

        def act(policy: types.Policy, carry: types.Carry, obs: types.Obs, words: types.Array) -> Any:
            return rollouts.act_all(agent, policy, carry, obs, prng.wrap(words))

        given = (
            policies, self._carry(streams), jax.ShapeDtypeStruct((*lead, *seen.shape), seen.dtype),
            jax.ShapeDtypeStruct((*lead, 2), "uint32"),
        )  # fmt: skip
        program = self.cut.over(jax.vmap(act), (True,) * 4, (True,) * 3)
        return self.count.one(self._shelf.compiled("population act", program, *map(self.cut.like, given)))

    def greedy(self, like: types.State) -> tuple[Callable, types.Policy]:
        """(states) -> (policies without exploration, smallest distance between two); and such policies' shapes."""
        agent = self._parts.agent

        def one(state: types.State) -> tuple[types.Policy]:
            return (agent.snapshot(state)._replace(explore=jnp.float32(0.0)),)

        def every(states: types.State) -> tuple[types.Policy, types.Scalar]:
            far = fitness.distance(agent, states) if self._rules.members > 1 else jnp.float32(0.0)
            return self.cut.over(jax.vmap(one), (True,), (True,))(states)[0], far

        made = self._shelf.compiled("population greedy", every, self.cut.like(like))
        return self.count.one(made), made.returns[0]


def _learning(parts: types.Parts, way: dispatch.Way) -> Callable:
    """((`loop.Members`, rollouts), `loop.Common`, keys, force) -> (the first again, `loop.Common`, metrics)."""

    def lifted(lift: Callable[..., Any]) -> Callable:
        learn = loop.learn(parts, lift)

        def once(given: Any, common: loop.Common, keys: types.Key, force: types.Scalar) -> Any:
            members, rollout = given
            members, common, metrics = learn(members, common, rollout, keys, force)
            return (members, rollout), common, metrics

        return once

    return dispatch.every(lifted(lambda function, *_: function), lifted(loop.vmapped), way)


def anew(agent: types.Agent, at: loop.Loop) -> loop.Loop:
    """The loop where all streams begin new episodes out of turn, for simulators cannot be saved (`About.restart`)."""
    restart, kept_here, field = agent.about.restart, learning.learns(agent), str(agent.about.fields.memory)
    members = at.members

    def one(state: types.State, own: types.Tree) -> tuple[types.State, types.Tree]:
        assert restart is not None
        if kept_here is None:
            return restart(state), own
        whole = restart(tree.replaced(state, field, learning.joined(own, at.common.memory)))
        kept = tree.field(whole, field)
        return tree.replaced(whole, field, ()), learning.parted(kept, kept_here.memory.common(kept))[0]

    if restart is not None:
        state, memory = jax.vmap(one)(members.state, members.memory)
        members = members._replace(state=state, memory=memory)
    first = jax.tree.map(lambda leaf, now: jnp.broadcast_to(leaf, now.shape), agent.about.carry, members.actors)
    return at._replace(members=members._replace(actors=first))
