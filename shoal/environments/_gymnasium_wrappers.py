"""What is put around a Gymnasium environment: the user's wrappers by name, and the keys that are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epy

from shoal.core import errors, importing

with epy.lazy_imports():
    import gymnasium


def wrap(env: gymnasium.Env, env_id: str, wrappers: Sequence[str], ignore: Sequence[str]) -> gymnasium.Env:
    """The environment wrapped.

    Args:
        env: As Gymnasium makes it.
        env_id: Its id, for messages.
        wrappers: Functions from environment to environment, ``module:name``, the innermost first.
        ignore: Keys of its dictionary observation to leave out.

    Raises:
        Refused: A wrapper that cannot be found or fails, or a key that is not there; the environment is closed.
    """
    try:
        for name in wrappers:
            env = _wrapped(env, name)
        return _without(env, env_id, ignore) if ignore else env
    except BaseException:
        env.close()
        raise


def _wrapped(env: gymnasium.Env, name: str) -> gymnasium.Env:
    module, _, function = name.partition(":")
    found = importing.attribute(module, function, name) if function else None
    if not callable(found):
        raise errors.Refused(
            f"environment.wrappers: {name} is no function; give module:function, one that takes the environment and "
            "returns it wrapped"
        )
    try:
        made = found(env)
    except Exception as problem:
        said = " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
        raise errors.Refused(f"environment.wrappers: {name} failed ({said})") from problem
    if not isinstance(made, gymnasium.Env):
        raise errors.Refused(f"environment.wrappers: {name} returned {type(made).__name__}, which is no gymnasium.Env")
    return made


def _without(env: gymnasium.Env, env_id: str, ignore: Sequence[str]) -> gymnasium.Env:
    space: Any = env.observation_space
    if not isinstance(space, gymnasium.spaces.Dict):
        raise errors.Refused(
            f"environment.ignore={' '.join(ignore)} leaves out keys of a dictionary, but {env_id} shows "
            f"{type(space).__name__}; drop it"
        )
    if wrong := [key for key in ignore if key not in space.spaces]:
        raise errors.unknown("key of the observation", wrong[0], list(space.spaces))
    kept = {key: part for key, part in space.spaces.items() if key not in ignore}
    if not kept:
        raise errors.Refused(f"environment.ignore={' '.join(ignore)} leaves nothing of {env_id} to see")
    shown = next(iter(kept.values())) if len(kept) == 1 else gymnasium.spaces.Dict(kept)
    return gymnasium.wrappers.TransformObservation(env, lambda obs: left(obs, ignore), shown)


def left(obs: Any, ignore: Sequence[str]) -> Any:
    """An observation without the keys; if one is left, what it holds: a picture stays a picture.

    Args:
        obs: A dictionary; anything else is taken for what was left of one.
        ignore: Its keys to leave out.
    """
    if not ignore or not isinstance(obs, Mapping):
        return obs
    kept = {key: part for key, part in obs.items() if key not in ignore}
    return next(iter(kept.values())) if len(kept) == 1 else kept
