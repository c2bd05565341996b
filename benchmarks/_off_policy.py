"""SAC and TD3 on Pendulum-v1 against sbx and Stable-Baselines3, in environment steps per second.

The same work everywhere: one environment, one update of 256 transitions for every step, layers of 256 and 256 units
(TD3: the policy every other update). Random actions end after 256 steps on all sides. The peers are timed after twice
that; of ours the whole training is timed, and the random steps are taken off the steps but not off the seconds.
The peers step Gymnasium's Pendulum, we gymnax's. Torch runs with its own count of threads and with one; the better
counts. sbx learns with JAX and keeps its memory in NumPy.
"""

from __future__ import annotations

import statistics
from typing import Any

import _common
import _peers

WARM_UP = 256
ALGORITHMS = ("sac", "td3")
STEPS = {"shoal": 10_000, "sbx": 3_000, "sb3": 1_500, "sb3_1": 1_500}  # about the same seconds each
QUICK = {"shoal": 1_500, "sb3_1": 200}
NAMES = {"shoal": "Shoal", "sbx": "sbx", "sb3": "SB3", "sb3_1": "SB3, one thread"}
THREADS = {"sb3_1": 1}


def measure(stand: _peers.Stand, quick: bool) -> dict[str, Any]:
    """`ALGORITHM_SIDE` -> numbers."""
    steps = QUICK if quick else STEPS
    results = blank()
    for algorithm in ("sac",) if quick else ALGORITHMS:
        sides = {"shoal": lambda algorithm=algorithm: ours(algorithm, steps["shoal"])}
        for side in [side for side in steps if side != "shoal"]:
            peer = side.partition("_")[0]
            if start(stand, peer, not quick):
                request = {"algorithm": algorithm, "steps": steps[side], "threads": THREADS.get(side)}
                sides[side] = lambda peer=peer, request=request: stand.rate(place(peer), **request)
        rates = _common.alternate(sides, 1 if quick else 3)
        for side in NAMES:
            results[f"{algorithm}_{side}"] = _common.spread("steps_per_s", rates.get(side, []))
    return results


def blank() -> dict[str, Any]:
    """`ALGORITHM_SIDE` -> nulls."""
    return {f"{algorithm}_{side}": _common.spread("steps_per_s", []) for algorithm in ALGORITHMS for side in NAMES}


def place(peer: str) -> str:
    """The name under which a peer's script for this part runs."""
    return f"{peer}_off_policy"


def start(stand: _peers.Stand, peer: str, may_install: bool) -> bool:
    """Start a peer; False if that failed, now or before."""
    return stand.start(place(peer), peer, may_install=may_install, script="stable_baselines.py", peer=peer)


def ours(algorithm: str, steps: int) -> float:
    """Our environment steps per second, learning."""
    words = (
        *("--env", "gymnax:Pendulum-v1", "--runtime", "on_device", "--runtime.environments", 1),
        *("--algorithm.rollout-length", 1, "--algorithm.updates", 1, "--algorithm.batch", 256),
        *("--algorithm.learning-starts", WARM_UP, "--algorithm.critics", 2, "--algorithm.n-step", 1),
        *("--algorithm.no-normalise-observations", "--network.hidden", 256, 256, "--network.activation", "relu"),
    )
    summary = _common.train(algorithm, *words, "--steps", steps, "--seed", 0, *_common.SHORT)
    return (summary["env_steps"] - WARM_UP) / summary["train_s"]


def conclude(sides: dict[str, Any]) -> dict[str, Any]:
    """The ratios at the top, against the better of a peer's settings."""
    results = {}
    for algorithm in ALGORITHMS:
        measured = {side: sides[f"{algorithm}_{side}"]["steps_per_s_repeats"] for side in NAMES}
        for peer in ("sbx", "sb3"):
            theirs = [values for side, values in measured.items() if side.partition("_")[0] == peer and values]
            best = max(theirs, key=statistics.median, default=[])
            results |= _common.spread(f"ratio_{peer}_{algorithm}", _common.ratios(measured["shoal"], best))
    return results
