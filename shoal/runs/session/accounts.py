"""What is kept of a run while it goes on, in one record: everything is told and summed up from it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from shoal import experiment, log
from shoal.runs.session import ending, evaluations, lives, memory, saving, scores


class Accounts(NamedTuple):
    """Of one run."""

    folder: Path
    made: experiment.Experiment
    log: log.Log
    scores: scores.Scores
    evaluations: evaluations.Evaluations
    lives: lives.Lives
    ending: ending.Ending
    memory: memory.Memory
    saver: saving.Saver
