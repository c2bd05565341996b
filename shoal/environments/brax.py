"""Brax tasks (Freeman et al. 2021, https://github.com/google/brax): bodies in motion in pure JAX, ``brax:hopper``.

The habits hidden here: time limits and resets live in wrappers whose resets bring back the same first state (ours are
drawn anew, as everywhere), a step writes into the dictionaries of the state it is given, and importing the library or
loading a task prints and warns of things nobody asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import warnings
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from etils import epy

from shoal import environments
from shoal.core import errors, types
from shoal.environments import _device, _mujoco, _packages, _spaces

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np

PREFIX = "brax"
EXTRA = "brax"

TASKS = (  # brax's own list, which costs seconds to import
    "ant",
    "halfcheetah",
    "hopper",
    "humanoid",
    "humanoidstandup",
    "inverted_double_pendulum",
    "inverted_pendulum",
    "pusher",
    "reacher",
    "walker2d",
)
LEFT_OUT = {
    "fast": "it is a stub of brax's own tests",
    "swimmer": "brax 0.14 calls jnp.clip in a way that JAX 0.10 no longer takes (brax/fluid.py)",
}
SAID = (  # what brax 0.14 and its libraries warn of when they are imported, load a task and are traced
    ("JAXopt is no longer maintained", DeprecationWarning),
    ("Brax System, piplines and environments are not", UserWarning),
    ("Accessing `.*` directly from `.*` is deprecated", DeprecationWarning),
)
EPISODE = 1000  # steps: the `episode_length` of brax's `create`


@dataclasses.dataclass(frozen=True)
class Config(environments.Config):
    """The task, its physics, and how it is shown to the agent."""

    backend: Literal["generalized", "positional", "spring", "mjx"] = "generalized"
    """The physics; brax's own default is the most accurate of its three, spring the fastest.
    Returns of different ones do not compare."""


ADAPTER = environments.Adapter(prefix=PREFIX, pure_jax=True, extra=EXTRA, config=Config, sources=("brax", "mujoco/mjx"))


class State(NamedTuple):
    """One stream."""

    simulator: Any  # brax's own state
    time: Any  # int32, steps since the reset


def names() -> list[str]:
    """Every task, with the prefix."""
    _packages.need("brax ids", EXTRA, "brax")
    return [f"{PREFIX}:{name}" for name in TASKS]


def open(env_id: str, config: environments.Config) -> environments.Opened:
    """Open a task (see `environments.open`)."""
    _packages.need(env_id, EXTRA, "brax")
    name = env_id.removeprefix(f"{PREFIX}:")
    if name in LEFT_OUT:
        raise errors.Refused(f"{env_id} cannot be run: {LEFT_OUT[name]}; pick another (known: {', '.join(TASKS)})")
    if name not in TASKS:
        raise errors.unknown("environment", env_id, names(), "`shoal list envs` shows all.")
    chosen = environments.own(config, Config)
    simulator = _make(env_id, name, chosen.backend)
    with _quiet():
        begun = jax.eval_shape(simulator.reset, jax.random.key(0))
    layout = _spaces.select(_spaces.vector(begun.obs.shape[0]), chosen.observe)
    size = simulator.action_size
    spec = types.EnvSpec(
        id=env_id,
        observation=layout.spec,
        action=_spaces.bounded([-1.0] * size, [1.0] * size),  # tasks scale to their motors themselves
        time_limit=_spaces.time_limit(chosen.time_limit, EPISODE),
        solved_at=None,
        on_device=True,
        notes=(f"physics: {chosen.backend}", *layout.notes),
        shown=layout.notes,
    )
    env = _truthful(simulator, spec, layout.chosen or tuple(range(begun.obs.shape[0])))
    return environments.Opened(spec=spec, device=env, make_host=_device.host(env))


def _make(env_id: str, name: str, backend: str) -> Any:
    with _quiet():
        try:
            return importlib.import_module("brax.envs").get_environment(name, backend=backend)
        except ValueError as problem:  # a task that not every physics can run
            raise errors.Refused(
                f"{env_id} cannot run with backend={backend!r} ({problem}); try --environment.backend generalized"
            ) from problem


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what brax and MuJoCo say of their own parts: it is on stdout, and in a file in the working directory."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _mujoco.quiet():
        for said, category in SAID:
            warnings.filterwarnings("ignore", said, category)
        yield


def _truthful(simulator: Any, spec: types.EnvSpec, shown: tuple[int, ...]) -> types.Env:
    """The task with its ends told apart, and a fresh episode after each."""
    chosen = np.array(shown)

    def see(obs: Any) -> Any:
        return jnp.asarray(obs, jnp.float32)[chosen]

    def init(key: types.Key) -> tuple[State, Any]:
        with _quiet():  # in force while the step is traced
            begun = simulator.reset(key)
        return State(jax.tree.map(_device.strong, begun), jnp.int32(0)), see(begun.obs)

    def step(state: State, action: Any, key: types.Key) -> tuple[State, Any, types.Outcome]:
        given = jax.tree.map(lambda leaf: leaf, state.simulator)  # new dictionaries: brax writes into them
        with _quiet():
            moved = State(simulator.step(given, jnp.clip(action, -1.0, 1.0)), state.time + 1)
        terminated = jnp.asarray(moved.simulator.done > 0)
        truncated = ~terminated & (moved.time >= spec.time_limit)
        next_obs = see(moved.simulator.obs)
        outcome = types.Outcome(
            reward=jnp.asarray(moved.simulator.reward, jnp.float32),
            discount=1.0 - terminated.astype(jnp.float32),
            truncated=truncated,
            next_obs=next_obs,
        )
        over = terminated | truncated
        fresh, first_obs = init(_device.other(key))
        state = jax.tree.map(lambda new, old: jnp.where(over, new, jnp.asarray(old, new.dtype)), fresh, moved)
        return state, jnp.where(over, first_obs, next_obs), outcome

    return types.Env(init, step, spec)
