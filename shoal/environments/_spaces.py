"""From a simulator's space to what the agent sees and does: the rules every adapter shares.

* Images stay images: rank 3 with channels last, uint8, or float32 where the bounds are finite and not negative (the
  planes of MinAtar). A uint8 matrix gets a channel axis; channels in front are moved to the back.
* Any other array becomes one float32 vector; a choice of ``n`` becomes a one-hot vector.
* Actions are a choice or one flat vector within bounds. Everything else is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from shoal import errors, types

MAX_CHANNELS = 16  # an image whose first axis is the smallest, and no larger than this, has its channels in front

SUPPORTED_OBSERVATIONS = "Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple of these"
SUPPORTED_ACTIONS = "Discrete and Box"


class Layout(NamedTuple):
    """How one observation is arranged before the agent sees it."""

    spec: types.ObservationSpec
    axes: tuple[int, ...] = ()  # transposition of an image; () leaves it
    one_hot: int = 0  # number of choices of a Discrete space; 0: an array
    chosen: tuple[int, ...] = ()  # the features shown; () shows all
    notes: tuple[str, ...] = ()


def vector(size: int, note: str = "") -> Layout:
    """A float32 vector of `size` features."""
    return Layout(types.ObservationSpec((size,), "float32", False), notes=(note,) if note else ())


def choice(n: int) -> Layout:
    """A Discrete observation: one-hot, because its numbers have no order."""
    return vector(n, f"Discrete({n}) observation shown as a one-hot vector")._replace(one_hot=n)


def box(shape: tuple[int, ...], dtype: str, low: float, high: float) -> Layout:
    """A Box observation: an image or a flat vector (see the module's rules).

    Args:
        shape: Of one observation as the simulator gives it.
        dtype: As the simulator declares it, e.g. ``"uint8"``.
        low: Smallest lower bound.
        high: Largest upper bound.
    """
    pixels = dtype == "uint8"
    planes = len(shape) == 3 and low >= 0 and high < 1e30  # gymnax writes "unbounded" as the largest float
    if pixels and len(shape) == 2:
        return _image((*shape, 1), dtype, f"image {shape} given a channel axis")
    if not (planes or (pixels and len(shape) == 3)):
        size = math.prod(shape)
        return vector(size, "" if len(shape) == 1 else f"Box {shape} observation flattened to {size} features")
    dtype = "uint8" if pixels else "float32"
    if shape[0] < min(shape[1:]) and shape[0] <= MAX_CHANNELS:
        moved = (*shape[1:], shape[0])
        layout = _image(moved, dtype, f"image {shape} has its channels in front: shown as {moved}")
        return layout._replace(axes=(1, 2, 0))
    return _image(shape, dtype)


def _image(shape: tuple[int, ...], dtype: str, note: str = "") -> Layout:
    return Layout(types.ObservationSpec(shape, dtype, True), notes=(note,) if note else ())


def select(layout: Layout, index: tuple[int, ...]) -> Layout:
    """The same layout with only some features shown.

    Args:
        layout: Of the whole observation.
        index: Features of the flat vector, in the order to show them; ``()`` shows all.

    Raises:
        Refused: An image, or an index outside the vector.
    """
    if not index:
        return layout
    if layout.spec.image:
        raise errors.Refused(
            f"observe={index} picks features of a vector, but this environment shows an image; drop it"
        )
    size = layout.spec.shape[0]
    if wrong := [i for i in index if not 0 <= i < size]:
        raise errors.Refused(f"observe={index}: no feature {wrong[0]}, the observation has {size} (0 to {size - 1})")
    note = f"shows features {', '.join(map(str, index))} of {size}"
    return layout._replace(spec=layout.spec._replace(shape=(len(index),)), chosen=index, notes=(*layout.notes, note))


def actions(n: int) -> types.ActionSpec:
    """One of `n` choices."""
    return types.ActionSpec(discrete=True, n=n, shape=(), low=(), high=())


def bounded(low: Iterable[Any], high: Iterable[Any]) -> types.ActionSpec:
    """A flat vector within bounds, one pair for each component."""
    lows, highs = tuple(map(float, low)), tuple(map(float, high))
    return types.ActionSpec(discrete=False, n=0, shape=(len(lows),), low=lows, high=highs)


def time_limit(chosen: int, own: int | None) -> int | None:
    """The limit in force, in steps: the one chosen, else the simulator's own.

    Raises:
        Refused: A negative limit.
    """
    if chosen < 0:
        raise errors.Refused(f"time_limit={chosen}: give a number of steps, or 0 for the environment's own limit")
    return chosen or own


def unsupported_observation(env_id: str, space: object) -> errors.Refused:
    """The refusal of an observation space, in one line."""
    return _unsupported(env_id, "observation", space, SUPPORTED_OBSERVATIONS)


def unsupported_action(env_id: str, space: object) -> errors.Refused:
    """The refusal of an action space, in one line."""
    return _unsupported(env_id, "action", space, SUPPORTED_ACTIONS)


def _unsupported(env_id: str, kind: str, space: object, supported: str) -> errors.Refused:
    shown = " ".join(str(space).split())
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return errors.Refused(
        f"{env_id}: the {kind} space {shown} is not supported (supported: {supported}); "
        f"wrap the environment so that its {kind} space is one of these and register the wrapped one"
    )
