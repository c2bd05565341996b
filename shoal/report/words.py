"""Numbers and outcomes in words, the same way everywhere on the page."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

MISSING = "not measured"
Show = Callable[[float | None], str]
FAULTS = {
    "restarts": ("worker restart", "worker restarts"),
    "stale": ("stale gradient dropped", "stale gradients dropped"),
    "dropped_updates": ("dropped update", "dropped updates"),
    "non_finite": ("non-finite value", "non-finite values"),
    "not_saved": ("checkpoint not saved", "checkpoints not saved"),
    "rollouts_dropped": ("rollout dropped", "rollouts dropped"),
    "snapshots_refused": ("snapshot refused", "snapshots refused"),
    "not_compressed": ("policy not compressed", "policies not compressed"),
    "left_out": ("sample left out", "samples left out"),
}


def number(value: float | None) -> str:
    """Four significant digits, whole from 1,000 up: 92,160, 487.3, 0.0007."""
    if value is None:
        return MISSING
    if abs(value) >= 999.95 or float(value).is_integer():
        return f"{value:,.0f}".replace("-", "−")
    if abs(value) < 0.001:
        return f"{value:.3g}".replace("-", "−")
    places = max(0, 3 - math.floor(math.log10(abs(value))))
    shown = f"{value:.{places}f}"
    return (shown.rstrip("0").rstrip(".") if places > 1 else shown).replace("-", "−")


def seconds(value: float | None) -> str:
    """A duration: 3.1 s, 4 min 20 s, 2 h 05 min."""
    if value is None:
        return MISSING
    if value < 100:
        return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def megabytes(value: float | None) -> str:
    """Memory: 512 MB, 1.95 GB."""
    if value is None:
        return MISSING
    return f"{value / 1000:.2f} GB" if value >= 1000 else f"{value:.0f} MB"


def three(value: float | None) -> str:
    """Three significant digits: 12.3, 0.0218, 1,290."""
    return number(None if value is None else float(f"{value:.3g}"))


def percent(share: float | None) -> str:
    """A share: 58 %, 4.1 %, 0.03 %; what is not quite all is not told as 100 %."""
    if share is None:
        return MISSING
    value = 100 * share
    places = 1 if 99 <= value < 99.95 else 0
    shown = f"{value:.{places}f} %" if abs(value) >= 9.95 or not value else f"{value:.2g} %"
    return shown.replace("-", "−")


def factor(value: float | None) -> str:
    """How many times: 6.2×."""
    return MISSING if value is None else f"{three(value)}×"


def brief(value: float | None) -> str:
    """A short duration: 7.4 µs, 3.1 ms, 2.4 s."""
    if value is None:
        return MISSING
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= scale or unit == "µs":
            break
    return f"{three(value / scale)} {unit}"


def size(value: float | None) -> str:
    """Bytes: 740 B, 38.2 kB, 16.9 MB (powers of 1,000)."""
    if value is None:
        return MISSING
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= scale:
            return f"{three(value / scale)} {unit}"
    return f"{number(round(value))} B"


def short(value: float) -> str:
    """For an axis: 50k, 1.2M, 0.25."""
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.4g}{unit}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def count(amount: float, one: str, many: str = "") -> str:
    """1 seed, 3 seeds."""
    return f"{number(amount)} {one if amount == 1 else many or one + 's'}"


def spread(mean: float | None, deviation: float | None) -> str:
    """487.3 ± 21.4, both to the same decimal; without the deviation when it was not measured."""
    if mean is None or deviation is None:
        return number(mean)
    size = max(abs(mean), abs(deviation), 1e-6)
    whole = float(mean).is_integer() and float(deviation).is_integer()
    places = 0 if whole else max(0, 3 - math.floor(math.log10(size)))
    return f"{mean:,.{places}f} ± {deviation:,.{places}f}".replace("-", "−")


def setting(value: Any) -> str:
    """A configuration value as it would be typed."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def schedule(points: Sequence[Any]) -> str:
    """A schedule of hyperparameters (`experiment.scheduled`): how often it changes, and digits that tell it apart."""
    digits = hashlib.sha256(json.dumps(points, sort_keys=True, default=str).encode()).hexdigest()[:6]
    return f"{count(max(len(points) - 1, 0), 'change')} ({digits})"


def listed(parts: Sequence[str]) -> str:
    """One, two and three."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def few(names: Sequence[str], most: int = 4) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - most
    return listed([*names[:most], f"{rest} more"] if rest > 0 else names)


def fault(kind: str, amount: float) -> str:
    """2 worker restarts; unknown kinds by their own name."""
    plain = kind.replace("_", " ")
    return count(amount, *FAULTS.get(kind, (f"x {plain}", f"x {plain}"))).replace(" x ", " × ")
