"""`shoal resume RUN`: an interrupted run, or several, from the newest good checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from etils import epy

from shoal.command import arguments
from shoal.command.verbs import compare, output, tune
from shoal.core import errors

with epy.lazy_imports():
    import tyro

    from shoal import log
    from shoal.runs import training


@dataclasses.dataclass(frozen=True)
class ResumeOptions:
    """Continue an interrupted run from its newest good checkpoint."""

    run: tyro.conf.Positional[Path]
    """The run folder; of several seeds, of a comparison or a search, the folder that holds theirs."""
    steps: int | None = None
    """Go on to so many environment steps in all, also from a complete run; a goal or number of episodes is dropped."""
    reanneal: bool = False
    """With --steps: lower the learning rate over all of them; else its schedule ends where it ended."""
    eval_episodes: int = 20
    """Episodes of the evaluation at the end; 0 for none."""
    quiet: bool = False
    """Show nothing while training."""
    json: bool = False
    """Print the summary as one JSON object."""


def run(typed: list[str]) -> int:
    """The verb.

    Args:
        typed: What stands after ``resume``.

    Returns:
        The exit code: 0, 75 if a signal ended it.

    Raises:
        Refused: No run folder, one in use, or a run that is complete.
    """
    since = output.process_start()
    given = arguments.parse(ResumeOptions, "resume", typed)
    if compare.is_one(given.run):
        if given.steps is not None:
            raise errors.Refused(f"--steps: {given.run} holds a comparison, whose runs have equal steps; leave it out")
        return compare.resume(given.run, given.eval_episodes, since, quiet=given.quiet, as_json=given.json)
    if tune.is_one(given.run):
        if given.steps is not None:
            raise errors.Refused(f"--steps: {given.run} holds a search, whose budget is settled; leave it out")
        return tune.resume(given.run, since, quiet=given.quiet, as_json=given.json)
    run = training.resume(
        given.run, steps=given.steps, reanneal=given.reanneal, console=log.pick(given.quiet),
        eval_episodes=given.eval_episodes, since=since,
    )  # fmt: skip
    return output.ended(run, as_json=given.json, quiet=given.quiet)
