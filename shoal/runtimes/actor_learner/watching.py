"""The controller at work: checks after every sample, and says when actors are to be sent the policy as it is."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from shoal.monitor import control
from shoal.runtimes.actor_learner import sampling

if TYPE_CHECKING:
    from shoal.runtimes import actor_learner


def build(config: actor_learner.Config, compressor: str) -> control.Controller:
    """A ladder of two levels: the compressor, and full precision.

    Args:
        config: `actor_learner.Config`.
        compressor: Its name.

    Raises:
        Refused: Thresholds with which it could not work.
    """
    given = dataclasses.asdict(config)
    names = [field.name for field in dataclasses.fields(control.Config)]
    return control.build((compressor, control.LAST), control.Config(**{name: given[name] for name in names}))


def begun(config: actor_learner.Config, compressor: str, state: control.State) -> Watch:
    """The controller of a run.

    Args:
        config: `actor_learner.Config`.
        compressor: Its name.
        state: Where it stands.
    """
    return Watch(build(config, compressor), state)


class Watch:
    """One controller, where it stands, and what it has decided."""

    def __init__(self, controller: control.Controller, state: control.State) -> None:
        """Args: `state`, as the last check left it."""
        self._controller, self.state = controller, state
        self.decisions: list[dict[str, int | str]] = []

    @property
    def plain(self) -> bool:
        """Whether the policy is to be sent in full precision."""
        return self.state.level == len(self._controller.levels) - 1

    def check(self, sample: sampling.Sampler, updates: int) -> bool:
        """Look at the latest sample; whether the level has changed."""
        latest = sample.latest
        kl = sample.kl[-1] if sample.kl else latest.get("kl_compression")
        measured = control.Measured(kl_compression=kl, ess=latest.get("ess"), agreement=latest.get("action_agreement"))
        self.state, decision = self._controller.check(self.state, measured, updates)
        if decision is not None:
            self.decisions.append(decision.told())
        return decision is not None
