"""The outcome first: one sentence with the numbers, and the key figures of a group of runs."""

from __future__ import annotations

import statistics as plain
from typing import NamedTuple

from shoal.report import groups as experiments
from shoal.report import runs as run_folders
from shoal.report import statistics, words

ENDED = {
    "completed": "finished",
    "interrupted": "interrupted",
    "failed": "failed",
    "unfinished": "unfinished (no summary yet: still going, or killed)",
}


class Tile(NamedTuple):
    """One key figure."""

    label: str
    value: str
    note: str = ""


def outcome(group: experiments.Group) -> str:
    """``solved``, ``unsolved``, ``finished`` or ``stopped``: what the page's badge says."""
    if any(run.status != "completed" for run in group.runs):
        return "stopped"
    if group.goal is None:
        return "finished"
    return "solved" if all(run.value("solved_at_step") is not None for run in group.runs) else "unsolved"


def verdict(group: experiments.Group) -> str:
    """What was trained and how it went, in one sentence."""
    return f"{group.title}: {_one(group.runs[0]) if len(group.runs) == 1 else _several(group)}."


def _one(run: run_folders.Run) -> str:
    mean, goal, solved = run.value("return_mean"), run.goal, run.value("solved_at_step")
    steps = run.value("env_steps")
    shown = f"mean return of the last 100 episodes {words.number(mean)}"
    if solved is not None:
        said = f"solved ({shown}{_against(mean, goal)}) after {words.number(solved)} steps"
        if mean is not None and goal is not None and mean < goal:
            said = f"solved (goal {words.number(goal)}) after {words.number(solved)} steps, but ended lower ({shown})"
    elif run.status == "completed":
        verb = "finished" if goal is None else "did not reach its goal"
        said = f"{verb} ({shown}{_against(mean, goal)}) after {words.number(steps)} steps"
    else:
        state = ENDED.get(run.status, run.status)
        so_far = (
            f"; {words.number(steps)} steps so far"
            if run.status == "unfinished"
            else f" after {words.number(steps)} steps"
        )
        said = f"{state}{so_far}, {shown}{_against(mean, goal)}"
    seconds = run.value("train_s")
    if seconds is not None:
        said += f", {words.seconds(seconds)} of training"
    return said + (f", {words.count(run.workers, 'worker')}" if run.workers else "")


def _against(mean: float | None, goal: float | None) -> str:
    if mean is None or goal is None:
        return ""
    return f" {'≥' if mean >= goal else '<'} {words.number(goal)}"


def _several(group: experiments.Group) -> str:
    runs, total = group.runs, len(group.runs)
    if group.goal is not None:
        solved = group.values("solved_at_step")
        said = f"{len(solved)} of {words.count(total, 'run')} solved (goal {words.number(group.goal)})"
        said += f", after a median of {words.number(plain.median(solved))} steps" if solved else ""
    else:
        completed = sum(run.status == "completed" for run in runs)
        said = f"{completed} of {words.count(total, 'run')} finished"
    value, note = _over_seeds(group, "return_mean")
    said += f"; mean return of the last 100 episodes {value}" + (f" ({note})" if note else "")
    workers = {run.workers for run in runs}
    one = workers.pop() if len(workers) == 1 else None
    return said + (f", {words.count(one, 'worker')}" if one else "")


def _over_seeds(group: experiments.Group, key: str) -> tuple[str, str]:
    """The interquartile mean of a score over the completed runs, and its interval in words.

    A score so far is not a result: it counts only while no run of the group has completed.
    """
    done = [run for run in group.runs if run.status == "completed"] or group.runs
    values = [value for run in done if (value := run.value(key)) is not None]
    if not values:
        return words.MISSING, ""
    note = f"{len(values)} of {words.count(len(group.runs), 'run')}"
    if len(values) > 1 and group.seeds > 1:
        low, high = map(words.number, statistics.interval(values))
        of = note if len(values) < len(group.runs) else words.count(len(values), "run")
        note = f"IQM of {of}, 95 % interval {low} to {high}"
    return words.number(statistics.iqm(values)), note


def tiles(group: experiments.Group) -> list[Tile]:
    """The key figures, in the order a reader asks for them."""
    return [*_scores(group), *_costs(group), _restarts(group)]


def _scores(group: experiments.Group) -> list[Tile]:
    labels = (("Return, last 100", "return_mean", "return_std"), ("Evaluation", "eval_return_mean", "eval_return_std"))
    if len(group.runs) > 1:
        return [Tile(label, *_over_seeds(group, mean)) for label, mean, _ in labels] + [_solved(group)]
    run = group.runs[0]
    episodes = (run.value("episodes"), run.value("eval_episodes"))
    notes = [
        words.count(n, "episode") + ending if n else "" for n, ending in zip(episodes, (" in all", ""), strict=True)
    ]
    return [
        Tile(label, words.spread(run.value(mean), run.value(deviation)), note)
        for (label, mean, deviation), note in zip(labels, notes, strict=True)
    ] + [_solved(group)]


def _solved(group: experiments.Group) -> Tile:
    goal, solved = group.goal, group.values("solved_at_step")
    if goal is None or not solved:
        steps = group.values("env_steps")
        if goal is None:
            return Tile("Environment steps", _middle(steps, words.number), "no goal was set")
        return Tile(
            "Steps to the goal", "not reached", f"goal {words.number(goal)}; {_middle(steps, words.number)} steps"
        )
    of = f", {len(solved)} of {words.count(len(group.runs), 'run')}" if len(group.runs) > 1 else ""
    return Tile("Steps to the goal", _middle(solved, words.number), f"goal {words.number(goal)}{of}")


def _middle(values: list[float], show: words.Show) -> str:
    return show(plain.median(values) if values else None)


def _costs(group: experiments.Group) -> list[Tile]:
    rows: tuple[tuple[str, str, words.Show], ...] = (
        ("Environment steps/s", "env_steps_per_s", words.number),
        ("Training time", "train_s", words.seconds),
        ("Start-up", "startup_s", words.seconds),
        ("Peak memory", "peak_rss_mb", words.megabytes),
    )
    made = []
    for label, key, show in rows:
        values = group.values(key)
        note = (
            f"median; {show(min(values))} to {show(max(values))}" if len({show(value) for value in values}) > 1 else ""
        )
        made.append(Tile(label, _middle(values, show), note))
    return made


def _restarts(group: experiments.Group) -> Tile:
    known = [run.restarts for run in group.runs if run.restarts is not None]
    note = words.count(int(sum(bool(run.faults) for run in group.runs)), "run") + " with faults, see below"
    faulty = any(run.faults for run in group.runs)
    return Tile("Restarts", words.number(sum(known)) if known else words.MISSING, note if faulty else "")
