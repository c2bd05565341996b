"""The observer of a run, and the keeper of its folder."""

from __future__ import annotations

import contextlib
import functools
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from etils import epy

from shoal import experiment
from shoal import log as logs
from shoal.core import files, types
from shoal.experiment import wiring
from shoal.runs import checkpoint, run_folder
from shoal.runs.session import accounts, ending, evaluations, lives, memory, program, saving, scores, summary, telling

with epy.lazy_imports():
    from shoal.runs import evaluation, parties

T = TypeVar("T")


class Session:
    """The observer (`types.Observer`)."""

    def __init__(
        self,
        folder: Path,
        experiment: experiment.Experiment,
        console: logs.Console,
        since: float,
        resumed: checkpoint.Loaded | None = None,
        *,
        replay: Mapping[str, int] | None = None,
        shared: program.Program = program.Program(),  # noqa: B008  it is immutable
    ) -> None:
        """Open the logs.

        Args:
            folder: The run folder; it exists and holds ``config.json``.
            experiment: What is run.
            console: What a person sees.
            since: ``time.time()`` when the command began.
            resumed: The checkpoint to continue from.
            replay: The summary's words on a replay memory, if there is one.
            shared: With the other seeds of its program.
        """
        self.folder, self._experiment, self._replay = folder, experiment, replay
        self._judge = judge = shared.judge
        meta = resumed.meta if resumed else None
        self._log = logs.Log(
            folder, console, meta.get("log_bytes") if meta is not None else None,
            evaluations=experiment.evaluate_every is not None,
        )  # fmt: skip
        self._scores = scores.Scores(experiment.goal, experiment.episodes, meta or {})
        self._evaluations = evaluations.Evaluations(folder, experiment, meta or {}, judge.still if judge else None)
        self._lives = lives.Lives(experiment, since, meta, shared.seeds, run_folder.spent_s(folder))
        env_steps, updates = (meta["env_steps"], meta["updates"]) if meta else (0, 0)
        self._ending = ending.Ending(experiment, env_steps=env_steps, updates=updates, heard=shared.heard)
        self._named: set[str] = set()  # kinds of what simulators gave that were told of
        how = wiring.ways(experiment.runtime, experiment.configs["runtime"])
        self._saver = saving.Saver(folder, resumed, shared.seeds, how.save_every)
        self._kept = accounts.Accounts(
            folder=folder, made=experiment, log=self._log, scores=self._scores,
            evaluations=self._evaluations, lives=self._lives, ending=self._ending, memory=memory.Memory(),
            saver=self._saver,
        )  # fmt: skip
        self._telling = telling.Telling(self._kept, resumed.step if resumed else 0)
        self._latest = _before(env_steps, updates)
        self._unsaved: str | None = None  # why the newest state is not on the disk, and what to do

    # ---------------------------------------------------------------- types.Observer

    def __call__(self, progress: types.Progress) -> bool:
        """Record, show, save; False when the run should end."""
        if progress.stage is not None:
            self._latest = progress
            self._saver.take(progress)
            self._telling.doing(progress, progress.stage)
            return self.stopped_by is None and not self.over
        self._latest = progress = self._evaluations.net(progress)
        self._take(progress)
        if self.stopped_by is None and not self.over:
            self._evaluate(progress)
        now = time.monotonic()
        self._telling.take(progress, now, over=self.over)
        if self._saver.due(progress, now):
            self._save(progress)
        return self.stopped_by is None and not self.over

    def fault(self, kind: str, message: str) -> None:
        """Show what failed and was mended, and keep it in ``faults.log``."""
        self._log.fault(kind, message)
        after = self._lives.wall_s
        with contextlib.suppress(OSError), (self.folder / "faults.log").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} after {after:.1f} s: {kind}\n{message.rstrip()}\n\n")

    # ---------------------------------------------------------------- how it ends

    @property
    def over(self) -> bool:
        """Whether nothing is left to do before the steps are used up: goal met, enough episodes, or diverged."""
        return self._scores.over or self.gave_up is not None

    @property
    def stopped_by(self) -> str | None:
        """The signal that asked for the end."""
        return self._ending.stopped_by

    @property
    def gave_up(self) -> str | None:
        """Why the run is given up."""
        return self._ending.gave_up

    @property
    def failed(self) -> str | None:
        """Why the run has no result, once it is finished: it was given up, or its last checkpoint is not there."""
        return self.gave_up or self._unsaved

    def close(self) -> None:
        """Close the logs."""
        self._log.close()

    def finish(self, result: types.Result) -> None:
        """The last metrics line and checkpoint; without the latter the run has `failed`."""
        final = self._evaluations.net(result.final)
        self._take(final, last=not self.over)
        if self.stopped_by is None and self.gave_up is None:
            self._evaluate(final, result.policy)
        self._save(final, last=True)
        self._latest = final._replace(save=_gone, policy=None)  # a replay memory in it may be freed
        self._telling.show(final, over=self.over)

    def summary(self, status: str, result: types.Result | None, began_s: float) -> dict[str, Any]:
        """The object of ``summary.json``; see `summary.of`."""
        final = self._evaluations.net(result.final) if result else self._latest
        return summary.of(self._kept, status, began_s, result, final, self._replay)

    def evaluated(self, built: experiment.Built, result: types.Result, episodes: int) -> dict[str, Any]:
        """The evaluation's keys of the summary; a simulator that raises now does not undo the training.

        Args:
            built: The parts.
            result: Of the training; of parties that train together each plays in its own environment.
            episodes: Of each policy.
        """
        seed = self._experiment.seed
        try:
            if result.policies:
                found = self._played(functools.partial(parties.evaluate, built, result.policies, episodes, seed))
                inner = result.final.subsystems.get("federation", {})
                return {**found.summary(), "federation": parties.merged(inner, found)} if found else {}
            played = self._play(built, result.policy, episodes, seed)
        except evaluation.Stopped:
            self._log.note("the evaluation was left; `shoal eval` plays it any time")
            return {}
        finally:
            self._telling.done()
        return played.summary() if played else {}

    def compared(self, built: experiment.Built, result: types.Result, episodes: int, full: Any) -> dict[str, Any]:
        """What the policy that actors ran last comes to, beside the learner's own, on the same seeds.

        Args:
            built: The parts.
            result: Of the training.
            episodes: Of each.
            full: The learner's own mean return, as it was evaluated already.

        Returns:
            Keys of the summary's object `compression`; none where actors ran the policy itself.
        """
        if result.packed is None:
            return {}
        seed = self._experiment.seed
        try:
            if built.parts.device_env is not None:  # compiled episodes are others
                again = self._play(built, result.policy, episodes, seed, simulators=True)
                full = again.summary()["eval_return_mean"] if again else None
            ours = self._play(built, result.policy, episodes, seed, packed=result.packed)
        except evaluation.Stopped:
            return {}
        finally:
            self._telling.done()
        return {
            "return_full": full,
            "return_compressed": ours.summary()["eval_return_mean"] if ours else None,
        }

    # ---------------------------------------------------------------- within

    def _play(
        self, built: experiment.Built, policy: types.Policy, episodes: int, seed: int, **how: Any
    ) -> evaluation.Evaluation | None:
        """An evaluation; None where the simulator raised, which is told."""
        return self._played(functools.partial(evaluation.evaluate, built.parts, policy, episodes, seed, **how))

    def _played(self, play: Callable[..., T]) -> T | None:
        """One or several evaluations; None where a simulator raised."""
        try:
            return play(
                streams=evaluation.streams(self._experiment), stop=lambda: self.stopped_by is not None,
                on_fault=self.fault, say=self._log.note, show=lambda stage: self._telling.doing(self._latest, stage),
            )  # fmt: skip
        except evaluation.Stopped:
            raise
        except Exception:  # noqa: BLE001  whatever the simulator raised is told, and the numbers stay null
            self.fault("the evaluation failed; its numbers are not measured", traceback.format_exc())
            return None

    def _evaluate(self, progress: types.Progress, policy: types.Policy | None = None) -> None:
        """An evaluation on the way, if it is due; with the policy that was learned, at the end."""
        kept, judge = self._evaluations, self._judge
        if judge is None or not kept.due(progress, last=policy is not None):
            return
        if policy is None:
            policy = _policy(judge.built, self._experiment.seed, progress)
        with contextlib.suppress(evaluation.Stopped), kept.playing(progress):
            if played := self._play(judge.built, policy, kept.episodes, kept.seed):
                self._note(progress, policy, played.summary())

    def _note(self, progress: types.Progress, policy: types.Policy, told: Mapping[str, Any]) -> None:
        """Write down what an evaluation came to, and keep the best policy."""
        if told["eval_return_mean"] is None:  # the simulator paid NaN
            return
        found = logs.Evaluated(
            progress.env_steps, told["eval_return_mean"], told["eval_return_std"], told["eval_episodes"]
        )
        self._log.evaluation(found, self._lives.wall_s)
        said = {"updates": progress.updates, "config_sha256": run_folder.digest(self._experiment)}
        try:
            self._evaluations.take(found, policy, {**said, "versions": run_folder.versions()})
        except (checkpoint.NotSaved, checkpoint.NonFiniteError) as error:
            self.fault("the best policy is not saved", str(error))

    def _take(self, progress: types.Progress, *, last: bool = False) -> None:
        self._saver.take(progress)
        self._log.episodes(self._scores.take(progress), self._lives.wall_s)
        self._name(progress)
        self._ending.take(progress, last=last)

    def _name(self, progress: types.Progress) -> None:
        """Say it when a simulator first gave something that is not finite; how often is in the summary."""
        for kind, (what, becomes) in ending.SIMULATORS.items():
            if kind in progress.faults and kind not in self._named:
                self._named.add(kind)
                story = f"they are {becomes}, and counted; `shoal check-env {self._experiment.env}` looks for the first"
                self.fault(f"the simulator gives {what} that are not finite", story)

    def _save(self, progress: types.Progress, *, last: bool = False) -> None:
        """Write a checkpoint; a failure is told and counted, and the run goes on with the older ones."""
        self._telling.write(progress, last=last)
        self._log.sync()
        try:
            self._saver.save(progress, lambda: self._meta(progress))
            self._unsaved = None
        except (checkpoint.NotSaved, checkpoint.NonFiniteError) as error:
            self._unsaved = f"the newest state is not saved: {error}; {_remedy(error, self.folder)}"
            self._lives.not_saved()
            self.fault("checkpoint not saved", str(error))

    def _meta(self, progress: types.Progress) -> dict[str, Any]:
        """What a checkpoint says of the run besides its state."""
        return {
            "env_steps": progress.env_steps,
            "updates": progress.updates,
            **self._scores.meta(),
            **self._evaluations.meta(),
            **self._lives.meta(progress),
            "log_bytes": self._log.lengths(),
            "config_sha256": run_folder.digest(self._experiment),
            "versions": run_folder.versions(),
        }


def _before(env_steps: int, updates: int) -> types.Progress:
    """What there is before the runtime has told of anything."""
    return types.Progress(
        env_steps=env_steps, updates=updates, train_s=0.0, episodes=[], metrics={}, split={}, workers={}, faults={},
        save=_gone,
    )  # fmt: skip


def _gone() -> Any:
    raise RuntimeError("the state of a run that has ended is not kept; its last checkpoint is in its folder")


def _policy(built: experiment.Built, seed: int, progress: types.Progress) -> types.Policy:
    if progress.policy is not None:
        return progress.policy()
    return built.runtime.policy(built.parts, seed, progress.save())


def _remedy(error: Exception, folder: Path) -> str:
    if isinstance(error, checkpoint.NotSaved):
        return f"make room, then `shoal resume {files.typed(folder)}` goes on"
    again = f"`shoal resume {files.typed(folder)}`"
    return f"{again} goes back to the newest checkpoint; lower the rates if it comes to the same"
