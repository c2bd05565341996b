"""The page: sections in the order a researcher asks, in one file that needs nothing else."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable, Sequence
from typing import Any

from shoal.report import acting, federation, figures, headline, lags, markup, population, tables, words
from shoal.report import groups as experiments

# Columns with a figure or a table of their own; every other column of the metrics is a learning metric.
KNOWN = frozenset(
    {
        *("step", "wall_s", "env_steps_per_s", "return_mean", "rss_mb", "restarts", "episodes", "updates"),
        *("lag_mean", "lag_max", "overlapped", "contended_share", "stale", "life"),
    }
)
FIRST = ("loss", "policy_loss", "value_loss", "entropy", "gradient_norm", "learning_rate")
MOST = 12  # learning metrics drawn
BADGES = {
    "solved": "✓ solved",
    "unsolved": "○ goal not reached",
    "finished": "✓ finished",
    "stopped": "! not all runs completed",
}
NOTE = f"“{words.MISSING}” stands where a run wrote no number; it is never a zero."
# The page may load nothing at all: what it needs is in it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def _file(name: str) -> markup.Markup:
    """A style sheet or script that lies beside this module; trusted, so not escaped."""
    return markup.Markup(importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


def title(found: Sequence[experiments.Group]) -> str:
    """What was run, in a line."""
    if len(found) > 1:
        return words.few([group.title for group in found], 3)
    group = found[0]
    return f"{group.title}, {group.names()[0] if len(group.runs) == 1 else words.count(group.seeds, 'seed')}"


def render(found: Sequence[experiments.Group]) -> str:
    """The whole page.

    Args:
        found: The groups of runs, from `groups.split`.

    Returns:
        An HTML document.
    """
    sections = [
        _header(found),
        _learning(found),
        _system(found),
        _asynchrony(found),
        section(acting.TITLE, *acting.content(found), class_="acting"),
        section(population.TITLE, *population.content(found), class_="population"),
        section(federation.TITLE, *federation.content(found), class_="federation"),
        _metrics(found),
        _runs(found),
        _faults(found),
    ]
    given = [run.config.get("command") for group in found for run in group.runs]
    return document(title(found), *sections, _settings(found), commands(given), footer=_footer(found))


def document(name: str, *sections: Any, footer: markup.Markup) -> str:
    """A whole HTML document with the style and script of every page.

    Args:
        name: Its title.
        *sections: What it shows, in order; None is left out.
        footer: What stands below.
    """
    head = markup.tag(
        "head",
        markup.tag("meta", charset="utf-8"),
        markup.tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        markup.tag("meta", name="color-scheme", content="light dark"),
        markup.tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        markup.tag("title", f"{name} · Shoal report"),
        markup.tag("style", _file("page.css")),
    )
    body = markup.tag("body", markup.tag("main", *sections), footer, markup.tag("script", _file("page.js")))
    return f"<!doctype html>\n{markup.tag('html', head, body, lang='en')}\n"


def section(name: str, *children: Any, class_: str = "") -> markup.Markup | None:
    """A part of the page with its heading; nothing when it has no content."""
    content = [child for child in children if child]
    return markup.tag("section", markup.tag("h2", name), *content, class_=class_ or None) if content else None


def _header(found: Sequence[experiments.Group]) -> markup.Markup:
    said = [
        markup.tag(
            "p", tables.sample(group.place) if len(found) > 1 else None, _badge(group), " ", headline.verdict(group)
        )
        for group in found
    ]
    cautions = dict.fromkeys(text for group in found for run in group.runs if (text := run.summary.get("caution")))
    warned = [markup.tag("li", f"{text[:1].upper()}{text[1:]}.", class_="not") for text in cautions]
    return markup.tag(
        "header",
        markup.tag("h1", title(found)),
        markup.tag("div", *said, class_="verdict"),
        markup.tag("ul", *warned, class_="findings") if warned else None,
        tables.tiles(headline.tiles(found[0])) if len(found) == 1 else tables.side_by_side(found),
    )


def _badge(group: experiments.Group) -> markup.Markup:
    outcome = headline.outcome(group)
    return markup.tag("span", BADGES[outcome], class_=f"badge {outcome}")


def _learning(found: Sequence[experiments.Group]) -> markup.Markup | None:
    """One figure for each environment: returns of different environments are not comparable."""
    shared: dict[str, list[experiments.Group]] = {}
    for group in found:
        shared.setdefault(group.env, []).append(group)
    return section("Learning curve", *(figures.learning(same, f"x{i}") for i, same in enumerate(shared.values())))


def _system(found: Sequence[experiments.Group]) -> markup.Markup | None:
    charts = []
    rows = (("Throughput", "env_steps_per_s", "environment steps / s"), ("Memory", "rss_mb", "resident memory, MB"))
    for name, column, label in rows:
        if _present(found, column):
            series = figures.runs_of(found, column, "wall_s")
            chart = figures.Chart("wall_s", label, (figures.HALF,), zero=True)
            charts.append(figures.figure(name, figures.plot(series, chart)))
    split = tables.time_split(found)
    bars = (
        figures.figure("Where the time went", split, "Shares of the measured time, all workers together.")
        if split
        else None
    )
    key = figures.legend(series) if charts else None
    return section("Speed", key, markup.tag("div", *charts, class_="halves") if charts else None, bars)


def _asynchrony(found: Sequence[experiments.Group]) -> markup.Markup | None:
    """How late gradients were; of runs with several workers."""
    drawn = lags.histogram(found)
    if drawn is None:
        return None
    charts, key = [figures.figure("Lag of the gradients applied", drawn, lags.caption(found))], None
    if _present(found, "lag_mean"):
        axis = experiments.steps_of(found)
        series = figures.runs_of(found, "lag_mean", axis)
        chart = figures.Chart(axis, "versions, mean so far", (figures.HALF,), zero=True)
        charts.append(figures.figure("Mean lag", figures.plot(series, chart)))
        key = figures.legend(series)
    return section("Asynchrony", key, markup.tag("div", *charts, class_="halves"))


def _present(found: Iterable[experiments.Group], column: str) -> bool:
    return any(run.latest(column) is not None for group in found for run in group.runs)


def _metrics(found: Sequence[experiments.Group]) -> markup.Markup | None:
    logged = {name: None for group in found for run in group.runs for name in run.metrics}
    known = KNOWN | acting.drawn(found) | population.drawn(found) | federation.drawn(found)
    ours = [name for name in logged if name not in known and not name.startswith("split_") and _present(found, name)]
    names = sorted(ours, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    charts = []
    for name in names[:MOST]:
        axis = experiments.steps_of(found)
        series = figures.runs_of(found, name, axis)
        chart = figures.Chart(axis, "", (figures.SMALL,))
        charts.append(figures.figure(name.replace("_", " "), figures.plot(series, chart)))
    rest = f"Not drawn: {', '.join(names[MOST:])} (all are in metrics.jsonl)." if names[MOST:] else None
    note = markup.tag("p", rest, class_="note") if rest else None
    key = figures.legend(series) if charts else None
    return section("Learning metrics", key, markup.tag("div", *charts, class_="multiples") if charts else None, note)


def _runs(found: Sequence[experiments.Group]) -> markup.Markup | None:
    return section("Runs", tables.runs(found))


def _faults(found: Sequence[experiments.Group]) -> markup.Markup | None:
    return section("Faults", tables.faults(found), class_="faults")


def _settings(found: Sequence[experiments.Group]) -> markup.Markup | None:
    columns: tuple[dict[str, str], ...] = (
        {"Experiment": "", "Versions": "versions", "Machine": "machine"},
        {"Parts": "parts"},
    )
    drawn = []
    for column in columns:
        made = [(name, tables.settings(found, key)) for name, key in column.items()]
        cards = [markup.tag("div", markup.tag("h3", name), table, class_="card") for name, table in made if table]
        drawn.append(markup.tag("div", *cards) if cards else None)
    return section("Configuration", markup.tag("div", *drawn, class_="configuration"))


def commands(given: Sequence[Any]) -> markup.Markup | None:
    """The commands to repeat it, each once; None stands for one that was not written down."""
    unique = list(dict.fromkeys(str(command) for command in given if command))
    if not unique:
        return None
    copy = markup.tag("button", "Copy", type="button", class_="copy", hidden=True)
    name = "Command" if len(unique) == 1 else "Commands"
    return section(name, markup.tag("div", markup.tag("pre", "\n".join(unique)), copy, class_="command"))


def _footer(found: Sequence[experiments.Group]) -> markup.Markup:
    folders = [run.path.resolve().name for group in found for run in group.runs]
    made = f"Made by shoal report from {words.count(len(folders), 'run folder')}: {words.few(folders, 6)}."
    return markup.tag("footer", made, " ", NOTE)
