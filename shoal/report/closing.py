"""The one screen a run ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal.core import files


def text(summary: Mapping[str, Any], folder: Path) -> str:
    """What a person wants to know when a run has ended.

    Args:
        summary: As in ``summary.json``.
        folder: The run folder.
    """
    rows = [
        ("return", _spread(summary, "return", "last 100 training episodes")),
        ("evaluation", _spread(summary, "eval_return", f"{summary['eval_episodes']} greedy episodes")),
        ("steps", _steps(summary)),
        ("time", _time(summary)),
        ("memory", _number(summary["peak_rss_mb"], "{:,.0f} MB")),
    ]
    if parties := _parties(summary.get("federation", {})):
        rows.insert(2, ("parties", parties))
    if "caution" in summary:
        rows.append(("caution", summary["caution"]))
    rows += [("faults", told) for told in _faults(summary["faults"])]
    interrupted = summary["status"] == "interrupted"
    again = ("resume", f"shoal resume {files.typed(folder)}")
    rows.append(again if interrupted else ("report", str(folder / "report.html")))
    width = max(len(name) for name, _ in rows)
    return "\n".join([_headline(summary), *(f"  {name:<{width}}  {value}" for name, value in rows)])


def _parties(federation: Mapping[str, Any]) -> str:
    """How many took part, the worst of them, and what crossed."""
    if not federation:
        return ""
    worst, rounds, failed = federation.get("evaluation") or {}, federation["rounds"], federation["failed_rounds"]
    told = [f"{federation['owners']}", f"{rounds:,} rounds" if rounds else "nothing exchanged"]
    if worst.get("worst") is not None:
        told.append(f"worst {worst['worst']:.1f} (party {worst['worst_party']})")
    if rounds:
        told.append(f"{(federation['bytes_up'] + federation['bytes_down']) / rounds / 1e3:,.0f} kB a round")
    return ", ".join([*told, f"{failed:,} round{'s' * (failed > 1)} failed"] if failed else told)


def _faults(counts: Mapping[str, int]) -> list[str]:
    """What a person is told of them, a line each."""
    restarts, dropped = counts.get("restarts", 0), counts.get("non_finite", 0)
    told = [f"{restarts} restart{'s' * (restarts > 1)}; faults.log tells why"] if restarts else []
    for what, becomes in (("rewards", "taken as 0"), ("observations", "taken as they were a step before")):
        if bad := counts.get(f"non_finite_{what}", 0):
            told.append(f"the simulator gave {bad:,} {what} that are not finite, {becomes}")
    return [*told, f"{dropped:,} gradients were not finite, and dropped"] if dropped else told


def group(summary: Mapping[str, Any], folder: Path) -> str:
    """The same of several seeds.

    Args:
        summary: As in the group's ``summary.json``.
        folder: The group's folder.
    """
    seeds, runs = summary["seeds"], summary["runs"]
    done = {"completed": "completed", "interrupted": _interrupted(summary, runs)}
    what = f"{summary['preset']} on {summary['env']} (seeds {seeds[0]} to {seeds[-1]})"
    solved = f"; {summary['solved']} of {len(seeds)} reached {summary['goal']:g}" if summary["goal"] is not None else ""
    rows = [
        ("return", _middle(summary, "return", "last 100 training episodes")),
        ("evaluation", _middle(summary, "eval_return", f"{summary['eval_episodes']} greedy episodes a seed")),
        *((f"seed {run['seed']}", _seed(run)) for run in runs[:12]),
        ("steps", f"{summary['env_steps']:,} in {summary['episodes']:,} episodes, {summary['updates']:,} updates"),
        ("time", _time(summary)),
        ("memory", _number(summary["peak_rss_mb"], "{:,.0f} MB")),
        ("resume", f"shoal resume {files.typed(folder)}") if summary["status"] == "interrupted" else
        ("report", str(folder / "report.html")),
    ]  # fmt: skip
    if len(runs) > 12:
        rows.insert(14, ("", f"and {len(runs) - 12} more seeds, in summary.json"))
    width = max(len(name) for name, _ in rows)
    headline = f"{what}: {done.get(summary['status'], summary['status'])}{solved}"
    return "\n".join([headline, *(f"  {name:<{width}}  {value}" for name, value in rows)])


def _steps(summary: Mapping[str, Any]) -> str:
    """The steps taken; told where whole updates made more of them than were asked for."""
    taken, asked = summary["env_steps"], summary.get("steps")
    rounded = f" ({asked:,} asked for: updates are whole)" if asked and taken > asked else ""
    return f"{taken:,}{rounded} in {summary['episodes']:,} episodes, {summary['updates']:,} updates"


def _seed(run: Mapping[str, Any]) -> str:
    solved = f", reached its goal after {run['solved_at_step']:,} steps" if run["solved_at_step"] is not None else ""
    evaluated = f", evaluation {run['eval_return_mean']:.1f}" if run["eval_return_mean"] is not None else ""
    return f"return {_number(run['return_mean'], '{:.1f}')}{evaluated}{solved}"


def _middle(summary: Mapping[str, Any], key: str, over: str) -> str:
    middle, interval = summary[f"{key}_iqm"], summary[f"{key}_interval"]
    if middle is None:
        return "not measured"
    within = f", 95 % interval {interval[0]:.1f} to {interval[1]:.1f}" if interval else ""
    return f"IQM {middle:.1f}{within}   ({over})"


def _headline(summary: Mapping[str, Any]) -> str:
    what = f"{summary['preset']} on {summary['env']} (seed {summary['seed']})"
    if summary["solved_at_step"] is not None:
        return f"{what}: reached {summary['goal']:g} after {summary['solved_at_step']:,} steps"
    ending = {"completed": "completed", "interrupted": _interrupted(summary, [summary])}
    missed = f"; the goal of {summary['goal']:g} was not reached" if summary["goal"] is not None else ""
    return f"{what}: {ending.get(summary['status'], summary['status'])}{missed}"


def _interrupted(summary: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str:
    """By what, and whether there was anything to save: a run that took no step in this life left no parameters."""
    begun = any(run["params_sha256"] for run in runs)
    return f"interrupted by {summary['stopped_by']}{', saved' if begun else ' before the first step'}"


def _spread(summary: Mapping[str, Any], key: str, over: str) -> str:
    if summary[f"{key}_mean"] is None:
        return "not measured"
    return f"{summary[f'{key}_mean']:.1f} ± {summary[f'{key}_std']:.1f}   ({over})"


def _time(summary: Mapping[str, Any]) -> str:
    if summary["train_s"] is None and summary["status"] == "interrupted":
        return f"{_number(summary['wall_s'], '{:.1f} s')} start-up, no training"
    speed = _number(summary["env_steps_per_s"], "{:,.0f} steps/s")
    startup = _number(summary["startup_s"], "{:.1f} s")
    return f"{_number(summary['train_s'], '{:.1f} s')} training ({speed}), {startup} start-up"


def _number(value: float | None, form: str) -> str:
    return "not measured" if value is None else form.format(value)


def comparison(summary: Mapping[str, Any], folder: Path) -> str:
    """The table a comparison ends with.

    Args:
        summary: As in the comparison's ``summary.json``.
        folder: Its folder.
    """
    from shoal.report import comparison as compared

    seeds = summary["seeds"]
    done = {"completed": "completed", "interrupted": f"interrupted by {summary['stopped_by']}, saved"}
    which = f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"
    head = f"{', '.join(summary['presets'])} on {summary['env']} ({which}, {summary['steps']:,} steps each): "
    table = [("", "IQM, last 100", "95 % interval", "evaluation", "all episodes", "steps", "training")]
    table += [(name, *compared.cells(row)) for name, row in summary["presets"].items()]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  " + "  ".join(map(str.rjust, row, widths)) for row in table]
    made = [f"  {key}  {summary[key]}" for key in ("figure", "report") if key in summary]
    if summary["status"] == "interrupted":
        made.append(f"  resume  shoal resume {files.typed(folder)}")
    state = done.get(summary["status"], summary["status"])
    return "\n".join([head + state, *lines, f"  {compared.verdict(summary)}", *made])
