"""Named experiments: a paper as a combination of parts, with the settings that reproduce it.

What is tuned for one environment was tuned on seeds 1000 and up; results are reported on seeds 0 to 9.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from shoal import environments, errors, experiment, options, registry, types

Settings = Mapping[str, Mapping[str, Any]]  # kind of part -> field -> value


class Tuned(NamedTuple):
    """What differs for one environment."""

    steps: int
    settings: Settings


class Preset(NamedTuple):
    """A combination with a name."""

    summary: str  # one line for `shoal list`
    source: str  # the paper
    algorithm: str
    runtime: str | None  # None: on_device for pure-JAX environments, else host
    env: str  # when none is given
    steps: int  # when the environment has no tuned entry
    settings: Settings
    tuned: Mapping[str, Tuned]  # by environment id, without adapter prefix
    corrector: str = "none"
    compressor: str = "identity"


A3C = "Mnih et al. 2016, arXiv:1602.01783"

PRESETS: dict[str, Preset] = {
    "a2c": Preset(
        summary="synchronous advantage actor-critic; whole loop compiled, or vectorised Gymnasium environments",
        source=f"{A3C}; synchronous form as in openai/baselines",
        algorithm="actor_critic",
        runtime=None,
        env="gymnax:CartPole-v1",
        steps=1_000_000,
        settings={
            "algorithm": {"reduction": "mean", "value_cost": 1.0},
            "optimiser": {"epsilon": 1e-5, "max_norm": 0.5},
        },
        tuned={
            "CartPole-v1": Tuned(
                400_000,
                {
                    "algorithm": {"rollout_length": 32, "entropy_cost": 0.0, "value_cost": 0.5, "reward_scale": 0.05},
                    "optimiser": {"learning_rate": 2e-3, "max_norm": 40.0},
                    "runtime": {"environments": 8, "chunk_steps": 4096},
                },
            ),
        },
    ),
    "a3c": Preset(
        summary="asynchronous advantage actor-critic: lock-free processes on one shared parameter vector",
        source=A3C,
        algorithm="actor_critic",
        runtime="hogwild",
        env="CartPole-v1",
        steps=1_000_000,
        settings={
            "algorithm": {"reduction": "sum", "value_cost": 0.5},
            "optimiser": {"epsilon": 0.1, "max_norm": 40.0},
            "network": {"initialiser": "fan_in"},
        },
        tuned={
            "CartPole-v1": Tuned(
                300_000,
                {
                    "algorithm": {"rollout_length": 32, "entropy_cost": 0.0, "reward_scale": 0.05},
                    "optimiser": {"learning_rate": 2e-3, "epsilon": 1e-3},
                    "network": {"initialiser": "orthogonal"},
                },
            ),
        },
    ),
    "a3c_lstm": Preset(
        summary="A3C with an LSTM after the last hidden layer, for what one observation does not show",
        source=A3C,
        algorithm="actor_critic",
        runtime="hogwild",
        env="CartPole-v1",
        steps=2_000_000,
        settings={
            "algorithm": {"reduction": "sum", "value_cost": 0.5},
            "optimiser": {"epsilon": 0.1, "max_norm": 40.0},
            "network": {"lstm": 256, "initialiser": "fan_in"},
        },
        tuned={
            "CartPole-v1": Tuned(
                800_000,
                {
                    "environment": {"observe": (0, 2)},  # position and angle; the velocities are hidden
                    "algorithm": {"rollout_length": 32, "entropy_cost": 0.0, "reward_scale": 0.05},
                    "optimiser": {"learning_rate": 2e-3, "epsilon": 1e-3},
                    "network": {"hidden": (64,), "lstm": 64, "initialiser": "orthogonal"},
                },
            ),
        },
    ),
    "a3c_continuous": Preset(
        summary="A3C with a Gaussian policy head and separate policy and value networks",
        source=A3C,
        algorithm="actor_critic",
        runtime="hogwild",
        env="Pendulum-v1",
        steps=2_000_000,
        settings={
            "algorithm": {"reduction": "sum", "value_cost": 0.5, "entropy_cost": 1e-4},
            "optimiser": {"epsilon": 0.1, "max_norm": 40.0},
            "network": {"shared": False, "initialiser": "fan_in"},
        },
        tuned={
            "Pendulum-v1": Tuned(
                1_500_000,
                {
                    "algorithm": {
                        "rollout_length": 32,
                        "discount": 0.95,
                        "entropy_cost": 1e-3,
                        "reward_scale": 0.05,
                    },
                    "optimiser": {"learning_rate": 1e-3, "epsilon": 1e-3},
                    "network": {"initialiser": "orthogonal"},
                },
            ),
        },
    ),
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
        "algorithm": preset.algorithm,
        "corrector": request.corrector or preset.corrector,
        "compressor": preset.compressor,
        "runtime": chosen,
    }


def config(request: Request, kind: str) -> Any:
    """The preset's config of one kind of part, with what is tuned for the environment."""
    preset, names = find(request.preset), parts(request)
    cls = experiment.config_class(kind, names.get(kind, ""))
    base: Any = options.build(cls, _fitting(cls, preset.settings.get(kind, {})), kind)
    tuned = preset.tuned.get(bare(names["env"]))
    return options.build(cls, _fitting(cls, tuned.settings.get(kind, {})) if tuned else {}, kind, base)


def _fitting(cls: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's runtime settings name the fields of several runtimes; each takes its own."""
    return {name: value for name, value in settings.items() if name in cls.__dataclass_fields__}  # type: ignore[attr-defined]


def bare(env: str) -> str:
    """An id without its adapter: ``gymnax:CartPole-v1`` and ``CartPole-v1`` are tuned alike."""
    return env.partition(":")[2] if environments.pure_jax(env) else env


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
    tuned = preset.tuned.get(bare(names["env"]))
    opened = environments.open(names["env"], configs["environment"])
    made = experiment.Experiment(
        preset=request.preset,
        env=names["env"],
        steps=request.steps if request.steps is not None else (tuned.steps if tuned else preset.steps),
        seed=request.seed,
        goal=_goal(request.until, opened.spec),
        algorithm=names["algorithm"],
        corrector=names["corrector"],
        compressor=names["compressor"],
        runtime=names["runtime"],
        configs=configs,
    )
    experiment.validate(made, opened)
    registry.load("runtime", made.runtime)
    return made, opened


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
