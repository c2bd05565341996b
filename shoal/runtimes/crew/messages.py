"""What workers tell their parent, whatever the runtime, and what their times are called."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from shoal.core import types

SPLIT = ("environment", "inference", "learning", "waiting")
DIVERGED = 1000  # non-finite gradients in a row after which a worker gives up


class Ready(NamedTuple):
    """A worker is open: compiled, or with its simulator, and waits for the start if its role starts together."""

    rss_mb: float


class Report(NamedTuple):
    """What a worker tells a few times a second; the last one when it is done."""

    episodes: list[types.Episode]
    metrics: Mapping[str, float]
    rss_mb: float
    done: bool


class Unclosed(NamedTuple):
    """A worker that is done could not let go of its simulators: told, and undoes nothing."""

    kind: str
    traceback: str


def peak_mb() -> float:
    """Peak memory of this process so far, megabytes."""
    unit = 1024 if sys.platform != "darwin" else 1024 * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def resident_mb() -> float | None:
    """Memory of this process now, megabytes; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * resource.getpagesize() / 2**20
