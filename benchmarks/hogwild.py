"""A3C processes on Gymnasium's CartPole-v1 against Stable-Baselines3's A2C and PFRL's A3C, in environment steps/s.

Every side learns while it steps; start-up and compilation are counted on no side. `ratio_sb3` is against SB3's own
CartPole settings (eight environments), with one torch thread or torch's default, whichever is faster. Every peer also
runs with our rollout length and network: `ratio_sb3_ours` is the same rule on the same work. PFRL is the other A3C,
with two processes.
"""

from __future__ import annotations

import statistics
from typing import Any

import _common
import _peers

KEYS = (
    *("steps_per_s_1", "steps_per_s_2", "scaling_2", "sb3_a2c_steps_per_s", "ratio_sb3"),
    *("sb3_a2c_ours_steps_per_s", "ratio_sb3_ours", "pfrl_a3c_steps_per_s", "ratio_pfrl"),
)


def main() -> None:
    """Measure, and print the record."""
    arguments = _common.parser(__doc__).parse_args()
    repeats, steps, peer_steps = (3, 400_000, 60_000)
    if arguments.quick:  # about the same time for each side, instead of the same steps
        repeats, steps, peer_steps = (2, 60_000, 6_000)

    threads = (1,) if arguments.quick else (1, None)
    settings = contenders(shoal(1, 2_000)["config"], threads)  # this run also fills the compilation cache
    with _peers.Stand() as stand:
        sides = {f"shoal_{n}": lambda n=n: shoal(n, steps)["env_steps_per_s"] for n in (1, 2)}
        for side, request in settings.items():
            peer = side.partition(",")[0]
            if stand.start(peer, may_install=peer == "sb3" or not arguments.quick):
                sides[side] = lambda peer=peer, request=request: stand.rate(peer, steps=peer_steps, **request)
        rates = _common.alternate(sides, repeats)

    results = compare(rates) | {"env_steps": steps, "peer_env_steps": peer_steps, "peer_settings": settings}
    _common.finish(arguments, _common.record("hogwild", arguments, results, stand.report))


def shoal(workers: int, steps: int) -> dict[str, Any]:
    """Train with one or more workers; the summary."""
    words = ("--env", "CartPole-v1", "--workers", workers, "--steps", steps, "--seed", 0)
    return _common.train("a3c", *words, *_common.SHORT)


def contenders(config: dict[str, Any], threads: tuple[int | None, ...]) -> dict[str, dict[str, Any]]:
    """What the peers are run with: side -> settings.

    Args:
        config: The resolved configuration of our run.
        threads: Counts of torch's threads to try for SB3; None is torch's own.
    """
    algorithm, network = config["parts"]["algorithm"], config["parts"]["network"]
    rollout, sizes = algorithm["rollout_length"], list(network["hidden"])
    ours = {"rollout": rollout, "sizes": sizes, "shared": network["shared"]}
    sides: dict[str, dict[str, Any]] = {}
    for count in threads:
        sides[f"sb3, its own settings, {count or 'all'} threads"] = {"threads": count}
        sides[f"sb3, our settings, {count or 'all'} threads"] = {"threads": count} | ours
    for length in sorted({5, rollout}):
        sides[f"pfrl, rollout {length}"] = {"workers": 2, "sizes": sizes, "rollout": length}
    return sides


def compare(rates: dict[str, list[float]]) -> dict[str, Any]:
    """The keys of the record from each side's environment steps per second, one a round."""

    def best(prefix: str) -> list[float]:
        measured = [values for side, values in rates.items() if side.startswith(prefix) and values]
        return max(measured, key=statistics.median, default=[])

    results = _common.spread("steps_per_s_1", rates["shoal_1"]) | _common.spread("steps_per_s_2", rates["shoal_2"])
    results |= _common.spread("scaling_2", _common.ratios(rates["shoal_2"], rates["shoal_1"]))
    for key, prefix in {
        "sb3_a2c": "sb3, its",
        "sb3_a2c_ours": "sb3, our",
        "pfrl_a3c": "pfrl",
    }.items():
        results |= _common.spread(f"{key}_steps_per_s", best(prefix))
    for key, prefix in {"sb3": "sb3, its", "sb3_ours": "sb3, our", "pfrl": "pfrl"}.items():
        results |= _common.spread(f"ratio_{key}", _common.ratios(rates["shoal_2"], best(prefix)))
    return results | {"sides": {side: values for side, values in rates.items() if not side.startswith("shoal")}}


if __name__ == "__main__":
    main()
