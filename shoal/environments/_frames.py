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

SPEC = types.ObservationSpec((SIDE, SIDE, STACK), "uint8", True, STACK)


def first(frame: np.ndarray) -> np.ndarray:
    """The stack an episode begins with: ``[*batch, height, width]`` -> ``[*batch, height, width, STACK]``."""
    return np.repeat(frame[..., None], STACK, axis=-1)


def follow(stack: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """The stack after one more frame, a new array.

    The four bytes of a pixel are one word, the oldest its lowest: a shift is six times as fast as copying bytes.
    """
    words = stack.view("<u4") >> 8
    words |= frame[..., None].astype("<u4") << 24
    return words.view(np.uint8)


def notes(repeat: int, episodic_life: bool) -> tuple[str, ...]:
    """What `shoal check-env` says of a game."""
    shown = (
        f"grey pictures of {SIDE} by {SIDE}, the last {STACK}; an action is repeated over {repeat} frames; "
        "rewards as the game pays them",
    )
    return (*shown, "a lost life ends an episode; evaluation plays whole games") if episodic_life else shown
