"""Gymnasium environments (https://gymnasium.farama.org): plain ids, and ``module:Env-v0`` for your own.

The habits hidden here: an environment that ended must be reset by hand, termination and truncation may come together,
observations may be views of a buffer the simulator overwrites, actions must lie within bounds and start anywhere.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

from etils import epy

from shoal import environments, errors, types
from shoal.environments import _gymnasium_audit, _gymnasium_spaces, _mujoco, _spaces

with epy.lazy_imports():
    import gymnasium

if TYPE_CHECKING:
    import numpy as np

PREFIX = ""
PURE_JAX = False
EXTRA = ""

MUJOCO = "gymnasium.envs.mujoco"
PACKAGES = {  # where an environment's class lives -> (package it needs, extra of Shoal that installs it)
    "gymnasium.envs.box2d": ("Box2D", "box2d"),
    MUJOCO: ("mujoco", "mujoco"),
}
MOVED = "gymnasium.envs"  # entries made by this module itself only say where an environment has gone
ATARI = "ale_py"  # whose entries show raw colour frames; `atari.py` opens the games


class GymnasiumEnv:
    """One simulator with truthful episodes; see `types.HostEnv`."""

    def __init__(self, env: gymnasium.Env, spec: types.EnvSpec, layout: _spaces.Layout) -> None:
        self.spec = spec
        self._outer: gymnasium.Env | None = env
        self._see = _gymnasium_spaces.seer(env.observation_space, layout)
        self._act = _gymnasium_spaces.actor(env.action_space)
        self._limit: float = math.inf
        if type(env) is gymnasium.wrappers.TimeLimit:  # counted here instead: a call less on the hot path
            self._limit, env = spec.time_limit or math.inf, env.env
        if type(env) is gymnasium.wrappers.OrderEnforcing:
            env = env.env
        self._reset, self._step = env.reset, env.step
        self._elapsed = 0

    def reset(self, seed: int) -> np.ndarray:
        """Begin anew, all randomness from `seed`."""
        self._elapsed = 0
        return self._see(self._reset(seed=seed)[0])

    def step(self, action: Any) -> tuple[np.ndarray, types.Outcome]:
        """Act once; after an end the returned observation is the first of the next episode."""
        obs, reward, terminated, truncated, _ = self._step(self._act(action))
        seen = self._see(obs)
        self._elapsed += 1
        if terminated or truncated or self._elapsed >= self._limit:
            # Both at once: the end is real, so there is nothing to bootstrap from.
            outcome = types.Outcome(float(reward), 0.0 if terminated else 1.0, not terminated, seen)
            self._elapsed = 0
            return self._see(self._reset()[0]), outcome  # no seed: the simulator's own generator runs on
        return seen, types.Outcome(float(reward), 1.0, False, seen)

    def close(self) -> None:
        """Release the simulator; calling it twice is harmless."""
        outer, self._outer = self._outer, None
        if outer is not None:
            outer.close()


def names() -> list[str]:
    """The ids registered in this process whose packages are installed."""
    return [env_id for env_id in _registered() if not _missing(gymnasium.registry[env_id].entry_point)]


def open(env_id: str, config: environments.Config) -> environments.Opened:
    """Open a Gymnasium id (see `environments.open`)."""
    env, notes = make(env_id, config)
    layout = _spaces.select(_gymnasium_spaces.layout(env_id, env.observation_space), config.observe)
    action, action_notes = _gymnasium_spaces.action_spec(env_id, env.action_space)
    entry = env.spec
    limit = entry.max_episode_steps if entry else None
    spec = types.EnvSpec(
        id=env_id,
        observation=layout.spec,
        action=action,
        time_limit=_spaces.time_limit(config.time_limit, limit),
        solved_at=entry.reward_threshold if entry else None,
        on_device=False,
        notes=(*notes, *layout.notes, *action_notes),
    )
    env.close()
    return environments.Opened(spec, None, lambda: GymnasiumEnv(make(env_id, config)[0], spec, layout))


def make(env_id: str, config: environments.Config) -> tuple[gymnasium.Env, tuple[str, ...]]:
    """The simulator as Gymnasium makes it, and what Gymnasium had to say about the id.

    Raises:
        Refused: Unknown id, a missing package, or a module that cannot be imported.
    """
    limit = _spaces.time_limit(config.time_limit, None)
    _import_module(env_id)
    _refuse_atari(env_id)
    with warnings.catch_warnings(record=True) as said, _loading(env_id):
        warnings.simplefilter("always")
        try:
            # The passive checker of `make` costs speed; `shoal check-env` does its work once.
            env = gymnasium.make(env_id, max_episode_steps=limit, disable_env_checker=True)
        except gymnasium.error.DependencyNotInstalled as problem:
            raise _needs_package(env_id, problem) from problem
        except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv) as problem:
            raise _unknown(env_id) from problem
        except gymnasium.error.Error as problem:
            known = env_id.rpartition(":")[2] in gymnasium.registry
            raise (
                errors.Refused(f"{env_id}: {_gymnasium_audit.line(problem)}") if known else _unknown(env_id)
            ) from problem
        except ImportError as problem:
            raise _needs_package(env_id, problem) from problem
    return env, tuple(_gymnasium_audit.line(warning.message) for warning in said if "\x1b" in str(warning.message))


def _loading(env_id: str) -> Any:
    """What to have in force while a simulator is made."""
    entry = gymnasium.registry.get(env_id)
    robots = entry and _place(entry.entry_point).startswith(MUJOCO) and importlib.util.find_spec("mujoco")
    return _mujoco.quiet() if robots else contextlib.nullcontext()


def audit(env_id: str, config: environments.Config, steps: int) -> environments.Audit:
    """What Gymnasium's own checker, and the environment's spaces, say about it."""
    return _gymnasium_audit.audit(lambda: make(env_id, config)[0], steps)


# ------------------------------------------------------------------------------------------------ refusals


def _import_module(env_id: str) -> None:
    """Import the module of ``module:Env-v0``, also from the working directory."""
    module, colon, name = env_id.partition(":")
    if not colon:
        return
    if ":" in name:
        raise errors.Refused(f"{env_id} has more than one colon; your own environments are given as module:Env-v0")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that nothing installed is shadowed
    try:
        importlib.import_module(module)
    except (ImportError, ValueError) as problem:  # ValueError: an empty name
        raise errors.Refused(
            f"{env_id}: module {module!r} cannot be imported ({_gymnasium_audit.line(problem)}); "
            "run where it can be found, or install it, and check what it imports"
        ) from problem


def _refuse_atari(env_id: str) -> None:
    """Games have an adapter of their own; here they would be raw colour frames, and hardly learnable."""
    entry = gymnasium.registry.get(env_id.rpartition(":")[2])
    if entry and _atari(_place(entry.entry_point)):
        raise errors.Refused(
            f"{env_id} shows raw frames; games are opened with their preprocessing, as ALE/Pong-v5 is "
            "(`shoal list envs` shows all)"
        )


def _needs_package(env_id: str, problem: Exception) -> errors.Refused:
    """The refusal when an environment's library is missing: names the extra where there is one."""
    entry = gymnasium.registry.get(env_id.rpartition(":")[2])
    missing = _missing(entry.entry_point) if entry else None
    if missing:
        package, extra = missing
        return errors.Refused(f"{env_id} needs {package}, which is not installed: pip install 'shoal-rl[{extra}]'")
    return errors.Refused(f"{env_id} cannot be made: {_gymnasium_audit.line(problem)}")


def _missing(entry_point: Any) -> tuple[str, str] | None:
    """The (package, extra) an entry point needs and lacks."""
    place = _place(entry_point)
    for start, (package, extra) in PACKAGES.items():
        if place.startswith(start) and importlib.util.find_spec(package) is None:
            return package, extra
    return None


def _unknown(env_id: str) -> errors.Refused:
    module, colon, _ = env_id.rpartition(":")
    if not colon:
        return errors.unknown("environment", env_id, _registered(), "`shoal list envs` shows all.")
    root = module.partition(".")[0]
    own = [name for name in _registered() if _place(gymnasium.registry[name].entry_point).partition(".")[0] == root]
    shown = [f"{module}:{name}" for name in own]
    return errors.unknown("environment", env_id, shown, f"Importing {module!r} must call gymnasium.register.")


def _registered() -> list[str]:
    """The ids registered in this process; not those that only say where one has gone, nor the games of `atari.py`."""
    places = {env_id: _place(entry.entry_point) for env_id, entry in gymnasium.registry.items()}
    return sorted(env_id for env_id, place in places.items() if place != MOVED and not _atari(place))


def _atari(place: str) -> bool:
    return place.partition(".")[0] == ATARI


def _place(entry_point: Any) -> str:
    """The module an environment's class comes from."""
    return entry_point.partition(":")[0] if isinstance(entry_point, str) else getattr(entry_point, "__module__", "")
