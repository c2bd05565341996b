"""The sessions of several seeds that train in one program, and what they come to together."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shoal import experiment, log
from shoal.core import errors, types
from shoal.report import statistics
from shoal.runs import checkpoint, run_folder, session
from shoal.runs.group import board

SHORT = ("seed", "run", "status", "env_steps", "episodes", "return_mean", "train_return_mean", "eval_return_mean",
    "solved_at_step", "params_sha256")  # fmt: skip
ADDED = ("env_steps", "updates", "episodes")
LARGEST = ("wall_s", "train_s", "startup_s", "peak_rss_mb")


class Asked(NamedTuple):
    """How a group is to be run."""

    console: log.Console
    eval_episodes: int
    since: float  # ``time.time()`` when the command began
    replay: Mapping[str, int] | None  # of one seed; see `memory`
    heard: session.Heard  # of all


class Ended(NamedTuple):
    """What a group came to."""

    policies: list[types.Policy | None]  # one a seed; None: it was ended before its first step
    summaries: list[dict[str, Any]]  # likewise
    summary: dict[str, Any]  # of the group


def seed_folder(folder: Path, seed: int) -> Path:
    """The run folder of one seed of a group."""
    return folder / f"seed-{seed}"


def run(
    folder: Path, members: Sequence[experiment.Experiment], built: experiment.Built, asked: Asked, *, resuming: bool
) -> Ended:
    """Train all seeds and close their folders.

    Args:
        folder: The group's; it and those of the seeds are there, with their ``config.json``.
        members: One experiment a seed; only the seed differs.
        built: Their parts.
        asked: How.
        resuming: Continue each seed from its newest good checkpoint; one that has none begins anew.

    Raises:
        Refused: A folder is in use, or is another run's.
        NoCheckpoint: All of one seed's are damaged.
    """
    with contextlib.ExitStack() as stack:
        for place in (folder, *(seed_folder(folder, made.seed) for made in members)):
            stack.enter_context(checkpoint.lock(place))
        saved = _saved(folder, members, built, asked.console) if resuming else [None] * len(members)
        sessions = Sessions(folder, members, asked, saved, built)
        stack.callback(sessions.close)
        try:
            sessions.train(built)
            return sessions.end(built)
        except BaseException as error:
            sessions.fail(error)
            raise


def _saved(
    folder: Path, members: Sequence[experiment.Experiment], built: experiment.Built, console: log.Console
) -> list[checkpoint.Loaded | None]:
    """Where each seed goes on. They may be at different steps: a kill can come between two saves."""
    found: list[checkpoint.Loaded | None] = []
    for made in members:
        place = seed_folder(folder, made.seed)
        checkpoint.remove_stale(place)
        checkpoint.remove_stale(place / "checkpoints")
        found.append(run_folder.going_on(place, made, built, console.note))
    return found


class Sessions:
    """A session for each seed."""

    def __init__(
        self,
        folder: Path,
        members: Sequence[experiment.Experiment],
        asked: Asked,
        saved: Sequence[checkpoint.Loaded | None],
        built: experiment.Built,
    ) -> None:
        shared = session.Program(len(members), session.Judge(built, session.Still()), asked.heard)
        self._folder, self._members, self._asked, self._saved = folder, members, asked, saved
        self._board = board.Board(asked.console, [made.seed for made in members])
        self._sessions = [
            session.Session(
                seed_folder(folder, made.seed), made, self._board.lane(at), asked.since, resumed,
                replay=asked.replay, shared=shared,
            )
            for at, (made, resumed) in enumerate(zip(members, saved, strict=True))
        ]  # fmt: skip
        self._results: dict[int, types.Result] = {}
        self._summaries: dict[int, dict[str, Any]] = {}
        self._began = time.time() - asked.since

    def close(self) -> None:
        """Close logs and the screen."""
        for kept in self._sessions:
            kept.close()
        self._board.close()

    def train(self, built: experiment.Built) -> None:
        """Run to the end of every seed."""
        for at, (kept, saved) in enumerate(zip(self._sessions, self._saved, strict=True)):
            if saved and kept.over:  # its goal was met before: nothing is left to learn
                self._ended(at, run_folder.as_saved(built, self._members[at], saved))
        if len(self._results) < len(self._members):
            runtime: Any = built.runtime
            first = self._members[0]
            places = [self._place(at) for at in range(len(self._members))]
            try:
                runtime.run_many(built.parts, places, first.steps, first.goal)
            except errors.NotBegun:
                for at, kept in enumerate(self._sessions):
                    if at not in self._results:
                        self._write(at, kept.summary("interrupted", None, self._began))

    def _place(self, at: int) -> types.Place:
        saved, observe = self._saved[at], None if at in self._results else self._sessions[at]
        ended = functools.partial(self._ended, at)
        tree = saved.tree if saved else None
        return types.Place(seed=self._members[at].seed, observe=observe, ended=ended, saved=tree)

    def _ended(self, at: int, result: types.Result) -> None:
        """One seed is done: its last checkpoint and its summary are written while the others go on."""
        kept = self._sessions[at]
        self._board.done(at)
        kept.finish(result)
        self._results[at] = result._replace(final=result.final._replace(save=_gone, policy=None))
        status = "failed" if kept.failed else "interrupted" if kept.stopped_by else "completed"
        said = {"error": kept.failed} if kept.failed else {}
        self._write(at, kept.summary(status, result, self._began) | said)

    def _write(self, at: int, summary: dict[str, Any]) -> None:
        """One seed's summary, without which its folder says less; the last word is with `end` or `fail`."""
        self._summaries[at] = summary
        with contextlib.suppress(OSError):
            run_folder.write_json(self._sessions[at].folder / "summary.json", summary)

    def end(self, built: experiment.Built) -> Ended:
        """Evaluate every seed, unless one was interrupted; write the summaries and the reports."""
        everyone = range(len(self._members))
        if self._asked.eval_episodes and all(s["status"] == "completed" for s in self._summaries.values()):
            for at in everyone:
                result, kept = self._results[at], self._sessions[at]
                self._write(at, self._summaries[at] | kept.evaluated(built, result, self._asked.eval_episodes))
        summaries = [self._summaries[at] for at in everyone]
        whole, say = summary(self._folder, self._members, summaries), self._asked.console.note
        folders = [kept.folder for kept in self._sessions]
        for folder, one in zip(folders, summaries, strict=True):
            run_folder.conclude(folder, one, [folder], say)
        run_folder.conclude(self._folder, whole, folders, say)
        policies = [self._results[at].policy if at in self._results else None for at in everyone]
        return Ended(policies=policies, summaries=summaries, summary=whole)

    def fail(self, error: BaseException) -> None:
        """Write down how it ended."""
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        said = {"error": f"{type(error).__name__}: {error}"}
        for at, kept in enumerate(self._sessions):
            if at not in self._summaries:
                self._write(at, kept.summary(status, None, self._began) | said)
        summaries = [self._summaries[at] for at in range(len(self._members))]
        whole = summary(self._folder, self._members, summaries) | {"status": status} | said
        run_folder.conclude(self._folder, whole, [], self._asked.console.note)


def _gone() -> Any:
    raise RuntimeError("the loop of a seed that has ended is not kept; its last checkpoint is in its folder")


def summary(
    folder: Path, members: Sequence[experiment.Experiment], runs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The group's ``summary.json``; what could not be measured is null.

    Args:
        folder: The group's.
        members: One experiment a seed.
        runs: The summary of each.
    """
    made, states = members[0], {run["status"] for run in runs}
    totals = {key: sum(run[key] for run in runs) for key in ADDED}
    longest = {key: max((run[key] for run in runs if run[key] is not None), default=None) for key in LARGEST}
    replay = [run["replay"] for run in runs if "replay" in run]
    return {
        "run": str(folder),
        "preset": made.preset,
        "env": made.env,
        "seeds": [one.seed for one in members],
        "runtime": made.runtime,
        "status": next((state for state in ("failed", "interrupted") if state in states), "completed"),
        "stopped_by": next((run["stopped_by"] for run in runs if run["stopped_by"]), None),
        **totals,
        **longest,
        "env_steps_per_s": totals["env_steps"] / longest["train_s"] if longest["train_s"] else None,
        **_middle("return", [run["return_mean"] for run in runs]),
        **_spread("train_return", [run["train_return_mean"] for run in runs]),
        **_middle("eval_return", [run["eval_return_mean"] for run in runs]),
        "eval_episodes": next((run["eval_episodes"] for run in runs if run["eval_episodes"]), None),
        "goal": made.goal.target if made.goal else None,
        "solved": sum(run["solved_at_step"] is not None for run in runs) if made.goal else None,
        "exact": all(run["exact"] for run in runs),
        **({"replay": {key: sum(one[key] for one in replay) for key in replay[0]}} if replay else {}),
        "faults": {key: sum(run["faults"].get(key, 0) for run in runs) for run in runs for key in run["faults"]},
        "runs": [{key: run[key] for key in SHORT} for run in runs],
    }


def _spread(name: str, values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and population deviation over the seeds, as tables of papers have them."""
    known = [value for value in values if value is not None]
    mean = sum(known) / len(known) if known else None
    deviation = (sum((v - mean) ** 2 for v in known) / len(known)) ** 0.5 if mean is not None else None
    return {f"{name}_mean": mean, f"{name}_std": deviation}


def _middle(name: str, values: Sequence[float | None]) -> dict[str, Any]:
    """Interquartile mean and 95 % interval over the seeds that were measured."""
    known = [value for value in values if value is not None]
    return {
        f"{name}_iqm": statistics.iqm(known) if known else None,
        f"{name}_interval": list(statistics.interval(known)) if len(known) > 1 else None,
    }
