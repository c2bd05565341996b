"""Gymnasium environments (https://gymnasium.farama.org): plain ids, ``module:Env-v0`` or ``module:Class`` for your own.

The habits hidden here: an environment that ended must be reset by hand, termination and truncation may come together,
observations may be views of a buffer the simulator overwrites, actions must lie within bounds and start anywhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import TYPE_CHECKING, Any

from etils import epy

from shoal import environments
from shoal.core import errors, importing, options, types
from shoal.environments import _gymnasium_audit, _gymnasium_spaces, _gymnasium_wrappers, _mujoco, _spaces

with epy.lazy_imports():
    import gymnasium

if TYPE_CHECKING:
    import numpy as np

MUJOCO = "gymnasium.envs.mujoco"
PACKAGES = {  # where an environment's class lives -> (package it needs, extra of Shoal that installs it)
    "gymnasium.envs.box2d": ("Box2D", "box2d"),
    MUJOCO: ("mujoco", "mujoco"),
}
MOVED = "gymnasium.envs"  # entries made by this module itself only say where an environment has gone
ATARI = "ale_py"  # whose entries show raw colour frames; `atari.py` opens the games


@dataclasses.dataclass(frozen=True)
class Config(environments.Config):
    """How the simulator is made, and how it is shown to the agent."""

    kwargs: str = options.keywords()
    """Keyword arguments of the environment's constructor, as JSON: '{"is_slippery": false}'."""
    wrappers: tuple[str, ...] = options.later(())
    """Functions that take the environment and return it wrapped, as module:name, the innermost first:
    gymnasium.wrappers:RecordEpisodeStatistics."""
    ignore: tuple[str, ...] = options.later(())
    """Keys of a dictionary observation to leave out, such as texts; if one is left, the agent sees it as it is."""


def _audit(env_id: str, config: environments.Config, steps: int) -> environments.Audit:
    """What Gymnasium's own checker, and the environment's spaces, say about it."""
    return _gymnasium_audit.audit(lambda: make(env_id, config)[0], steps)


def _elsewhere(env_id: str) -> str:
    """What was registered or defined at a prompt or in a notebook is known to that process alone."""
    if importing.runs_again():
        return ""  # workers run the script again, and register what it registers
    module, colon, name = env_id.rpartition(":")
    entry = gymnasium.registry.get(name)
    place = module if colon else _place(entry.entry_point) if entry else ""
    plugins = {one.value.partition(":")[0].partition(".")[0] for one in metadata.entry_points(group="gymnasium.envs")}
    known = colon and module != "__main__"
    if known or not place or place.partition(".")[0] in {"gymnasium", *plugins}:
        return ""
    return (
        f"{env_id} is known to this prompt or notebook alone: put it into a module, say my_envs.py, and give "
        f"my_envs:{name}"
    )


ADAPTER = environments.Adapter(prefix="", pure_jax=False, config=Config, elsewhere=_elsewhere, audit=_audit)


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
        self._reset, self._plain = env.reset, env.step
        self._step: Callable[[Any], Any] = self._first_step
        self._elapsed = 0

    def _first_step(self, action: Any) -> Any:
        """The first step of all, looked at; those that follow are not."""
        given = self._plain(action)
        if not isinstance(given, tuple) or len(given) != 5:
            raise TypeError(
                f"step returned {_described(given)}, not (observation, reward, terminated, truncated, info) as since "
                "Gymnasium 0.26"
            )
        if shape := getattr(given[1], "shape", ()):
            raise TypeError(f"the reward is an array of shape {shape}, not a number")
        self._step = self._plain
        return given

    def reset(self, seed: int) -> np.ndarray:
        """Begin anew, all randomness from `seed`."""
        self._elapsed = 0
        given = self._reset(seed=seed)
        if not isinstance(given, tuple) or len(given) != 2:
            raise TypeError(f"reset returned {_described(given)}, not (observation, info) as since Gymnasium 0.26")
        return self._see(given[0])

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


def _described(given: Any) -> str:
    """A return value of the wrong kind in few words."""
    return f"{len(given)} values" if isinstance(given, tuple) else f"one {type(given).__name__}"


def names() -> list[str]:
    """The ids registered in this process whose packages are installed."""
    return [env_id for env_id in _registered() if not _missing(gymnasium.registry[env_id].entry_point)]


def newest(name: str) -> str:
    """The newest version of an id that was given without one, as Gymnasium itself would take; else the name."""
    version = None if name in gymnasium.registry else gymnasium.envs.registration.find_highest_version(None, name)
    return name if version is None else f"{name}-v{version}"


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
        notes=(*notes, *layout.notes, *action_notes, *_gymnasium_audit.closed(env)),
        shown=layout.notes,
    )
    see, act = _gymnasium_spaces.seer(env.observation_space, layout), _gymnasium_spaces.actor(env.action_space)
    ignore = environments.own(config, Config).ignore
    return environments.Opened(
        spec=spec,
        device=None,
        make_host=lambda: GymnasiumEnv(make(env_id, config)[0], spec, layout),
        hands=lambda: types.Hands(lambda obs: see(_gymnasium_wrappers.left(obs, ignore)), act),
    )


def make(env_id: str, config: environments.Config) -> tuple[gymnasium.Env, tuple[str, ...]]:
    """The simulator as Gymnasium makes it, and what Gymnasium had to say about the id.

    Raises:
        Refused: Unknown id, a missing package, or a module that cannot be imported.
    """
    chosen = environments.own(config, Config)
    limit = _spaces.time_limit(chosen.time_limit, None)
    given = options.read_keywords(chosen.kwargs, "environment.kwargs")
    named = _named(env_id)
    _refuse_atari(env_id)
    with warnings.catch_warnings(record=True) as said, _loading(env_id):
        warnings.simplefilter("always")
        try:
            # The passive checker of `make` costs speed; `shoal check-env` does its work once.
            env = gymnasium.make(named, max_episode_steps=limit, disable_env_checker=True, **given)
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
        except Exception as problem:  # whatever a constructor raises
            story = f"{type(problem).__name__}: {_gymnasium_audit.line(problem)}"
            raise errors.Refused(
                f"{env_id} cannot be made: {story}; mend its constructor, or give what it needs by "
                "--environment.kwargs '{\"name\": value}'"
            ) from problem
    env = _gymnasium_wrappers.wrap(env, env_id, chosen.wrappers, chosen.ignore)
    return env, tuple(_gymnasium_audit.line(warning.message) for warning in said if "\x1b" in str(warning.message))


def _loading(env_id: str) -> Any:
    """What to have in force while a simulator is made."""
    entry = gymnasium.registry.get(env_id)
    robots = entry and _place(entry.entry_point).startswith(MUJOCO) and importlib.util.find_spec("mujoco")
    return _mujoco.quiet() if robots else contextlib.nullcontext()


# ------------------------------------------------------------------------------------------------ refusals


def _named(env_id: str) -> Any:
    """What Gymnasium makes for an id: a registered name, or of ``module:Class`` that class (or function) itself."""
    module, colon, name = env_id.partition(":")
    if not colon:
        return env_id
    if ":" in name:
        raise errors.Refused(f"{env_id} has more than one colon; your own environments are given as module:Env-v0")
    found = importing.attribute(module, name, env_id)
    if name in gymnasium.registry or not callable(found):
        return env_id
    return gymnasium.envs.registration.EnvSpec(id=name, entry_point=found)


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
