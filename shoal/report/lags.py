"""How many versions of the parameters had passed when gradients were applied: columns for each group of runs."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.report import figures, markup, svg, words
from shoal.report import groups as experiments

SHARE = 0.8  # of a place that its columns take
MOST = 12  # labels of x that stand side by side without touching


def histogram(found: Sequence[experiments.Group]) -> markup.Markup | None:
    """Share of the gradients at each lag, all runs of a group together; None where nobody counted."""
    counted = [(group, counts) for group in found if (counts := _counts(group)) and sum(counts.values())]
    if not counted:
        return None
    labels = max((list(counts) for _, counts in counted), key=len)
    shares = [[counts.get(label, 0.0) / sum(counts.values()) for label in labels] for _, counts in counted]
    size = figures.HALF
    frame = svg.Frame(size, (-0.5, len(labels) - 0.5), (0.0, 1.08 * max(map(max, shares))))
    every = -(-len(labels) // MOST)
    names = {i: label for i, label in enumerate(labels) if i % every == 0}
    parts = [svg.scale(frame, "share of the gradients", lambda value: f"{100 * value:.0f} %")]
    parts += [svg.label(frame, i, name) for i, name in names.items()]
    parts.append(svg.named(frame, "lag (versions)"))
    width = SHARE / len(counted)
    for at, ((group, counts), heights) in enumerate(zip(counted, shares, strict=True)):
        for i, height in enumerate(heights):
            left = i - SHARE / 2 + at * width
            told = f"{group.title}: lag {labels[i]}, {words.number(counts.get(labels[i], 0.0))} ({100 * height:.1f} %)"
            parts.append(svg.column(frame, left, left + width, height, f"hue{group.place % svg.HUES}", told))
    title = markup.tag("title", f"share of the gradients at each lag: {words.few([g.title for g, _ in counted])}")
    drawn = markup.tag(
        "svg", title, *parts, role="img", class_=size.name, viewBox=f"0 0 {size.width} {size.height}"
    )  # fmt: skip
    return markup.tag("div", drawn, class_="plot")


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
