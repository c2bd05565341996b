"""What a search is to do, as data: the method, the budget, and how the budget is cut into trials."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from shoal.core import errors

METHODS = ("pbt", "random", "tpe", "halving")
TRIALS = 20  # at least so many where nobody says how long one is
WHOLE = 8  # of halving: so many whole trainings the budget is worth, at least
KEEP = 3  # of halving: one of so many goes on, to so many times the steps
RUNGS = 3
MEMBERS = 8
SEED = 1000  # of the first trial: settings are chosen on seeds from 1000 on, and reported on seeds from 0


class Wanted(NamedTuple):
    """What a person asked for; None leaves it to the plan."""

    method: str
    budget: int  # environment steps of all trials together
    priors: tuple[str, ...] = ()  # as they are typed
    trials: int | None = None
    trial_steps: int | None = None
    members: int | None = None
    confirm: int = 3  # fresh seeds on which the winner and the default are trained
    eval_episodes: int = 20
    seed: int = 0


class Plan(NamedTuple):
    """What is done; in ``config.json``."""

    method: str
    budget: int
    trials: int  # of pbt: members
    steps: int  # environment steps of a whole trial, of a member, of a confirmation
    rungs: tuple[int, ...]  # environment steps at which a trial is judged; the last is `steps`
    confirm: int
    eval_episodes: int
    seed: int
    priors: Mapping[str, str]  # setting -> its prior, as it is typed

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**self._asdict(), "rungs": list(self.rungs), "priors": dict(self.priors)}


def from_json(data: Mapping[str, Any]) -> Plan:
    """The plan of a ``config.json``."""
    return Plan(**{**data, "rungs": tuple(data["rungs"])})


def check(wanted: Wanted) -> None:
    """Refuse numbers that make no search.

    Raises:
        Refused: Names the option.
    """
    if wanted.method not in METHODS:
        raise errors.unknown("method", wanted.method, METHODS)
    counts = (
        ("--budget", wanted.budget, 1), ("--trials", wanted.trials, 2), ("--trial-steps", wanted.trial_steps, 1),
        ("--members", wanted.members, 2), ("--confirm", wanted.confirm, 0),
        ("--eval-episodes", wanted.eval_episodes, 1),
    )  # fmt: skip
    for flag, value, least in counts:
        if value is not None and value < least:
            raise errors.Refused(f"{flag} {value} is too small; give at least {least}")
    given = {"--trials": wanted.trials, "--trial-steps": wanted.trial_steps}
    if wanted.method == "pbt":
        _refuse(given, "--method pbt trains members, all of them at once; use --members")
    else:
        _refuse({"--members": wanted.members}, f"--method {wanted.method} has trials; use --trials")
    whole = (wanted.trials or 0) * (wanted.trial_steps or 0)
    if wanted.method != "halving" and whole > wanted.budget:
        raise errors.Refused(
            f"--trials {wanted.trials} of --trial-steps {wanted.trial_steps} are more than --budget "
            f"{wanted.budget:,} environment steps; raise it, or leave one of them out"
        )


def _refuse(given: Mapping[str, Any], why: str) -> None:
    for flag, value in given.items():
        if value is not None:
            raise errors.Refused(f"{flag} {value}: {why}")


def make(wanted: Wanted, usual: int, priors: Mapping[str, str]) -> Plan:
    """Cut the budget up.

    Args:
        wanted: As `check` has found it good.
        usual: Environment steps that the preset is tuned for.
        priors: Of each setting, as they are typed.

    Raises:
        Refused: The budget is too small for two trials.
    """
    rungs: tuple[int, ...]
    if wanted.method == "pbt":
        trials = wanted.members or MEMBERS
        rungs = (wanted.budget // trials,)
    elif wanted.method == "halving":
        steps = wanted.trial_steps or min(usual, max(1, wanted.budget // WHOLE))
        rungs = tuple(max(1, math.ceil(steps / KEEP**below)) for below in reversed(range(RUNGS)))
        trials = wanted.trials or most(wanted.budget, rungs)
        if cost(trials, rungs) > wanted.budget:
            raise errors.Refused(
                f"{trials} trials, of which one of {KEEP} goes on to {rungs[1]:,} steps and one of {KEEP} of these to "
                f"{steps:,}, take {cost(trials, rungs):,} environment steps, more than --budget {wanted.budget:,}; "
                "raise it"
            )
    else:
        trials, steps = _cut(wanted, usual)
        rungs = (steps,)
    if trials < 2 or rungs[0] < 1:
        raise errors.Refused(
            f"--budget {wanted.budget:,} is not enough for two trials; raise it, or shorten the trials"
        )
    return Plan(
        method=wanted.method, budget=wanted.budget, trials=trials, steps=rungs[-1], rungs=rungs, confirm=wanted.confirm,
        eval_episodes=wanted.eval_episodes, seed=wanted.seed, priors=dict(priors),
    )  # fmt: skip


def _cut(wanted: Wanted, usual: int) -> tuple[int, int]:
    """How many trials, and the steps of each."""
    if wanted.trial_steps is not None:
        return wanted.trials or wanted.budget // wanted.trial_steps, wanted.trial_steps
    trials = wanted.trials or max(TRIALS, wanted.budget // usual)
    return trials, wanted.budget // trials


def survivors(trials: int, rung: int) -> int:
    """How many trials of halving get to a rung; at least one gets to every rung."""
    return max(1, trials // KEEP**rung)


def cost(trials: int, rungs: tuple[int, ...]) -> int:
    """Environment steps of successive halving: a trial that goes on pays only for what it had not yet."""
    before = (0, *rungs)
    return sum(survivors(trials, at) * (rungs[at] - before[at]) for at in range(len(rungs)))


def most(budget: int, rungs: tuple[int, ...]) -> int:
    """The largest number of trials that a budget allows."""
    low, high = 0, budget // rungs[0] + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle, rungs) <= budget else (low, middle)
    return low
