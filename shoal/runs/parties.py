"""Parties that trained together, one by one: the parts of each, and what the policy of each comes to where it lives."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epy

from shoal import experiment
from shoal.core import errors, types

with epy.lazy_imports():
    from shoal.runs import evaluation


class Found(NamedTuple):
    """Evaluations of all parties, in their order."""

    names: tuple[str, ...]
    each: tuple[evaluation.Evaluation, ...]

    @property
    def together(self) -> evaluation.Evaluation:
        """All episodes; each party plays as many."""
        return evaluation.Evaluation(
            [value for one in self.each for value in one.returns],
            [value for one in self.each for value in one.lengths],
            sum(one.cut for one in self.each),
        )

    def summary(self) -> dict[str, Any]:
        """The keys of ``summary.json``."""
        return self.together.summary()

    def told(self) -> dict[str, Any]:
        """Mean over parties, the worst, and by party; None where a simulator paid NaN."""
        means = self.means()
        known = [value for value in means if value is not None]
        worst = min(known) if len(known) == len(means) else None
        return {
            "mean": float(np.mean(known)) if worst is not None else None,
            "worst": worst,
            "worst_party": self.names[means.index(worst)] if worst is not None else None,
            "episodes": len(self.each[0].returns),
        }

    def means(self) -> list[float | None]:
        """Of each party."""
        return [one.summary()["eval_return_mean"] for one in self.each]


def number(parts: types.Parts, name: str) -> int:
    """The number of a party.

    Args:
        parts: Of the run.
        name: Its name, or its number.

    Raises:
        Refused: There is none.
    """
    names = [one.name for one in parts.parties]
    if not names:
        raise errors.Refused(f"--party {name}: in this run nobody trains together; leave it out")
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    raise errors.unknown("party", name, names)


def own(parts: types.Parts, at: int) -> types.Parts:
    """What one party has by itself: its agent and its environment.

    Args:
        parts: Of all.
        at: Its number.
    """
    env = parts.device_env
    if not parts.alike or env is None:
        return parts.parties[at].rebuild()
    if env.init_as is None:
        return parts
    return parts._replace(device_env=env._replace(init=functools.partial(_as_owner, env, at), init_as=None))


def _as_owner(env: types.Env, at: int, key: types.Key) -> tuple[types.Tree, types.Obs]:
    assert env.init_as is not None
    return env.init_as(key, np.int32(at))


def evaluate(built: experiment.Built, policies: Sequence[types.Policy], episodes: int, seed: int, **how: Any) -> Found:
    """Play whole episodes with every party's policy in its own environment.

    Args:
        built: The parts.
        policies: One a party.
        episodes: Of each.
        seed: Of the evaluation.
        how: As in `evaluation.evaluate`.
    """
    parts = built.parts
    shared = parts.alike and parts.device_env is not None  # one compiled program plays for all
    found = []
    for at, policy in enumerate(policies):
        which = at if shared and parts.device_env and parts.device_env.init_as else None
        mine = parts if shared else own(parts, at)
        found.append(evaluation.evaluate(mine, policy, episodes, seed, owner=which, **how))
    names = tuple(one.name for one in parts.parties) or tuple(str(at) for at in range(len(policies)))
    return Found(names, tuple(found))


def merged(federation: Mapping[str, Any], found: Found) -> dict[str, Any]:
    """The summary's `federation` with what every party came to."""
    told = dict(federation)
    rows = zip(told.get("parties", ()), found.means(), strict=False)
    return {**told, "parties": [{**row, "evaluation": mean} for row, mean in rows], "evaluation": found.told()}
