"""What becomes of a bundle's gradients: dropped, gathered, offered to the server; and the account of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from shoal.core import tree
from shoal.formulas import optimise
from shoal.runtimes.crew import lags, messages
from shoal.runtimes.parameter_server import bundle_state, guards, transport


class Update(NamedTuple):
    """One update's gradient."""

    gradient: np.ndarray  # [size] f32
    norm: float
    loss: float
    rates: Any  # of each leaf; () where all are alike
    versions: np.ndarray  # [K] of the slices it was computed from


class Pushes:
    """The gradients of one bundle on their way."""

    def __init__(self, client: transport.Client, block: Any, bundle: int, settings: bundle_state.Settings) -> None:
        """Args: `block`, where `bundle_state.layout` has its places."""
        self._client, self._block, self._at, self._settings = client, block, bundle, settings
        size = len(block["theta"])
        self.guard = guards.Outliers(settings.outlier_sigma)
        self.gathered = np.zeros(size if settings.n_push > 1 else 0, np.float32)
        self.count = 0  # gathered
        self.oldest = np.zeros(1, np.int64)  # versions of the first gradient gathered
        self._rates: Any = None  # with the last one; None before the first
        self._pending: Any = None  # (gradient, step size) that the server has no room for yet
        self._dropped_in_a_row = 0

    @property
    def pending(self) -> bool:
        """Whether a gradient waits to be offered."""
        return self._pending is not None

    def take(self, update: Update, hyper: optimise.Hyper, steps: int) -> None:
        """Judge an update, and gather or drop its gradient; enough of them wait to be offered.

        Args:
            update: Its result.
            hyper: The optimiser's numbers.
            steps: Environment steps of all bundles without those of this update, as `optimise.local` counts.
        """
        if update.norm == 0.0:  # nothing was learned, e.g. while a replay memory fills
            return
        if not np.isfinite(update.norm) or not np.isfinite(update.loss):
            self._drop("non_finite")
            self._dropped_in_a_row += 1
            if self._dropped_in_a_row >= messages.DIVERGED:
                raise FloatingPointError(
                    f"{messages.DIVERGED} gradients in a row were not finite; lower the learning rate"
                )
            return
        self._dropped_in_a_row = 0
        if self.guard.drops(update.loss):
            self._drop("outlier")
            return
        if self.count == 0:
            self.oldest = update.versions
        self.count += 1
        gradient = update.gradient
        if self._settings.n_push > 1:
            self.gathered += gradient
            gradient = self.gathered
        self._rates = update.rates
        if self.count >= self._settings.n_push:
            self._pending = gradient, float(optimise.rate(hyper, steps))

    def take_rest(self, hyper: optimise.Hyper, steps: int) -> None:
        """At the end of a run what was gathered waits to be offered, although there is less of it."""
        if self.count and self._rates is not None and not self.pending:
            self._pending = self.gathered, float(optimise.rate(hyper, steps))

    def offer(self, hyper: optimise.Hyper, sizes: list[int]) -> bool:
        """Offer what waits; False: the queue is full.

        Args:
            hyper: The optimiser's numbers.
            sizes: Numbers in each leaf of the parameters.
        """
        if self._pending is None:
            return True
        block, at, (gradient, eta) = self._block, self._at, self._pending
        rates = list(tree.paths(self._rates).values()) if self._rates else []
        factors = np.repeat(np.asarray(rates, np.float32), sizes) if rates else None
        answer = self._client.push(gradient, self.oldest, hyper, eta, factors, self._settings.max_lag)
        if answer is None:
            return False
        block["offered"][at, min(answer.lag, bundle_state.LAGS - 1)] += 1
        if answer.taken:
            lags.note(block, at, answer.lag)
        else:
            self._drop("stale")
        self._pending, self.count = None, 0
        self.gathered[:] = 0.0
        return True

    def _drop(self, reason: str) -> None:
        self._block["dropped"][self._at, bundle_state.DROPPED.index(reason)] += 1
