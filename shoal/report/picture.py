"""The learning curve as a picture file, for a README or a paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shoal.core import errors
from shoal.report import figures, groups, words
from shoal.report import runs as run_folders

HUES = ("#1f66b1", "#b4500b", "#16744a", "#7a45b8", "#b62a6d", "#0d7480", "#84561f", "#59636e")  # as in page.css
MARKERS = ("o", "s", "^", "D", "v")  # as svg.SHAPES
WIDTHS = {"bold": 2.2, "thin": 1.2, "faint": 0.8}


def save(runs: Sequence[Path], out: Path) -> Path:
    """Draw the learning curves of one or more runs of one environment.

    Args:
        runs: Run folders.
        out: The file; its ending decides the format (.png, .svg, .pdf).

    Returns:
        The file.

    Raises:
        errors.Refused: A folder is not a run folder, or the runs are of several environments.
    """
    from matplotlib import figure

    found = groups.split(run_folders.read_all(runs))
    envs = list(dict.fromkeys(group.env for group in found))
    if len(envs) > 1:
        raise errors.Refused(f"one picture holds one environment, given {words.listed(envs)}: make one for each")
    drawn = figure.Figure(figsize=(8, 4), layout="constrained")
    axes = drawn.add_subplot()
    axis = groups.steps_of(found)
    for one in figures.learning_series(found, axis):
        colour, faded = HUES[one.hue], 1.0 if one.class_ == "bold" else 0.55
        if one.low is not None and one.high is not None:
            axes.fill_between(one.x, one.low, one.high, color=colour, alpha=0.18, linewidth=0)
        dash = (0, tuple(float(piece) for piece in one.dash.split())) if one.dash else "-"
        marker = MARKERS[one.place % len(MARKERS)] if one.class_ == "bold" else ""
        label = one.legend or "_"  # matplotlib leaves names with an underscore out of the legend
        axes.plot(one.x, one.y, color=colour, alpha=faded, linestyle=dash, linewidth=WIDTHS[one.class_], label=label,
                  marker=marker, markevery=0.2)  # fmt: skip
    goal = next((group.goal for group in found if group.goal is not None), None)
    if goal is not None:
        axes.axhline(goal, color="#59636e", linestyle="--", linewidth=1, label=f"goal {words.number(goal)}")
    axes.set(title=", ".join(group.title for group in found), xlabel=figures.AXES[axis], ylabel="return (last 100)")
    axes.xaxis.set_major_formatter(lambda value, _: words.short(value))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(out, dpi=160)
    return out
