"""Parts of the bench `collaborative` that are no arms of one axis: a new owner, different spaces, and time."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _owners_arms
import _owners_numbers as numbers
import _owners_study
import jax
import jax.numpy as jnp
import numpy as np

SEEDS, EVALUATIONS, EPISODES = 10, 25, 5
SPACES, EACH = "owners:Spaces", 50_000
TASKS = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0")
ROUNDS, WARM = 300, 50  # of the measurement of time
SPACED: dict[str, dict[str, Any]] = {"C": {}, "independent": {"exchange": "none"}}

Job = Callable[[], dict[str, Any]]


def jobs(part: str) -> dict[str, Job]:
    """Arm -> how it is measured."""
    if part == "newcomer":
        return {name: lambda name=name: _newcomer(name) for name in ("scratch", "frozen", "unfrozen")}  # type: ignore[misc]
    if part == "spaces":
        return {name: lambda name=name: _spaces(name) for name in SPACED}  # type: ignore[misc]
    if part == "time":
        return {"round": _time}
    return {}


# ------------------------------------------------------------------------------------------------ a new owner

_taught: dict[str, Any] = {}


def _teachers() -> np.ndarray:
    """The global parts ``[S, d]`` of five owners who never met the new one; trained once a process."""
    if not _taught:
        course = _owners_study.Study(_owners_arms.NEWCOMER["teachers"], SEEDS).run(1, 1)
        _taught["theta"] = course.kept[1]
    return _taught["theta"]


def _newcomer(name: str) -> dict[str, Any]:
    from shoal.networks import scopes

    arm = _owners_arms.NEWCOMER[name]
    start = None
    if name != "scratch":
        thetas = jnp.asarray(_teachers())

        def start(learners: Any, size: int) -> tuple[Any, None]:
            del size
            params = jax.jit(jax.vmap(scopes.install))(learners.params, thetas)
            return learners._replace(params=params), None

    course = _owners_study.Study(arm, SEEDS, start).run(EVALUATIONS, EPISODES)
    return numbers.told(course, arm.env) | {"seeds": SEEDS}


# ------------------------------------------------------------------------------------------------ other spaces


def _spaces(name: str) -> dict[str, Any]:
    """Three tasks, one party each, as `shoal.train` runs them: no program serves all of them."""
    runs = [_spaced(name, seed) for seed in range(SEEDS)]
    tasks = {task: [one[at] for one in runs] for at, task in enumerate(TASKS)}
    return {"tasks": tasks, "area": [float(np.mean(one)) for one in runs], "seeds": SEEDS}


def _spaced(name: str, seed: int) -> list[float]:
    """Areas of the three."""
    import shoal

    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        out = Path(folder) / "run"
        shoal.train(
            "collab_a2c", SPACES, steps=len(TASKS) * EACH, seed=seed, out=out, quiet=True, eval_episodes=0,
            network={"form": "C"},
            runtime={"evaluate_every": EACH // EVALUATIONS, "episodes": EPISODES, **SPACED[name]},
        )  # fmt: skip
        lines = [json.loads(line) for line in (out / "parties.jsonl").read_text().splitlines()]
    steps = [line["env_steps"] for line in lines]
    returns = np.array([line["returns"] for line in lines], float)  # [E, 3]
    return [float(numbers.area(steps, returns[:, at], task)) for at, task in enumerate(TASKS)]


# ------------------------------------------------------------------------------------------------ time


def _time() -> dict[str, Any]:
    """What a round costs beyond the parties' own learning, with a global part of 64 x 64.

    The same parties learn for as many updates with nothing exchanged; both sides in turn, the difference by party.
    """
    arm = _owners_arms.arm(_owners_arms.LENGTHS, 5)
    sides = {"federated": _owners_study.Study(arm, 1), "alone": _owners_study.Study(arm._replace(frozen=True), 1)}
    updates = sides["alone"].programs.shape.updates
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(5):
        for name, side in sides.items():
            calls = WARM if not turn else ROUNDS
            calls = calls if name == "federated" else -(-calls // updates)
            began = time.perf_counter()
            for _ in range(calls):
                side._round() if side.servers else side._alone()
                side.axis.told()
            if turn:
                taken[name].append(1e3 * (time.perf_counter() - began) / (calls * (1 if side.servers else updates)))
    extra = [(with_ - without) / arm.parties for with_, without in zip(*taken.values(), strict=True)]
    return {
        "ms": statistics.median(extra), "ms_min": min(extra), "ms_max": max(extra),
        "round_ms": statistics.median(taken["federated"]), "update_ms": statistics.median(taken["alone"]),
        "parties": arm.parties,
    }  # fmt: skip
