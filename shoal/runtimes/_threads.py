"""How many threads XLA computes with: one where handing work over costs more than it saves."""

from __future__ import annotations

import os
from typing import Any

SMALL = 4_000_000  # multiply-adds of a gradient step's largest product, below which handing work to threads costs more


def prepare(threads: int, environments: int, algorithm: Any, network: Any) -> None:
    """Choose the threads of XLA's CPU client, which reads NPROC when the first array is made; later it is too late.

    Two threads take PPO on 4 environments from 231,000 to 193,000 steps a second, and from 250,000 to 270,000 on 64;
    ten seeds of `map_propagation` on LunarLander under `host` from 3,400 to 2,200.

    Args:
        threads: How many; 0: one where a gradient step is small, else one a core.
        environments: Stepped in lock-step (B).
        algorithm: The rule's settings.
        network: The network's.
    """
    rows = getattr(algorithm, "batch", environments * getattr(algorithm, "rollout_length", 1))  # none: refused later
    rows //= getattr(algorithm, "minibatches", 1)
    dense = network.torso in ("auto", "mlp") and not network.lstm
    small = dense and rows * max(network.hidden, default=1) ** 2 < SMALL
    threads = threads or (1 if small else 0)
    if threads:
        os.environ.setdefault("NPROC", str(threads))
