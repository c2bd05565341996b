"""From a simulator's space to what the agent sees and does: the rules every adapter shares.

* Images stay images: rank 3 with channels last, uint8, or float32 where the bounds are finite and not negative (the
  planes of MinAtar). A uint8 matrix gets a channel axis; channels in front are moved to the back.
* Any other array becomes one float32 vector; a choice of ``n`` becomes a one-hot vector.
* Bytes, in pictures or vectors, keep their declared bounds: networks bring them to [0, 1].
* Actions are a choice, several choices at once, or one flat vector within bounds. Everything else is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from etils import epy

from shoal.core import errors, types

with epy.lazy_imports():
    import numpy as np

MAX_CHANNELS = 16  # an image whose first axis is the smallest, and no larger than this, has its channels in front

SUPPORTED_OBSERVATIONS = "Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple of these"
SUPPORTED_ACTIONS = "Discrete, MultiDiscrete, MultiBinary and Box"


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


def box(shape: tuple[int, ...], dtype: str, low: Any, high: Any) -> Layout:
    """A Box observation: an image or a flat vector (see the module's rules).

    Args:
        shape: Of one observation as the simulator gives it.
        dtype: As the simulator declares it, e.g. ``"uint8"``.
        low: Lower bounds, ``[*shape]`` or what is broadcast to it.
        high: Upper bounds, likewise.
    """
    low, high = (np.broadcast_to(np.asarray(bound, np.float64), shape) for bound in (low, high))
    pixels = dtype == "uint8"
    planes = len(shape) == 3 and low.size and low.min() >= 0 and high.max() < 1e30  # gymnax's "unbounded" is beyond
    if pixels and len(shape) == 2:
        layout = _image((*shape, 1), dtype, f"image {shape} given a channel axis")
        return _of_bytes(layout, low[..., None], high[..., None])
    if not (planes or (pixels and len(shape) == 3)):
        size = math.prod(shape)
        layout = vector(size, "" if len(shape) == 1 else f"Box {shape} observation flattened to {size} features")
        return _of_bytes(layout, low.reshape(-1), high.reshape(-1)) if pixels else layout
    dtype = "uint8" if pixels else "float32"
    layout = _image(shape, dtype)
    if shape[0] < min(shape[1:]) and shape[0] <= MAX_CHANNELS:
        moved = (*shape[1:], shape[0])
        layout = _image(moved, dtype, f"image {shape} has its channels in front: shown as {moved}")
        layout = layout._replace(axes=(1, 2, 0))
        low, high = np.moveaxis(low, 0, -1), np.moveaxis(high, 0, -1)
    return _of_bytes(layout, low, high) if pixels else layout


def _image(shape: tuple[int, ...], dtype: str, note: str = "") -> Layout:
    return Layout(types.ObservationSpec(shape, dtype, True), notes=(note,) if note else ())


def _of_bytes(layout: Layout, low: Any, high: Any) -> Layout:
    """The same layout with the bounds of its bytes, ``[*shape]`` as shown: one for each channel or feature, or one."""
    if not low.size:
        return layout
    lows, highs = low.min(axis=tuple(range(low.ndim - 1))), high.max(axis=tuple(range(low.ndim - 1)))
    return within(layout, lows.tolist(), highs.tolist())


def within(layout: Layout, low: Iterable[Any], high: Iterable[Any]) -> Layout:
    """The same layout with bounds that networks bring to [0, 1].

    Args:
        layout: Of the whole observation.
        low: One for each channel or feature; 0 to 1 leaves a feature as it is.
        high: Likewise.
    """
    lows, highs = tuple(map(float, low)), tuple(map(float, high))
    if len({*lows}) == 1 and len({*highs}) == 1:
        lows, highs = lows[:1], highs[:1]
    if (lows, highs) == ((0.0,), (1.0,)) and layout.spec.dtype == "float32":
        return layout
    return layout._replace(spec=layout.spec._replace(low=lows, high=highs))


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
    seen = layout.spec._replace(shape=(len(index),))
    if len(seen.low) > 1:
        seen = seen._replace(low=tuple(seen.low[i] for i in index), high=tuple(seen.high[i] for i in index))
    return layout._replace(spec=seen, chosen=index, notes=(*layout.notes, note))


def actions(n: int, start: int = 0) -> types.ActionSpec:
    """One of `n` choices, which the simulator numbers from `start`."""
    return types.ActionSpec(discrete=True, n=n, shape=(), low=(), high=(), start=start, own_dtype="int64")


def several(
    sizes: Iterable[Any],
    starts: Iterable[Any] = (),
    shape: tuple[int, ...] | None = None,
    dtype: str = "int64",
) -> types.ActionSpec:
    """Several choices at once.

    Args:
        sizes: How many there are for each, flat.
        starts: The number that the simulator gives the first of each, flat; (): 0.
        shape: Of the simulator's own array; None: it is flat.
        dtype: Of the simulator's own array.
    """
    counts = tuple(map(int, sizes))
    flat = (len(counts),)
    return types.ActionSpec(
        discrete=True,
        n=0,
        shape=flat,
        low=(),
        high=(),
        sizes=counts,
        starts=tuple(map(int, starts)) or (0,) * len(counts),
        own_shape=None if shape in (None, flat) else shape,
        own_dtype=dtype,
    )


def bounded(
    low: Iterable[Any], high: Iterable[Any], shape: tuple[int, ...] | None = None, dtype: str = "float32"
) -> types.ActionSpec:
    """A flat vector within bounds, one pair for each component.

    Args:
        low: Lower bounds, flat.
        high: Upper bounds, flat.
        shape: Of the simulator's own array; None: it is flat.
        dtype: Of the simulator's own array.
    """
    lows, highs = tuple(map(float, low)), tuple(map(float, high))
    flat = (len(lows),)
    own = None if shape in (None, flat) else shape
    return types.ActionSpec(discrete=False, n=0, shape=flat, low=lows, high=highs, own_shape=own, own_dtype=dtype)


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
