"""The policy a run starts from: taken from another run, kept in the folder ``start``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shoal import experiment
from shoal.core import errors, tree, types
from shoal.experiment import starting
from shoal.runs import checkpoint

FOLDER = "start"


def write(folder: Path, start: types.Tree) -> None:
    """Keep it.

    Args:
        folder: Of the run, or of one seed of several.
        start: As `starting.kept`.
    """
    checkpoint.save(folder / FOLDER, 0, start, {})


def read(
    folder: Path, made: experiment.Experiment, agent: types.Agent, say: Callable[[str], None]
) -> types.Tree | None:
    """What a run began from; None where it began from nothing.

    Args:
        folder: Of the run, or of the group.
        made: Its experiment.
        agent: That is to start.
        say: Told of a damaged file.

    Raises:
        Refused: It is lost, or another's.
    """
    if made.start is None:
        return None
    try:
        start = checkpoint.newest(folder / FOLDER, starting.like(agent), say, set_aside=False).tree
    except errors.NoCheckpoint as problem:
        raise errors.Refused(
            f"{folder}/{FOLDER}: the policy this run starts from is lost ({problem}); restore it"
        ) from None
    if tree.sha256(start) != made.start:
        raise errors.Refused(f"{folder}/{FOLDER} holds another policy than the one this run starts from; restore it")
    return start
