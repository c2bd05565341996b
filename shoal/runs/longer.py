"""Writes down that a run goes on beyond the steps it was asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal import experiment
from shoal.runs import checkpoint, group, run_folder


def write(folder: Path, config: Mapping[str, Any], made: experiment.Experiment, seeds: Sequence[int]) -> None:
    """Keep what is asked for now in ``config.json``, of a group also of its seeds; the summary was of less.

    Raises:
        Refused: Another process is at it.
    """
    places = {folder: made}
    if "seeds" in config:
        members = [dataclasses.replace(made, seed=seed) for seed in seeds]
        places |= {group.seed_folder(folder, one.seed): one for one in members}
    for place, one in places.items():
        with checkpoint.lock(place):
            data = run_folder.read_config(place)
            replaced = {*one.to_json(), "episodes", "anneal", "earlier"}  # the last are left out where there are none
            about = {key: value for key, value in data.items() if key not in replaced}
            run_folder.write_json(place / "config.json", one.to_json() | about | run_folder.proof(one))
            (place / "summary.json").unlink(missing_ok=True)
