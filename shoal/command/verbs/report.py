"""`shoal report RUN...`: one HTML page about one or more runs; with --atari, a table of scores."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from etils import epy

from shoal.command import arguments
from shoal.command.verbs import output
from shoal.core import errors

with epy.lazy_imports():
    import tyro

    from shoal import report
    from shoal.command.verbs import atari


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """One self-contained HTML page about one or more runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, or folders of several seeds; runs that differ only in their seed are aggregated, others compared."""
    out: Path | None = None
    """The file; default: report.html in the run folder, or in the current one for several runs."""
    atari: bool = False
    """Instead of the page: human-normalised Atari scores beside A3C's and Gorila's; of no run, the published means."""
    random: tuple[str, ...] = ()
    """With --atari: GAME=SCORE, random scores to use instead of those listed, e.g. video_pinball=0."""
    json: bool = False
    """Print the path (the scores, with --atari) as one JSON object."""


def run(typed: list[str]) -> int:
    """The verb.

    Args:
        typed: What stands after ``report``.

    Returns:
        The exit code.

    Raises:
        Refused: No run folders, or options that do not go together.
    """
    given = arguments.parse(ReportOptions, "report", typed)
    if given.atari:
        if given.out:
            raise errors.Refused("--atari prints a table and makes no page; leave --out out")
        return atari.run(given.runs, given.random, as_json=given.json)
    if given.random:
        raise errors.Refused("--random is for the scores that --atari shows; give --atari too")
    if not given.runs:
        raise errors.Refused("give one or more run folders, e.g. `shoal report runs/*`")
    out = given.out or ((given.runs[0] if len(given.runs) == 1 else Path()) / "report.html")
    path = report.write(list(given.runs), out)
    output.say(f"report: {path}")
    if given.json:
        output.print_json({"report": str(path), "runs": [str(run) for run in given.runs]})
    return 0
