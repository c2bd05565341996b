"""`shoal report RUN... --atari`: human-normalised scores beside published ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal.command.verbs import output
from shoal.core import errors
from shoal.report import atari, groups, runs

TITLES = {
    "a3c_ff_1d": "A3C FF, 1 day",
    "a3c_ff_4d": "A3C FF, 4 days",
    "a3c_lstm_4d": "A3C LSTM, 4 days",
    "gorila": "Gorila",
}
STARTS = "published scores are of human starts, those of runs of games begun with up to 30 frames of doing nothing"


def run(folders: Sequence[Path], replaced: Sequence[str], *, as_json: bool) -> int:
    """The verb; the table goes to standard output.

    Args:
        folders: Run folders; none: the published aggregates.
        replaced: ``GAME=SCORE``, random scores to be used instead of those listed.
        as_json: One JSON object instead.

    Returns:
        The exit code.

    Raises:
        Refused: No run folder, no game of the table, or a random score that cannot be read.
    """
    instead = _random(replaced)
    data = _runs(folders, instead) if folders else _published(instead)
    if as_json:
        output.print_json(data)
    else:
        print("\n".join(_run_lines(data) if folders else _published_lines(data)))
    return 0


def _random(replaced: Sequence[str]) -> dict[str, float]:
    """What was given instead of listed random scores."""
    games, found = atari.table(), {}
    for word in replaced:
        name, _, value = word.partition("=")
        if name not in games:
            raise errors.unknown("Atari game", name, games)
        try:
            found[name] = float(value)
        except ValueError:
            raise errors.Refused(f"--random {word}: give GAME=SCORE, e.g. --random video_pinball=0") from None
        if not math.isfinite(found[name]) or found[name] == games[name].human:
            raise errors.Refused(
                f"--random {word}: give a number other than {games[name].human:g}, the score of a human, which is 100 %"
            )
    return found


def _published(instead: Mapping[str, float]) -> dict[str, Any]:
    """Aggregates of the published columns, with each table of random scores."""
    listed = atari.listed_random()
    readings = {"given": dict(instead)} if instead else {"listed": {}, "original": atari.ORIGINAL}
    return {
        "random": readings,
        "published": {
            name: {column: atari.aggregate(atari.column(column), listed | other)._asdict() for column in TITLES}
            for name, other in readings.items()
        },
    }


def _runs(folders: Sequence[Path], instead: Mapping[str, float]) -> dict[str, Any]:
    """Every run beside the published scores of its game, and for each preset the aggregates over its games.

    Runs of one game that differ in more than the seed are averaged apart.
    """
    games, random = atari.table(), {**atari.listed_random(), **instead}
    rows: list[dict[str, Any]] = []
    scores: dict[str, dict[str, list[float]]] = {}
    played, others = _sorted(runs.read_all(folders))
    experiments = groups.split([one for _, one in played])
    titles = {one.path: group.called for group in experiments for one in group.runs}
    for name, one in played:
        score = one.value("eval_return_mean")
        if score is not None:
            scores.setdefault(titles[one.path], {}).setdefault(name, []).append(score)
        rows.append(
            {
                "run": str(one.path),
                "preset": one.preset,
                "game": name,
                "score": score,
                "human_normalised": None if score is None else atari.normalise({name: score}, random)[name],
                "published": {
                    column: {"score": raw, "human_normalised": atari.normalise({name: raw}, random)[name]}
                    for column, raw in games[name].published.items()
                },
            }
        )
    return {
        "random": dict(instead),
        "runs": rows,
        "left_out": [str(one.path) for one in others],
        "aggregate": {
            preset: atari.aggregate({name: statistics.fmean(of) for name, of in found.items()}, random)._asdict()
            for preset, found in scores.items()
        },
    }


def _sorted(found: Sequence[runs.Run]) -> tuple[list[tuple[str, runs.Run]], list[runs.Run]]:
    """Runs on games of the table with the game's name, and the others."""
    played, others, reason = [], [], None
    for one in found:
        try:
            played.append((atari.game(one.env), one))
        except errors.Refused as refusal:
            others.append(one)
            reason = reason or refusal
    if reason and not played:
        raise reason
    return played, others


def _run_lines(data: Mapping[str, Any]) -> list[str]:
    head = ("preset", "game", "score", "normalised", *TITLES.values(), "run")
    rows = [
        (
            row["preset"],
            row["game"],
            _number(row["score"]),
            _percent(row["human_normalised"]),
            *(_both(row["published"].get(column)) for column in TITLES),
            row["run"],
        )
        for row in data["runs"]
    ]
    tail = [
        f"{preset}: mean {total['mean']:.2f} %, median {total['median']:.2f} % over {total['games']} of 57 games"
        for preset, total in data["aggregate"].items()
    ] or ["no run was evaluated: a run is when it is complete, unless by --eval-episodes 0"]
    if data["left_out"]:
        tail.append(f"left out, for their environments are no Atari games: {', '.join(data['left_out'])}")
    return [*_columns(head, rows), *tail, STARTS]


def _published_lines(data: Mapping[str, Any]) -> list[str]:
    head = ("random scores", "column", "games", "mean", "median")
    rows = [
        (_told(data["random"][name]), TITLES[column], str(found["games"]), _percent(found["mean"]),
         _percent(found["median"]))
        for name, columns in data["published"].items()
        for column, found in columns.items()
    ]  # fmt: skip
    return _columns(head, rows)


def _told(instead: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={score:g}" for name, score in instead.items()) or "as listed"


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, cells)) for cells in zip(head, *rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (head, *rows)]  # fmt: skip


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:,.1f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} %"


def _both(found: Mapping[str, float] | None) -> str:
    return "not reported" if found is None else f"{found['score']:,.1f} ({found['human_normalised']:.2f} %)"
