"""Rules of optimisers written in place on flat NumPy vectors, for memory that several processes share.

The same formulas as in `shoal.formulas.optimise`, held to them by tests; no JAX, nothing is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from shoal.formulas import optimise, rules

COUNTED = 2.0**24  # steps of Adam up to which float32 counts; the corrections are 1 long before


class Rule(Protocol):
    """One rule's step in place."""

    @property
    def step(self) -> np.ndarray:
        """What the last `apply` subtracted, ``[size]``; the next overwrites it."""
        ...

    def apply(
        self, theta: np.ndarray, statistics: np.ndarray, gradient: np.ndarray, hyper: optimise.Hyper, eta: Any
    ) -> None:
        """Descend once.

        Args:
            theta: ``[size]`` f32 parameters, written.
            statistics: ``[room]`` f32, zeros before the first step, written.
            gradient: ``[size]`` f32.
            hyper: NumPy scalars.
            eta: The annealed rate (`optimise.rate`), or one for each parameter, ``[size]``.
        """
        ...


def room(named: Any, size: int) -> int:
    """Numbers that a rule keeps, for the same arguments as `build`."""
    return 2 * size + 1 if isinstance(named, rules.Adam) else size


def build(named: Any, size: int) -> Rule:
    """The rule a captured gradient is to meet.

    Args:
        named: `optimise.OptimiserState.rule` of a learner that captures.
        size: Parameters.
    """
    kinds: dict[type, Callable[[int], Rule]] = {
        rules.RMSProp: SharedRMSProp,
        rules.Momentum: Momentum,
        rules.AdaGrad: AdaGrad,
        rules.Adam: Adam,
    }
    return kinds[type(named)](size)


class SharedRMSProp:
    """RMSProp in place on a flat vector that several processes update without locks; g may be shared or one's own.

    g ← α g + (1 - α) dθ²,  θ ← θ - η dθ / √(g + ε); element-wise, epsilon inside the root, g from 0. Nothing is
    allocated, so the window in which another writer's element can be lost stays a few microseconds.

    Source: Mnih et al. 2016, arXiv:1602.01783, equation S2; Niu et al. 2011, arXiv:1106.5730 (no locks).
    """

    def __init__(self, size: int) -> None:
        self._a = np.empty(size, np.float32)
        self._b = np.empty(size, np.float32)

    @property
    def step(self) -> np.ndarray:
        """See `Rule`."""
        return self._a

    def apply(self, theta: np.ndarray, g: np.ndarray, gradient: np.ndarray, hyper: optimise.Hyper, eta: Any) -> None:
        """See `Rule`; `g` holds the mean squares."""
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


class Momentum:
    """Gradient descent with momentum in place on a flat vector; m is one worker's own, the parameters are not.

    m ← α m + (1 - α) dθ,  θ ← θ - η m; element-wise, m from 0.

    Source: Mnih et al. 2016, arXiv:1602.01783, section 4 and its supplement (momentum SGD).
    """

    def __init__(self, size: int) -> None:
        self._a = np.empty(size, np.float32)

    @property
    def step(self) -> np.ndarray:
        """See `Rule`."""
        return self._a

    def apply(self, theta: np.ndarray, m: np.ndarray, gradient: np.ndarray, hyper: optimise.Hyper, eta: Any) -> None:
        """See `Rule`; `m` holds the momentum."""
        a = self._a
        m *= hyper.decay
        np.multiply(gradient, 1.0 - hyper.decay, out=a)
        m += a
        np.multiply(m, eta, out=a)
        theta -= a


class AdaGrad:
    """AdaGrad in place on a flat vector.

    g ← g + dθ²,  θ ← θ - η dθ / √(g + ε); element-wise, g from 0. Epsilon stands inside the root, as in the other rules
    here (the paper adds it to the root).

    Source: Duchi, Hazan & Singer 2011, JMLR 12:2121-2159; on a parameter server: Dean et al. 2012.
    """

    def __init__(self, size: int) -> None:
        self._a = np.empty(size, np.float32)
        self._b = np.empty(size, np.float32)

    @property
    def step(self) -> np.ndarray:
        """See `Rule`."""
        return self._a

    def apply(self, theta: np.ndarray, g: np.ndarray, gradient: np.ndarray, hyper: optimise.Hyper, eta: Any) -> None:
        """See `Rule`; `g` holds the sum of squares."""
        a, b = self._a, self._b
        np.multiply(gradient, gradient, out=a)
        g += a
        np.add(g, hyper.epsilon, out=b)
        np.sqrt(b, out=b)
        np.divide(gradient, b, out=a, where=b > 0)  # elsewhere there was never a gradient, and `a` is 0
        a *= eta
        theta -= a


class Adam:
    """Adam in place on a flat vector; its moments may be shared or one's own.

    m ← β₁ m + (1 - β₁) dθ,  v ← β₂ v + (1 - β₂) dθ²,  θ ← θ - η m̂ / (√v̂ + ε), in the form of `rules.adam`. What is kept
    are both moments and, last, the count of steps: one vector, so that a checkpoint needs to know nothing of it. Where
    workers share it, an increment of the count may be lost to another's; it matters for the first few steps alone.

    Source: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1; shared between workers as in ikostrikov/pytorch-a3c.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._a = np.empty(size, np.float32)
        self._b = np.empty(size, np.float32)

    @property
    def step(self) -> np.ndarray:
        """See `Rule`."""
        return self._a

    def apply(self, theta: np.ndarray, kept: np.ndarray, gradient: np.ndarray, hyper: optimise.Hyper, eta: Any) -> None:
        """See `Rule`."""
        a, b = self._a, self._b
        m, v = kept[: self._size], kept[self._size : -1]
        t = float(kept[-1]) + 1.0
        kept[-1] = min(t, COUNTED)
        np.multiply(gradient, 1.0 - rules.MOMENTUM, out=a)
        m *= rules.MOMENTUM
        m += a
        np.multiply(gradient, gradient, out=a)
        a *= 1.0 - hyper.decay
        v *= hyper.decay
        v += a
        root = math.sqrt(1.0 - float(hyper.decay) ** t)
        np.sqrt(v, out=b)
        b += float(hyper.epsilon) * root
        np.divide(m, b, out=a)
        a *= root / (1.0 - rules.MOMENTUM**t)
        a *= eta
        theta -= a
