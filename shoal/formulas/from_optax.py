"""Optimisers of optax by name, for `optimise.local`; the only file that imports optax.

The optimiser is made anew in every update from the numbers of `optimise.Hyper`, which are leaves: the rate, the decay
and epsilon may change without recompilation (as in ``optax.inject_hyperparams``, without a second state around the
first). What else it takes is fixed when the experiment is built.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epy

from shoal.core import errors, types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

PREFIX = "optax:"
# Our settings under the names optax has for them, the first that an optimiser takes; decay is that of the squares.
SETTINGS = {"learning_rate": ("learning_rate",), "decay": ("b3", "rho", "decay", "b2"), "epsilon": ("eps",)}
WORDS = {"true": True, "false": False, "none": None, "null": None}


class Rule(NamedTuple):
    """An optimiser of optax; `numbers` are the values of `SETTINGS`, scalars."""

    init: Callable[[Mapping[str, Any], types.Params], Any]  # (numbers, params) -> statistics, of optax's own classes
    step: Callable[[Mapping[str, Any], Any, Any, types.Params], tuple[Any, Any]]
    # (numbers, statistics, gradient, params) -> (what is added to the parameters, statistics)


def names() -> list[str]:
    """Every optimiser that optax offers by a function of a learning rate."""
    import optax

    public = ((name, made) for name, made in vars(optax).items() if not name.startswith(("_", "scale_by_")))
    return sorted(name for name, made in public if inspect.isfunction(made) and "learning_rate" in _takes(made))


def build(rule: str, arguments: Sequence[str]) -> Rule:
    """An optimiser as pure functions.

    Args:
        rule: ``optax:NAME``.
        arguments: ``name=value`` each; what is left out is optax's default.

    Raises:
        Refused: No such optimiser, an argument it does not take, or one that cannot be kept here.
    """
    function = _function(rule)
    if "key" in _takes(function):
        raise errors.Refused(f"optimiser.rule={rule} keeps a random key of its own, which a checkpoint does not hold")
    passed = _passed(function)
    settings = {taken: setting for setting, taken in passed.items()}
    given = _arguments(rule, arguments, settings, [one for one in _takes(function) if one not in settings])

    def make(numbers: Mapping[str, Any]) -> Any:
        return function(**{taken: numbers[setting] for setting, taken in passed.items()}, **given)

    def init(numbers: Mapping[str, Any], params: types.Params) -> Any:
        with _as_written(rule):
            return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), make(numbers).init(params))

    def step(numbers: Mapping[str, Any], old: Any, gradient: Any, params: types.Params) -> tuple[Any, Any]:
        with _as_written(rule):
            change, new = make(numbers).update(gradient, old, params)
            return change, jax.tree.map(lambda after, before: after.astype(before.dtype), new, old)

    return Rule(init, step)


def check(rule: str, arguments: Sequence[str]) -> None:
    """Refuse an optimiser that cannot be used as it is given, before anything is created.

    Args:
        rule: ``optax:NAME``.
        arguments: ``name=value`` each.

    Raises:
        Refused: As `build` does; or it fails on the values, or asks for more than a gradient.
    """
    made = build(rule, arguments)
    params = {"kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32), "bias": jax.ShapeDtypeStruct((3,), jnp.float32)}
    numbers = dict.fromkeys(SETTINGS, jax.ShapeDtypeStruct((), jnp.float32))
    jax.eval_shape(made.step, numbers, jax.eval_shape(made.init, numbers, params), params, params)


def _function(rule: str) -> Any:
    import optax

    if rule.removeprefix(PREFIX) not in names():
        raise errors.unknown("value of optimiser.rule", rule, [PREFIX + known for known in names()])
    return getattr(optax, rule.removeprefix(PREFIX))


@functools.cache
def _takes(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _passed(function: Callable[..., Any]) -> dict[str, str]:
    """Setting -> the argument it becomes, of those the optimiser has."""
    found = {setting: [one for one in under if one in _takes(function)] for setting, under in SETTINGS.items()}
    return {setting: taken[0] for setting, taken in found.items() if taken}


def _arguments(
    rule: str, arguments: Sequence[str], settings: Mapping[str, str], takes: Sequence[str]
) -> dict[str, Any]:
    """The arguments by name; `settings` are those that have an option of their own."""
    found: dict[str, Any] = {}
    for text in arguments:
        name, equals, value = text.partition("=")
        if name in settings:
            option = settings[name].replace("_", "-")
            raise errors.Refused(f"optimiser.arguments {text}: set {name} with --optimiser.{option}")
        if name not in takes:
            raise errors.unknown(f"argument of {rule}", name, takes, "Give optimiser.arguments as name=value.")
        if not equals or name in found:
            raise errors.Refused(f"optimiser.arguments {text}: give every argument once, as name=value")
        found[name] = _value(text, value)
    return found


def _value(text: str, value: str) -> Any:
    """A number, a truth value, None, or else a string, e.g. the name of a dtype."""
    if value.lower() in WORDS:
        return WORDS[value.lower()]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            number = kind(value)
            if not math.isfinite(number):
                raise errors.Refused(f"optimiser.arguments {text}: {value} is not a finite number")
            return number
    return value


@contextlib.contextmanager
def _as_written(rule: str) -> Iterator[None]:
    """JAX as optax expects it (it mixes types and ranks), and one line where it fails."""
    promotion = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    with promotion[0], promotion[1], warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # optax's bounds in pyproject say which it may be
        try:
            yield
        except Exception as error:  # whatever optax raises for values it does not expect
            reason = " ".join(str(error).split())[:200]
            raise errors.Refused(
                f"optimiser.rule={rule} does not work here with these arguments ({type(error).__name__}: {reason}); "
                "change --optimiser.arguments or use another rule"
            ) from error
