"""How numbers of a status are said: durations, shares in percent, text without control characters."""

from __future__ import annotations

import re
from collections.abc import Mapping

from shoal.core import types

SPLIT = ("environment", "inference", "learning", "waiting")  # order in which the time split is shown

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def percents(split: Mapping[str, float]) -> dict[str, int]:
    """The time split in whole percent that sum to 100, in the order of `SPLIT`; {} if nothing was measured."""
    names = sorted(split, key=lambda name: (SPLIT.index(name) if name in SPLIT else len(SPLIT), name))
    return dict(zip(names, shares([split[name] for name in names], 100), strict=True)) if any(split.values()) else {}


def shares(values: list[float], total: int) -> list[int]:
    """Whole numbers in proportion to `values` that sum to `total` (largest remainders)."""
    exact = [max(value, 0.0) * total / sum(max(v, 0.0) for v in values) for value in values]
    whole = [int(value) for value in exact]
    by_remainder = sorted(range(len(values)), key=lambda i: whole[i] - exact[i])
    for i in by_remainder[: total - sum(whole)]:
        whole[i] += 1
    return whole


def duration(seconds: float | None) -> str:
    """A duration in one short word: ``21s``, ``3m10s``, ``1h05m``, ``2d03h``; ``-`` if not known."""
    if seconds is None or not 0 <= seconds < 1e9:
        return "-"
    whole = round(seconds)
    for size, part, big, small in ((86400, 3600, "d", "h"), (3600, 60, "h", "m"), (60, 1, "m", "s")):
        if whole >= size:
            return f"{whole // size}{big}{whole % size // part:02d}{small}"
    return f"{whole}s"


def stage(stage: types.Stage, seconds: float) -> str:
    """What is being done, how much of it is, and since when: ``starting 2 workers: 1 of 2, 3s``."""
    counted = f": {stage.done:,} of {stage.of:,}" if stage.done is not None and stage.of is not None else ""
    return f"{clean(stage.doing)}{counted}, {duration(seconds)}"


def number(value: float | None, digits: int) -> str:
    """A number with a fixed count of decimals; ``-`` if not known."""
    return f"{value:.{digits}f}" if value is not None else "-"


def clean(text: str) -> str:
    """Text without colours and control characters other than line ends and tabs."""
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def acting(told: Mapping[str, float]) -> list[str]:
    """What is told of actors: how late their policies are in updates, and what correction has left."""
    said = []
    if (late := told.get("staleness")) is not None:
        said.append(f"{late:.3g} late")
    if (ess := told.get("ess")) is not None:
        said.append(f"ESS {ess:.2f}")
    return said
