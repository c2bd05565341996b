"""The controller: how much compression the learning bears, decided from what was measured. Off unless asked for.

Levels are an ordered list, the most compressed first, ending in `identity`. Measures come once a publish; damage that
lasts steps one level towards `identity`, health that lasts longer steps one level back. The gap between the thresholds,
and bad checks counting for more than good ones, are the hysteresis. Pure: the same measures give the same decisions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from shoal.core import errors, options

LAST = "identity"


@dataclasses.dataclass(frozen=True)
class Config:
    """The controller."""

    kl_high: float = options.number(0.05, low=0.0)
    """Nats that compression may cost (KL of the acting policy to its full-precision version); above, a check is bad."""
    kl_low: float = options.number(0.01, low=0.0)
    """Nats below which a check may be good."""
    ess_low: float = options.number(0.5, low=0.0, high=1.0)
    """Effective sample size below which a check is bad."""
    ess_high: float = options.number(0.8, low=0.0, high=1.0)
    """Effective sample size above which a check may be good."""
    bad_checks: int = options.number(3, low=1)
    """Bad checks in a row after which a level less is compressed (m)."""
    good_checks: int = options.number(10, low=1)
    """Good checks in a row after which a level more is compressed (M)."""
    cooldown: int = options.number(10, low=0)
    """Checks after a change during which the level stays."""
    agreement_low: float = options.number(0.5, low=0.0, high=1.0)
    """Share of equal actions below which identity takes over at once."""


class Measured(NamedTuple):
    """What a check looks at; None where nothing was measured since the last."""

    kl_compression: float | None
    ess: float | None
    agreement: float | None = None
    finite: bool = True  # of the packed policy's outputs


class Decision(NamedTuple):
    """A change of level, and why."""

    update: int  # of the learner
    before: str
    after: str
    cause: str

    def told(self) -> dict[str, int | str]:
        """One of `compression.decisions` of the summary."""
        return {"update": self.update, "from": self.before, "to": self.after, "cause": self.cause}


class State(NamedTuple):
    """Where the controller stands; plain numbers, for a checkpoint."""

    level: int = 0
    bad: int = 0  # checks in a row
    good: int = 0
    resting: int = 0  # checks for which the level stays


class Controller(NamedTuple):
    """One ladder of levels with its settings."""

    levels: tuple[str, ...]
    config: Config

    def check(self, state: State, measured: Measured, update: int) -> tuple[State, Decision | None]:
        """One check.

        Args:
            state: As the last check left it; a new run begins with `State()`, at the most compressed level.
            measured: Since the last check.
            update: The learner's updates so far, for the record.

        Returns:
            The state from now on, and the decision if the level changes. Harm that cannot wait (outputs that are not
            finite, actions that differ) goes to `identity` at once, also during the cooldown.
        """
        last, config = len(self.levels) - 1, self.config
        harm = _harm(config, measured)
        if harm and state.level != last:
            return self._changed(state, last, update, f"{harm}: identity at once")
        damage, health = _damage(config, measured), _health(config, measured)
        unknown = not damage and health is None
        bad = state.bad if unknown else state.bad + 1 if damage and not harm else 0
        good = state.good if unknown else state.good + 1 if health and not harm else 0
        now = State(level=state.level, bad=bad, good=good, resting=max(state.resting - 1, 0))
        if state.resting:
            return now, None
        if bad >= config.bad_checks and state.level < last:
            return self._changed(state, state.level + 1, update, f"{damage}, {_times(bad)}")
        if good >= config.good_checks and state.level > 0:
            return self._changed(state, state.level - 1, update, f"{health}, {_times(good)}")
        return now, None

    def _changed(self, state: State, level: int, update: int, cause: str) -> tuple[State, Decision]:
        made = Decision(update=update, before=self.levels[state.level], after=self.levels[level], cause=cause)
        return State(level=level, resting=self.config.cooldown), made


def build(levels: Sequence[str], config: Config) -> Controller:
    """A controller of some levels.

    Raises:
        Refused: Levels or thresholds with which it could not work.
    """
    ladder = tuple(levels)
    if len(ladder) < 2 or ladder[-1] != LAST or len({*ladder}) < len(ladder):
        given = " > ".join(ladder) or "none"
        raise errors.Refused(
            f"levels of the controller: given {given}; it needs two or more different ones, the most compressed first "
            f"and {LAST} last"
        )
    for low, high in (("kl_low", "kl_high"), ("ess_low", "ess_high"), ("bad_checks", "good_checks")):
        values = dataclasses.asdict(config)
        if not values[low] < values[high]:
            raise errors.Refused(
                f"controller: {low}={values[low]} must be below {high}={values[high]}, or it would swing between levels"
            )
    return Controller(levels=ladder, config=config)


def _harm(config: Config, measured: Measured) -> str:
    if not measured.finite:
        return "outputs that are not finite"
    if (share := measured.agreement) is not None and not share >= config.agreement_low:
        return f"action agreement {share:.2g} < {config.agreement_low:g}"
    return ""


def _damage(config: Config, measured: Measured) -> str:
    found = []
    if (kl := measured.kl_compression) is not None and not kl <= config.kl_high:
        found.append(f"KL of compression {kl:.2g} > {config.kl_high:g}")
    if (ess := measured.ess) is not None and not ess >= config.ess_low:
        found.append(f"ESS {ess:.2g} < {config.ess_low:g}")
    return " and ".join(found)


def _health(config: Config, measured: Measured) -> str | None:
    """Why a check is good; "": it is not; None: it cannot be told."""
    kl, ess = measured.kl_compression, measured.ess
    if kl is None or ess is None:
        return None
    well = kl < config.kl_low and ess > config.ess_high
    return f"KL of compression {kl:.2g} < {config.kl_low:g} and ESS {ess:.2g} > {config.ess_high:g}" if well else ""


def _times(checks: int) -> str:
    return f"{checks} checks in a row" if checks > 1 else "1 check"
