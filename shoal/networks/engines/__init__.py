"""Engines: each file here runs a `compact.Compact` network for a batch of observations, on one core.

A file offers ``fits(compact, batch) -> str`` (why it cannot run it, "" if it can) and ``make(compact, batch)``, which
gives an `Engine`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from etils import epy

from shoal.core import types

with epy.lazy_imports():
    import numpy as np


class Engine(Protocol):
    """Runs one network, whose arrays are written over when newer weights arrive."""

    name: str

    def __call__(self, obs: np.ndarray, carry: types.Carry) -> tuple[Mapping[str, np.ndarray], types.Carry]:
        """(``[B, *obs]``, leaves ``[B, ...]``) -> ({head: ``[B, n]`` f32}, carry); overwritten by the next call."""
        ...

    def refresh(self) -> None:
        """The arrays that it was made with hold other numbers, of the same shapes."""
        ...


def misshapen(obs: np.ndarray, shape: tuple[int, ...]) -> ValueError:
    """What an engine raises for observations that it was not made for."""
    return ValueError(f"observations {list(obs.shape)} were given, and the engine was made for {list(shape)}")
