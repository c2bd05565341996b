"""What a search comes to: ``best.json``, ``summary.json``, and the lines it ends with."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal import experiment
from shoal.core import files
from shoal.experiment import filed
from shoal.runs import run_folder
from shoal.runs.tuning import folder as folders
from shoal.runs.tuning import optuna_side, population, searching, space
from shoal.runs.tuning import plan as plans


def write_best(
    folder: Path, made: experiment.Experiment, settings: Mapping[str, Any], best: Mapping[str, Any], plan: plans.Plan
) -> None:
    """The settings file of the winner.

    Args:
        folder: The tune folder.
        made: The preset on its environment.
        settings: The winner's, and those that a person gave for all trials, by option name.
        best: The winner's row.
        plan: Of the search.
    """
    seeds = max(1, len(best.get("finals", {}).get("scores", [])))
    source = {
        "tune": str(folder), "method": plan.method, "trial": best["trial"], "score": searching.value(best),
        "score_seeds": seeds, "seed": best["seed"], "eval_episodes": plan.eval_episodes,
    }  # fmt: skip
    if plan.method == "pbt":
        source["schedule"] = str(folder / population.PLACE)
    run_folder.write_json(folder / folders.BEST, filed.data(made.preset, made.env, plan.steps, settings, source))


def make(
    folder: Path,
    config: Mapping[str, Any],
    rows: list[dict[str, Any]],
    status: str,
    stopped_by: str | None,
    confirm: Mapping[str, Any] | None,
    since: float,
) -> dict[str, Any]:
    """``summary.json``; null is what was not measured.

    Args:
        folder: The tune folder.
        config: Its ``config.json``.
        rows: Of its trials.
        status: ``completed``, ``interrupted`` or ``failed``.
        stopped_by: The signal.
        confirm: As `confirming.run` returns it.
        since: ``time.time()`` when the command began.
    """
    plan, best = plans.from_json(config["tune"]), searching.best(rows)
    own = next((row for row in rows if row.get("default")), None)
    there = (folder / folders.BEST).exists() and best is not None
    winner = best and {"score": searching.value(best), "settings": best["settings"], "trial": best["trial"]}
    return {
        "tune": str(folder),
        "method": plan.method,
        "preset": config["preset"],
        "env": config["env"],
        "status": status,
        "stopped_by": stopped_by,
        "trials": len([row for row in rows if row["status"] != "running"]),
        "failed": sum(row["status"] == "failed" for row in rows),
        "best": winner or None,
        "default_score": own["rungs"][-1]["score"] if own and own["rungs"] else None,
        "confirm": dict(confirm) if confirm else None,
        "settings_file": str(folder / folders.BEST) if there else None,
        "schedule": str(folder / population.PLACE) if there and plan.method == "pbt" else None,
        "budget": plan.budget,
        "env_steps": taken(rows),
        "trial_steps": plan.steps,
        "importance": importance(folder, plan, rows) if status == "completed" else None,
        "report": str(folder / "report.html"),
        "search_s": round(_spent(plan, rows), 3),
        "wall_s": round(time.time() - since, 3),
    }


def taken(rows: Sequence[Mapping[str, Any]]) -> int:
    """Environment steps of all trials, finals included."""
    return sum(row["steps"] + row.get("finals", {}).get("steps", 0) for row in rows)


def _spent(plan: plans.Plan, rows: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of all trials, finals included; members share theirs."""
    trials = float((max if plan.method == "pbt" else sum)([row["wall_s"] for row in rows] or [0.0]))
    return trials + sum(row.get("finals", {}).get("wall_s", 0.0) for row in rows)


def importance(folder: Path, plan: plans.Plan, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """How much each setting decides, and how that was found; None where it cannot be told."""
    from shoal.report.tuning import importance as ranks

    if plan.method in ("random", "tpe"):
        priors = space.read([f"{name}={prior}" for name, prior in plan.priors.items()])
        found = optuna_side.Study(folder, "random", priors, plan.trials, plan.seed).importances()
        if found is not None:
            return {"method": "PED-ANOVA", "shares": found}
    return ranks.by_rank(rows, list(plan.priors))


def lines(summary: Mapping[str, Any], folder: Path) -> list[str]:
    """The screen a search ends with."""
    best, confirm = summary["best"], summary["confirm"]
    of = "member" if summary["method"] == "pbt" else "trial"
    head = f"{summary['preset']} on {summary['env']} ({summary['method']}, {summary['trials']} {of}s"
    head += f", {summary['failed']} failed" if summary["failed"] else ""
    ended = {"interrupted": f"interrupted by {summary['stopped_by']}, saved"}.get(summary["status"], summary["status"])
    rows = [("steps", f"{summary['env_steps']:,} of a budget of {summary['budget']:,}, {summary['wall_s']:.0f} s")]
    if best:
        default = summary["default_score"]
        beside = f"; the preset's own settings {default:.4g}" if default is not None else ""
        rows.append(("best", f"{best['score']:.4g}, {of} {best['trial']}{beside}"))
        rows += [("", f"--{name.replace('_', '-')} {_typed(value)}") for name, value in best["settings"].items()]
    if confirm:
        rows += [(f"{name} again", _side(confirm[name])) for name in ("best", "default", "schedule") if name in confirm]
        rows.append(("verdict", _verdict(confirm)))
    if summary["status"] == "interrupted":
        rows.append(("resume", f"shoal resume {files.typed(folder)}"))
    elif best:
        rows += [("settings", f"shoal train {summary['preset']} --settings {files.typed(summary['settings_file'])}"),
                 ("report", summary["report"])]  # fmt: skip
        if summary["schedule"]:
            schedule = files.typed(summary["schedule"])
            rows.insert(-1, ("schedule", f"shoal train {summary['preset']} --from-schedule {schedule}"))
    width = max(len(name) for name, _ in rows)
    return [f"{head}): {ended}", *(f"  {name:<{width}}  {value}" for name, value in rows)]


def _typed(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_typed, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _side(side: Mapping[str, Any]) -> str:
    if side["iqm"] is None:
        return f"not measured ({side['why']})" if side["why"] else "not measured"
    within = f", 95 % interval {side['interval'][0]:.4g} to {side['interval'][1]:.4g}" if side["interval"] else ""
    return f"IQM {side['iqm']:.4g}{within} ({len(side['scores'])} fresh seeds)"


def _verdict(confirm: Mapping[str, Any]) -> str:
    within = confirm["difference"]["interval"]
    by = f": by {within[0]:.4g} to {within[1]:.4g}" if within else ""
    told = {"not told apart": "not told apart from the preset's own"}.get(confirm["verdict"], confirm["verdict"])
    return f"the settings found are {told}{by}" if within else confirm["verdict"]
