"""What seeds that run in one program have in common."""

from __future__ import annotations

from typing import NamedTuple

from shoal.runs.session import evaluations, hearing


class Program(NamedTuple):
    """Of one seed by itself, or of several."""

    seeds: int = 1
    judge: evaluations.Judge | None = None  # what evaluations on the way are played with; None: there are none
    heard: hearing.Heard | None = None  # the signals that are listened to; None: none ends the run
