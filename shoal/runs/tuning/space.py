"""What is searched: a prior for each of some settings, given by hand or the usual ones around a preset's values.

Priors are written and read as everywhere (`runtimes.population.priors`). A population changes leaves of its learners
(`types.About.hyper`); a method of trials trains every one anew, so it may also search settings that fix shapes.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shoal import experiment
from shoal.core import aliases, errors, options, types
from shoal.runtimes.population import priors as distributions

Prior = distributions.Prior
AROUND = 10.0  # a learning rate is searched this factor below and above the preset's


def _around(value: float) -> Prior:
    low, high = (float(f"{end:.6g}") for end in (value / AROUND, value * AROUND))
    return Prior("log_uniform", low, high)


# The usual prior of a leaf by its name, from the preset's value; others are searched only if somebody asks.
USUAL: dict[str, Callable[[float], Prior]] = {
    "optimiser.learning_rate": _around,
    "algorithm.entropy_cost": lambda _: Prior("log_uniform", 1e-4, 1e-1),
    "algorithm.discount": lambda _: Prior("uniform", 0.9, 0.999),
    "algorithm.clip": lambda _: Prior("uniform", 0.1, 0.4),  # PPO
    "algorithm.value_cost": lambda _: Prior("log_uniform", 0.1, 2.0),
    "algorithm.tau": lambda _: Prior("log_uniform", 1e-3, 5e-2),  # SAC, TD3
    "algorithm.policy_delay": lambda _: Prior("integer", 1, 5),  # TD3, as in fastpbrl, and so the next three
    "algorithm.noise": lambda _: Prior("uniform", 0.0, 1.0),
    "algorithm.target_noise": lambda _: Prior("uniform", 0.0, 1.0),
    "algorithm.target_noise_clip": lambda _: Prior("uniform", 0.0, 1.0),
    "algorithm.epsilon_end": lambda _: Prior("log_uniform", 0.005, 0.2),  # DQN
    "algorithm.epsilon_steps": lambda value: Prior("integer", math.ceil(value / AROUND), round(value * 3)),
    "algorithm.target_period": lambda value: Prior("integer", max(1, round(value / AROUND)), round(value * 3)),
    "algorithm.temperature": _around,  # teams of units
    "algorithm.trace": lambda _: Prior("uniform", 0.5, 0.99),
}
LEFT_OUT = {  # (rule, leaf): where the usual prior would mean something else
    ("dqn", "algorithm.tau"),  # 1 copies the target network now and then: the period counts
    ("map_propagation", "optimiser.learning_rate"),  # its layers have rates of their own
}


def read(texts: Sequence[str]) -> dict[str, Prior]:
    """Priors as they are typed.

    Raises:
        Refused: One cannot be read, or a setting has two.
    """
    return distributions.read(texts)


def usual(made: experiment.Experiment, hyper: Mapping[str, types.Leaf]) -> dict[str, Prior]:
    """The priors of a preset: those of `USUAL` whose leaf its rule has, around the preset's values.

    Args:
        made: The preset on its environment.
        hyper: Of its agent (`types.About`).

    Raises:
        Refused: It has none.
    """
    found = {}
    for name, prior in USUAL.items():
        if name in hyper and (made.algorithm, name) not in LEFT_OUT and is_option(made, name):
            value = float(before(made, name))
            if value > 0 or not name.endswith(("rate", "steps", "period", "temperature")):
                found[name] = prior(value)
    if not found:
        raise errors.Refused(
            f"{made.preset} declares no settings to search; give them, e.g. --prior optimiser.learning_rate="
            "log_uniform(1e-4,1e-2)"
        )
    return found


def is_option(made: experiment.Experiment, name: str) -> bool:
    """Whether a new run can be given a setting: it is an option of one of its parts."""
    kind, _, field = name.partition(".")
    return kind in made.configs and field in _fields(made.configs[kind])


def before(made: experiment.Experiment, name: str) -> Any:
    """The value that an experiment has for an option; a number where all entries of a list are alike."""
    kind, _, field = name.partition(".")
    value = vars(made.configs[kind])[field]
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value


def check_options(priors: Mapping[str, Prior], made: experiment.Experiment) -> None:
    """Refuse what is no number, or out of an option's bounds, before anything is trained.

    Raises:
        Refused: Names the setting.
    """
    known = {f"{kind}.{field}": kind for kind, config in made.configs.items() for field in _fields(config)}
    for name, prior in priors.items():
        if name not in known:
            here = aliases.setting(name, {one.replace("_", "-") for one in known})
            remedy = f"Here it is {here.replace('-', '_')}." if here else ""
            raise errors.unknown("setting in a prior", name, known, remedy)
        for value in prior.values or (prior.low, prior.high):
            if prior.kind.endswith("uniform"):
                setting(made, name, value + 0.123)  # fractions come too
            given = setting(made, name, value)
            kind, _, field = name.partition(".")
            try:
                options.build(type(made.configs[kind]), {field: given}, kind, made.configs[kind])
            except errors.Refused as problem:
                raise errors.Refused(f"the prior of {name}: {problem}") from None


def setting(made: experiment.Experiment, name: str, value: float) -> Any:
    """A number that was drawn, as its option takes it.

    Args:
        made: Whose options.
        name: Of the option. One that is a list gets the number in every entry: ``network.hidden`` as wide everywhere.
        value: As it was drawn.

    Raises:
        Refused: The option takes no number, or only whole ones.
    """
    kind, _, field = name.partition(".")
    config = made.configs[kind]
    hint, now = typing.get_type_hints(type(config))[field], vars(config)[field]
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        return [_number(name, inner, value)] * max(len(now), 1)
    return _number(name, hint, value)


def _number(name: str, hint: Any, value: float) -> int | float | bool:
    hint = next((one for one in typing.get_args(hint) if one is not type(None)), hint)
    if hint is float:
        return float(value)
    if hint is bool and value in (0, 1):
        return bool(value)
    if hint is int and float(value).is_integer():
        return int(value)
    takes = {int: "whole numbers; use integer(...) or choice(...)", bool: "0 or 1; use choice(0,1)"}
    raise errors.Refused(f"{name} takes {takes.get(hint, 'no number, so it has no prior')}")


def text(name: str, prior: Prior) -> str:
    """A prior as it would be typed."""
    inner = prior.values if prior.kind == "choice" else (prior.low, prior.high)
    return f"{name}={prior.kind}({','.join(f'{value:.9g}' for value in inner)})"


def within(prior: Prior, value: Any) -> bool:
    """Whether a prior can give a value."""
    if not isinstance(value, int | float):
        return False
    return value in prior.values if prior.kind == "choice" else prior.low <= value <= prior.high


def _fields(config: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]
