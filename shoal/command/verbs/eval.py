"""`shoal eval RUN`: whole episodes with the trained policy."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from etils import epy

from shoal.command import arguments
from shoal.command.verbs import output
from shoal.core import errors

with epy.lazy_imports():
    import tyro

    from shoal import experiment
    from shoal.runs import evaluation, parties, training


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
    party: str | None = None
    """Of parties that train together, who plays: a name, or a number from 0; default: everyone, where it lives."""
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
    made, played, apart = _played(given)
    returns = [value if math.isfinite(value) else None for value in played.returns]
    result = {"run": str(given.run), "preset": made.preset, "env": made.env, "seed": given.seed,
              "greedy": not given.sample, **played.summary(), "returns": returns,
              "lengths": played.lengths, **apart}  # fmt: skip
    mean, spread = result["eval_return_mean"], result["eval_return_std"]
    told = "not measured (the simulator paid NaN)" if mean is None else f"{mean:.2f} ± {spread:.2f}"
    who = f" (party {given.party})" if given.party is not None else ""
    output.say(f"{made.preset} on {made.env}{who}: return {told} over {len(played.returns)} episodes")
    if given.json:
        output.print_json(result)
    return 0


def _played(given: EvalOptions) -> tuple[experiment.Experiment, evaluation.Evaluation, dict[str, Any]]:
    """What was trained, the episodes, and of parties that play each in its own environment what each came to."""
    how: dict[str, Any] = {"greedy": not given.sample, "seconds": given.seconds, "say": output.say}
    if given.best or given.party is not None:
        built, made, policy = training.load(given.run, output.say, best=given.best, party=given.party)
        found = [policy]
    else:
        built, made, policies = training.load_all(given.run, output.say)
        found = list(policies)
    how["streams"] = evaluation.streams(made)
    if len(found) == 1:
        return made, evaluation.evaluate(built.parts, found[0], given.episodes, given.seed, **how), {}
    every = parties.evaluate(built, found, given.episodes, given.seed, **how)
    means = dict(zip(every.names, every.means(), strict=True))
    for name, mean in means.items():
        output.say(f"  {name}: {'not measured' if mean is None else f'{mean:.2f}'}")
    return made, every.together, {"parties": means, **{f"party_{key}": one for key, one in every.told().items()}}
