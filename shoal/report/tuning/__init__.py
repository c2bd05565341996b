"""The page of a search, from its folder alone: what was tried, what decides, what is best, and whether that holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shoal.core import files
from shoal.report import figures, headline, markup, page, tables, words
from shoal.report.tuning import axes, charts

METHODS = {"pbt": "population-based training", "random": "random search", "tpe": "TPE", "halving": "successive halving"}
MANY = 40  # trials in the table; the worst beyond are in trials.json


def write(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Write ``report.html``.

    Args:
        folder: The tune folder; at least one trial was scored.
        summary: Its ``summary.json``.

    Returns:
        The page.

    Raises:
        OSError: It cannot be written.
    """
    out = folder / "report.html"
    files.replace(out, body(folder, summary).encode("utf-8", "replace"))
    return out


def body(folder: Path, summary: Mapping[str, Any]) -> str:
    """The page that `write` writes."""
    config = json.loads((folder / "config.json").read_text())
    rows = json.loads((folder / "trials.json").read_text())["trials"]
    scored = [row for row in rows if row["rungs"]]
    title = f"Settings of {summary['preset']} on {summary['env']}"
    return page.document(
        title,
        _header(title, summary),
        page.section("Scores", _course(rows, summary)),
        page.section("Fresh seeds", *_confirmed(summary)),
        page.section("The best settings", _settings(config, summary), _schedule(summary)),
        page.section("What decides", *_decides(scored, config, summary)),
        page.section("Trials", *_trials(rows, list(config["tune"]["priors"]))),
        page.section("What was searched", _plan(config)),
        page.commands([config.get("command"), _use(summary)]),
        footer=markup.tag("footer", f"Made by shoal tune. {page.NOTE}"),
    )


def _use(summary: Mapping[str, Any]) -> str | None:
    file = summary["settings_file"]
    return f"shoal train {summary['preset']} --settings {files.typed(file)}" if file else None


def _header(title: str, summary: Mapping[str, Any]) -> markup.Markup:
    outcome = "finished" if summary["status"] == "completed" else "stopped"
    shown = page.BADGES["finished"] if outcome == "finished" else "! the search was stopped"
    badge = markup.tag("span", shown, class_=f"badge {outcome}")
    best, default = summary["best"], summary["default_score"]
    of, confirm = _of(summary), summary["confirm"]
    beside = "" if default is None else "trial 0"
    if default is None and confirm:
        default, beside = confirm["default"]["iqm"], "IQM of fresh seeds"
    tiles = [
        headline.Tile("Best", words.number(best and best["score"]), f"{of} {best['trial']}" if best else ""),
        headline.Tile("The preset's own settings", words.number(default), beside),
        headline.Tile(f"{of.title()}s", words.number(summary["trials"]), f"{summary['failed']} failed"),
        headline.Tile("Environment steps", words.number(summary["env_steps"]),
                      f"budget {words.number(summary['budget'])}; {words.seconds(summary['wall_s'])}"),
    ]  # fmt: skip
    return markup.tag(
        "header",
        markup.tag("h1", title),
        markup.tag("div", markup.tag("p", badge, " ", verdict(summary)), class_="verdict"),
        tables.tiles(tiles),
    )


def verdict(summary: Mapping[str, Any]) -> str:
    """What the search has found, and whether it holds on fresh seeds."""
    method, confirm = METHODS[summary["method"]], summary["confirm"]
    if summary["best"] is None:
        return f"No trial of {method} came to a score."
    if not confirm:
        return f"{method[:1].upper()}{method[1:]}: best score {words.number(summary['best']['score'])}, not confirmed."
    seeds, steps = words.count(len(confirm["seeds"]), "fresh seed"), words.number(confirm["steps"])
    within = confirm["difference"]["interval"]
    by = confirm["difference"]["iqm"]
    if by is None:
        return f"The settings found by {method} could not be confirmed."
    gap = f"{words.number(by)} (95 % interval {words.number(within[0])} to {words.number(within[1])})" if within else (
        words.number(by))  # fmt: skip
    told = {
        "better": f"are better than the preset's own on {seeds} of {steps} steps, by {gap}",
        "worse": f"are worse than the preset's own on {seeds} of {steps} steps, by {gap}",
    }.get(confirm["verdict"], f"are not told apart from the preset's own by {seeds} of {steps} steps: {gap}")
    return f"The settings found by {method} {told}."


def _course(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> markup.Markup:
    of = _of(summary)
    greedy = "greedy episodes that are no part of its training"
    said = {
        "pbt": f"Each dot is the fitness of a member: {greedy}; the line is the best so far.",
        "halving": f"Each dot is an evaluation of a trial, {greedy}; the line is the best so far of those trained to "
        "the end, small dots were judged on the way.",
    }.get(summary["method"], f"Each dot is the evaluation of a trial, {greedy}; the line is the best so far.")
    said += " Vertical lines: there a trial failed." if any(row["status"] == "failed" for row in rows) else ""
    if again := [row for row in rows if row.get("finals")]:
        said += f" The best {len(again)} were then trained on further seeds, and their mean decided."
    drawn = charts.course(rows, summary["default_score"], of, together=summary["method"] == "pbt")
    return figures.figure(f"Score of every {of} over the budget", drawn, said)


def _of(summary: Mapping[str, Any]) -> str:
    return "member" if summary["method"] == "pbt" else "trial"


def _confirmed(summary: Mapping[str, Any]) -> list[markup.Markup]:
    confirm = summary["confirm"]
    sides = {name: side for name, side in (confirm or {}).items() if isinstance(side, dict) and side.get("scores")}
    if not sides:
        return []
    names = {"best": "settings found", "default": "the preset's own", "schedule": "schedule found"}
    shown = {names[name]: side for name, side in sides.items()}
    seeds = words.count(len(confirm["seeds"]), "seed")
    said = (
        f"Trained anew on {seeds} that no trial had, {words.number(confirm['steps'])} steps each. Below each row: the "
    )
    said += "interquartile mean (IQM) over seeds and its 95 % bootstrap interval."
    said += f" With {seeds} the interval is a rough guide." if len(confirm["seeds"]) < 10 else ""
    head = ("", "IQM", "95 % interval", *(f"seed {seed}" for seed in confirm["seeds"]))
    table = [
        (name, words.number(side["iqm"]), _within(side["interval"]), *map(words.number, side["scores"]))
        for name, side in shown.items()
    ]
    return [
        figures.figure("The winner and the default on fresh seeds", charts.strip(shown), said),
        tables.table(head, table, "numbers several"),
    ]


def _within(interval: Sequence[float] | None) -> str:
    return f"{words.number(interval[0])} to {words.number(interval[1])}" if interval else words.MISSING


def _settings(config: Mapping[str, Any], summary: Mapping[str, Any]) -> markup.Markup | None:
    if summary["best"] is None:
        return None
    parts = config["experiment"]["parts"]
    rows = []
    for name, value in summary["best"]["settings"].items():
        kind, _, field = name.partition(".")
        own = parts[kind].get(field)
        rows.append((name, *(markup.tag("code", _shown(one)) for one in (value, own)), config["tune"]["priors"][name]))
    return tables.table(("setting", "best", "the preset's own", "searched"), rows, "numbers several")


def _schedule(summary: Mapping[str, Any]) -> markup.Markup | None:
    """Of a population: what these settings are, and where the schedule is drawn."""
    if summary["method"] != "pbt":
        return None
    said = (
        "Means over environment steps along the ancestry of the weights that won. How they changed, and who came from "
    )
    said += "whom, is on "
    link = markup.tag("a", "the population's page", href="population/report.html")
    return markup.tag("p", said, link, ".", class_="note")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else words.setting(value)


def _decides(
    scored: Sequence[Mapping[str, Any]], config: Mapping[str, Any], summary: Mapping[str, Any]
) -> list[markup.Markup]:
    found = axes.settings(scored, config["tune"]["priors"])
    made = []
    if told := summary["importance"]:
        ranks = (
            "Spearman's rank correlation of each setting with the score: how far it rises or falls with it, not a share"
        )
        pedigree = (
            "PED-ANOVA (Watanabe et al. 2023): how far a setting of the best trials is spread otherwise than of all; "
            "shares of 1"
        )
        said = pedigree if told["method"] == "PED-ANOVA" else f"{ranks}."
        made.append(figures.figure(f"Importance of settings ({told['method']})", charts.bars(told), said))
    if len(scored) < 2:
        return made
    scores = [row["rungs"][-1]["score"] for row in scored]
    furthest = [(len(row["rungs"]), score) for row, score in zip(scored, scores, strict=True)]
    trial = (summary["best"] or {}).get("trial")
    order = sorted(range(len(scored)), key=lambda at: (scored[at]["trial"] == trial, *furthest[at]))
    said = (
        "Each line is a trial, from its settings to its score: bold the winner, thin the best quarter, faint the rest."
    )
    made.append(figures.figure("Settings and score", charts.parallel([*found, axes.score(scores)], order), said))
    won = next((at for at, row in enumerate(scored) if row["trial"] == summary["best"]["trial"]), order[-1])
    small = charts.slices(found, scores, won)
    return [*made, markup.tag("div", *small, class_="multiples")]


def _trials(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Any]:
    order = sorted(rows, key=lambda row: (len(row["rungs"]), row["score"] if row["score"] is not None else -np.inf))
    shown = order[::-1][:MANY]
    finals = any(row.get("finals") for row in rows)
    again = ("finals, mean",) if finals else ()
    head = (
        "trial",
        "status",
        "score",
        *again,
        "steps",
        *(name.rpartition(".")[2].replace("_", " ") for name in names),
        "time",
    )
    table = []
    for row in shown:
        status = {"left": "left early", "completed": "trained to the end"}.get(row["status"], row["status"])
        class_ = {"failed": "failed", "running": "interrupted"}.get(row["status"], "completed")
        label = f"{row['trial']}, the preset's own" if row.get("default") else str(row["trial"])
        table.append((
            label, markup.tag("span", status, class_=f"status {class_}"), words.spread(row["score"], row["std"]),
            *([words.number(row.get("finals", {}).get("mean"))] if finals else []), words.number(row["steps"]),
            *(_shown(row["settings"][name]) for name in names), words.seconds(row["wall_s"]),
        ))  # fmt: skip
    failed = [f"Trial {row['trial']} failed: {row['why']}." for row in rows if row["status"] == "failed"]
    told = markup.tag("ul", *(markup.tag("li", line) for line in failed)) if failed else None
    rest = f"{len(rows) - MANY} more trials with lower scores are in trials.json." if len(rows) > MANY else None
    return [
        tables.table(head, table, "numbers several"),
        markup.tag("p", rest, class_="note") if rest else None,
        markup.tag("div", told, class_="faults") if told else None,
    ]


def _plan(config: Mapping[str, Any]) -> markup.Markup:
    plan = config["tune"]
    rungs = ", ".join(f"{rung:,}" for rung in plan["rungs"])
    rows = [
        ("method", METHODS[plan["method"]]),
        ("budget", f"{plan['budget']:,} environment steps"),
        ("trials are judged after", f"{rungs} environment steps"),
        ("episodes of an evaluation", str(plan["eval_episodes"])),
        *((name, markup.tag("code", prior)) for name, prior in plan["priors"].items()),
        *((f"{name}, for all trials", markup.tag("code", _shown(value))) for name, value in config["settings"].items()),
        ("machine", f"{config['machine']['cpu']}, {config['machine']['cores']} cores"),
    ]
    return tables.table(("", ""), rows, "settings")
