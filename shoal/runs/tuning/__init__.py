"""Search the settings of a preset, in a folder that can be gone on with; what is found is a settings file.

`begin` and `resume` are what the command line calls. The methods are `searching` (random, TPE, halving, with Optuna's
help) and `population` (PBT); what they share is the folder, its rows of trials, and how the winner is confirmed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epy

from shoal import environments, experiment
from shoal.core import errors, types
from shoal.experiment import budget, filed, populating, presets
from shoal.runs import checkpoint, run_folder
from shoal.runs.tuning import confirming, finals, optuna_side, population, screen, searching, space, trial, workshop
from shoal.runs.tuning import folder as folders
from shoal.runs.tuning import plan as plans
from shoal.runs.tuning import summary as summaries

with epy.lazy_imports():
    from shoal.report import tuning as drawing
    from shoal.runs import training

Wanted = plans.Wanted
METHODS = plans.METHODS


class Tuned(NamedTuple):
    """A finished (or interrupted) search."""

    folder: Path
    summary: dict[str, Any]


class Asked(NamedTuple):
    """How a search is to be run."""

    quiet: bool
    say: Callable[[str], None]  # one line for a person, once it is over
    since: float  # ``time.time()`` when the command began


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
        GaveUp: Every trial fails.
    """
    plans.check(wanted)
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
    return _run(folder, config, asked)


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
    return _run(folder, config, asked)


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
    about = _about(made, opened)
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


def _about(made: experiment.Experiment, opened: environments.Opened) -> types.About:
    """What is known of the agent; that it fits into the memory too."""
    experiment.cache()
    training.apart(made)
    agent = experiment.build(made, opened).parts.agent
    needed = budget.need(agent, experiment.traits(made.algorithm, made.configs["algorithm"]).capacity)
    training.checked(made, agent, needed, 1)
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


# ------------------------------------------------------------------------------------------------ the search


class _Work:
    """One life of a search."""

    def __init__(self, folder: Path, config: Mapping[str, Any], asked: Asked) -> None:
        self.folder, self.config, self.asked = folder, config, asked
        self.plan = plans.from_json(config["tune"])
        self.made = experiment.from_json(config["experiment"])
        self.typed: dict[str, Any] = config["settings"]
        self.priors = space.read([f"{name}={prior}" for name, prior in self.plan.priors.items()])
        self.rows = folders.trials(folder)
        self.confirmed = 0  # environment steps
        self.workshop = workshop.Workshop(self.made)
        self.alone = population.alone(self.made) if self.plan.method == "pbt" else self.made
        made = self.made
        of = "members" if self.plan.method == "pbt" else "trials"
        title = f"shoal tune · {made.preset} · {made.env} · {self.plan.method}"
        self.screen = screen.Screen(title, of, quiet=asked.quiet)

    def far(self) -> screen.Far:
        """How far it is."""
        best = searching.best(self.rows)
        over = [row for row in self.rows if row["status"] != "running"]
        of = self.plan.budget + (2 + (self.plan.method == "pbt")) * self.plan.confirm * self.plan.steps
        return screen.Far(
            len(over), self.plan.trials, sum(row["status"] == "failed" for row in self.rows),
            searching.value(best) if best else None, best["trial"] if best else None,
            summaries.taken(self.rows) + self.confirmed, of,
        )  # fmt: skip

    def how(self, what: str) -> trial.How:
        """How something is trained that is called `what`."""
        return trial.How(self.screen.training(what), self.plan.eval_episodes, self.workshop)

    def told(self, row: Mapping[str, Any]) -> None:
        """A trial has come to something."""
        name = f"{'member' if self.plan.method == 'pbt' else 'trial'} {row['trial']}"
        if row["status"] == "failed":
            line = f"{name} failed: {row['why']}"
        elif row["status"] == "left":
            return
        else:
            line = f"{name}: {row['score']:.4g} after {row['steps']:,} steps"
        self.screen.told(self.far(), line)

    def search(self) -> None:
        """The method."""
        if self.plan.method == "pbt":
            population.run(population.Search(self.folder, self.plan, self.made, self.rows, self.how, self.told))
            return
        searching.run(searching.Search(
            self.folder, self.plan, self.made, self.typed, self.priors, self.rows, self.how, self.told
        ))  # fmt: skip

    def finals(self) -> None:
        """The best few on further seeds."""

        def told(row: Mapping[str, Any]) -> None:
            mean = row["finals"]["mean"]
            came = row["finals"]["why"] if mean is None else f"mean {mean:.4g} of {len(row['finals']['scores'])} seeds"
            self.screen.told(self.far(), f"finals of {row['trial']}: {came}")

        finals.run(finals.Finals(
            self.folder, self.plan, self.alone, self.rows, self.settings, self.how, told
        ))  # fmt: skip

    def confirm(self, best: Mapping[str, Any]) -> dict[str, Any]:
        """The winner beside the default."""

        def told(name: str, seeds: int, steps: int) -> None:
            self.confirmed += steps
            self.screen.told(self.far(), f"{name}: trained on {seeds} fresh seed{'s' * (seeds > 1)}")

        work = confirming.Work(self.folder, self.alone, self.plan.steps, self.plan.confirm, self.how, told)
        sides = [confirming.Side("best", self.settings(best)), confirming.Side("default", {})]
        if self.plan.method == "pbt":
            sides.append(confirming.Side("schedule", {}, self.folder / population.PLACE))
        return confirming.run(work, sides)

    def settings(self, best: Mapping[str, Any]) -> dict[str, Any]:
        """The winner's, as options."""
        return population.settings(self.alone, best["settings"]) if self.plan.method == "pbt" else best["settings"]


def _run(folder: Path, config: Mapping[str, Any], asked: Asked) -> Tuned:
    work = _Work(folder, config, asked)
    made, stopped_by, confirm = work.made, None, None
    experiment.prepare(made.runtime, made.algorithm, made.configs, work.plan.trials)
    with checkpoint.lock(folder):
        work.screen.begin(work.far())
        status = "completed"
        try:
            with trial.interruptible():
                work.search()
                work.finals()
                best = searching.best(work.rows)
                if best is None:
                    status = "failed"
                else:
                    summaries.write_best(folder, work.alone, {**work.typed, **work.settings(best)}, best, work.plan)
                    if work.plan.confirm:
                        confirm = work.confirm(best)
        except trial.Stopped as signalled:
            status, stopped_by = "interrupted", str(signalled)
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            told = summaries.make(folder, config, work.rows, status, None, None, asked.since)
            run_folder.conclude(folder, told | {"error": f"{type(error).__name__}: {error}"}, [], asked.say)
            raise
        finally:
            work.screen.close()
        made_summary = summaries.make(folder, config, work.rows, status, stopped_by, confirm, asked.since)
        run_folder.write_json(folder / "summary.json", made_summary)
        _draw(folder, made_summary, asked.say)
    return Tuned(folder, made_summary)


def _draw(folder: Path, summary: Mapping[str, Any], say: Callable[[str], None]) -> None:
    if any(row["rungs"] for row in folders.trials(folder)):
        try:
            drawing.write(folder, summary)
        except OSError as error:
            say(f"warning: {folder}/report.html could not be written ({error})")


def lines(summary: Mapping[str, Any], folder: Path) -> Sequence[str]:
    """The screen a search ends with."""
    return summaries.lines(summary, folder)
