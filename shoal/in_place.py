"""Rules of optimisers written in place on flat NumPy vectors, for memory that several processes share.

The same formulas as in `shoal.optimise`, held to them by tests; no JAX, nothing is allocated.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shoal import optimise


class SharedRMSProp:
    """RMSProp in place on a flat vector that several processes update without locks.

    g ← α g + (1 - α) dθ²,  θ ← θ - η dθ / √(g + ε); element-wise, epsilon inside the root, g from 0. Nothing is
    allocated, so the window in which another writer's element can be lost stays a few microseconds.

    Source: Mnih et al. 2016, arXiv:1602.01783, equation S2; Niu et al. 2011, arXiv:1106.5730 (no locks).
    """

    def __init__(self, size: int) -> None:
        self._a = np.empty(size, np.float32)
        self._b = np.empty(size, np.float32)

    def apply(self, theta: np.ndarray, g: np.ndarray, gradient: np.ndarray, hyper: optimise.Hyper, eta: Any) -> None:
        """One step in place.

        Args:
            theta: ``[size]`` f32 parameters, written.
            g: ``[size]`` f32 mean squares, written.
            gradient: ``[size]`` f32.
            hyper: NumPy scalars.
            eta: The annealed rate (`optimise.rate`), or one for each parameter, ``[size]``.
        """
        a, b = self._a, self._b
        np.multiply(gradient, gradient, out=a)
        a *= 1.0 - hyper.decay
        np.multiply(g, hyper.decay, out=b)
        b += a
        g[:] = b
        b += hyper.epsilon
        np.sqrt(b, out=b)
        np.divide(gradient, b, out=a)
        a *= eta
        theta -= a
