"""Optuna's side of a search: which settings the next trial has. The one file that imports it, when it is called.

Akiba et al. 2019, "Optuna: A Next-generation Hyperparameter Optimization Framework", arXiv:1907.10902; TPE is that of
Bergstra et al. 2011. Its storage is a journal in the tune folder, lines of JSON that are only ever added to, so a
search that was killed goes on; nothing is unpickled. What a trial is given depends on the search's seed, the trial's
number and what was told before, so a search that was resumed asks what one without a break would have asked.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shoal.core import errors, seeds
from shoal.runs.tuning import space

JOURNAL = "optuna.journal"
STUDY = "tune"
FIRST = 10  # trials before TPE begins to model, at most a third of all
ENOUGH = 8  # trials from which on an importance is told


class Given(NamedTuple):
    """A trial and what it is to be trained with."""

    number: int
    values: dict[str, float]


def check() -> None:
    """Refuse a method that needs Optuna where it is not installed.

    Raises:
        Refused: How to install it.
    """
    if importlib.util.find_spec("optuna") is None:
        raise errors.Refused(
            "the methods random, tpe and halving need Optuna, which is not installed; `pip install 'shoal-rl[tune]'` "
            "brings it, and --method pbt needs nothing"
        )


class Study:
    """A study of Optuna in a tune folder: asked, and told."""

    def __init__(
        self, folder: Path, sampler: str, priors: Mapping[str, space.Prior], trials: int, seed: int, parallel: int = 1
    ) -> None:
        """Open it, or begin it.

        Args:
            folder: The tune folder; this process holds its lock.
            sampler: ``"random"`` or ``"tpe"``.
            priors: Of each setting.
            trials: There will be.
            seed: Of the search.
            parallel: Trials under way at a time; with several, TPE takes those under way for bad ones, for else it
                would propose nearly the same for all.
        """
        import optuna
        import optuna.storages.journal

        optuna.logging.set_verbosity(logging.WARNING)
        self._optuna, self._sampler, self._trials, self._seed = optuna, sampler, trials, seed
        self._parallel = parallel
        self._distributions = {name: _distribution(optuna, prior) for name, prior in priors.items()}
        _mend(folder / JOURNAL)
        storage = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str((folder / JOURNAL).absolute()))
        )
        self._study: Any = optuna.create_study(
            storage=storage, study_name=STUDY, direction="maximize", load_if_exists=True
        )
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state.name == "RUNNING":
                self._given(optuna.trial.Trial(self._study, trial._trial_id))  # killed while it was asked for

    def asked(self) -> dict[int, dict[str, float]]:
        """What every trial so far was given, by its number; those that were never given all of it left out."""
        return {
            trial.number: dict(trial.params)
            for trial in self._study.get_trials(deepcopy=False)
            if set(trial.params) == set(self._distributions)
        }

    def first(self, values: Mapping[str, float]) -> None:
        """The settings of the first trial, e.g. a preset's own; where none was asked for yet."""
        if not self._study.get_trials(deepcopy=False):
            self._study.enqueue_trial(dict(values))

    def ask(self) -> Given:
        """The settings of one more trial.

        They are chosen in memory and written down in one line, so that a kill leaves all of them or none.
        """
        states = [one.state.name for one in self._study.get_trials(deepcopy=False)]
        if "WAITING" not in states:
            self._study.enqueue_trial(self._next(len(states)))
        trial = self._study.ask()
        return Given(trial.number, self._given(trial))

    def _next(self, number: int) -> dict[str, float]:
        """What the sampler chooses for a trial."""
        sampler = self._made(seeds.derive(self._seed, "search", number) % 2**32)
        copy = self._optuna.create_study(direction="maximize", sampler=sampler)
        copy.add_trials(self._study.get_trials(deepcopy=True))
        return dict(copy.ask(self._distributions).params)

    def _given(self, trial: Any) -> dict[str, float]:
        """The settings of a trial under way; those that were written down beforehand."""
        kinds = self._optuna.distributions
        found = {}
        for name, one in self._distributions.items():
            if isinstance(one, kinds.CategoricalDistribution):
                found[name] = trial.suggest_categorical(name, one.choices)
            elif isinstance(one, kinds.IntDistribution):
                found[name] = trial.suggest_int(name, one.low, one.high)
            else:
                found[name] = trial.suggest_float(name, one.low, one.high, log=one.log)
        return found

    def _made(self, seed: int) -> Any:
        samplers = self._optuna.samplers
        if self._sampler == "random":
            return samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna calls `constant_liar` experimental
            return samplers.TPESampler(
                seed=seed, n_startup_trials=max(1, min(FIRST, self._trials // 3)), constant_liar=self._parallel > 1
            )

    def tell(self, number: int, score: float | None, *, left: bool = False) -> None:
        """What a trial came to; a second time nothing happens.

        Args:
            number: Of the trial.
            score: None: it failed.
            left: It was not worth going on with.
        """
        state = "FAIL" if score is None else "PRUNED" if left else "COMPLETE"
        states = self._optuna.trial.TrialState
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = score if state == "COMPLETE" else None  # of one that was left, what was reported last
            self._study.tell(number, value, state=states[state], skip_if_finished=True)

    def report(self, number: int, step: int, score: float) -> None:
        """What a trial under way was judged at after some environment steps."""
        trial = self._optuna.trial.Trial(self._study, self._id(number))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # told before, by the life that was killed
            trial.report(score, step)

    def _id(self, number: int) -> int:
        return next(one._trial_id for one in self._study.get_trials(deepcopy=False) if one.number == number)

    def importances(self) -> dict[str, float] | None:
        """How much each setting decides, shares of 1; None where that cannot be told.

        PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255): how far the distribution of a setting among the best trials
        is from that among all. fANOVA would need scikit-learn.
        """
        done = [one for one in self._study.get_trials(deepcopy=False) if one.state.name == "COMPLETE"]
        if len(done) < ENOUGH or len(self._distributions) < 2 or len({one.value for one in done}) < 2:
            return None
        evaluator = self._optuna.importance.PedAnovaImportanceEvaluator
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = self._optuna.importance.get_param_importances(
                self._study, evaluator=evaluator(), params=list(self._distributions)
            )
        return {name: float(found[name]) for name in self._distributions}


def _distribution(optuna: Any, prior: space.Prior) -> Any:
    kinds = optuna.distributions
    if prior.kind == "choice":
        return kinds.CategoricalDistribution(list(prior.values))
    if prior.kind == "integer":
        return kinds.IntDistribution(int(prior.low), int(prior.high))
    return kinds.FloatDistribution(prior.low, prior.high, log=prior.kind == "log_uniform")


def _mend(journal: Path) -> None:
    """What a kill left: the lock of a process that is gone, and a last line that is not whole."""
    for left in journal.parent.glob(f"{journal.name}.lock*"):
        left.unlink(missing_ok=True)
    try:
        whole = journal.read_bytes()
    except FileNotFoundError:
        return
    if end := len(whole) - len(whole[: whole.rfind(b"\n") + 1]):
        with open(journal, "r+b") as file:
            file.truncate(len(whole) - end)
