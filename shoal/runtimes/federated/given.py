"""What a party is told of the run before its first round, and what it is given to do things with."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from shoal.runtimes.federated import consensus

Log = Callable[[str, str], None]  # (what, traceback or a line): the party's own


class Terms(NamedTuple):
    """What a party knows of the run before its first round; plain numbers, so all of it can be pickled."""

    run: bytes  # [16], the name of the run
    party: int  # its number
    seed: int  # of the run
    environments: int = 1  # B, of each party
    exchange: str = "gradient"  # or "delta", "none" (it is alone), "outputs" (`consensus`)
    most: int = 1  # local updates of a round (H): no more are done, whatever a server asks
    reset_moments: bool = False  # whether statistics of the optimiser begin anew with each download
    agreement: consensus.Agreement | None = None  # of the exchange of outputs
    padded: bool = False  # whether a rollout ends with its episode


class Leaves(Protocol):
    """What is done to an update before it leaves (`leaving.Leaving`): clipped, noised, and written down."""

    def __call__(self, vector: np.ndarray, *, party: int, turn: int) -> np.ndarray:
        """The update as it may leave, ``[d]`` f32; `turn` counts the releases of this party."""
        ...


def as_it_is(vector: np.ndarray, *, party: int, turn: int) -> np.ndarray:
    """Nothing is done to it: neither a clip nor noise was asked for."""
    del party, turn
    return vector


def nowhere(what: str, story: str) -> None:
    """A log that nobody keeps."""
    del what, story


def still() -> None:
    """Nobody asks for signs of life."""
