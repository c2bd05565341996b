"""The numbers of the section: tiles and tables of one federation, and several in one table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from shoal.report import groups as experiments
from shoal.report import headline, markup, tables, words
from shoal.report import runs as run_folders
from shoal.report.federation import told

SENTENCE = (
    "Raw transitions do not leave the owner; this alone is not a privacy guarantee, because gradients and weights can "
    "reveal data."
)
REASONS = 3  # of rejections that a tile names
LONG = 12  # parties beyond which their table scrolls by itself


def tiles(run: run_folders.Run) -> list[headline.Tile]:
    """The key figures of one run."""
    Tile = headline.Tile
    made = [Tile("Parties", words.number(len(told.owners(run)) or None), _form(run)), *_returns(run)]
    if not told.exchanges(run):
        return [*made, Tile("Messages", "none", "every party learns alone")]
    failed, rounds = told.number(run, "failed_rounds"), told.number(run, "rounds")
    lost = sum(told.rejected(run).values())
    return [
        *made,
        Tile("Rounds", words.number(rounds), ", ".join(filter(None, (_mode(run), _missed(failed))))),
        Tile("Sent up", words.size(told.number(run, "bytes_up")), _each(run, "bytes_up")),
        Tile("Sent down", words.size(told.number(run, "bytes_down")), _each(run, "bytes_down")),
        Tile("Epsilon spent", *_epsilon(run)),
        Tile("Messages rejected", words.number(lost) if run.summary else words.MISSING, _why(run)),
    ]


def _form(run: run_folders.Run) -> str:
    ours, own = told.number(run, "global_params"), told.number(run, "local_params")
    name = form(run)
    counts = f"{words.number(ours)} global and {words.number(own)} local parameters" if ours is not None else ""
    return ", ".join(filter(None, (name, counts)))


def form(run: run_folders.Run) -> str:
    """How global and local layers are put together."""
    given = str(told.setting(run, "form", "network") or told.text(run, "form"))
    if not told.exchanges(run):
        return "nothing global"
    return f"form {given}" if given in told.FORMS else "everything global" if given == "none" else given


class Levels(NamedTuple):
    """How parties did at the end, by their evaluations."""

    mean: float
    worst: float
    who: str  # the worst
    of: int  # parties that were evaluated


def levels(run: run_folders.Run) -> Levels | None:
    """Mean and worst party; None where nobody was evaluated, or returns are of several scales."""
    owners, found = told.owners(run), told.evaluations(run)
    values = [owner.evaluation for owner in owners]
    if any(value is None for value in values) and len(found.steps):
        values = [None if math.isnan(value) else value for value in found.returns[-1].tolist()]
    known = [(value, owner.name) for value, owner in zip(values, owners, strict=False) if value is not None]
    if not known or not told.comparable(run):
        return None
    low, who = min(known)
    return Levels(sum(value for value, _ in known) / len(known), low, who, len(known))


def _returns(run: run_folders.Run) -> list[headline.Tile]:
    """Mean and worst, always together."""
    found = levels(run)
    if found is None:
        note = "" if told.comparable(run) else "parties have environments of different kinds"
        return [headline.Tile("Mean and worst party", words.MISSING, note)]
    whole = found.of == len(told.owners(run))
    note = "greedy episodes of every party" if whole else f"of {found.of} of the parties"
    who = found.who if found.who.startswith("party") else f"party {found.who}"
    return [
        headline.Tile("Mean over the parties", words.number(found.mean), note),
        headline.Tile("Worst party", words.number(found.worst), who),
    ]


def _mode(run: run_folders.Run) -> str:
    mode = told.text(run, "mode") or str(told.setting(run, "exchange") or "")
    parts = [mode.replace("_", " "), told.text(run, "aggregator").replace("_", " ")]
    if told.setting(run, "asynchronous"):
        parts.insert(1, "asynchronous")
    share = None if told.setting(run, "asynchronous") else told.share(run, "mean")
    parts.append(f"{words.percent(share)} take part" if share is not None and share < 1 else "")
    return ", ".join(filter(None, parts))


def _missed(failed: float | None) -> str:
    return f"{words.number(failed)} failed" if failed else ""


def _each(run: run_folders.Run, key: str) -> str:
    """Bytes of one message, from the totals."""
    rounds, total, parties = told.number(run, "rounds"), told.number(run, key), len(told.owners(run))
    if not (rounds and total is not None and parties):
        return ""
    share = told.share(run, "mean")
    return f"{words.size(total / (rounds * parties * (share or 1.0)))} a party and round"


def _epsilon(run: run_folders.Run) -> tuple[str, str]:
    spent, delta, most = told.number(run, "epsilon"), told.number(run, "delta"), told.limit(run)
    if spent is None:
        return "none", "no noise was added, so nothing is guaranteed and there is no epsilon"
    unit = told.text(run, "privacy_unit")
    held = told.number(run, "epsilon_rdp")  # what the budget is held against, a little more
    left = max(0.0, most - (spent if held is None else held)) if most else None
    said = f"{words.three(left)} of {words.number(most)} left" if left is not None else "without a budget"
    at = f"at delta {delta:.0e}".replace("e-0", "e−") if delta is not None else ""
    noted = "; ".join(filter(None, (said, at, f"unit: one {unit}" if unit else "")))
    return words.number(spent), noted


def _why(run: run_folders.Run) -> str:
    reasons = sorted(told.rejected(run).items(), key=lambda item: -item[1])
    named = [f"{words.number(count)} {reason.replace('_', ' ')}" for reason, count in reasons[:REASONS]]
    rest = sum(count for _, count in reasons[REASONS:])
    return ", ".join([*named, f"{words.number(rest)} others"] if rest else named)


def boundary(runs: Sequence[run_folders.Run]) -> markup.Markup:
    """What stays at home, what that does not give, and what was only simulated."""
    lines = [markup.tag("li", SENTENCE)]
    simulated = dict.fromkeys(one for run in runs for one in told.simulated(run))
    said = [one if one.startswith("simulated") else f"simulated: {one}" for one in simulated]
    said += dict.fromkeys(warned for run in runs if (warned := told.text(run, "privacy_warning")))
    lines += [markup.tag("li", f"{one[:1].upper()}{one[1:]}.", class_="not") for one in said]
    return markup.tag("ul", *lines, class_="findings")


# ------------------------------------------------------------------------------------------------ tables


def parties(run: run_folders.Run) -> markup.Markup | None:
    """A row for each party."""
    owners = told.owners(run)
    if not owners:
        return None
    sent = told.messages(run)
    head: tuple[Any, ...] = ("party", "environment", "env steps", "return, last 100", "evaluation")
    kinds = ("counted", "nothing to say", "too late", "rejected or failed") if len(sent.party) else ()
    rows = []
    for at, owner in enumerate(owners):
        outcomes = sent.outcome[sent.party == at]
        cells = [words.number(owner.steps), words.number(owner.reached), words.number(owner.evaluation)]
        cells += [words.number(float(count)) for count in told.sorted_out(outcomes)] if kinds else []
        rows.append((owner.name, markup.tag("code", owner.env), *map(tables.shown, cells)))
    return tables.table((*head, *kinds), rows, "numbers several" + (" long" if len(rows) > LONG else ""))


def facts(run: run_folders.Run) -> markup.Markup | None:
    """How parties exchange, and what was refused."""
    made = [card for card in (_exchange(run), _reasons(run)) if card]
    return markup.tag("div", *made, class_="configuration") if made else None


def _exchange(run: run_folders.Run) -> markup.Markup | None:
    names = ("exchange", "local_updates", "asynchronous", "aggregator")
    rows: list[tuple[Any, Any]] = [
        (name.replace("_", " "), markup.tag("code", words.setting(value)))
        for name in names
        if (value := told.setting(run, name)) is not None
    ]
    numbers: list[tuple[str, float | None, words.Show]] = [
        ("rounds", told.number(run, "rounds"), words.number),
        ("rounds that failed", told.number(run, "failed_rounds"), words.number),
        ("share of the parties in a round, least", told.share(run, "min"), words.percent),
        ("share of the parties in a round, mean", told.share(run, "mean"), words.percent),
        ("norm of an update, median", told.measure(run, "update_norm", "median"), words.three),
        ("norm of an update, most", told.measure(run, "update_norm", "max"), words.three),
        ("updates that were clipped", told.number(run, "clip_fraction"), words.percent),
        ("staleness, median", told.measure(run, "staleness", "median"), words.number),
        ("staleness, most", told.measure(run, "staleness", "max"), words.number),
        ("dropped as too stale", told.number(run, "dropped_stale"), words.number),
    ]
    if told.setting(run, "asynchronous"):
        numbers = [one for one in numbers if not one[0].startswith("share of the parties")]
    rows += [(name, tables.shown(show(value))) for name, value, show in numbers if run.summary]
    relation = told.text(run, "privacy_relation")
    rows += [("what epsilon promises to hide", relation)] if relation else []
    return _card("Exchange", rows, ("setting or measure", "value")) if rows and told.exchanges(run) else None


def _reasons(run: run_folders.Run) -> markup.Markup | None:
    rows = [
        (reason.replace("_", " "), words.number(count))
        for reason, count in sorted(told.rejected(run).items(), key=lambda item: -item[1])
    ]
    return _card("Messages rejected", rows, ("reason", "messages")) if rows else None


def _card(name: str, rows: Sequence[tuple[Any, Any]], head: tuple[str, str]) -> markup.Markup:
    table = tables.table(head, rows, "settings")
    return markup.tag("div", markup.tag("div", markup.tag("h3", name), table, class_="card"))


HEAD = ("run", "parties", "form", "exchange", "mean", "worst party", "rounds", "sent up", "global parameters",
    "epsilon", "rejected")  # fmt: skip


def several(found: Sequence[experiments.Group]) -> markup.Markup:
    """A row for each experiment; of several seeds their mean."""
    rows = []
    for group in found:
        mark = tables.sample(group.place) if len(found) > 1 else None
        label = f"{group.title}, {group.names()[0] if len(group.runs) == 1 else words.count(group.seeds, 'seed')}"
        rows.append((markup.join(mark, label), *map(tables.shown, _cells(group.runs))))
    return tables.table(HEAD, rows, "numbers several")


def _cells(runs: Sequence[run_folders.Run]) -> list[str]:
    first, sends = runs[0], told.exchanges(runs[0])
    epsilon = [told.number(run, "epsilon") for run in runs]
    reached = [levels(run) for run in runs]
    lost = [sum(told.rejected(run).values()) if run.summary else None for run in runs]

    def middle(key: str) -> float | None:
        return _mean([told.number(run, key) for run in runs])

    return [
        words.number(len(told.owners(first)) or None),
        form(first) or words.MISSING,
        _mode(first) if sends else "none",
        words.number(_mean([one and one.mean for one in reached])),
        words.number(_mean([one and one.worst for one in reached])),
        words.number(middle("rounds")) if sends else "none",
        words.size(middle("bytes_up")) if sends else "0 B",
        words.number(middle("global_params")),
        words.number(_mean(epsilon)) if any(one is not None for one in epsilon) else "none",
        words.number(_mean(lost)),
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    """Of what was measured everywhere; None where it was not."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
