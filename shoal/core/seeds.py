"""Seeds derive from the run's seed and a place: (run, worker, environment, purpose, ...).

Two places never share a seed by accident, the same place always gets the same one, and no seed or key is stored: a
resumed run derives them again from the counters in its checkpoint.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from etils import epy

with epy.lazy_imports():
    from shoal.core import prng

if TYPE_CHECKING:
    import jax


def derive(seed: int, *place: int | str) -> int:
    """A 32-bit seed for one place of a run.

    Args:
        seed: The run's seed, any non-negative integer.
        *place: Where and what for, e.g. ``"worker", 1, "incarnation", 0, "environment", 3``.

    Returns:
        An integer in ``[0, 2**32)``, the same on every machine and Python version.
    """
    text = "/".join(str(part) for part in (seed, *place))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def key(seed: int, *place: int | str) -> jax.Array:
    """The JAX key of one place of a run (see `derive`)."""
    return prng.key(derive(seed, *place))
