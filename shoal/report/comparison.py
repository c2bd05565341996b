"""A comparison of presets from its folder alone: the numbers, one figure as PNG and SVG, and a page.

The figure shows the interquartile mean over seeds of each preset's learning curve, with its 95 % interval, over equal
environment steps (`shoal.report.statistics` has the definitions and their source).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shoal.core import errors, files
from shoal.report import acting, federation, figures, groups, markup, page, picture, statistics, svg, tables, words
from shoal.report import runs as run_folders

FILES = {"figure": "comparison.png", "figure_svg": "comparison.svg", "report": "report.html"}
Y = "return, mean of the last 100 episodes"
GAP = 0.055  # of the plot's height, between names at the ends of curves


class _Told(NamedTuple):
    """A comparison's ``config.json``."""

    presets: list[str]
    env: str
    seeds: list[int]
    steps: int  # of each seed
    solved_at: float | None
    command: str


def _told(folder: Path) -> _Told:
    config = json.loads((folder / "config.json").read_text())
    return _Told(config["comparison"], config["env"], config["seeds"], config["steps"], config["solved_at"],
        config["command"])  # fmt: skip


# ================================================================================================ numbers


def summary(folder: Path) -> dict[str, Any]:
    """The comparison's ``summary.json``, from the run folders as they are now; null is what was not measured.

    Args:
        folder: The comparison's.

    Returns:
        What was asked for, and for each preset the interquartile mean and 95 % interval over its seeds of the mean
        return of the last 100 training episodes and of the evaluation; mean and population standard deviation over
        seeds of the average return of all training episodes; environment steps, and seconds of training.
    """
    told = _told(folder)
    rows = {name: _row(folder / name, told) for name in told.presets}
    walls = [row["wall_s"] for row in rows.values() if row["wall_s"] is not None]
    return {
        "comparison": str(folder),
        "env": told.env,
        "seeds": told.seeds,
        "steps": told.steps,
        "solved_at": told.solved_at,
        "status": _status([row["status"] for row in rows.values()]),
        "stopped_by": None,
        "wall_s": sum(walls) if walls else None,
        "presets": rows,
    }


def _status(states: Sequence[str]) -> str:
    if "failed" in states:
        return "failed"
    return "completed" if set(states) == {"completed"} else "interrupted"


def _row(folder: Path, told: _Told) -> dict[str, Any]:
    """One preset's numbers."""
    places = _places(folder, told.seeds)
    runs = [run_folders.read(place) for place in places]
    together = (folder / "config.json").exists()  # in one program, which all share
    totals = {key: [value for run in runs if (value := run.value(key)) is not None] for key in ("train_s", "wall_s")}
    states = [run.status for run in runs]
    begun = "completed" if len(runs) == len(told.seeds) and set(states) == {"completed"} else "unfinished"
    status = next((state for state in ("failed", "interrupted") if state in states), begun if runs else "not begun")
    every = [float(returns.mean()) for run in runs if len(returns := run.episodes["episode_return"])]
    steps = [value for run in runs if (value := run.value("env_steps")) is not None]
    return {
        "run": str(folder),
        "status": status,
        **_middle("return", [run.value("return_mean") for run in runs]),
        **_middle("eval_return", [run.value("eval_return_mean") for run in runs]),
        "train_return_mean": float(np.mean(every)) if every else None,
        "train_return_std": float(np.std(every)) if every else None,
        "episodes": int(sum(len(run.episodes["episode_return"]) for run in runs)),
        "env_steps": int(sum(steps)),
        "env_steps_per_seed": int(max(steps)) if steps else None,
        **{key: (max if together else sum)(values) if values else None for key, values in totals.items()},
        "runs": [str(place) for place in places],
    }


def _places(folder: Path, seeds: Sequence[int]) -> list[Path]:
    places = [folder / f"seed-{seed}" for seed in seeds]
    return [place for place in places if (place / "config.json").exists()]


def _middle(name: str, values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    return {
        f"{name}_iqm": statistics.iqm(known) if known else None,
        f"{name}_interval": list(statistics.interval(known)) if len(known) > 1 else None,
    }


def verdict(made: Mapping[str, Any]) -> str:
    """Which preset ended highest, and whether its interval says so."""
    rows = {name: row for name, row in made["presets"].items() if row["return_iqm"] is not None}
    if not rows:
        return "no episode has ended yet"
    best = max(rows, key=lambda name: rows[name]["return_iqm"])
    said = f"{best} ended highest: {middle(rows[best], 'return')}"
    if len(rows) < 2 or any(row["return_interval"] is None for row in rows.values()):
        return said
    low = rows[best]["return_interval"][0]
    close = [name for name, row in rows.items() if name != best and row["return_interval"][1] >= low]
    near = f"its interval overlaps that of {words.listed(close)}" if close else "its interval lies above all others"
    return f"{said}; {near}"


def middle(row: Mapping[str, Any], key: str) -> str:
    """E.g. ``487.3 (95 % interval 480.1 to 495)``."""
    within = row[f"{key}_interval"]
    shown = f" (95 % interval {words.number(within[0])} to {words.number(within[1])})" if within else ""
    return f"{words.number(row[f'{key}_iqm'])}{shown}"


# ================================================================================================ figure and page


def write(folder: Path, made: Mapping[str, Any]) -> dict[str, str]:
    """Draw the figure (``comparison.png``, ``comparison.svg``) and write the page (``report.html``).

    Args:
        folder: The comparison's; at least one run has begun.
        made: Its `summary`.

    Returns:
        ``figure``, ``figure_svg`` and ``report``: their paths.

    Raises:
        OSError: One cannot be written.
    """
    told = _told(folder)
    found = groups.split(run_folders.read_all([Path(run) for row in made["presets"].values() for run in row["runs"]]))
    if len(found) != len({group.preset for group in found}):
        raise errors.Refused(f"{folder}: the runs of one preset have different settings; restore their config.json")
    paths = {key: folder / name for key, name in FILES.items()}
    curves, axis = _curves(found), groups.steps_of(found)
    for key in ("figure", "figure_svg"):
        _picture(curves, told, axis, paths[key])
    body = _page(found, curves, told, made)
    files.replace(paths["report"], body.encode("utf-8", "replace"))
    return {key: str(path) for key, path in paths.items()}


def _curves(found: Sequence[groups.Group]) -> list[figures.Series]:
    """One curve a preset: the interquartile mean with its interval; the run itself where there is but one seed."""
    made, axis = [], groups.steps_of(found)
    for group in found:
        dash, hue = svg.DASHES[group.place % len(svg.DASHES)], group.place % svg.HUES
        none, name = np.zeros(0), group.preset
        series = figures.Series(name, none, none, group.place, hue, "bold", dash, legend=name)
        if band := groups.band(group, axis):
            made.append(series._replace(x=band.x, y=band.middle, low=band.low, high=band.high))
        else:
            curve = groups.learning(group.runs[0], axis)
            x, y = svg.thin(curve.x, curve.y, figures.POINTS)
            made.append(series._replace(x=x, y=y))
    return [one for one in made if np.isfinite(one.y).any()]


def _picture(curves: Sequence[figures.Series], told: _Told, axis: str, out: Path) -> None:
    """The figure as a picture file; its ending decides the format."""
    import matplotlib
    from matplotlib import figure

    drawn = figure.Figure(figsize=(8, 4.2), layout="constrained")
    axes = drawn.add_subplot()
    for one in curves:
        colour = picture.HUES[one.hue]
        if one.low is not None and one.high is not None:
            axes.fill_between(one.x, one.low, one.high, color=colour, alpha=0.18, linewidth=0)
        dash = (0, tuple(float(piece) for piece in one.dash.split())) if one.dash else "-"
        marker = picture.MARKERS[one.place % len(picture.MARKERS)]
        axes.plot(one.x, one.y, color=colour, linestyle=dash, linewidth=2.2, marker=marker, markevery=(0.1, 0.2))
    axes.set_xlim(0, max([told.steps if axis == "step" else 0, *(one.x[-1] for one in curves)]))
    if told.solved_at is not None:
        axes.axhline(told.solved_at, color="#59636e", linestyle="--", linewidth=1)
        axes.annotate(f"solved {words.number(told.solved_at)}", (0, told.solved_at), (4, 3), color="#59636e",
            xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=9)  # fmt: skip
    _name(axes, curves)
    axes.set_title(_title(told), loc="left", fontsize=11)
    axes.set(xlabel=figures.AXES[axis], ylabel=Y)
    axes.xaxis.set_major_formatter(lambda value, _: words.short(value))
    axes.spines[["top", "right"]].set_visible(False)
    # Text stays text, and the same numbers give the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "shoal"}):
        drawn.savefig(out, dpi=160, metadata={"Date": None} if out.suffix == ".svg" else None)


def _name(axes: Any, curves: Sequence[figures.Series]) -> None:
    """Every curve's name at its end, to the right of the plot."""
    low, high = axes.get_ylim()
    wanted = [(figures.ending(one)[1] - low) / (high - low) for one in curves]
    for one, at, place in zip(curves, wanted, svg.spread(wanted, GAP, 0.0, 1.0), strict=True):
        x, y, name, hue = figures.ending(one)
        lead = {"arrowstyle": "-", "color": picture.HUES[hue], "linewidth": 0.8, "shrinkA": 0, "shrinkB": 3}
        moved = abs(place - at) > GAP / 4 or x < axes.get_xlim()[1] * 0.98
        axes.annotate(name, (x, y), (1.025, place), xycoords="data", textcoords="axes fraction", va="center",
            color=picture.HUES[hue], fontweight="bold", fontsize=10, annotation_clip=False,
            arrowprops=lead if moved else None)  # fmt: skip


def _title(told: _Told) -> str:
    return f"{words.listed(told.presets)} on {told.env}"


def _page(found: Sequence[groups.Group], curves: Sequence[figures.Series], told: _Told, made: Mapping[str, Any]) -> str:
    seeds = words.count(len(told.seeds), "seed")
    outcome = "finished" if made["status"] == "completed" else "stopped"
    badge = markup.tag("span", page.BADGES[outcome], class_=f"badge {outcome}")
    said = f"{verdict(made)}. {seeds} each, {words.number(told.steps)} environment steps a seed"
    parties = max((run.parties for group in found for run in group.runs), default=1)
    said += f", {words.number(told.steps // parties)} of each of {parties} parties." if parties > 1 else "."
    header = markup.tag(
        "header", markup.tag("h1", _title(told)), markup.tag("div", markup.tag("p", badge, " ", said), class_="verdict")
    )
    room = 24 + 8 * max((len(one.name) for one in curves), default=0)  # pixels for the names
    chart = figures.Chart(
        groups.steps_of(found),
        Y,
        (figures.WIDE._replace(right=room), figures.NARROW),
        told.solved_at,
        zero=True,
        goal_name="solved",
        named=True,
    )
    key = figures.legend(curves)
    few = markup.tag("div", markup.tag("div", key, class_="narrow"), class_="plot") if key else None
    caption = "Each line is the interquartile mean (IQM) over seeds, the band its 95 % bootstrap interval."
    caption += f" With {seeds} the interval is a rough guide." if len(told.seeds) < 10 else ""
    drawn = figures.figure(f"Learning on {told.env}", markup.join(few, figures.plot(curves, chart)), caption)
    return page.document(
        _title(told),
        header,
        page.section("Learning curves", drawn),
        page.section("Presets", _table(found, made)),
        page.section(acting.TITLE, *acting.content(found), class_="acting"),
        page.section(federation.TITLE, *federation.content(found), class_="federation"),
        page.section("Settings that differ", _settings(found)),
        page.section("Versions and machine", _versions(found)),
        page.commands([told.command]),
        footer=markup.tag("footer", f"Made by shoal compare. {page.NOTE}"),
    )


def _table(found: Sequence[groups.Group], made: Mapping[str, Any]) -> markup.Markup:
    head = ("preset", "status", "return, last 100: IQM", "95 % interval", "evaluation: IQM", "all training episodes",
        "env steps a seed", "training")  # fmt: skip
    places = {group.preset: group.place for group in found}
    rows = []
    for name, row in made["presets"].items():
        label = markup.join(tables.sample(places[name]), name) if name in places else name
        status = markup.tag("span", row["status"], class_=f"status {row['status'].replace(' ', '-')}")
        rows.append((label, status, *map(tables.shown, cells(row))))
    return tables.table(head, rows, "numbers several")


def _settings(found: Sequence[groups.Group]) -> markup.Markup | None:
    """One column a preset; a setting that a preset's parts do not know is left empty."""
    flat = [groups.flatten(group.runs[0].config.get("parts", {})) for group in found]
    keys = [
        key
        for key in dict.fromkeys(key for one in flat for key in one)
        if len({repr(one.get(key)) for one in flat}) > 1
    ]
    rows = []
    for key in keys:
        values = [markup.tag("code", words.setting(one[key])) if key in one else None for one in flat]
        rows.append((key, *values))
    head = ("setting", *(markup.join(tables.sample(group.place), group.preset) for group in found))
    return tables.table(head, rows, "settings numbers") if rows else None


def _versions(found: Sequence[groups.Group]) -> markup.Markup:
    cards = [tables.settings(found, part) for part in ("versions", "machine")]
    drawn = [markup.tag("div", markup.tag("div", card, class_="card")) for card in cards if card]
    return markup.tag("div", *drawn, class_="configuration")


def cells(row: Mapping[str, Any]) -> list[str]:
    """A preset's numbers in words: IQM, interval, evaluation, all episodes, steps, seconds of training."""
    within = row["return_interval"]
    return [
        words.number(row["return_iqm"]),
        f"{words.number(within[0])} to {words.number(within[1])}" if within else words.MISSING,
        words.number(row["eval_return_iqm"]),
        words.spread(row["train_return_mean"], row["train_return_std"]),
        words.number(row["env_steps_per_seed"]),
        words.seconds(row["train_s"]),
    ]
