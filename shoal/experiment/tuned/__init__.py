"""What presets are made of, and, a file a family, the presets themselves: settings as data, nothing that computes.

What is tuned for one environment was tuned on seeds 1000 and up; results are reported on seeds 0 to 9.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

Settings = Mapping[str, Mapping[str, Any]]  # kind of part -> field -> value


class Tuned(NamedTuple):
    """What differs for one environment."""

    steps: int
    settings: Settings


class Preset(NamedTuple):
    """A combination with a name."""

    summary: str  # one line for `shoal list`
    source: str  # the paper
    algorithm: str
    runtime: str | None  # None: on_device for pure-JAX environments, else host
    env: str  # when none is given
    steps: int  # when the environment has no tuned entry
    settings: Settings
    tuned: Mapping[str, Tuned]  # by environment id, with or without its adapter, or by pattern (`tuned_for`)
    corrector: str = "none"
    compressor: str = "identity"
    caution: str = ""  # what is said wherever it is run and shown, lest it be taken for what it is not


ADAM = {"rule": "adam", "anneal": False, "decay": 0.999, "epsilon": 1e-8, "max_norm": 0.0}
