"""A parameter server: bundles of actor, learner and replay memory push gradients to shards that own the parameters.

Nair et al. 2015, "Massively Parallel Methods for Deep Reinforcement Learning", arXiv:1507.04296 (Gorila, bundled mode:
a server in K shards, each updating its slice on its own; gradients too old, or of outlying losses, are dropped); Ong et
al. 2015, arXiv:1508.04186 (one server); Dean et al. 2012, "Large Scale Distributed Deep Networks" (fetch and push every
few steps, AdaGrad). On one machine shards and bundles are spawned processes over shared memory (`transport`).
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from etils import epy

from shoal.core import errors, options, types
from shoal.runtimes.crew import threads

with epy.lazy_imports():
    from shoal.runtimes.crew import beside
    from shoal.runtimes.parameter_server import serving


@dataclasses.dataclass(frozen=True)
class Config:
    """Bundles that push gradients to the shards of a server."""

    bundles: int = options.number(2, low=1, high=1024)
    """Processes that act and learn, each with its own environment and, where the rule has one, replay memory."""
    shards: int = options.number(1, low=1, high=1024)
    """Processes that own the parameters, an equal slice each (K)."""
    max_lag: int = options.number(10, low=0)
    """A gradient is dropped if a slice it was computed from is more versions old than this; 0 drops none."""
    outlier_sigma: float = options.number(3.0, low=0.0)
    """A gradient is dropped if its loss lies more than so many deviations above the running mean; 0 drops none."""
    n_fetch: int = options.number(1, low=1)
    """Learning steps of a bundle between two fetches of the parameters."""
    n_push: int = options.number(1, low=1)
    """Learning steps whose gradients are added up before they are pushed."""
    queue: int = options.number(8, low=1)
    """Pushes that may wait at a shard; a bundle that would exceed it waits."""
    report_s: float = options.number(0.1, low=0.01)
    """Seconds between two reports of a bundle."""


RULES = ("adagrad", "rmsprop")  # that apply to a slice by itself, with one statistic a parameter


def check(config: Config, experiment: Any, opened: Any) -> None:
    """Refuse what this runtime cannot do.

    Raises:
        Refused: An optimiser that has no form for slices, or a guard that could shut a learner out, or is sure to drop
            what one bundle pushes between two fetches.
    """
    del opened
    rule = experiment.configs["optimiser"].rule
    if rule not in RULES:
        raise errors.Refused(
            f"optimiser.rule={rule} cannot be applied by a parameter server; the parameter_server runtime offers "
            f"{' and '.join(RULES)}"
        )
    if 0.0 < config.outlier_sigma < 1.0:
        raise errors.Refused(
            f"runtime.outlier_sigma={config.outlier_sigma:g} would drop ordinary losses; give at least 1, or 0 for none"
        )
    own = -(-config.n_fetch // config.n_push) - 1  # versions that a bundle's pushes make between two of its fetches
    if 0 < config.max_lag < own:
        raise errors.Refused(
            f"runtime.max_lag={config.max_lag} with n_fetch={config.n_fetch}, n_push={config.n_push} would drop what a "
            f"bundle pushes itself between two fetches; give at least {own}, or 0 for no limit, or lower n_fetch"
        )


def ways(config: Config) -> types.Ways:
    """See `types.Ways`; with several bundles the order of pushes is chance, and simulators cannot be saved."""
    return types.Ways(
        learners=config.bundles,
        captures=True,
        rules=RULES,
        holds_memory=True,
        workers="bundles",
        processes=config.bundles + config.shards,
        process_mb=threads.COMPUTES,
        meanwhile=True,
        races="--workers 1" if config.bundles > 1 else "",
    )


def build(config: Config) -> types.Runtime:
    """The runtime."""
    return ParameterServer(config)


class ParameterServer:
    """The parent's side (see `serving`)."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def like(self, parts: types.Parts, seed: int) -> types.Tree:
        """See `types.Runtime`."""
        return serving.Run(self._config, parts, seed, 0, None).save()

    def policy(self, parts: types.Parts, seed: int, saved: types.Tree) -> types.Policy:
        """See `types.Runtime`."""
        run = serving.Run(self._config, parts, seed, 0, None)
        run.restore(saved)
        return run.policy()

    def run(
        self,
        parts: types.Parts,
        seed: int,
        steps: int,
        goal: types.Goal | None,
        observe: types.Observer,
        saved: types.Tree | None,
    ) -> types.Result:
        """See `types.Runtime`."""
        del goal  # the observer sees every episode and decides
        began = time.monotonic()
        before = [int(saved[name].sum()) if saved else 0 for name in ("steps", "updates")]
        held = [saved]
        del saved  # it holds every replay memory once more

        def make() -> serving.Run:
            run = serving.Run(self._config, parts, seed, steps, observe)
            run.restore(held.pop())
            return run

        return beside.done(make, beside.COMPILING, beside.first(observe, *before)).train(began)
