"""Named experiments: a paper as a combination of parts, with the settings that reproduce it.

The presets are data, in `shoal.experiment.tuned`, a file a family; here they become experiments.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from shoal import environments, experiment
from shoal.core import aliases, errors, options, types
from shoal.experiment import doubting, parties, scheduled
from shoal.experiment.tuned import (
    Preset,
    Settings,
    Tuned,
    actor_critic,
    actors,
    linear,
    off_policy,
    owners,
    populations,
    ppo,
    several,
    teams,
    values,
)

PRESETS: dict[str, Preset] = {
    **actor_critic.PRESETS,
    **values.PRESETS,
    **ppo.PRESETS,
    **off_policy.PRESETS,
    **several.PRESETS,
    **actors.PRESETS,
    **teams.PRESETS,
    **linear.PRESETS,
    **populations.PRESETS,
    **owners.PRESETS,
}


EVALUATED = 10  # episodes of an evaluation on the way, if nobody says


class Filed(NamedTuple):
    """What a settings file holds (`experiment.filed`)."""

    path: str
    settings: Settings  # kind -> field -> value
    choices: Mapping[str, str]  # kind of part -> name
    env: str | None
    steps: int | None


class Request(NamedTuple):
    """What a person asked for; None leaves it to the preset."""

    preset: str
    env: str | None = None
    steps: int | None = None
    seed: int = 0
    runtime: str | None = None
    corrector: str | None = None
    compressor: str | None = None
    until: float | str | None = None  # a return, "solved", or None to use up the steps
    episodes: int | None = None  # training episodes after which to stop
    start: str | Path | None = None  # the run whose policy it starts from
    from_schedule: str | Path | None = None  # the run of a population whose winner's schedule it follows
    evaluate_every: int | None = None  # environment steps between two evaluations while it trains; None: there are none
    evaluate_episodes: int | None = None  # of each of them
    configs: Mapping[str, Any] = MappingProxyType({})  # kind -> config already built (command line)
    settings: Settings = MappingProxyType({})  # kind -> plain values (keyword arguments)
    filed: Filed | None = None  # a settings file: above what the preset has, below all of the above
    anneal: int | None = None  # environment steps over which the learning rate is lowered; None: over all
    parties: tuple[parties.Owner, ...] = ()  # who trains together, from a file (`parties.read`)


def find(name: str) -> Preset:
    """The preset of that name.

    Raises:
        Refused: No such preset.
    """
    if name not in PRESETS:
        like = None if errors.nearest(name, PRESETS) else errors.nearest(name, environments.plain_names())
        if like:
            raise errors.Refused(
                f"{name!r} is no preset but like the environment {like}; give both, e.g. `shoal train a2c --env "
                f"{like}` (`shoal list presets` describes the presets)"
            )
        raise errors.unknown("preset", name, PRESETS, "`shoal list presets` describes them.")
    return PRESETS[name]


def parts(request: Request) -> dict[str, str]:
    """The named choices a request comes to: kind -> name, and ``"env"``."""
    preset = find(request.preset)
    env = environments.full(request.env or preset.env)
    chosen = request.runtime or preset.runtime or ("on_device" if environments.pure_jax(env) else "host")
    return {
        "env": env,
        "environment": env,
        "algorithm": preset.algorithm,
        "corrector": request.corrector or preset.corrector,
        "compressor": request.compressor or preset.compressor,
        "runtime": chosen,
    }


def workers(request: Request) -> str:
    """The field of the runtime's settings that counts its workers; runtimes without them may have none of the name."""
    return experiment.ways(parts(request)["runtime"]).workers or "workers"


SHORT = ("workers", "members", "parties", "replayable")  # options and arguments that stand for a runtime's setting


def shortened(request: Request, given: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """The runtime's settings that were given in short: field -> (how it is called in short, its value).

    Args:
        request: What else was asked for.
        given: Values by their short names; None, or False of a yes or no, is none.
    """
    found = {short: given.get(short) for short in SHORT}
    fields = {"workers": workers(request)} if found["workers"] is not None else {}
    return {fields.get(one, one): (one, value) for one, value in found.items() if not (value is None or value is False)}


def one_value(short: str, value: Any, long: str, other: Any) -> None:
    """Refuse two values of one setting; one value twice is fine.

    Args:
        short: How it is called in short.
        value: What that says.
        long: Its own name.
        other: What that says.

    Raises:
        Refused: They differ.
    """
    if value != other:
        raise errors.Refused(
            f"{short}={value} and {long}={other} are two values of one setting, for {short} is short for {long}; leave "
            "one of them out"
        )


def config(request: Request, kind: str) -> Any:
    """The preset's config of a kind of part, with what is tuned for the environment, and what a settings file holds."""
    preset, names = find(request.preset), parts(request)
    cls = experiment.config_class(kind, names.get(kind, ""))
    base: Any = options.build(cls, _fitting(cls, preset.settings.get(kind, {})), kind)
    tuned = tuned_for(preset, names["env"])
    made: Any = options.build(cls, _fitting(cls, tuned.settings.get(kind, {})) if tuned else {}, kind, base)
    if kind == "runtime" and request.parties:
        made = options.build(cls, _fitting(cls, {"parties": len(request.parties)}), kind, made)
    return options.build(cls, request.filed.settings.get(kind, {}), kind, made) if request.filed else made


def _fitting(cls: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's runtime settings name the fields of several runtimes; each takes its own.

    Runtimes may call two things by one name (`exchange` of a population and of owners); a choice that one does not have
    was meant for another.
    """
    return {name: value for name, value in settings.items() if options.has(cls, name, value)}


def tuned_for(preset: Preset, env: str) -> Tuned | None:
    """What is tuned for an environment: its own entry, that of the same id elsewhere, or that of a pattern.

    ``gymnax:CartPole-v1`` and ``envpool:CartPole-v1`` are tuned like ``CartPole-v1``; ``ALE/*`` serves every game.
    """
    bare = env.partition(":")[2] if environments.split(env)[0] != "gymnasium" else env
    for name in (env, bare or env):
        if name in preset.tuned:
            return preset.tuned[name]
    return next((tuned for name, tuned in preset.tuned.items() if fnmatch.fnmatchcase(env, name)), None)


def resolve(request: Request, runs: int = 1) -> tuple[experiment.Experiment, environments.Opened]:
    """The experiment a request comes to, checked, and its environment.

    Args:
        request: What was asked for.
        runs: That share the process (`experiment.prepare`).

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
            raise _unknown_argument(kind, configs)
    tuned = tuned_for(preset, names["env"])
    follows = None if request.from_schedule is None else scheduled.read(request.from_schedule)
    usual = follows.steps if follows else tuned.steps if tuned else preset.steps
    usual = request.filed.steps if request.filed and request.filed.steps and not follows else usual
    how = experiment.ways(names["runtime"], configs["runtime"])
    _check_idle(configs["runtime"], config(request, "runtime"), how)
    if request.steps is not None or request.episodes is None:  # before what takes its time where there are many
        given = usual if request.steps is None else _whole(request.steps)
        if isinstance(given, int):
            experiment.check_shares(given, names["algorithm"], names["runtime"], configs)
    configs["environment"] = parties.fitted(configs["environment"], names["env"], how)
    experiment.prepare(names["runtime"], names["algorithm"], configs, runs)
    asked = experiment.Experiment(
        preset=request.preset,
        env=names["env"],
        steps=usual,
        seed=request.seed,
        goal=None,
        algorithm=names["algorithm"],
        corrector=names["corrector"],
        compressor=names["compressor"],
        runtime=names["runtime"],
        configs=configs,
        episodes=request.episodes,
        evaluate_every=_whole(request.evaluate_every),
        evaluate_episodes=_evaluated(request),
        anneal=request.anneal,
        schedule=follows.schedule if follows else (),
        parties=request.parties,
    )
    opened = experiment.open_environment(asked)
    made = dataclasses.replace(asked, steps=_steps(request, usual, opened.spec), goal=_goal(request.until, opened.spec))
    experiment.validate(made, opened)
    return made, opened


def _check_idle(asked: Any, usual: Any, how: types.Ways) -> None:
    """Refuse a setting of the runtime that was asked for and changes nothing; the preset's are nobody's mistake."""
    for name, why in how.idle.items():
        if (value := vars(asked)[name]) != vars(usual)[name]:
            shown = value if not isinstance(value, tuple) else " ".join(map(str, value))
            raise errors.Refused(f"runtime.{name}={shown} changes nothing with {why}, or leave it out")


def _unknown_argument(name: str, configs: Mapping[str, Any]) -> errors.Refused:
    """The refusal of a keyword argument that is neither an argument nor a kind of part."""
    fields = {f"{kind}.{field}": kind for kind, made in configs.items() for field in made.__dataclass_fields__}
    known = {one.replace("_", "-") for one in fields} | {"corrector.lambda_", "steps", "env", "workers", "out"}
    here = aliases.setting(name, known) or next((one for one in fields if one.partition(".")[2] == name), "")
    kind, _, field = here.replace("-", "_").partition(".")
    if not here:
        return errors.unknown("argument", name, experiment.kinds(), "Settings are given by kind of part.")
    given = f"{kind}={{{field!r}: ...}}" if field else f"{kind}=..."
    return errors.Refused(f"unknown argument {name!r}; did you mean {given}?")


def caution(name: str) -> str:
    """What is to be said of a preset wherever it is shown, "" where nothing is; also of a name that is none."""
    return PRESETS[name].caution if name in PRESETS else ""


def doubts(request: Request, made: experiment.Experiment, spec: types.EnvSpec) -> str | None:
    """See `doubting.doubts`."""
    preset = find(request.preset)
    tuned = tuned_for(preset, made.env)
    return doubting.doubts(made, spec, tuned.steps if tuned else made.steps)


def note(request: Request) -> str | None:
    """What is said where nothing was tuned for the environment, with the presets for which something was."""
    preset, env = find(request.preset), parts(request)["env"]
    if (
        request.filed
        or not preset.tuned
        or env == preset.env
        or environments.split(env)[0] == "probe"
        or tuned_for(preset, env)
    ):
        return None  # probes are there to be solved by anything
    others = [name for name, other in PRESETS.items() if other.tuned and tuned_for(other, env)]
    better = f"; tuned for it: {', '.join(others)}" if others else ""
    return f"{request.preset} is not tuned for {env} and runs with its general settings{better}"


def _steps(request: Request, usual: int, spec: types.EnvSpec) -> int:
    """The steps asked for; of a run that is to last some episodes, what the longest ones would take."""
    if request.steps is not None or request.episodes is None:
        return usual if request.steps is None else _whole(request.steps)
    if spec.time_limit is None:
        raise errors.Refused(
            f"--episodes {request.episodes}: {spec.id} has no time limit, so how long they last cannot be told; "
            "give --steps as well"
        )
    return request.episodes * spec.time_limit


def _whole(given: Any) -> Any:
    """1e6, as one writes it in Python, is a whole number."""
    return int(given) if isinstance(given, float) and given.is_integer() else given


def _evaluated(request: Request) -> int | None:
    """Episodes of an evaluation on the way."""
    if request.evaluate_every is None or request.evaluate_episodes is not None:
        return request.evaluate_episodes
    return EVALUATED


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
