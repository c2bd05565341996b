"""Gymnasium's spaces: what the agent sees of them, and the conversions made at every step.

Conversions are closures chosen once, because they sit on the hot path of training. Each returns a fresh array: some
simulators hand out the buffer they overwrite at the next step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from etils import epy

from shoal.core import errors, types
from shoal.environments import _spaces

with epy.lazy_imports():
    import gymnasium
    import numpy as np

if TYPE_CHECKING:
    See = Callable[[Any], np.ndarray]  # what the simulator gave -> what the agent sees
    Act = Callable[[Any], Any]  # what the agent chose -> what the simulator takes


def layout(env_id: str, space: Any) -> _spaces.Layout:
    """How observations of a space are shown.

    Raises:
        Refused: Text, Graph, Sequence, and whatever else has no fixed size.
    """
    spaces = gymnasium.spaces
    if isinstance(space, spaces.Box):
        return _spaces.box(space.shape, np.dtype(space.dtype).name, space.low, space.high)
    if isinstance(space, spaces.Discrete):
        return _spaces.choice(int(space.n))
    if not _flattens(space):
        raise _unsupported(env_id, space)
    size = spaces.flatdim(space)
    parts = ""
    if isinstance(space, spaces.Dict):
        parts = " in the order " + ", ".join(f"{key} ({spaces.flatdim(part)})" for key, part in space.spaces.items())
    kind = type(space).__name__
    shown = _spaces.vector(size, f"{kind} observation flattened to {size} features{parts}; choices become one-hot")
    bounds = list(_bounds(space))
    return _spaces.within(shown, *zip(*bounds, strict=True)) if bounds else shown


def _bounds(space: Any) -> Iterator[tuple[float, float]]:
    """Of each feature of a flattened space: the bounds of bytes, 0 and 1 of all others, which are not scaled."""
    spaces = gymnasium.spaces
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        for part in space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces:
            yield from _bounds(part)
    elif isinstance(space, spaces.Box) and space.dtype == np.uint8:
        yield from zip(space.low.reshape(-1).tolist(), space.high.reshape(-1).tolist(), strict=True)
    else:
        yield from ((0.0, 1.0),) * spaces.flatdim(space)


def _unsupported(env_id: str, space: Any) -> errors.Refused:
    """The refusal; of a dictionary it names the keys to leave out, where that would do."""
    if isinstance(space, gymnasium.spaces.Dict):
        keys = [key for key, part in space.spaces.items() if not _flattens(part)]
        if len(keys) < len(space.spaces):
            kinds = ", ".join(f"{key} ({type(space.spaces[key]).__name__})" for key in keys)
            return errors.Refused(
                f"{env_id}: its observation has parts that no network can be given: {kinds}; leave them out by "
                f"--environment.ignore {' '.join(keys)}"
            )
    return _spaces.unsupported_observation(env_id, space)


def _flattens(space: Any) -> bool:
    """Whether every part is numbers of a fixed count."""
    spaces = gymnasium.spaces
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        return all(map(_flattens, parts))
    return isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary))


def seer(space: Any, layout: _spaces.Layout) -> See:
    """The conversion of one observation, as `layout` says; always a new array."""
    see = _seer(space, layout)
    if not layout.chosen:
        return see
    chosen = np.array(layout.chosen)
    return lambda obs: see(obs)[chosen]


def _seer(space: Any, layout: _spaces.Layout) -> See:
    array, float32 = np.array, np.float32
    if layout.spec.image:
        return _image_seer(layout)
    if layout.one_hot:
        return _one_hot_seer(layout.one_hot, int(space.start))
    if not isinstance(space, gymnasium.spaces.Box):
        flatten = gymnasium.spaces.flatten
        return lambda obs: array(flatten(space, obs), float32)
    if len(space.shape) == 1:
        return lambda obs: array(obs, float32)
    return lambda obs: array(obs, float32).reshape(-1)


def _image_seer(layout: _spaces.Layout) -> See:
    shape, dtype, axes, array = layout.spec.shape, np.dtype(layout.spec.dtype), layout.axes, np.array
    if axes:
        return lambda obs: array(np.transpose(obs, axes), dtype, order="C")
    return lambda obs: array(obs, dtype).reshape(shape)  # no copy where the shape is already right


def _one_hot_seer(n: int, start: int) -> See:
    def see(obs: Any) -> np.ndarray:
        row = np.zeros(n, np.float32)
        row[obs - start] = 1.0
        return row

    return see


def action_spec(env_id: str, space: Any) -> tuple[types.ActionSpec, tuple[str, ...]]:
    """What the agent may do, and notes.

    Raises:
        Refused: Neither Discrete, MultiDiscrete, MultiBinary nor Box.
    """
    if isinstance(space, (gymnasium.spaces.MultiDiscrete, gymnasium.spaces.MultiBinary)) and all(space.shape):
        return _several(space)
    if isinstance(space, gymnasium.spaces.Discrete):
        n, start = int(space.n), int(space.start)
        notes = (f"actions 0 to {n - 1} stand for {start} to {start + n - 1}",)
        return _spaces.actions(n, start), notes if start else ()
    if not isinstance(space, gymnasium.spaces.Box):
        raise _spaces.unsupported_action(env_id, space)
    spec = _spaces.bounded(space.low.reshape(-1), space.high.reshape(-1), space.shape, np.dtype(space.dtype).name)
    notes = (f"Box {space.shape} actions are given as one vector of {spec.shape[0]}",)
    return spec, () if len(space.shape) == 1 else notes


def _several(space: Any) -> tuple[types.ActionSpec, tuple[str, ...]]:
    sizes, starts = _choices(space)
    spec = _spaces.several(sizes.reshape(-1), starts.reshape(-1), space.shape, np.dtype(space.dtype).name)
    shaped = f"{type(space).__name__} {space.shape} actions are given as {len(spec.sizes)} choices in a row"
    shifted = "actions are counted from 0; the first of each choice stands for " + ", ".join(map(str, spec.starts))
    return spec, (*([] if len(space.shape) == 1 else [shaped]), *([shifted] if any(spec.starts) else []))


def _choices(space: Any) -> tuple[np.ndarray, np.ndarray]:
    """How many there are for each choice of a MultiDiscrete or MultiBinary, and the numbers of the first of each."""
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        return space.nvec, space.start
    return np.full(space.shape, 2), np.zeros(space.shape, int)


def actor(space: Any) -> Act:
    """The conversion of one action: shifted to the space's start, or clipped into its bounds and shaped."""
    if isinstance(space, (gymnasium.spaces.MultiDiscrete, gymnasium.spaces.MultiBinary)):
        shape, dtype, starts = space.shape, space.dtype, _choices(space)[1]
        return lambda action: (np.reshape(action, shape) + starts).astype(dtype)
    if isinstance(space, gymnasium.spaces.Discrete):
        start = int(space.start)
        return (lambda action: int(action) + start) if start else int
    low, high, shape, dtype = space.low, space.high, space.shape, space.dtype
    asarray = np.asarray
    if dtype.kind in "iub":  # whole steps: round before the cast, which would cut
        return lambda action: np.rint(asarray(action).reshape(shape)).clip(low, high).astype(dtype)
    return lambda action: asarray(action, dtype).reshape(shape).clip(low, high)


def batch_seer(space: Any, layout: _spaces.Layout) -> See:
    """As `seer`, for Box and Discrete observations of many environments at once, ``[B, ...]``."""
    shape, dtype = layout.spec.shape, np.dtype(layout.spec.dtype)
    if layout.one_hot:
        rows, start = np.eye(layout.one_hot, dtype=dtype), int(space.start)
        chosen = np.array(layout.chosen or range(layout.one_hot))
        return lambda obs: rows[np.reshape(obs, -1) - start][:, chosen]
    if layout.chosen:
        chosen = np.array(layout.chosen)
        return lambda obs: np.array(obs, dtype).reshape(len(obs), -1)[:, chosen]
    axes = (0, *(axis + 1 for axis in layout.axes)) if layout.axes else None
    if axes:
        return lambda obs: np.array(np.transpose(obs, axes), dtype, order="C")
    return lambda obs: np.array(obs, dtype).reshape(len(obs), *shape)


def batch_actor(space: Any) -> Act:
    """As `actor`, for the actions of many environments at once, ``[B, ...]``."""
    dtype = space.dtype
    if isinstance(space, (gymnasium.spaces.MultiDiscrete, gymnasium.spaces.MultiBinary)):
        starts = _choices(space)[1]
        return lambda actions: (np.reshape(actions, (len(actions), *starts.shape)) + starts).astype(dtype)
    if isinstance(space, gymnasium.spaces.Discrete):
        start = int(space.start)
        return lambda actions: np.asarray(actions).astype(dtype) + dtype.type(start)
    low, high, shape = space.low, space.high, space.shape
    if dtype.kind in "iub":
        return lambda actions: np.rint(actions).reshape(len(actions), *shape).clip(low, high).astype(dtype)
    return lambda actions: np.asarray(actions, dtype).reshape(len(actions), *shape).clip(low, high)
