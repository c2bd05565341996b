"""Trials that differ in numbers alone share their compiled programs.

Numbers that may change during training are leaves of a learner's state (`types.About.hyper`), so one program serves
every value of them: it is traced and compiled for the first trial, and the others only begin from other leaves. What
starts a learner is a program too; here it gets the leaves as an argument. A trial has the bits of the same run alone.
"""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

from etils import epy

from shoal import environments, experiment
from shoal.core import programs, seeds, types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np

MOST = 16  # programs that are held
OUTSIDE = ("seed", "steps", "goal", "preset", "episodes", "evaluate_every", "evaluate_episodes", "earlier")


class Workshop:
    """Builds the runs of a search."""

    def __init__(self, made: experiment.Experiment) -> None:
        """Args: `made`, the preset on its environment; what is built with its programs differs in leaves from it."""
        self._like = _rest(made, ())
        how = experiment.ways(made.runtime, made.configs["runtime"])
        here = not experiment.processes(made)
        self._shares = how.ahead and here and how.members == 1 and made.compressor == "identity"
        self._base: experiment.Built | None = None
        self._memo: dict[Hashable, Any] = {}
        self._values = _Values()
        self.at: Hashable = None  # beside what is asked for, what decides how a run is cut up: where it goes on from

    def __call__(
        self, made: experiment.Experiment, opened: environments.Opened, start: types.Tree | None = None
    ) -> experiment.Built:
        """As `experiment.build`.

        Args:
            made: What to build.
            opened: Its environment.
            start: The policy its learner starts from.
        """
        experiment.cache()
        own = experiment.build(made, opened, start)
        if not self._shares or start is not None:
            return own
        hyper = own.parts.agent.about.hyper
        if _rest(made, hyper) != self._alike(hyper):
            return own
        base = self._base = self._base or own
        values = _leaves(own.parts.agent)
        shelf: Any = _Shelf(self._memo, self._values, values, (self.at, made.steps))
        agent = base.parts.agent._replace(init=functools.partial(self._begin, base.parts.agent, values))
        parts = own.parts._replace(agent=agent, device_env=base.parts.device_env, programs=shelf)
        return experiment.Built(parts, own.runtime, shelf)

    def _alike(self, hyper: Mapping[str, types.Leaf]) -> dict[str, Any]:
        return {name: value for name, value in self._like.items() if name not in hyper}

    def _begin(self, agent: types.Agent, own: Mapping[str, Any], key: types.Key) -> types.State:
        """The first state, with the leaves that are an argument of the program being traced; else its own."""
        state = agent.init(key)
        for name, value in (self._values.given or own).items():
            state = agent.about.hyper[name].put(state, jnp.asarray(value, jnp.float32))
        return state


class _Values(threading.local):
    """The leaves that a program is traced with."""

    given: Mapping[str, Any] | None = None

    @contextlib.contextmanager
    def holding(self, values: Mapping[str, Any]) -> Iterator[None]:
        self.given = values
        try:
            yield
        finally:
            self.given = None


class _Shelf:
    """The programs of one trial, made once for all that share them; as `programs.Shelf`."""

    def __init__(self, memo: dict[Hashable, Any], values: _Values, own: Mapping[str, Any], cut: Hashable) -> None:
        self._memo, self._values, self._own, self._cut = memo, values, dict(own), cut

    def compiled(self, what: str, function: Callable[..., Any], *examples: Any, donate: bool = False) -> Any:
        leaves, structure = jax.tree.flatten(examples)
        shapes = json.dumps([programs.signature(leaf) for leaf in leaves])
        known = (what, donate, structure, shapes, self._cut)
        if known not in self._memo:
            self._make_room()
            self._memo[known] = self._made(function, examples, donate)
        returns, load = self._memo[known]
        return programs.Compiled(returns, lambda: functools.partial(load(), self._own))

    def remembered(self, what: str, find: Callable[[], Any]) -> Any:
        if what not in self._memo:
            self._memo[what] = find()
        return self._memo[what]

    def _made(self, function: Callable[..., Any], examples: Any, donate: bool) -> Any:
        def whole(values: Mapping[str, Any], *given: Any) -> Any:
            with self._values.holding(values):
                return function(*given)

        traced = jax.jit(whole, donate_argnums=1 if donate else ()).trace(self._own, *examples)
        returns = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), traced.out_info)
        return returns, functools.cache(lambda: traced.lower().compile())

    def _make_room(self) -> None:
        while len(self._memo) >= MOST:
            del self._memo[next(iter(self._memo))]


def _rest(made: experiment.Experiment, hyper: Any) -> dict[str, Any]:
    """All that decides a run's programs, by option name, without leaves and without what no program depends on."""
    data = made.to_json()
    found = {f"{kind}.{name}": value for kind, part in data["parts"].items() for name, value in part.items()}
    found |= {name: value for name, value in data.items() if name not in ("parts", *OUTSIDE)}
    found["anneal"] = made.anneal or made.steps
    return {name: value for name, value in found.items() if name not in hyper}


def _leaves(agent: types.Agent) -> dict[str, Any]:
    """The leaves that an agent's first state has, as they come out of its settings."""
    hyper = agent.about.hyper
    found = jax.jit(lambda key: {name: leaf.get(agent.init(key)) for name, leaf in hyper.items()})(seeds.key(0, "init"))
    return {name: np.float32(value) for name, value in jax.device_get(found).items()}
