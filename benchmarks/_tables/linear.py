"""Learners that exchange weights, and mappers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _tables import show


def linear(results: Mapping[str, Any]) -> str:
    """Learners that exchange weights, and mappers."""
    speeds, rows = results["sarsa_speed"], []
    for scheme, by_workers in results["sarsa"].items():
        for workers in sorted(by_workers, key=int):
            one, speed = by_workers[workers], speeds[scheme][workers]
            rows.append(
                [
                    f"`{scheme}`, {workers}",
                    show.spread(one, "steps_per_episode"),
                    show.spread(one, "last_steps_per_episode"),
                    show.number(one["bytes_per_episode"]),
                    show.spread(speed, "ratio_1", "x"),
                    show.number(speed["waiting_fraction"]),
                ]
            )
    head = ["scheme, learners", "steps per episode", "the last 10", "bytes per episode", "speed over one", "waiting"]
    batch = [
        [
            f"`{method}`, {workers}",
            show.spread(one, "seconds"),
            show.spread(one, "ratio_1", "x"),
            show.number(one["bytes_sent"]),
        ]
        for method, by_workers in results["batch"].items()
        for workers, one in by_workers.items()
    ]
    told = (
        f"`filtered` sends {show.number(100 * results['filtered_bytes_fraction'])} % of the bytes of `average` with "
        f"two learners, at {show.number(100 * results['filtered_score_ratio'])} % of its steps per episode in the end."
    )
    below = show.grid(["method, mappers", "seconds of solving", "speed over one", "bytes"], batch)
    return "\n\n".join([show.grid(head, rows), told, below])
