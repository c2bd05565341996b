"""Sets whose owners run gymnax's simulators: whose the stream is, and his parameters, are carried in the state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from etils import epy

from shoal.core import types
from shoal.environments import _device, _owners_sets, _spaces

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np

    from shoal.environments import _gymnax

ANY = -1  # of an owner: drawn anew at every episode


class State(NamedTuple):
    """One stream's."""

    simulator: Any  # gymnax's own state
    owner: Any  # i32, whose the stream is for good; `ANY`
    own: Mapping[str, Any]  # f32, his parameters by name


class Simulator(NamedTuple):
    """One of gymnax's, and how much of it is shown."""

    env: Any
    params: Any  # at what all owners share
    spec: types.EnvSpec
    chosen: tuple[int, ...]  # features shown; () shows all


def simulator(env_id: str, name: str, limit: int, observe: tuple[int, ...], notes: tuple[str, ...]) -> Simulator:
    """A simulator of gymnax, as `env_id`.

    Args:
        env_id: As it was asked for.
        name: gymnax's.
        limit: Steps of an episode; 0: its own.
        observe: Features shown; () shows all.
        notes: What is to be known of the set.
    """
    env, params = _gymnax.make(name)
    steps = _spaces.time_limit(limit, int(params.max_steps_in_episode)) or 0
    layout = _spaces.select(_spaces.vector(env.observation_space(params).shape[0]), observe)
    spec = types.EnvSpec(
        id=env_id,
        observation=layout.spec,
        action=_actions(env.action_space(params)),
        time_limit=steps,
        solved_at=_owners_sets.SOLVED_AT[name],
        on_device=True,
        notes=(*notes, *layout.notes),
        shown=layout.notes,
    )
    return Simulator(env, params.replace(max_steps_in_episode=steps), spec, layout.chosen)


def _actions(space: Any) -> types.ActionSpec:
    if isinstance(space, _gymnax.spaces.Discrete):
        return _spaces.actions(space.n)
    low, high = (np.broadcast_to(bound, space.shape).reshape(-1) for bound in (space.low, space.high))
    return _spaces.bounded(low, high, tuple(space.shape))


def _taken(does: types.ActionSpec, action: Any) -> Any:
    """An action as the simulator takes it: within its bounds, and of its shape."""
    if does.discrete:
        return action
    shape = does.shape if does.own_shape is None else does.own_shape
    return jnp.clip(action, np.array(does.low, np.float32), np.array(does.high, np.float32)).reshape(shape)


def env(of: Simulator, values: Mapping[str, np.ndarray], count: int, owner: int | None) -> types.Env:
    """The set, or one owner's part of it.

    Args:
        of: The simulator.
        values: What differs, by parameter, ``[count]``.
        count: Owners.
        owner: Whose; None: the set, whose streams are anybody's until `types.Env.init_as` says whose.
    """
    # NumPy: constants of the program, which no import or opening makes an array of.
    table = {name: np.asarray(column, np.float32) for name, column in values.items()}
    begin, advance = _begin(of, table, count), _step(of)

    def init_as(key: types.Key, whose: Any) -> tuple[State, Any]:
        return begin(key, jnp.int32(whose))

    def init(key: types.Key) -> tuple[State, Any]:
        return begin(key, jnp.int32(ANY if owner is None else owner))

    def step(state: State, action: Any, key: types.Key) -> tuple[State, Any, types.Outcome]:
        moved, outcome = advance(state, action, key)
        fresh, first_obs = begin(_device.other(key), state.owner)
        over = outcome.truncated | (outcome.discount == 0)
        state = jax.tree.map(lambda new, old: jnp.where(over, new, old.astype(new.dtype)), fresh, moved)
        return state, jnp.where(over, first_obs, outcome.next_obs), outcome

    return types.Env(init, step, of.spec, init_as if owner is None else None)


def _see(of: Simulator, obs: Any) -> Any:
    obs = jnp.asarray(obs, jnp.float32)
    return obs[np.array(of.chosen)] if of.chosen else obs


def _begin(of: Simulator, table: Mapping[str, np.ndarray], count: int) -> Callable:
    """(key, i32 owner or `ANY`) -> (state, obs)."""

    def begin(key: types.Key, owner: Any) -> tuple[State, Any]:
        obs, inner = of.env.reset_env(key, of.params)
        who = jnp.where(owner == ANY, jax.random.randint(_device.other(key), (), 0, count), owner)
        own = {name: jnp.asarray(column)[who] for name, column in table.items()}
        return State(jax.tree.map(_device.strong, inner), owner, own), _see(of, obs)

    return begin


def _step(of: Simulator) -> Callable:
    """(state, action, key) -> (state, outcome), no reset after an end."""
    last, does = of.spec.action.n - 1, of.spec.action

    def step(state: State, action: Any, key: types.Key) -> tuple[State, types.Outcome]:
        own = dict(state.own)
        flip, noise = own.pop(_owners_sets.FLIP, None), own.pop(_owners_sets.NOISE, None)
        params = of.params.replace(**own)
        action = _taken(does, action)
        action = action if flip is None else jnp.where(flip > 0, last - action, action)
        obs, inner, reward, terminated, _ = of.env.step_env(key, state.simulator, action, params)
        terminated = jnp.asarray(terminated, bool)
        reward = jnp.asarray(reward, jnp.float32)
        if noise is not None:
            reward = jnp.where(noise > 0, jax.random.normal(_device.other(key)), reward)
        outcome = types.Outcome(
            reward=reward,
            discount=1.0 - terminated.astype(jnp.float32),
            truncated=of.env.is_truncated(inner, params) & ~terminated,
            next_obs=_see(of, obs),
        )
        return state._replace(simulator=inner), outcome

    return step
