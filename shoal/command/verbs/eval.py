"""`shoal eval RUN`: whole episodes with the trained policy."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from etils import epy

from shoal.command import arguments
from shoal.command.verbs import output
from shoal.core import errors

with epy.lazy_imports():
    import tyro

    from shoal.runs import evaluation, training


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """Play whole episodes with the trained policy, frozen and greedy."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    episodes: int = 100
    """How many."""
    seed: int = 0
    """Seed of the episodes."""
    best: bool = False
    """Play with the best policy of those evaluated while it trained (`train --evaluate-every`), not the newest."""
    seconds: float = 600.0
    """Seconds that Python simulators are stepped at most; episodes under way then are left out, and it is said."""
    sample: bool = False
    """Sample actions as in training instead of taking the most probable one."""
    json: bool = False
    """Print the result as one JSON object."""


def run(typed: list[str]) -> int:
    """The verb.

    Args:
        typed: What stands after ``eval``.

    Returns:
        The exit code.

    Raises:
        Refused: No run folder, or a wrong value.
    """
    given = arguments.parse(EvalOptions, "eval", typed)
    if given.episodes < 1:
        raise errors.Refused(f"--episodes {given.episodes}, but at least 1 is needed")
    if not given.seconds > 0:
        raise errors.Refused(f"--seconds {given.seconds:g}, but more than 0 are needed")
    if given.seed < 0:
        raise errors.Refused(f"--seed {given.seed} is negative; give 0 or more")
    built, made, policy = training.load(given.run, output.say, best=given.best)
    played = evaluation.evaluate(
        built.parts, policy, given.episodes, given.seed, greedy=not given.sample, streams=evaluation.streams(made),
        seconds=given.seconds, say=output.say,
    )  # fmt: skip
    returns = [value if math.isfinite(value) else None for value in played.returns]
    result = {"run": str(given.run), "preset": made.preset, "env": made.env, "seed": given.seed,
              "greedy": not given.sample, **played.summary(), "returns": returns,
              "lengths": played.lengths}  # fmt: skip
    mean, spread = result["eval_return_mean"], result["eval_return_std"]
    told = "not measured (the simulator paid NaN)" if mean is None else f"{mean:.2f} ± {spread:.2f}"
    output.say(f"{made.preset} on {made.env}: return {told} over {len(played.returns)} episodes")
    if given.json:
        output.print_json(result)
    return 0
