"""How many threads and devices XLA computes with; settled by the environment, before it is asked for anything."""

from __future__ import annotations

import os
import sys
from typing import Any

COMPUTES, STEPS = 200, 30  # megabytes of a process at least: with JAX and its programs, with simulators alone
SMALL = 4_000_000  # multiply-adds of a gradient step's largest product, below which handing work to threads costs more


def prepare(threads: int, rows: int, network: Any) -> None:
    """Choose the threads of XLA's CPU client, which reads NPROC when the first array is made; later it is too late.

    Two threads take PPO on 4 environments from 231,000 to 193,000 steps a second, and from 250,000 to 270,000 on 64;
    ten seeds of `map_propagation` on LunarLander under `host` from 3,400 to 2,200.

    Args:
        threads: How many; 0: one where a gradient step is small, else one a core.
        rows: Of the largest product of a gradient step (`types.Traits.samples`).
        network: The network's settings.
    """
    dense = network.torso in ("auto", "mlp") and not network.lstm
    small = dense and rows * max(network.hidden, default=1) ** 2 < SMALL
    threads = threads or (1 if small else 0)
    if threads:
        os.environ.setdefault("NPROC", str(threads))


def spread(seeds: int) -> None:
    """A device for each core that several seeds can be spread over; JAX reads it when it is imported."""
    if seeds > 1 and cores() > 1:
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(min(seeds, cores())))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
