"""What `map_propagation.py` trains: every method on every task, with the published numbers.

Published: Chung 2021, arXiv:2010.07893, final version; mean over 10 runs (population deviation) of the average return
of all training episodes, as the notebook of the author's repository prints it. The tasks of one step are read from its
figures.
"""

from __future__ import annotations

from typing import Any, NamedTuple

SEEDS = 10
BATCH = 128  # questions an update of the tasks of one step learns from


class Task(NamedTuple):
    """One environment of the table."""

    env: str
    episodes: int
    solved: float  # mean of the last 100 episodes
    published: dict[str, tuple[float, float]]  # method -> mean, deviation


class Unit(NamedTuple):
    """One command: a method on a task."""

    method: str  # the preset, or one with a setting of its own
    env: str
    words: tuple[Any, ...]  # after `shoal train`
    seeds: int  # in one program
    solved: float | None = None
    batches: int = 0  # of a task of one step


PRESETS = ("map_propagation", "map_async", "backprop_det", "backprop_sto", "reinforce_team", "reinforce_team_explore")
TASKS = {
    "Acrobot": Task(
        *("gymnax:Acrobot-v1", 500, -120),
        {
            "map_propagation": (-100.29, 5.40),
            "map_propagation_published": (-100.29, 5.40),
            "map_propagation_paper": (-100.29, 5.40),
            "map_async": (-106.71, 17.43),
            "backprop_det": (-106.29, 15.00),
            "reinforce_team": (-148.42, 47.65),
            "reinforce_team_explore": (-149.11, 33.50),
        },
    ),
    "CartPole": Task(
        *("gymnax:CartPole-v1", 1000, 500),
        {
            "map_propagation": (459.70, 13.89),
            "map_propagation_published": (459.70, 13.89),
            "map_propagation_paper": (459.70, 13.89),
            "map_async": (418.61, 29.15),
            "backprop_det": (458.96, 9.44),
            "reinforce_team": (47.29, 8.22),
            "reinforce_team_explore": (112.58, 42.54),
        },
    ),
    "LunarLander": Task(
        *("LunarLander-v3", 2500, 200),  # published on v2, whose dynamics are the same without wind
        {
            "map_propagation": (127.88, 24.57),
            "map_async": (76.84, 15.90),
            "backprop_det": (104.92, 31.98),
            "reinforce_team": (-62.05, 16.16),
            "reinforce_team_explore": (-54.61, 23.47),
        },
    ),
    "MountainCar": Task(
        *("gymnax:MountainCarContinuous-v0", 500, 90),
        {
            "map_propagation": (39.45, 30.48),
            "map_propagation_paper": (39.45, 30.48),
            "map_async": (46.24, 13.77),
            "backprop_det": (4.30, 59.28),
            "reinforce_team": (-35.52, 0.65),
            "reinforce_team_explore": (-4.65, 0.21),
        },
    ),
}
MULTIPLEXER = {"map_propagation": 0.99, "backprop_det": 1.00, "reinforce_team": 0.19, "reinforce_team_explore": 0.22}
REGRESSION = {"map_propagation": 0.12, "map_propagation_rewarded": 0.18, "backprop_det": 0.02, "reinforce_team": None}
SETTINGS = {
    "map_propagation_published": (),  # with the settings of the author's code where the preset has better ones
    "map_propagation_paper": ("--algorithm.variant", "paper"),  # and with the author's control flow
    "map_propagation_rewarded": ("--algorithm.no-targets",),  # from -(A - y)², without the true answer
}


PUBLISHED: dict[str, dict[str, Any]] = {  # what undoes the settings that the preset has of its own
    "CartPole": {"trace": 0.95},
    "Acrobot": {"trace": 0.97, "temperature": 4.0},
}


def typed(settings: dict[str, Any]) -> tuple[Any, ...]:
    """Settings of the algorithm as a person types them."""
    words: list[Any] = []
    for name, value in settings.items():
        words += [f"--algorithm.{name.replace('_', '-')}", *(value if isinstance(value, tuple) else (value,))]
    return tuple(words)


def preset(method: str) -> str:
    """The preset of a method."""
    return "map_propagation" if method in SETTINGS else method


def units() -> dict[str, Unit]:
    """Name -> everything that is trained."""
    found = {}
    for name, task in TASKS.items():
        known = ("map_propagation_published", "map_propagation_paper") if name in PUBLISHED else ()
        known = ("map_propagation_paper",) if name == "MountainCar" else known
        for method in (*PRESETS, *known):
            back = typed(PUBLISHED.get(name, {})) if method in known else ()
            words = (preset(method), "--env", task.env, "--episodes", task.episodes, *back, *SETTINGS.get(method, ()))
            found[f"table/{name}/{method}"] = Unit(method, name, words, SEEDS, task.solved)
    for part, env, batches, methods in (
        ("multiplexer", "task:Multiplexer-5", 31_250, MULTIPLEXER),
        ("regression", "task:Regression-8", 7_812, REGRESSION),
    ):
        for method in methods:
            words = (preset(method), "--env", env, "--steps", batches * BATCH, *SETTINGS.get(method, ()))
            found[f"{part}/{method}"] = Unit(method, part, words, 3, batches=batches)
    return found


def shortened(unit: Unit) -> Unit:
    """The same for `--quick`: two seeds, a look at the beginning."""
    words = list(unit.words)
    for flag, value in (("--episodes", 15), ("--steps", 200 * BATCH)):
        if flag in words:
            words[words.index(flag) + 1] = value
    return unit._replace(words=tuple(words), seeds=2, batches=min(unit.batches, 200))
