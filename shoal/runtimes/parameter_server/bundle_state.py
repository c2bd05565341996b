"""What the bundles of a parameter server tell while they run, and what each leaves for a checkpoint."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from shoal.core import seeds, tree, types
from shoal.runtimes.crew import lags, messages, sharing
from shoal.runtimes.experience import segments

DROPPED = ("stale", "outlier", "non_finite")  # why a gradient was not applied
LAGS = 17  # places for pushes offered: 0, 1, ... 15, and 16 or more


class Settings(NamedTuple):
    """Numbers of the runtime's config that a bundle needs."""

    max_lag: int
    outlier_sigma: float
    n_fetch: int
    n_push: int


class Kept(NamedTuple):
    """What a bundle leaves for a checkpoint: all that makes its next update what it is, the simulator apart."""

    state: Any  # the learner's less parameters and gradient; a replay memory is in it
    stream: Any  # see `segments.Segments.save`
    key: Any  # [3] u32, of updates
    guard: Any  # [3] f64, of losses
    gathered: Any  # [size] f32, gradients not yet pushed; [0] where each is pushed at once
    count: Any  # i64, how many
    theta: Any  # [size] f32, parameters as fetched last; [0] where every step fetches
    # [3] i64: steps since then, the version fetched and that of the first gradient gathered, each of the slowest slice
    fetched: Any


def layout(bundles: int, observed: int) -> sharing.Layout:
    """What bundles tell, one place each with a single writer (see `hogwild.process.layout`); lags are in versions.

    Args:
        bundles: How many.
        observed: Numbers in an observation that is normalised; 0 where none is.
    """
    return {
        "steps": ((bundles,), "i8"),  # environment steps; the global counter T is their sum
        **lags.layout(bundles),  # of pushes taken
        "offered": ((bundles, LAGS), "i8"),  # pushes by lag, taken or not
        "dropped": ((bundles, len(DROPPED)), "i8"),  # gradients, by reason
        "split": ((bundles, len(messages.SPLIT)), "f8"),  # seconds
        "unfit": ((bundles, 2), "i8"),  # rewards and observations that were not finite, of this life
        "normaliser": ((1 + 2 * observed if observed else 0,), "f8"),  # count, mean, m2; merged under a lock
        "kept": ((bundles,), "i4"),  # whether its area holds a whole state
    }


def kept(parts: types.Parts, settings: Settings) -> Kept:
    """`Kept` as shapes and dtypes."""
    state = jax.eval_shape(parts.agent.init, seeds.key(0))
    size = tree.flattener(state.params).size
    return Kept(
        state=without(state),
        stream=segments.kept(parts),
        key=jax.ShapeDtypeStruct((3,), np.uint32),
        guard=jax.ShapeDtypeStruct((3,), np.float64),
        gathered=jax.ShapeDtypeStruct((size if settings.n_push > 1 else 0,), np.float32),
        count=jax.ShapeDtypeStruct((), np.int64),
        theta=jax.ShapeDtypeStruct((size if settings.n_fetch > 1 else 0,), np.float32),
        fetched=jax.ShapeDtypeStruct((3,), np.int64),
    )


def found(parts: types.Parts, settings: Settings, area: sharing.Block) -> Kept:
    """What was left in an area, as views."""
    return tree.fill(kept(parts, settings), area.arrays)


def without(state: Any) -> Any:
    """The learner's state less what is fetched and pushed."""
    return state._replace(params=(), optimiser=state.optimiser._replace(gradient=(), rates=()))


def area(like: Kept) -> sharing.Block:
    """Room for what a bundle leaves; its pages are taken when they are first written."""
    described = {path: tree.describe(leaf) for path, leaf in tree.paths(like).items()}
    return sharing.Block({path: (shape, dtype) for path, (dtype, shape) in described.items()})
