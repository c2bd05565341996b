"""What a search is to do, as data: the method, the budget, and how the budget is cut into trials."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from shoal.core import errors

METHODS = ("pbt", "random", "tpe", "halving")
WHOLE = 20  # trainings that the budget is worth at least, where nobody says how long one is
SHARE, FINALISTS, FINAL_SEEDS = 0.4, 4, 4  # of the budget for the finals; the most that are in them, and their seeds
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
    finalists: int | None = None
    trial_steps: int | None = None
    members: int | None = None
    confirm: int = 3  # fresh seeds on which the winner and the default are trained
    eval_episodes: int = 20
    seed: int = 0
    parallel: int = 1  # trials beside each other


class Plan(NamedTuple):
    """What is done; in ``config.json``."""

    method: str
    budget: int
    trials: int  # of pbt: members
    steps: int  # environment steps of a whole trial, of a member, of a confirmation
    rungs: tuple[int, ...]  # environment steps at which a trial is judged; the last is `steps`
    finalists: int  # trained again on further seeds, before one of them is the winner; 0: the best score wins
    confirm: int
    eval_episodes: int
    seed: int
    priors: Mapping[str, str]  # setting -> its prior, as it is typed
    parallel: int = 1  # trials beside each other; what TPE proposes depends on it

    def to_json(self) -> dict[str, Any]:
        """Plain data; searches of one trial after the other are written as they always were."""
        data = {**self._asdict(), "rungs": list(self.rungs), "priors": dict(self.priors)}
        return data if self.parallel > 1 else {name: value for name, value in data.items() if name != "parallel"}


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
        ("--members", wanted.members, 2), ("--finalists", wanted.finalists, 0), ("--confirm", wanted.confirm, 0),
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


def _refuse(given: Mapping[str, Any], why: str) -> None:
    for flag, value in given.items():
        if value is not None:
            raise errors.Refused(f"{flag} {value}: {why}")


def make(wanted: Wanted, usual: int, priors: Mapping[str, str]) -> Plan:
    """Cut the budget up: a part for the search, a part for the finals.

    Args:
        wanted: As `check` has found it good.
        usual: Environment steps that the preset is tuned for.
        priors: Of each setting, as they are typed.

    Raises:
        Refused: The budget is too small for two trials.
    """
    steps = wanted.trial_steps or max(1, min(usual, wanted.budget // WHOLE))
    finalists = min(FINALISTS, int(SHARE * (wanted.budget // steps) / FINAL_SEEDS))
    known = wanted.trials if wanted.method in ("random", "tpe") and not wanted.trial_steps else None
    if wanted.method == "pbt":
        known = wanted.members or MEMBERS
    if known:
        finalists = FINALISTS // 2 if known >= MEMBERS else 0
    finalists = (finalists if finalists > 1 else 0) if wanted.finalists is None else wanted.finalists
    if known:
        trials, steps = known, wanted.budget // (known + finalists * FINAL_SEEDS)
    left = wanted.budget - finalists * FINAL_SEEDS * steps
    rungs: tuple[int, ...] = (steps,)
    if wanted.method == "halving":
        rungs = tuple(max(1, math.ceil(steps / KEEP**below)) for below in reversed(range(RUNGS)))
    if wanted.method != "pbt":
        trials = wanted.trials or most(left, rungs)
        if cost(trials, rungs) > left:
            raise errors.Refused(
                f"{trials} trials of {steps:,} environment steps take {cost(trials, rungs):,}, and the finals "
                f"{finalists * FINAL_SEEDS * steps:,}: more than --budget {wanted.budget:,}; "
                "raise it, or shorten the trials"
            )
    if trials < 2 or rungs[0] < 1:
        raise errors.Refused(
            f"--budget {wanted.budget:,} is not enough for two trials; raise it, or shorten the trials"
        )
    return Plan(
        method=wanted.method, budget=wanted.budget, trials=trials, steps=steps, rungs=rungs, finalists=finalists,
        confirm=wanted.confirm, eval_episodes=wanted.eval_episodes, seed=wanted.seed, priors=dict(priors),
        parallel=wanted.parallel,
    )  # fmt: skip


def survivors(trials: int, rung: int) -> int:
    """How many trials get to a rung; at least one gets to every rung."""
    return max(1, trials // KEEP**rung)


def cost(trials: int, rungs: tuple[int, ...]) -> int:
    """Environment steps of all trials; one that goes on pays only for what it had not yet."""
    before = (0, *rungs)
    return sum(survivors(trials, at) * (rungs[at] - before[at]) for at in range(len(rungs)))


def most(budget: int, rungs: tuple[int, ...]) -> int:
    """The largest number of trials that a budget allows."""
    low, high = 0, budget // rungs[0] + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle, rungs) <= budget else (low, middle)
    return low
