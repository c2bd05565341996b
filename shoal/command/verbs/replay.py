"""`shoal replay RUN`: a recorded run of workers, or of a population, once more in one process, to the same bits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from etils import epy

from shoal.command import arguments
from shoal.command.verbs import output

with epy.lazy_imports():
    import tyro

    from shoal import experiment
    from shoal.runs import replaying


@dataclasses.dataclass(frozen=True)
class ReplayOptions:
    """Do what the workers of a run did, one update after the other in the recorded order, and compare the parameters.

    For runs trained with --replayable, and for populations, whose exchanges are done again as they were recorded. Ends
    with 0 if every checkpoint and the end are equal, with 1 if one differs.
    """

    run: tyro.conf.Positional[Path]
    """The run folder."""
    json: bool = False
    """Print the outcome as one JSON object."""


def run(typed: list[str]) -> int:
    """The verb.

    Args:
        typed: What stands after ``replay``.

    Returns:
        The exit code: 0 equal, 1 different.

    Raises:
        Refused: The run was not replayable.
    """
    given = arguments.parse(ReplayOptions, "replay", typed)
    experiment.cache()
    done = replaying.replay(given.run, output.say)
    rate = f"{done.tickets:,} {done.what}{'' if done.tickets == 1 else 's'} in {done.seconds:.1f} s"
    if done.equal:
        times = "once" if done.compared == 1 else f"{done.compared:,} times"
        output.say(f"equal: {rate}, compared {times}, params_sha256 {done.params_sha256}")
    else:
        where = "ticket" if done.what == "ticket" else "update"
        output.say(f"different: {rate}; the first difference was seen after {where} {done.first_difference:,}")
    if given.json:
        output.print_json(done._asdict())
    return 0 if done.equal else 1
