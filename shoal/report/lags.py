"""How many versions of the parameters had passed when gradients were applied: columns for each group of runs."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.report import columns, markup, words
from shoal.report import groups as experiments


def histogram(found: Sequence[experiments.Group]) -> markup.Markup | None:
    """Share of the gradients at each lag, all runs of a group together; None where nobody counted."""
    return columns.lags([(group, _counts(group)) for group in found], "gradients", "lag (versions)")


def caption(found: Sequence[experiments.Group]) -> str:
    """What lag means, and what else was counted."""
    said = "Applies of other workers between the reading of the parameters and the apply of their gradient."
    runs = [run.summary.get("workers") for group in found for run in group.runs]
    counted = [workers for workers in runs if isinstance(workers, dict)]
    if len(counted) == 1:
        met, share = counted[0].get("overlapped"), counted[0].get("contended_share")
        if met:
            said += f" {words.count(met, 'apply', 'applies')} met another in memory"
            said += f"; at most {100 * share:.2g} % of element updates were lost." if share is not None else "."
    return said


def _counts(group: experiments.Group) -> dict[str, float]:
    total: dict[str, float] = {}
    for run in group.runs:
        for label, count in run.lags.items():
            total[label] = total.get(label, 0.0) + count
    return total
