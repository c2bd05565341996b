"""The tables of the page: runs, groups side by side, faults, settings, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal.report import groups as experiments
from shoal.report import headline, markup, svg, words
from shoal.report import runs as run_folders

SPLIT = ("environment", "inference", "learning", "waiting")
BARS = 12  # more runs than this share a bar for each group


HIDDEN = ("parts", "versions", "machine", "command", "experiment_sha256")  # shown elsewhere, or of no use to a reader


def table(head: Sequence[Any], rows: Sequence[Sequence[Any]], class_: str = "") -> markup.Markup:
    """A table that scrolls by itself where the page is narrow; the first column names the row."""
    header = markup.tag("tr", *(markup.tag("th", cell, scope="col") for cell in head))
    body = [
        markup.tag("tr", markup.tag("th", row[0], scope="row"), *(markup.tag("td", cell) for cell in row[1:]))
        for row in rows
    ]
    made = markup.tag("table", markup.tag("thead", header), markup.tag("tbody", *body), class_=class_ or None)
    return markup.tag("div", made, class_="scroll", tabindex="0")


def shown(text: str) -> Any:
    """A cell; what was not measured is told apart from a number."""
    return markup.tag("span", text, class_="missing") if text == words.MISSING else text


def tiles(made: Sequence[headline.Tile]) -> markup.Markup:
    """Key figures as a row of tiles."""
    drawn = [
        markup.tag(
            "div",
            markup.tag("dt", tile.label),
            markup.tag("dd", shown(tile.value), markup.tag("small", tile.note) if tile.note else None),
        )
        for tile in made
    ]
    return markup.tag("dl", *drawn, class_="tiles")


def runs(found: Sequence[experiments.Group]) -> markup.Markup:
    """One row for each run."""
    head = (
        "run", "status", "env steps", "return, last 100", "evaluation", "solved at", "steps/s", "training", "start-up",
        "SHA-256",
    )  # fmt: skip
    rows = []
    for group in found:
        for run, name in zip(group.runs, group.names(), strict=True):
            label = name if len(found) == 1 else markup.join(sample(group.place), f"{group.title}, {name}")
            rows.append((label, *_run_cells(run)))
    return table(head, rows, "numbers" if len(found) == 1 else "numbers several")


def _run_cells(run: run_folders.Run) -> list[Any]:
    solved = run.value("solved_at_step")
    late = ("not reached" if run.goal is not None else "no goal") if run.summary else words.MISSING
    sha = run.summary.get("params_sha256")
    status = markup.tag("span", run.status, class_=f"status {run.status if run.status in headline.ENDED else 'failed'}")
    cells = [
        words.number(run.value("env_steps")),
        words.spread(run.value("return_mean"), run.value("return_std")),
        words.spread(run.value("eval_return_mean"), run.value("eval_return_std")),
        words.number(solved) if solved is not None else late,
        words.number(run.value("env_steps_per_s")),
        words.seconds(run.value("train_s")),
        words.seconds(run.value("startup_s")),
    ]
    digest = markup.tag("code", str(sha)[:10], title=str(sha)) if sha else shown(words.MISSING)
    return [status, *map(shown, cells), digest]


def sample(place: int) -> markup.Markup:
    """A group's marker, to find it again in the figures."""
    return markup.tag("svg", svg.marker(7, 7, place), viewBox="0 0 14 14", width=14, height=14, aria_hidden="true")


def side_by_side(found: Sequence[experiments.Group]) -> markup.Markup:
    """The key figures of several groups: one column for each, and one row for each figure."""
    columns = [headline.tiles(group) for group in found]
    rows = []
    for tiles in zip(*columns, strict=True):
        cells = [
            markup.join(shown(tile.value), markup.tag("small", tile.note) if tile.note else None) for tile in tiles
        ]
        labels = list(dict.fromkeys(tile.label for tile in tiles))
        rows.append((" / ".join(labels), *cells))
    head = [markup.join(sample(group.place), group.title) for group in found]
    return table(("", *head), rows, "side")


def time_split(found: Sequence[experiments.Group]) -> markup.Markup | None:
    """One bar for each run (each group, when they are many): environment, inference, learning and waiting."""
    rows: list[tuple[str, Sequence[run_folders.Run]]] = []
    for group in found:
        pairs = [(_owner(found, group, name), [run]) for run, name in _pairs(group)]
        whole = [(f"{group.title}, {words.count(len(group.runs), 'run')} together", group.runs)]
        rows += whole if sum(len(one.runs) for one in found) > BARS else pairs
    logged = {name[6:]: None for _, members in rows for run in members for name in run.metrics if name[:6] == "split_"}
    # A runtime that is one compiled program cannot tell its parts apart, and names its time differently.
    parts = [*(part for part in SPLIT if part in logged), *(part for part in logged if part not in SPLIT)]
    bars = []
    for name, members in rows:
        spent = {
            part: [value for run in members if (value := run.latest(f"split_{part}")) is not None] for part in parts
        }
        totals = {part: sum(values) if values else None for part, values in spent.items()}
        if any(totals.values()):
            bars.append(_split(name, totals))
    if not bars:
        return None
    key = [(part.replace("_", " "), _hatch(part)) for part in parts]
    return markup.join(swatches(key), markup.tag("div", *bars, class_="bars"))


def swatches(parts: Sequence[tuple[str, str]]) -> markup.Markup:
    """What the patterns of bars mean: name and class of each."""
    key = [markup.tag("li", markup.tag("i", class_=class_), name) for name, class_ in parts]
    return markup.tag("ul", *key, class_="legend")


def _hatch(part: str) -> str:
    return f"part {part if part in SPLIT else 'other'}"


def _split(name: str, spent: Mapping[str, float | None]) -> markup.Markup:
    total = sum(value or 0.0 for value in spent.values())
    pieces = []
    for part, value in spent.items():
        if value is not None:
            share = 100 * value / total
            told = f"{part.replace('_', ' ')} {share:.0f} % ({words.seconds(value)})"
            pieces.append((share, _hatch(part), told))
    return bar(name, pieces)


def bar(name: str, pieces: Sequence[tuple[float, str, str]], width: float = 100.0) -> markup.Markup:
    """One bar of several parts, with its name above.

    Args:
        name: Whose it is.
        pieces: Of each part its percents, the class of its pattern, and what it says.
        width: Percents of the page's width; parts of bars with other widths are of one scale where it is their sum.
    """
    total = sum(percents for percents, _, _ in pieces)
    told = ", ".join(said for _, _, said in pieces)
    spans = []
    for percents, class_, said in pieces:
        label = f"{percents:.0f} %" if percents * width / total >= 9 else ""
        spans.append(markup.tag("span", label, class_=class_, style=f"flex:{percents:.2f} 0 0", title=said))
    style = f"width:{width:.2f}%" if width < 100 else None
    drawn = markup.tag("div", *spans, class_="bar", style=style, role="img", aria_label=f"{name}: {told}")
    return markup.join(markup.tag("p", markup.tag("b", name), " ", markup.tag("small", told)), drawn)


def faults(found: Sequence[experiments.Group]) -> markup.Markup | None:
    """What went wrong, in words; None when nothing did."""
    said = []
    for group in found:
        for run, name in zip(group.runs, group.names(), strict=True):
            happened = [words.fault(kind, amount) for kind, amount in run.faults.items()]
            if happened:
                end = "and finished all the same" if run.status == "completed" else f"and is {run.status}"
                said.append(f"{group.title}, {name}: had {words.listed(happened)}, {end}.")
            if run.status == "failed":
                why = run.summary.get("error") or "see the log"
                said.append(f"{group.title}, {name}: ended with an error ({why}); its numbers are those before it.")
            if run.damaged:
                lines = words.count(run.damaged, "line")
                said.append(f"{group.title}, {name}: {lines} of its logs could not be read (cut off) and left out.")
    return markup.tag("ul", *(markup.tag("li", line) for line in said)) if said else None


def settings(found: Sequence[experiments.Group], section: str) -> markup.Markup | None:
    """A part of the configuration, differences between runs first and marked.

    Args:
        found: The groups.
        section: ``"parts"``, ``"versions"``, ``"machine"``, or ``""`` for what stands beside them.
    """
    named = [(_owner(found, group, name), run) for group in found for run, name in _pairs(group)]
    flat = [(owner, experiments.flatten(_section(run.config, section))) for owner, run in named]
    # Seeds differ by design, and name the rows of the table of runs.
    keys = {key: None for _, values in flat for key in values if key and (key != "seed" or len(flat) == 1)}
    rows: list[tuple[bool, Any, Any]] = []
    for key in keys:
        owners: dict[str, list[str]] = {}
        for owner, values in flat:
            owners.setdefault(words.setting(values[key]) if key in values else "(not set)", []).append(owner)
        rows.append((len(owners) == 1, key, _value(owners)))
    ordered = [_setting_row(same, key, value) for same, key, value in sorted(rows, key=lambda row: row[0])]
    return table(("setting", "value"), ordered, "settings") if rows else None


def _pairs(group: experiments.Group) -> list[tuple[run_folders.Run, str]]:
    return list(zip(group.runs, group.names(), strict=True))


def _owner(found: Sequence[experiments.Group], group: experiments.Group, name: str) -> str:
    return name if len(found) == 1 else f"{group.title}, {name}"


def _section(config: Mapping[str, Any], section: str) -> Any:
    if section:
        return config.get(section, {})
    return {key: value for key, value in config.items() if key not in HIDDEN}


def _value(owners: Mapping[str, Sequence[str]]) -> Any:
    if len(owners) == 1:
        return markup.tag("code", next(iter(owners)))
    lines = [
        markup.tag("div", markup.tag("code", value), " ", markup.tag("small", words.few(who)))
        for value, who in owners.items()
    ]
    return markup.join(*lines)


def _setting_row(same: bool, key: str, value: Any) -> tuple[Any, Any]:
    return (key if same else markup.join(key, " ", markup.tag("mark", "differs")), value)
