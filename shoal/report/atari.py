"""Human-normalised scores of the 57 Atari games, beside those of A3C and Gorila.

100 (score - random) / (human - random), human starts. Raw scores: Mnih et al. 2016, arXiv:1602.01783, and Nair et al.
2015, arXiv:1507.04296, as gathered in seungjaeryanlee/rldb. The random scores are an argument everywhere, because
published aggregates were made with different ones: that listed for Video Pinball exceeds its human score, which turns
its sign; A3C's published rows come out with 0 for it, Gorila's with the listed one.
"""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from shoal.core import errors

PUBLISHED = ("a3c_ff_1d", "a3c_ff_4d", "a3c_lstm_4d", "gorila")
ORIGINAL = {"video_pinball": 0.0}  # what differs from the listed random scores where A3C's published rows come out


class Game(NamedTuple):
    """One row of the table."""

    random: float
    human: float
    published: Mapping[str, float]  # column -> raw score; without those that were not reported


class Aggregate(NamedTuple):
    """Human-normalised scores over games, per cent."""

    mean: float
    median: float
    games: int


def table() -> dict[str, Game]:
    """The games by name: ``video_pinball``."""
    text = Path(__file__).with_name("atari_scores.csv").read_text(encoding="utf-8")
    return {
        row["game"]: Game(
            float(row["random"]),
            float(row["human"]),
            {column: float(row[column]) for column in PUBLISHED if row[column]},
        )
        for row in csv.DictReader(text.splitlines())
    }


def listed_random() -> dict[str, float]:
    """The random score of every game as listed; nothing is mended."""
    return {name: game.random for name, game in table().items()}


def normalised(score: float, random: float, human: float) -> float:
    """100 (score - random) / (human - random), per cent.

    Args:
        score: Raw.
        random: Raw score of a random player.
        human: Raw score of a human player.
    """
    return 100.0 * (score - random) / (human - random)


def normalise(scores: Mapping[str, float], random: Mapping[str, float]) -> dict[str, float]:
    """Raw scores by game as human-normalised ones.

    Args:
        scores: Raw, by game.
        random: Of each of these games.

    Raises:
        Refused: A game that is not in the table, or without a random score.
    """
    games = table()
    for name in scores:
        if name not in games:
            raise errors.unknown("Atari game", name, games)
        if name not in random:
            raise errors.Refused(f"there is no random score of {name}; give one for each game that is scored")
    return {name: normalised(score, random[name], games[name].human) for name, score in scores.items()}


def aggregate(scores: Mapping[str, float], random: Mapping[str, float]) -> Aggregate:
    """Mean and median over games of the human-normalised scores.

    Args:
        scores: Raw, by game; at least one.
        random: Of each of these games.

    Raises:
        Refused: As `normalise`.
    """
    found = list(normalise(scores, random).values())
    return Aggregate(statistics.fmean(found), statistics.median(found), len(found))


def column(name: str) -> dict[str, float]:
    """The raw scores of a published column (`PUBLISHED`), by game; games it did not report are left out."""
    return {game: row.published[name] for game, row in table().items() if name in row.published}


def game(env_id: str) -> str:
    """The table's name of an environment: ``ALE/VideoPinball-v5`` and ``envpool:VideoPinball-v5`` are video_pinball.

    Raises:
        Refused: It is no game of the table.
    """
    games, found = table(), re.fullmatch(r"(?:ALE/|envpool:)(\w+?)-v\d+", env_id)
    name = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", found[1]).lower() if found else env_id
    if name not in games:
        raise errors.unknown(
            "Atari game", env_id, games, "Human-normalised scores need one of these, e.g. ALE/Pong-v5."
        )
    return name
