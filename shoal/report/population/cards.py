"""The numbers of the section: tiles and tables of one population, and several in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal.report import groups as experiments
from shoal.report import headline, markup, tables, words
from shoal.report import runs as run_folders
from shoal.report.population import courses, told
from shoal.runtimes.population import priors


def tiles(run: run_folders.Run, history: told.History | None) -> list[headline.Tile]:
    """The key figures of one run."""
    Tile = headline.Tile
    members, each = told.number(run, "members"), told.number(run, "bytes_per_member")
    if members is None and history is not None:
        members = history.members
    best, who = told.number(run, "best", "fitness"), told.number(run, "best", "member")
    fresh = run.value("eval_return_mean")
    again = f"fresh episodes: {words.number(fresh)}" if fresh is not None else "the fitness that selected it"
    rounds, moved = told.number(run, "exchanges"), replaced(history)
    after = told.number(run, "compilations_after_first_exchange")
    failed = len(history.failures) if history is not None else told.number(run, "failures")
    spread = told.number(run, "spread")
    return [
        Tile("Members", words.number(members), f"{words.size(each)} each" if each is not None else ""),
        Tile("Best fitness", words.number(best), f"member {words.number(who)}; {again}" if best is not None else again),
        Tile("Mean fitness", words.spread(told.number(run, "mean"), spread), "over the members, when measured last"),
        Tile("Exchanges", words.number(rounds), _exchange(run, moved)),
        Tile("Computed by", *_way(run)),
        Tile("Steps of members", f"{words.number(told.number(run, 'member_steps_per_s'))} / s", _measuring(run)),
        Tile("Programs compiled", words.number(told.number(run, "compilations")),
             f"{words.number(after)} of them after the first exchange" if after is not None else ""),
        Tile("Members replaced, not finite", words.number(failed)),
    ]  # fmt: skip


def replaced(history: told.History | None) -> int | None:
    """How often a member took over from another."""
    return None if history is None else sum(len(round.source) for round in history.rounds)


def _exchange(run: run_folders.Run, moved: int | None) -> str:
    name = told.setting(run, "exchange")
    took = f"{words.count(moved, 'time')} a member took over" if moved is not None else ""
    return ", ".join(filter(None, (str(name).replace("_", "-") if name else "", took)))


def _way(run: run_folders.Run) -> tuple[str, str]:
    mode, block = run.inner("population", "dispatch", "mode"), told.number(run, "dispatch", "block")
    devices = told.number(run, "devices")
    where = f"on {words.count(devices, 'device')}" if devices and devices > 1 else ""
    if not isinstance(mode, str):
        return words.MISSING, ""
    blocks = f"blocks of {words.number(block)}" if mode == "map" and block else ""
    return mode, ", ".join(filter(None, (blocks, where)))


def _measuring(run: run_folders.Run) -> str:
    spent, whole = told.number(run, "measuring_s"), run.value("train_s")
    return f"{words.percent(spent / whole)} of the time measures fitness" if spent is not None and whole else ""


def lost(run: run_folders.Run) -> markup.Markup:
    """What is said where the lineage cannot be read."""
    return markup.tag(
        "p", f"The lineage of {run.path.name} is missing or damaged, so no tree is drawn.", class_="missing"
    )


# ------------------------------------------------------------------------------------------------ tables


def winner(history: told.History | None) -> markup.Markup | None:
    """The winner's hyperparameters: their priors, what its ancestry began with, and what it ended with."""
    if history is None or not history.values:
        return None
    rows = []
    for name in history.values:
        _, values = courses.along(history, name)
        began, ended = (words.three(values[at]) if values else words.MISSING for at in (0, -1))
        rows.append((markup.tag("code", name), _prior(history.priors.get(name)), began, tables.shown(ended)))
    name = f"Hyperparameters of member {history.winner}, which won"
    return _card(name, tables.table(("leaf", "prior", "began", "ended"), rows, "settings"))


def _prior(prior: priors.Prior | None) -> Any:
    if prior is None:
        return tables.shown(words.MISSING)
    numbers = prior.values or (prior.low, prior.high)
    return f"{prior.kind.replace('_', '-')} {', '.join(f'{value:.4g}' for value in numbers)}"


def dispatch(run: run_folders.Run) -> markup.Markup | None:
    """The ways that were measured to compute members, and the one that was chosen."""
    found = run.inner("population", "dispatch", "candidates")
    rows = []
    for one in found if isinstance(found, list) else ():
        if isinstance(one, Mapping):
            name = f"{one.get('mode')}{f', {_block(one)}' if one.get('mode') == 'map' else ''}"
            seconds, compiling = (run_folders.number(one.get(key)) for key in ("seconds", "compiling_s"))
            chosen = all(one.get(key) == run.inner("population", "dispatch", key) for key in ("mode", "block"))
            mark = markup.tag("b", "chosen") if chosen else ""
            rows.append((name, tables.shown(words.brief(seconds)), tables.shown(words.seconds(compiling)), mark))
    if not rows:
        return None
    made = tables.table(("way", "a call", "compiling", ""), rows, "settings")
    return _card("How members are computed, measured at the start", made)


def _block(one: Mapping[str, Any]) -> str:
    return f"blocks of {words.number(run_folders.number(one.get('block')))}"


def exchanges(run: run_folders.Run, history: told.History | None) -> markup.Markup | None:
    """How exchanges were made."""
    way, explore = told.setting(run, "exchange"), told.setting(run, "explore")
    names = ["exchange", "interval", "episodes", *({"truncation": ["fraction"], "mf_pbt": ["intervals"]}.get(way, []))]
    names += ["copy", "explore", *(["factors"] if explore == "perturb" else [])] if way != "none" else []
    rows: list[tuple[Any, Any]] = [
        (name, markup.tag("code", words.setting(value)))
        for name in names
        if (value := told.setting(run, name)) is not None
    ]
    if not rows:
        return None
    far = told.number(run, "min_distance")
    rows.append(("smallest distance of two policies", tables.shown(words.three(far))))
    if history is not None and history.rounds:
        line = {member for _, member in history.ancestry}
        rows.append(("members in the winner's ancestry", words.number(len(line))))
    return _card("Exchange", tables.table(("setting or measure", "value"), rows, "settings"))


def _card(name: str, table: markup.Markup) -> markup.Markup:
    return markup.tag("div", markup.tag("div", markup.tag("h3", name), table, class_="card"))


HEAD = ("run", "members", "exchange", "best fitness", "fresh episodes", "mean fitness", "exchanges", "computed by",
    "steps/s", "failures")  # fmt: skip


def several(found: Sequence[experiments.Group]) -> markup.Markup:
    """A row for each population."""
    rows = []
    for group in found:
        for run, name in zip(group.runs, group.names(), strict=True):
            label = name if len(found) == 1 else f"{group.title}, {name}"
            mark = tables.sample(group.place) if len(found) > 1 else None
            rows.append((markup.join(mark, label), *map(tables.shown, _cells(run))))
    return tables.table(HEAD, rows, "numbers several")


def _cells(run: run_folders.Run) -> list[str]:
    history = told.history(run)
    name, way = told.setting(run, "exchange"), _way(run)
    return [
        words.number(told.number(run, "members")),
        str(name).replace("_", "-") if name else words.MISSING,
        words.number(told.number(run, "best", "fitness")),
        words.spread(run.value("eval_return_mean"), run.value("eval_return_std")),
        words.spread(told.number(run, "mean"), told.number(run, "spread")),
        words.number(told.number(run, "exchanges")),
        way[0],
        words.number(told.number(run, "member_steps_per_s")),
        words.number(len(history.failures)) if history is not None else words.MISSING,
    ]
