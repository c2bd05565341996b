"""Search the settings of a preset, in a folder that can be gone on with; what is found is a settings file.

`begin` and `resume` are what the command line calls. The methods are `searching` (random, TPE, halving, with Optuna's
help) and `population` (PBT); what they share is the folder, its rows of trials, and how the winner is confirmed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epy

from shoal import environments, experiment
from shoal.core import errors, types
from shoal.experiment import budget, filed, populating, presets
from shoal.runs import run_folder
from shoal.runs.tuning import beside, life, optuna_side, population, space
from shoal.runs.tuning import folder as folders
from shoal.runs.tuning import plan as plans
from shoal.runs.tuning import summary as summaries

with epy.lazy_imports():
    from shoal.runs import training

Wanted = plans.Wanted
METHODS = plans.METHODS
Asked = life.Asked
Tuned = life.Tuned


def begin(
    request: presets.Request, wanted: plans.Wanted, out: Path | None, runs: Path, command: str, asked: Asked
) -> Tuned:
    """Search.

    Args:
        request: The preset, the environment, and what a person has set by hand; its steps and seed say nothing.
        wanted: The method, the budget, the priors.
        out: The tune folder; one of the same search goes on. None: ``<runs>/tune-<preset>-<env>-<method>-<time>``.
        runs: See `out`.
        command: How it was asked for, for the report.
        asked: How to run it.

    Returns:
        The search; its status is ``interrupted`` if a signal ended it, ``failed`` if no trial came to a score.

    Raises:
        Refused: The request, the priors, the budget or the folder; nothing was created.
        GaveUp: Every trial fails, or the processes of trials cannot be started.
    """
    plans.check(wanted)
    beside.check(wanted.parallel, wanted.method)
    made, priors = _population(request, wanted) if wanted.method == "pbt" else _trials(request, wanted)
    if wanted.method == "pbt":
        wanted = wanted._replace(members=made.configs["runtime"].members)
    texts = {name: space.text(name, prior).partition("=")[2] for name, prior in priors.items()}
    plan = plans.make(wanted, made.steps, texts)
    if wanted.method != "pbt":
        made = dataclasses.replace(made, steps=plan.steps)
    typed = filed.named(made.configs, {kind: presets.config(_bare(request), kind) for kind in experiment.kinds()})
    typed = {name: value for name, value in typed.items() if wanted.method != "pbt" or not name.startswith("runtime.")}
    typed |= {kind: name for kind in filed.CHOICES if (name := request._asdict()[kind]) and name != populating.RUNTIME}
    config = folders.config(plan, made, typed, command)
    if out is not None and folders.is_one(out):
        folders.same(out, config)
        return resume(out, asked)
    folder = run_folder.free(out or runs / _name(made, plan.method), exact=out is not None)
    with run_folder.making(folder, exact=out is not None) as folder:
        run_folder.write_json(folder / "config.json", config)
    return life.run(folder, config, asked)


def is_one(folder: Path) -> bool:
    """Whether `shoal resume` was given a tune folder."""
    return folders.is_one(folder)


def resume(folder: Path, asked: Asked) -> Tuned:
    """Go on with a search: the trial under way from its newest good checkpoint, then those not yet begun.

    Raises:
        Refused: It is complete, in use, or its ``config.json`` was edited.
    """
    config = folders.read(folder)
    if config["tune"]["method"] != "pbt":
        optuna_side.check()
    if run_folder.status(folder) == "completed":
        raise errors.Refused(f"{folder} is complete: nothing is left to do; `shoal tune` begins a new search")
    return life.run(folder, config, asked)


# ------------------------------------------------------------------------------------------ before anything starts


def _trials(request: presets.Request, wanted: plans.Wanted) -> tuple[experiment.Experiment, dict[str, space.Prior]]:
    """The experiment that every trial varies, and the priors, all checked."""
    optuna_side.check()
    priors = space.read(wanted.priors)
    made, opened = presets.resolve(request._replace(steps=None, seed=0))
    experiment.check_environment(opened)
    if (members := experiment.ways(made.runtime, made.configs["runtime"]).members) > 1:
        raise errors.Refused(
            f"{made.preset} trains {members} members, and a trial is one learner; use --method pbt, or the preset of "
            "the rule itself"
        )
    beside.check_runtime(wanted.parallel, made)
    about = _about(made, opened, wanted.parallel)
    priors = priors or space.usual(made, about.hyper)
    space.check_options(priors, made)
    return made, priors


def _population(request: presets.Request, wanted: plans.Wanted) -> tuple[experiment.Experiment, dict[str, space.Prior]]:
    """The same of a population."""
    if request.runtime != populating.RUNTIME:
        raise errors.Refused(
            f"--runtime {request.runtime}: --method pbt trains its members under the runtime {populating.RUNTIME}; "
            f"leave it out, or {population.OTHERS}"
        )
    priors = space.read(wanted.priors)
    members = wanted.members or request.configs.get("runtime", populating.usual(request)).members
    plan = plans.make(wanted._replace(members=members), wanted.budget, {})
    if not priors:
        made, opened = population.resolve(request, plan, ())
        priors = population.usual_priors(made, experiment.build(made, opened).parts.agent.about.hyper)
    made, opened = population.resolve(request, plan, [space.text(*one) for one in priors.items()])
    experiment.check_environment(opened)
    _about(made, opened)
    return made, priors


def _about(made: experiment.Experiment, opened: environments.Opened, learners: int = 1) -> types.About:
    """What is known of the agent; that as many as there are at a time fit into the memory too."""
    experiment.cache()
    training.apart(made)
    agent = experiment.build(made, opened).parts.agent
    needed = budget.need(agent, experiment.traits(made.algorithm, made.configs["algorithm"]).capacity)
    training.checked(made, agent, needed, learners)
    return agent.about


def _bare(request: presets.Request) -> presets.Request:
    """The preset as it comes, on the same environment and with the same parts."""
    return presets.Request(
        preset=request.preset, env=request.env, runtime=request.runtime, corrector=request.corrector,
        compressor=request.compressor,
    )  # fmt: skip


def _name(made: experiment.Experiment, method: str) -> str:
    name = f"tune-{made.preset}-{made.env}-{method}-{time.strftime('%Y%m%d-%H%M%S')}"
    return name.replace("/", "_").replace(":", "_")


def lines(summary: Mapping[str, Any], folder: Path) -> Sequence[str]:
    """The screen a search ends with."""
    return summaries.lines(summary, folder)
