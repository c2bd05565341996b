"""What is trained for the bench `collaborative`: arms of each part, as settings over the presets.

All arms of a part have the same rule, rate, networks' sizes and environment steps a party; they differ in what is
everybody's and what is sent. ``independent`` has the networks of form A, all of them its own: as many parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import _owners_study

from shoal.experiment.tuned import owners

Arm = _owners_study.Arm
CART, LENGTHS, LINKS = "owners:CartPole-same", "owners:CartPole-lengths", "owners:Acrobot-links"
SWAPPED, STRANGER = "owners:CartPole-swapped", "owners:CartPole-stranger"
STEPS = {"CartPole": 50_000, "Acrobot": 100_000}
FORMS = ("A", "B", "C", "D", "E", "F")
WAYS: dict[str, dict[str, Any]] = {  # how an ablated form is exchanged
    "gradient_sync": {"exchange": "gradient"},
    "gradient_async": {"exchange": "gradient", "asynchronous": True},
    "delta_sync": {"exchange": "delta", "local_updates": 10},
    "delta_async": {"exchange": "delta", "local_updates": 10, "asynchronous": True},
}
PACES = (1, 1, 1, 1, 10)  # simulated seconds of a job: one owner is ten times slower
PACED: dict[str, dict[str, Any]] = {
    "sync": {},
    "async": {"asynchronous": True},
    "async_64": {"asynchronous": True, "max_lag": 64},  # so that the slow owner's answers are not all too old
}
ALONE: dict[str, Any] = {"runtime": {"exchange": "none"}}
SHARED: dict[str, Any] = {"network": {"form": "none"}}


def arm(
    env: str, parties: int, settings: Mapping[str, Any] | None = None, preset: str = "collab_a2c", **more: Any
) -> Arm:
    """One arm, with the steps of its set."""
    steps = more.pop("steps", STEPS["Acrobot" if "Acrobot" in env else "CartPole"])
    return Arm(preset, env, parties, steps, settings or {}, **more)


def pooled(env: str, parties: int, preset: str = "collab_a2c") -> Arm:
    """One learner with everybody's transitions; as many updates as a party makes, each from those of all."""
    settings: dict[str, Any] = {
        "network": {"form": "none"},
        "runtime": {"exchange": "none", _owners_study.POOLED: True},
    }
    if preset == "collab_a2c":
        settings["runtime"]["environments"] = owners.STREAMS * parties
    else:
        counts = {"batch", "capacity", "epsilon_steps"}
        settings["algorithm"] = {name: parties * owners.DQN["algorithm"][name] for name in counts}
        settings["algorithm"]["learning_starts"] = parties * 1_000
        settings["runtime"]["environments"] = parties
    return arm(env, parties, settings, preset)


def four(env: str, parties: int, preset: str = "collab_a2c") -> dict[str, Arm]:
    """Form A, and what it is held against."""
    return {
        "A": arm(env, parties, preset=preset),
        "independent": arm(env, parties, ALONE, preset),
        "shared": arm(env, parties, SHARED, preset),
        "pooled": pooled(env, parties, preset),
    }


def conflict(preset: str = "collab_a2c") -> dict[str, Arm]:
    """Half of the owners have their actions swapped."""
    return {
        "shared": arm(SWAPPED, 4, SHARED, preset),
        **{form: arm(SWAPPED, 4, {"network": {"form": form}}, preset) for form in ("A", "C", "D")},
    }


def named(lead: str, arms: Mapping[str, Arm]) -> dict[str, Arm]:
    """The same with a prefix."""
    return {f"{lead}.{name}": one for name, one in arms.items()}


def forms() -> dict[str, Arm]:
    """Every form, way of exchange and pace."""
    found = {}
    for form in FORMS:
        for way, runtime in WAYS.items():
            found[f"{form}.{way}"] = arm(LENGTHS, 5, {"network": {"form": form}, "runtime": runtime})
    return found


PARTS: dict[str, dict[str, Arm]] = {
    "same": {
        **four(CART, 4),
        "A8": arm(CART, 8),
        "independent8": arm(CART, 8, ALONE),
    },
    "similar": {**named("lengths", four(LENGTHS, 5)), **named("links", four(LINKS, 10))},
    "conflict": conflict(),
    "scaling": {f"n{count}": arm(CART, count) for count in (1, 2, 4, 8)},
    "stranger": {
        "with": arm(STRANGER, 4),
        "without": arm(STRANGER, 3, owners=4, members=(0, 1, 2)),
    },
    "forms": forms(),
    "pace": {name: arm(LENGTHS, 5, {"runtime": {"paces": PACES, **how}}) for name, how in PACED.items()},
    "baselines": {
        "at_the_end": arm(LENGTHS, 5, {**SHARED, "runtime": {"exchange": "delta", "local_updates": 1562}}),
        "frozen_random": arm(LENGTHS, 5, frozen=True),
    },
    "same_dqn": four(CART, 4, "collab_dqn"),
    "similar_dqn": named("lengths", four(LENGTHS, 5, "collab_dqn")),
    "conflict_dqn": conflict("collab_dqn"),
}
SCORED = {"with": (0, 1, 2)}  # parties that count, where not all do
NEWCOMER = {  # a held-out owner: what he starts from
    "teachers": arm(LENGTHS, 5),
    "scratch": arm(LENGTHS, 1, ALONE, draw=1000),
    "frozen": arm(LENGTHS, 1, draw=1000, frozen=True),
    "unfrozen": arm(LENGTHS, 1, ALONE, draw=1000),
}
