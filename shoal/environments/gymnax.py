"""Gymnax environments (Lange 2022, https://github.com/RobertTLange/gymnax): pure JAX, ``gymnax:ID``.

The habits hidden here: `step` resets by itself and keeps the true successor in ``info``, time limits sit in the
parameters, and rewards, observations and weak types differ from one environment to the next. `step_env` and
`reset_env` are called instead of `step`, so that no key is split at every step: many streams at once run faster.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from etils import epy

from shoal import environments
from shoal.core import errors, options, types
from shoal.environments import _device, _spaces

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np

    from shoal.environments import _gymnax

PREFIX = "gymnax"


@dataclasses.dataclass(frozen=True)
class Config(environments.Config):
    """How the simulator is made, and how it is shown to the agent."""

    kwargs: str = options.keywords()
    """Keyword arguments of the environment's constructor, as JSON: '{"size": 5}'."""


ADAPTER = environments.Adapter(prefix=PREFIX, pure_jax=True, config=Config, sources=("gymnax",))

SOLVED_AT = {  # gymnax keeps no thresholds; these are Gymnasium's for the same tasks
    "CartPole-v1": 475.0,
    "Acrobot-v1": -100.0,
    "MountainCar-v0": -110.0,
    "MountainCarContinuous-v0": 90.0,
}


def names() -> list[str]:
    """Every id gymnax knows, with the prefix."""
    return sorted(f"{PREFIX}:{name}" for name in _gymnax.registered_envs)


def open(env_id: str, config: environments.Config) -> environments.Opened:
    """Open a gymnax id (see `environments.open`)."""
    name = env_id.removeprefix(f"{PREFIX}:")
    if name not in _gymnax.registered_envs:
        raise errors.unknown("environment", env_id, names(), "`shoal list envs` shows all.")
    try:
        given = options.read_keywords(environments.own(config, Config).kwargs, "environment.kwargs")
        simulator, params = _gymnax.make(name, **given)
    except TypeError as problem:
        raise errors.Refused(f"{env_id} cannot be made with these environment.kwargs: {problem}") from problem
    except OSError as problem:  # MNISTBandit downloads its images
        raise errors.Refused(
            f"{env_id} needs data that could not be fetched ({problem}); connect, or pick another"
        ) from problem
    own = params.max_steps_in_episode
    limit = _spaces.time_limit(config.time_limit, int(own))
    params = params.replace(max_steps_in_episode=type(own)(limit))  # a float in one bandit, whose space wants a float
    layout = _spaces.select(_layout(env_id, simulator.observation_space(params)), config.observe)
    action_space = simulator.action_space(params)
    spec = types.EnvSpec(
        id=env_id,
        observation=layout.spec,
        action=_action_spec(env_id, action_space),
        time_limit=limit,
        solved_at=SOLVED_AT.get(name),
        on_device=True,
        notes=layout.notes,
        shown=layout.notes,
    )
    see, act = _seer(layout), _actor(action_space)
    env = _truthful(simulator, params, spec, see, act)
    return environments.Opened(
        spec=spec,
        device=env,
        make_host=_device.host(env),
        hands=lambda: types.Hands(lambda obs: np.asarray(see(obs)), lambda action: np.asarray(act(action))),
    )


def _truthful(simulator: Any, params: Any, spec: types.EnvSpec, see: Callable, act: Callable) -> types.Env:
    """The environment with ends told apart and successors kept."""

    def init(key: types.Key) -> tuple[types.Tree, Any]:
        obs, state = simulator.reset_env(key, params)
        return jax.tree.map(_device.strong, state), see(obs)

    def step(state: types.Tree, action: Any, key: types.Key) -> tuple[types.Tree, Any, types.Outcome]:
        obs, state, reward, terminated, _ = simulator.step_env(key, state, act(action), params)
        fresh_state, first_obs = init(_device.other(key))
        next_obs = see(obs)
        terminated = jnp.asarray(terminated, bool)
        truncated = simulator.is_truncated(state, params) & ~terminated  # the end is real: nothing to bootstrap from
        over = terminated | truncated
        outcome = types.Outcome(
            reward=jnp.asarray(reward, jnp.float32),
            discount=1.0 - terminated.astype(jnp.float32),
            truncated=truncated,
            next_obs=next_obs,
        )
        state = jax.tree.map(lambda new, old: jnp.where(over, new, old.astype(new.dtype)), fresh_state, state)
        return state, jnp.where(over, first_obs, next_obs), outcome

    return types.Env(init, step, spec)


def _layout(env_id: str, space: Any) -> _spaces.Layout:
    spaces = _gymnax.spaces
    if isinstance(space, spaces.Discrete):
        return _spaces.choice(space.n)
    if not isinstance(space, spaces.Box):
        raise _spaces.unsupported_observation(env_id, space)
    return _spaces.box(tuple(space.shape), np.dtype(space.dtype).name, space.low, space.high)


def _seer(layout: _spaces.Layout) -> Callable:
    """The conversion of one observation."""
    shape, chosen = layout.spec.shape, np.array(layout.chosen, int)

    def see(obs: Any) -> Any:
        if layout.one_hot:
            obs = jax.nn.one_hot(obs, layout.one_hot)
        if layout.axes:
            obs = jnp.transpose(obs, layout.axes)
        obs = jnp.asarray(obs, layout.spec.dtype)
        return obs.reshape(-1)[chosen] if layout.chosen else obs.reshape(shape)

    return see


def _action_spec(env_id: str, space: Any) -> types.ActionSpec:
    spaces = _gymnax.spaces
    if isinstance(space, spaces.Discrete):
        return _spaces.actions(space.n)
    if not isinstance(space, spaces.Box):
        raise _spaces.unsupported_action(env_id, space)
    low, high = (np.broadcast_to(bound, space.shape).reshape(-1) for bound in (space.low, space.high))
    return _spaces.bounded(low, high, tuple(space.shape), np.dtype(space.dtype).name)


def _actor(space: Any) -> Callable:
    """The conversion of one action: clipped into its bounds and shaped."""
    if isinstance(space, _gymnax.spaces.Discrete):
        return lambda action: action
    shape, dtype = tuple(space.shape), space.dtype
    if np.dtype(dtype).kind in "iub":  # whole steps: round before the cast, which would cut
        return lambda action: jnp.clip(jnp.rint(action).reshape(shape), space.low, space.high).astype(dtype)
    return lambda action: jnp.clip(jnp.asarray(action, dtype).reshape(shape), space.low, space.high)
