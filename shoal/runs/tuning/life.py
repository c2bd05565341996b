"""One life of a search: the method, the finals, the confirmation, and the files it ends with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from etils import epy

from shoal import experiment
from shoal.runs import checkpoint, run_folder
from shoal.runs.tuning import confirming, finals, population, screen, searching, space, trial, workshop
from shoal.runs.tuning import folder as folders
from shoal.runs.tuning import plan as plans
from shoal.runs.tuning import summary as summaries

with epy.lazy_imports():
    from shoal.report import tuning as drawing


class Tuned(NamedTuple):
    """A finished (or interrupted) search."""

    folder: Path
    summary: dict[str, Any]


class Asked(NamedTuple):
    """How a search is to be run."""

    quiet: bool
    say: Callable[[str], None]  # one line for a person, once it is over
    since: float  # ``time.time()`` when the command began


class Life:
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


def run(folder: Path, config: Mapping[str, Any], asked: Asked) -> Tuned:
    """Do what is left of a search.

    Args:
        folder: The tune folder.
        config: Its ``config.json``.
        asked: How to run it.
    """
    work = Life(folder, config, asked)
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
