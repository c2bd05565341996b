"""Population-based training as a search: one run of the population runtime, whose members are the trials.

What it finds is a schedule: the settings of the weights that won, along their ancestry. `best.json` holds their mean
over environment steps, not the last of them, which may be good for weights that have learned and bad to begin with; and
it names the run for ``--from-schedule``. Both are confirmed.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epy

from shoal import environments, experiment
from shoal.core import errors, types
from shoal.experiment import populating, presets
from shoal.runs.tuning import folder as folders
from shoal.runs.tuning import plan as plans
from shoal.runs.tuning import space, trial

with epy.lazy_imports():
    from shoal.runtimes.population import lineage

PLACE = "population"
ROUNDS, UPDATES = 25, 4  # exchanges, where nobody says how far apart they are, with so many updates between two
OTHERS = "--method random, tpe or halving tries settings one after the other, in any environment"


class Search(NamedTuple):
    """What it works with."""

    folder: Path
    plan: plans.Plan
    made: experiment.Experiment  # the population
    rows: list[dict[str, Any]]  # of ``trials.json``, a member each
    how: Callable[[str], trial.How]
    told: Callable[[dict[str, Any]], None]


def resolve(
    request: presets.Request, plan: plans.Plan, priors: Sequence[str]
) -> tuple[experiment.Experiment, environments.Opened]:
    """The population's experiment, checked.

    Args:
        request: What was asked for, the runtime among it.
        plan: Members, and steps of each.
        priors: As they are typed; () where the preset's own are not settled yet.

    Raises:
        Refused: The rule or the environment does not fit into one program; names the other methods.
    """
    runtime = request.configs.get("runtime", populating.usual(request))
    usual = runtime.interval == type(runtime).__dataclass_fields__["interval"].default
    made, opened = _resolved(request, dataclasses.replace(runtime, members=plan.trials, prior=tuple(priors)), plan)
    if usual:
        update = experiment.build(made, opened).parts.agent.about.rollout_length * runtime.environments
        interval = max(UPDATES * update, math.ceil(plan.steps / ROUNDS))
        made = dataclasses.replace(
            made, configs={**made.configs, "runtime": dataclasses.replace(made.configs["runtime"], interval=interval)}
        )
        experiment.validate(made, opened)
    return made, opened


def _resolved(
    request: presets.Request, runtime: Any, plan: plans.Plan
) -> tuple[experiment.Experiment, environments.Opened]:
    asked = request._replace(
        configs={**request.configs, "runtime": runtime}, steps=plan.steps * plan.trials, seed=plans.SEED
    )
    try:
        return presets.resolve(asked)
    except errors.Refused as problem:
        raise errors.Refused(f"--method pbt: {str(problem).rstrip('.')}; {OTHERS}") from None


def usual_priors(made: experiment.Experiment, hyper: Mapping[str, types.Leaf]) -> dict[str, space.Prior]:
    """Those that the preset of a population declares, else the usual ones of its rule."""
    own = presets.find(made.preset).settings.get("runtime", {}).get("prior", ())
    return space.read(own) if own else space.usual(made, hyper)


def alone(made: experiment.Experiment) -> experiment.Experiment:
    """One learner as a member is, but by itself: what winner and default are confirmed as.

    Args:
        made: The population.
    """
    members = made.configs["runtime"]
    name = "on_device" if environments.pure_jax(made.env) else "host"
    more = {"chunk_steps": members.chunk_steps} if name == "on_device" else {"processes": members.processes}
    runtime = experiment.config_class("runtime", name)(environments=members.environments, **more)
    return dataclasses.replace(
        made, runtime=name, configs={**made.configs, "runtime": runtime}, steps=made.steps // members.members
    )


def run(search: Search) -> None:
    """Train the population, or go on with it; then write down what became of its members.

    Raises:
        Stopped: A signal ended it; it was saved.
        GaveUp: More than half of the members failed between two exchanges.
    """
    place, how = search.folder / PLACE, search.how(f"{search.plan.trials} members")
    made = search.made
    asked = presets.Request(
        preset=made.preset, env=made.env, steps=made.steps, seed=made.seed, runtime=made.runtime,
        corrector=made.corrector, compressor=made.compressor, configs=made.configs,
    )  # fmt: skip
    summary = trial.brought(place, asked, how)
    search.rows[:] = rows(place, search.plan, summary)
    folders.keep(search.folder, search.rows)
    for row in search.rows:
        search.told(row)


def rows(place: Path, plan: plans.Plan, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each member, as trials have them: a rung for each time its fitness was measured.

    Args:
        place: The run folder.
        plan: Of the search.
        summary: Of the run.
    """
    events = lineage.read(place)
    rounds = lineage.rounds(events)
    final, each = summary["population"]["fitness"], summary["env_steps"] // plan.trials
    found = []
    for member in range(plan.trials):
        rungs = [
            _rung(one.env_steps, plan, float(one.fitness[member]))
            for one in rounds
            if math.isfinite(float(one.fitness[member])) and one.env_steps < each
        ]
        rungs += [_rung(each, plan, final[member])] if final[member] is not None else []
        failed = sum(event.event == "failure" and event.member == member for event in events)
        mean = _mean(lineage.schedule(events, member), each, plan)
        found.append({
            "trial": member, "seed": plans.SEED, "settings": mean, "score": final[member], "std": None,
            "status": "completed" if final[member] is not None else "failed", "steps": each, "rungs": rungs,
            "why": f"replaced {failed} times, for it was not finite" if failed else "",
            "wall_s": summary["wall_s"], "run": PLACE, "default": False,
        })  # fmt: skip
    return found


def _mean(schedule: Sequence[tuple[int, Mapping[str, float]]], end: int, plan: plans.Plan) -> dict[str, float]:
    """The settings that weights were trained with, the mean over environment steps on the scale of each prior."""
    priors = space.read([f"{name}={prior}" for name, prior in plan.priors.items()])
    edges = [*(steps for steps, _ in schedule[1:]), max(end, schedule[-1][0])]
    weights = [edge - steps for edge, (steps, _) in zip(edges, schedule, strict=True)]
    found: dict[str, float] = {}
    for name, prior in priors.items():
        values, now = [], schedule[0][1][name]
        for _, changed in schedule:
            now = changed.get(name, now)
            values.append(now)
        found[name] = _middle(prior, values, weights if sum(weights) else [1] * len(values))
    return found


def _middle(prior: space.Prior, values: Sequence[float], weights: Sequence[int]) -> float:
    whole = sum(weights)
    if prior.kind == "choice":  # the one that was in force for the longest time
        return max(set(values), key=lambda one: sum(w for v, w in zip(values, weights, strict=True) if v == one))
    if prior.kind == "log_uniform":
        return math.exp(sum(w * math.log(v) for v, w in zip(values, weights, strict=True)) / whole)
    mean = sum(w * v for v, w in zip(values, weights, strict=True)) / whole
    return float(round(mean)) if prior.kind == "integer" else mean


def _rung(steps: int, plan: plans.Plan, score: float) -> dict[str, Any]:
    return {"steps": steps, "score": score, "std": None, "at": steps * plan.trials}


def settings(made: experiment.Experiment, found: Mapping[str, float]) -> dict[str, Any]:
    """A member's settings, as options of a run.

    Args:
        made: One learner alone.
        found: Its leaves. A critic's rate is an option as a multiple of the policy's; a leaf that no option sets is
            left out, and only the schedule has it.
    """
    given: dict[str, Any] = {}
    for name, value in found.items():
        if space.is_option(made, name):
            kind, _, field = name.partition(".")
            whole = isinstance(vars(made.configs[kind])[field], int)
            given[name] = round(value) if whole else float(f"{value:.7g}")
    rate, critic = (found.get(f"{one}.learning_rate") for one in ("optimiser", "critic_optimiser"))
    if rate and critic and space.is_option(made, "algorithm.critic_rate"):
        given["algorithm.critic_rate"] = float(f"{critic / rate:.7g}")
    return given


def finished(folder: Path) -> dict[str, Any]:
    """The summary of the population's run."""
    found: dict[str, Any] = json.loads((folder / PLACE / "summary.json").read_text())
    return found
