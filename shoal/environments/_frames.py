"""Stacks of frames: what an agent sees of a video game is its last few grey pictures, newest last.

An episode begins with its first frame repeated, so a replay memory that keeps each frame once can lay the stacks again.
"""

from __future__ import annotations

from etils import epy

from shoal.core import types

with epy.lazy_imports():
    import numpy as np

SIDE = 84  # pixels
STACK = 4  # frames (Mnih et al. 2015, extended data table 1)
LONGEST = 108_000  # raw frames of an episode, half an hour of play (Machado et al. 2018, section 3)


def spec(side: int = SIDE, frames: int = STACK) -> types.ObservationSpec:
    """What is seen of so many frames of so many pixels a side."""
    return types.ObservationSpec((side, side, frames), "uint8", True, frames)


SPEC = spec()


def first(frame: np.ndarray, frames: int = STACK) -> np.ndarray:
    """The stack an episode begins with: ``[*batch, height, width]`` -> ``[*batch, height, width, frames]``."""
    return np.repeat(frame[..., None], frames, axis=-1)


def follow(stack: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """The stack after one more frame, a new array.

    Four bytes of a pixel are one word, the oldest its lowest: a shift is six times as fast as copying bytes.
    """
    if stack.shape[-1] != STACK:
        return np.concatenate([stack[..., 1:], frame[..., None]], axis=-1)
    words = stack.view("<u4") >> 8
    words |= frame[..., None].astype("<u4") << 24
    return words.view(np.uint8)


def notes(repeat: int, episodic_life: bool, seen: types.ObservationSpec = SPEC, rows: str = "") -> tuple[str, ...]:
    """What `shoal check-env` says of a game.

    Args:
        repeat: Frames of an action.
        episodic_life: Whether a lost life ends an episode.
        seen: What is shown.
        rows: Those of the screen that are, where it is not all of it.
    """
    side, frames = seen.shape[0], seen.stack
    last = f"the last {frames}" if frames > 1 else "one at a time"
    shown = (
        f"grey pictures of {side} by {side}{rows}, {last}; an action is repeated over {repeat} frames; "
        "rewards as the game pays them",
    )
    return (*shown, "a lost life ends an episode; evaluation plays whole games") if episodic_life else shown
