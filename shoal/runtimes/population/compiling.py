"""The programs of a population, compiled before the first step: nothing is compiled once exchanges have begun."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from etils import epy

from shoal.core import programs, seeds, types
from shoal.runtimes.members import dispatch, fitness, loop, spread
from shoal.runtimes.population import applying, exchange, failing, priors

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np


class Rules(NamedTuple):
    """How members are told apart and exchanged; static."""

    members: int
    episodes: int  # of a fitness
    exchange: str  # of `exchange.PLANS`
    settings: exchange.Settings
    how: applying.How
    prior: Mapping[str, priors.Prior]


class Count:
    """How many programs were made."""

    def __init__(self) -> None:
        self.made = 0

    def one(self, compiled: programs.Compiled) -> Callable:
        """Load one; from here on it only takes arguments of its own shapes."""
        self.made += 1
        return compiled.load()


class Compiler:
    """Makes them, of one run."""

    def __init__(self, parts: types.Parts, shape: loop.Shape, rules: Rules) -> None:
        self._parts, self._shape, self._rules = parts, shape, rules
        self._shelf: Any = parts.programs or programs.Shelf()
        self.cut = spread.Cut(rules.members, fill=False)
        self.count = Count()
        self.begin = loop.start(parts, shape, self._tuned)
        self._mend: Any = None

    def _tuned(self, state: types.State, key: types.Key) -> types.State:
        hyper = self._parts.agent.about.hyper
        for name, value in priors.draw(self._rules.prior, key).items():
            state = hyper[name].put(state, value)
        return state

    def keys(self, seed: types.Key) -> types.Key:
        """One a member, ``[N]``."""
        return jax.vmap(lambda at: jax.random.fold_in(seed, at))(jnp.arange(self._rules.members))

    def start(self, keys: types.Key) -> programs.Compiled:
        """(keys) -> the first loop, on one device."""
        return self._shelf.compiled(f"population {self._shape} start", self.begin, keys)

    def put(self, whole: loop.Loop) -> loop.Loop:
        """A loop to the devices; it is given away, leaf by leaf, or there would be two of every memory meanwhile."""
        common = self.cut.copied(whole.common)
        return loop.Loop(whole.members if self.cut.devices == 1 else self._moved(whole.members), common)

    def _moved(self, members: loop.Members) -> loop.Members:
        leaves, structure = jax.tree.flatten(members)
        there: dict[int, Any] = {}  # what a tree holds twice is moved once
        for leaf in leaves:
            if id(leaf) not in there:
                there[id(leaf)] = jax.block_until_ready(self.cut.put(leaf))
                leaf.delete()
        moved: loop.Members = jax.tree.unflatten(structure, [there[id(leaf)] for leaf in leaves])
        return moved

    def _like(self, whole: loop.Loop) -> loop.Loop:
        return loop.Loop(self.cut.like(whole.members), self.cut.like_copied(whole.common))

    def call(self, like: loop.Loop, keys: types.Key, way: dispatch.Way) -> Callable:
        """(loop, keys, ask) -> (loop, told); the loop is given away."""
        every = self.cut.over(loop.call(self._parts, self._shape, way), (True, False, True, False), (True, False, True))

        def chunk(at: loop.Loop, keys: types.Key, ask: loop.Ask) -> tuple[loop.Loop, loop.Told]:
            members, common, told = every(at.members, at.common, keys, ask)
            return loop.Loop(members, common), told

        what = f"population {self._shape} {way}"
        ask = loop.Ask(jax.ShapeDtypeStruct((), "int32"), jax.ShapeDtypeStruct((), bool))
        return self.count.one(self._shelf.compiled(what, chunk, self._like(like), keys, ask, donate=True))

    def measure(self, like: types.State, keys: types.Key) -> Callable:
        """(states, keys, look) -> (fitness ``[N]``, smallest distance); one call, in which nobody looks up."""
        each = self.cut.over(fitness.program(self._parts, self._rules.episodes), (True, True), (True,))

        def measure(states: types.State, keys: types.Key) -> tuple[Any, Any]:
            far = fitness.distance(self._parts.agent, states) if self._rules.members > 1 else jnp.float32(0.0)
            return each(states, keys)[0], far

        what = f"population fitness of {self._rules.episodes}"
        program = self.count.one(self._shelf.compiled(what, measure, self.cut.like(like), keys))
        return lambda states, keys, _: program(states, keys)

    def exchange(self, like: types.State) -> Callable:
        """(states, fitness, exchanges before, key) -> (states, plan, told, hyperparameters before, and after)."""
        rules, agent = self._rules, self._parts.agent

        def swap(states: types.State, found: Any, before: Any, key: types.Key) -> Any:
            plan_key, apply_key = jax.random.split(key)
            plan, told = exchange.planned(rules.exchange, rules.settings, found, before, plan_key)
            after = applying.apply(agent, rules.prior, rules.how, plan, states, apply_key)
            values = [applying.hyperparameters(agent, rules.prior, one) for one in (states, after)]
            return self.cut.held(after), plan, told, *values

        found, before = jax.ShapeDtypeStruct((rules.members,), "float32"), jax.ShapeDtypeStruct((), "int32")
        examples = self.cut.like(like), found, before, seeds.key(0)
        return self.count.one(self._shelf.compiled(f"population exchange {rules}", swap, *examples, donate=True))

    def mend(self, members: loop.Members, mask: types.Array, source: types.Array, key: types.Key) -> loop.Members:
        """See `failing.mend`; compiled when a member fails first."""
        if self._mend is None:
            self.count.made += 1
            self._mend = jax.jit(failing.mend(self._parts, self.begin, self._rules.prior))
        fresh, key = jax.random.split(key)
        mended: loop.Members = self._mend(members, mask, source, self.keys(fresh), key)
        for at in np.flatnonzero(mask) if members.memory != () else ():
            mended = self._cleaned(mended, int(at), mask)
        return self.cut.put(mended)

    def _cleaned(self, members: loop.Members, at: int, mask: types.Array) -> loop.Members:
        """A memory that holds what is not finite becomes that of the next member that did not fail."""
        if not jax.device_get(failing.tainted(members.memory))[at]:
            return members
        source = next((other % len(mask) for other in range(at + 1, at + len(mask)) if not mask[other % len(mask)]), at)
        copy = jax.jit(failing.copied, donate_argnums=0)
        return members._replace(memory=copy(members.memory, at, source))
