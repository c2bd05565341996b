"""What is said of a run that may well go through and learn nothing: one line, once, before it begins."""

from __future__ import annotations

from shoal.core import types
from shoal.experiment import wiring

PICTURE = 36  # pixels a side from which a picture is one, and no board of a few cells
FEW = (
    20  # pictures of all workers' segments together, below which two environments did not learn within 3 million steps
)
SHARE = 0.25  # of the steps that a preset was given for an environment, below which a run is short


def doubts(made: wiring.Experiment, spec: types.EnvSpec, usual: int) -> str | None:
    """What speaks against a run; None where nothing is known to.

    Args:
        made: What is to be trained.
        spec: Its environment.
        usual: Environment steps that its preset has for it.

    Source: openai/universe-starter-agent and ikostrikov/pytorch-a3c for segments on pictures; Mnih et al. 2016,
    arXiv:1602.01783, figure 4, for methods that live from several workers.
    """
    found = tuple(filter(None, (_segments(made, spec), _workers(made), _steps(made, spec, usual))))
    return "; ".join(found) or None


def _pictures(spec: types.EnvSpec) -> bool:
    return spec.observation.image and min(spec.observation.shape[:2]) >= PICTURE


def _online(made: wiring.Experiment) -> bool:
    """Whether gradients are made of the newest steps alone, each worker's apart."""
    how = wiring.ways(made.runtime, made.configs["runtime"])
    return how.captures and not wiring.traits(made.algorithm, made.configs["algorithm"]).capacity


def _segments(made: wiring.Experiment, spec: types.EnvSpec) -> str | None:
    if not (_pictures(spec) and _online(made)):
        return None
    how, segment = wiring.ways(made.runtime, made.configs["runtime"]), vars(made.configs["algorithm"])["rollout_length"]
    seen = how.learners * how.streams * segment
    if seen >= FEW:
        return None
    return (
        f"segments of {segment} with {how.learners} workers show {seen} pictures at a time, and fewer than {FEW} "
        "hardly learn: give more workers, or --algorithm.rollout-length 20"
    )


def _workers(made: wiring.Experiment) -> str | None:
    how = wiring.ways(made.runtime, made.configs["runtime"])
    if how.workers is None or how.learners != 1 or not _online(made):
        return None
    return (
        f"{made.preset} lives from several workers that see different things, and this is one: give --workers 2 or more"
    )


def _steps(made: wiring.Experiment, spec: types.EnvSpec, usual: int) -> str | None:
    if not _pictures(spec) or made.goal is not None or made.steps >= SHARE * usual:
        return None
    return f"{made.steps:,} steps are few: {made.preset} is given {usual:,} for {made.env}"
