"""EnvPool (Weng et al. 2022, https://envpool.readthedocs.io): simulators in the threads of a C++ pool, ``envpool:ID``.

The habits hidden here: the action after an end is thrown away, so ended environments are reset at once; an end in the
last step allowed is told as a truncation, so the limit is kept here and the pool's is one step longer; seeds are read
when the pool is made; of Atari games the pool shows one frame, and the stack, lives and limits are those of `atari.py`.
"""

from __future__ import annotations

import dataclasses
import importlib
import warnings
from collections.abc import Callable
from typing import Any

from etils import epy

from shoal import environments
from shoal.core import errors, options, types
from shoal.environments import _envpool_vector, _frames, _gymnasium_spaces, _packages, _spaces

with epy.lazy_imports():
    import envpool
    import gymnasium

PREFIX = "envpool"
EXTRA = "envpool"

# Ids of other families open too, but a list of 1,600 helps nobody.
LISTED = ("atari", "box2d", "classic_control", "mujoco.gym", "toy_text")
GAMES = "envpool.atari"
FOR_GAMES = ("repeat", "noops", "sticky", "episodic_life")  # fields of `Config`


@dataclasses.dataclass(frozen=True)
class Config(environments.Config):
    """The pool, and how its environments are shown to the agent. All but `threads` are for Atari games."""

    threads: int = options.number(0, low=0, high=1024)
    """Threads that step the environments; 0 takes one for each, up to the cores."""
    repeat: int = options.number(4, low=1, high=64)
    """Atari: raw frames an action is repeated for: one step."""
    noops: int = options.number(30, low=1, high=1000)
    """Atari: a game begins with one to so many raw frames of doing nothing."""
    sticky: float = options.number(0.0, low=0.0, high=1.0)
    """Atari: probability that a raw frame repeats the action of the frame before instead."""
    episodic_life: bool = False
    """Atari: a lost life ends the episode for learning, and the game goes on; evaluation plays whole games."""


ADAPTER = environments.Adapter(prefix=PREFIX, pure_jax=False, extra=EXTRA, config=Config)


def names() -> list[str]:
    """The ids of the families in `LISTED`, with the prefix; others open too."""
    families = {f"{PREFIX}.{family}" for family in LISTED}
    return sorted(f"{PREFIX}:{name}" for name, family in _families("envpool ids").items() if family in families)


def _families(what: str) -> dict[str, str]:
    """Every id and the module its simulator lives in."""
    _packages.need(what, EXTRA, "envpool")
    registry = importlib.import_module("envpool.registration").registry
    return {name: entry[0] for name, entry in registry.specs.items()}


def open(env_id: str, config: environments.Config) -> environments.Opened:
    """Open an id (see `environments.open`)."""
    families, name = _families(env_id), env_id.removeprefix(f"{PREFIX}:")
    if name not in families:
        shown = [f"{PREFIX}:{known}" for known in families]
        raise errors.unknown("environment", env_id, shown, "`shoal list envs` shows the most used.")
    chosen = environments.own(config, Config)
    kind = (_game if families[name] == GAMES else _plain)(env_id, name, chosen)
    whole = kind._replace(episodic_life=False)
    return environments.Opened(
        spec=kind.spec,
        device=None,
        make_host=lambda: _envpool_vector.PoolEnv(kind),
        make_eval=(lambda: _envpool_vector.PoolEnv(whole)) if kind.episodic_life else None,
        make_vector=lambda seed, count: _envpool_vector.Vector(kind, seed, count, chosen.threads),
    )


def _declared(env_id: str, name: str) -> tuple[Any, Any, Any]:
    """(what EnvPool knows of an id, one observation's space, one action's).

    Raises:
        Refused: Several players, or a simulator that cannot be loaded here.
    """
    try:
        with _quiet():
            declared = envpool.make_spec(name)
            spaces = declared.gymnasium_observation_space, declared.gymnasium_action_space
    except (ImportError, TypeError, ValueError, RuntimeError, AssertionError) as problem:
        raise errors.Refused(f"{env_id} cannot be made by EnvPool: {' '.join(str(problem).split())[:200]}") from problem
    if declared.config.max_num_players > 1:
        raise errors.Refused(f"{env_id} has up to {declared.config.max_num_players} players; pick one with one")
    return (declared, *spaces)


def _quiet() -> Any:
    """EnvPool's spaces are declared in wider types than it steps in; Gymnasium warns of each."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def _maker(name: str, limit: int | None, **settings: Any) -> Callable[[list[int], int], Any]:
    """How to open pools of `name` that never cut an episode before `limit` steps have been counted here."""
    if limit is not None:
        settings["max_episode_steps"] = limit + 1

    def make(chosen: list[int], threads: int) -> Any:
        with _quiet():
            pool = envpool.make_gymnasium(name, num_envs=len(chosen), env_seed=chosen, num_threads=threads, **settings)
            assert pool.observation_space is not None  # made at the first reading, with its warnings, and kept
        return pool

    return make


def _plain(env_id: str, name: str, config: Config) -> _envpool_vector.Kind:
    """An id whose observations are shown as those of Gymnasium are."""
    for field in dataclasses.fields(Config):
        given = getattr(config, field.name)
        if field.name in FOR_GAMES and given != field.default:  # it would change nothing, and nobody would know
            raise errors.Refused(f"environment.{field.name}={given} is for Atari games, and {env_id} is none; drop it")
    declared, observation_space, action_space = _declared(env_id, name)
    if not isinstance(observation_space, (gymnasium.spaces.Box, gymnasium.spaces.Discrete)):
        raise _spaces.unsupported_observation(env_id, observation_space)
    layout = _spaces.select(_gymnasium_spaces.layout(env_id, observation_space), config.observe)
    action, notes = _gymnasium_spaces.action_spec(env_id, action_space)
    limit = _spaces.time_limit(config.time_limit, declared.config.max_episode_steps)
    threshold = getattr(declared.config, "reward_threshold", None)
    notes = (*layout.notes, *notes)
    spec = types.EnvSpec(env_id, layout.spec, action, limit, threshold, False, notes, shown=layout.notes)
    see = _gymnasium_spaces.batch_seer(observation_space, layout)
    return _envpool_vector.Kind(
        spec, _maker(name, limit), see, lambda _, raw: see(raw), _gymnasium_spaces.batch_actor(action_space), False
    )


def _game(env_id: str, name: str, config: Config) -> _envpool_vector.Kind:
    """An Atari game as `atari.py` shows it; the pool is asked for single frames, the stack is laid here."""
    _, _, action_space = _declared(env_id, name)
    layout = _spaces.select(_spaces.Layout(_frames.SPEC), config.observe)  # refuses to pick features of a picture
    limit = _spaces.time_limit(config.time_limit, max(1, _frames.LONGEST // config.repeat))
    action = _spaces.actions(int(action_space.n))
    notes, shown = (_frames.notes(config.repeat, lives) for lives in (config.episodic_life, False))
    spec = types.EnvSpec(env_id, layout.spec, action, limit, None, False, notes, shown)
    make = _maker(
        name,
        limit,
        stack_num=1,
        frame_skip=config.repeat,
        noop_max=config.noops,
        repeat_action_probability=config.sticky,
        use_fire_reset=False,
        img_height=_frames.SIDE,
        img_width=_frames.SIDE,
    )
    return _envpool_vector.Kind(
        spec,
        make,
        lambda raw: _frames.first(raw[:, 0]),
        lambda stack, raw: _frames.follow(stack, raw[:, 0]),
        _gymnasium_spaces.batch_actor(action_space),
        config.episodic_life,
    )
