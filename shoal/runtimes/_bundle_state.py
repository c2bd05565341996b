"""What the bundles of a parameter server tell while they run, and what each leaves for a checkpoint."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from shoal import asynchrony, seeds, tree, types
from shoal.runtimes import _actor_learner, _segment, _shared

DROPPED = ("stale", "outlier", "non_finite")  # why a gradient was not applied
LAGS = 17  # places for pushes offered: 0, 1, ... 15, and 16 or more


class Kept(NamedTuple):
    """What a bundle leaves for a checkpoint: all that makes its next update what it is, the simulator apart."""

    state: Any  # the learner's less parameters and gradient; a replay memory is in it
    stream: Any  # see `_segment.Segments.save`
    key: Any  # [3] u32, of updates
    guard: Any  # [3] f64, of losses
    gathered: Any  # [size] f32, gradients not yet pushed; [0] where each is pushed at once
    count: Any  # i64, how many
    theta: Any  # [size] f32, parameters as fetched last; [0] where every step fetches
    # [3] i64: steps since then, the version fetched and that of the first gradient gathered, each of the slowest slice
    fetched: Any


def layout(bundles: int, observed: int) -> _shared.Layout:
    """What bundles tell, one place each with a single writer (see `_actor_learner.layout`); lags are in versions.

    Args:
        bundles: How many.
        observed: Numbers in an observation that is normalised; 0 where none is.
    """
    return {
        "steps": ((bundles,), "i8"),  # environment steps; the global counter T is their sum
        "updates": ((bundles,), "i8"),  # pushes taken
        "lag_sum": ((bundles,), "i8"),  # of those
        "lag_max": ((bundles,), "i8"),
        "lags": ((bundles, asynchrony.BINS), "i8"),  # by `asynchrony.place`
        "offered": ((bundles, LAGS), "i8"),  # pushes by lag, taken or not
        "dropped": ((bundles, len(DROPPED)), "i8"),  # gradients, by reason
        "split": ((bundles, len(_actor_learner.SPLIT)), "f8"),  # seconds
        "normaliser": ((1 + 2 * observed if observed else 0,), "f8"),  # count, mean, m2; merged under a lock
        "pause": ((1,), "i8"),  # number of the checkpoint that bundles are to hold still for; 0: none
        "paused": ((bundles,), "i8"),  # number of the last one it held still for
        "kept": ((bundles,), "i4"),  # whether its area holds a whole state
        "stop": ((1,), "i4"),
    }


def kept(parts: types.Parts, n_push: int, n_fetch: int) -> Kept:
    """`Kept` as shapes and dtypes."""
    state = jax.eval_shape(parts.agent.init, seeds.key(0))
    size = tree.flattener(state.params).size
    return Kept(
        without(state),
        _segment.kept(parts),
        jax.ShapeDtypeStruct((3,), np.uint32),
        jax.ShapeDtypeStruct((3,), np.float64),
        jax.ShapeDtypeStruct((size if n_push > 1 else 0,), np.float32),
        jax.ShapeDtypeStruct((), np.int64),
        jax.ShapeDtypeStruct((size if n_fetch > 1 else 0,), np.float32),
        jax.ShapeDtypeStruct((3,), np.int64),
    )


def without(state: Any) -> Any:
    """The learner's state less what is fetched and pushed."""
    return state._replace(params=(), optimiser=state.optimiser._replace(gradient=(), rates=()))


def area(like: Kept) -> _shared.Block:
    """Room for what a bundle leaves; its pages are taken when they are first written."""
    described = {path: tree.describe(leaf) for path, leaf in tree.paths(like).items()}
    return _shared.Block({path: (shape, dtype) for path, (dtype, shape) in described.items()})
