"""Named experiments: a paper as a combination of parts, with the settings that reproduce it.

The presets are data, in `shoal.tuned`, a file a family; here they become experiments.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from shoal import environments, errors, experiment, options, registry, types
from shoal.tuned import Preset, Settings, Tuned, actor_critic, linear, ppo, replay, teams, values

PRESETS: dict[str, Preset] = {
    **actor_critic.PRESETS,
    **values.PRESETS,
    **ppo.PRESETS,
    **replay.PRESETS,
    **teams.PRESETS,
    **linear.PRESETS,
}


class Request(NamedTuple):
    """What a person asked for; None leaves it to the preset."""

    preset: str
    env: str | None = None
    steps: int | None = None
    seed: int = 0
    runtime: str | None = None
    corrector: str | None = None
    until: float | str | None = None  # a return, "solved", or None to use up the steps
    episodes: int | None = None  # training episodes after which to stop
    configs: Mapping[str, Any] = MappingProxyType({})  # kind -> config already built (command line)
    settings: Settings = MappingProxyType({})  # kind -> plain values (keyword arguments)


def find(name: str) -> Preset:
    """The preset of that name.

    Raises:
        Refused: No such preset.
    """
    if name not in PRESETS:
        raise errors.unknown("preset", name, PRESETS, "`shoal list presets` describes them.")
    return PRESETS[name]


def parts(request: Request) -> dict[str, str]:
    """The named choices a request comes to: kind -> name, and ``"env"``."""
    preset = find(request.preset)
    env = request.env or preset.env
    chosen = request.runtime or preset.runtime or ("on_device" if environments.pure_jax(env) else "host")
    return {
        "env": env,
        "environment": env,
        "algorithm": preset.algorithm,
        "corrector": request.corrector or preset.corrector,
        "compressor": preset.compressor,
        "runtime": chosen,
    }


def workers(request: Request) -> str:
    """The field of the runtime's settings that counts its workers; runtimes without them may have none of the name."""
    return getattr(registry.load("runtime", parts(request)["runtime"]), "WORKERS", "workers")


def config(request: Request, kind: str) -> Any:
    """The preset's config of one kind of part, with what is tuned for the environment."""
    preset, names = find(request.preset), parts(request)
    cls = experiment.config_class(kind, names.get(kind, ""))
    base: Any = options.build(cls, _fitting(cls, preset.settings.get(kind, {})), kind)
    tuned = tuned_for(preset, names["env"])
    return options.build(cls, _fitting(cls, tuned.settings.get(kind, {})) if tuned else {}, kind, base)


def _fitting(cls: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's runtime settings name the fields of several runtimes; each takes its own."""
    return {name: value for name, value in settings.items() if name in cls.__dataclass_fields__}  # type: ignore[attr-defined]


def tuned_for(preset: Preset, env: str) -> Tuned | None:
    """What is tuned for an environment: its own entry, that of the same id elsewhere, or that of a pattern.

    ``gymnax:CartPole-v1`` and ``envpool:CartPole-v1`` are tuned like ``CartPole-v1``; ``ALE/*`` serves every game.
    """
    bare = env.partition(":")[2] if environments.split(env)[0] != "gymnasium" else env
    for name in (env, bare or env):
        if name in preset.tuned:
            return preset.tuned[name]
    return next((tuned for name, tuned in preset.tuned.items() if fnmatch.fnmatchcase(env, name)), None)


def resolve(request: Request) -> tuple[experiment.Experiment, environments.Opened]:
    """The experiment a request comes to, checked, and its environment.

    Raises:
        Refused: Anything in it is unknown, wrong, or does not fit together.
    """
    preset, names = find(request.preset), parts(request)
    configs = {
        kind: options.build(
            experiment.config_class(kind, names.get(kind, "")),
            request.settings.get(kind, {}),
            kind,
            request.configs.get(kind, config(request, kind)),
        )
        for kind in experiment.kinds()
    }
    for kind in request.settings:
        if kind not in experiment.kinds():
            raise errors.unknown("kind of part", kind, experiment.kinds())
    tuned = tuned_for(preset, names["env"])
    experiment.prepare(names["runtime"], configs)
    opened = environments.open(names["env"], configs["environment"])
    made = experiment.Experiment(
        preset=request.preset,
        env=names["env"],
        steps=_steps(request, tuned.steps if tuned else preset.steps, opened.spec),
        seed=request.seed,
        goal=_goal(request.until, opened.spec),
        algorithm=names["algorithm"],
        corrector=names["corrector"],
        compressor=names["compressor"],
        runtime=names["runtime"],
        configs=configs,
        episodes=request.episodes,
    )
    experiment.validate(made, opened)
    registry.load("runtime", made.runtime)
    return made, opened


def _steps(request: Request, usual: int, spec: types.EnvSpec) -> int:
    """The steps asked for; of a run that is to last some episodes, what the longest ones would take."""
    if request.steps is not None or request.episodes is None:
        return usual if request.steps is None else request.steps
    if spec.time_limit is None:
        raise errors.Refused(
            f"--episodes {request.episodes}: {spec.id} has no time limit, so how long they last cannot be told; "
            "give --steps as well"
        )
    return request.episodes * spec.time_limit


def _goal(until: float | str | None, spec: types.EnvSpec) -> types.Goal | None:
    if until is None:
        return None
    if until == "solved":
        if spec.solved_at is None:
            raise errors.Refused(
                f"--until solved: {spec.id} does not say at which return it is solved; give a number, e.g. --until 200"
            )
        return types.Goal(spec.solved_at)
    try:
        target = float(until)
        if not math.isfinite(target):
            raise ValueError(until)
        return types.Goal(target)
    except ValueError:
        raise errors.Refused(f"--until {until!r} is neither a return nor 'solved'; give e.g. --until 475") from None
