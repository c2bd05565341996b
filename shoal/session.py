"""One run in its folder: logs, checkpoints, signals, the summary; the observer every runtime reports to."""

from __future__ import annotations

import bisect
import collections
import contextlib
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epy

from shoal import asynchrony, checkpoint, errors, experiment, registry, run_folder, types
from shoal import log as logs

with epy.lazy_imports():
    from shoal import evaluation, tree

WRITE_EVERY = 0.1  # seconds between metric lines at first; grows to 1 % of the run so far, 5 s at most
SHOW_EVERY = 0.1  # seconds between looks at the screen, which has a pace of its own
RSS_EVERY = 1.0  # seconds a look at the memory in use is good for: it takes a millisecond
SAVE_EVERY = 20.0  # seconds between checkpoints at least; the environment variable SHOAL_SAVE_EVERY overrides it
DIVERGED = 1000  # gradients that were not finite, after which a run is given up,
DIVERGED_SHARE = 0.01  # if they are so many of all
ASYNCHRONY = ("lag_mean", "lag_max", "overlapped", "contended_share")  # of the workers' numbers, those in the metrics
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Session:
    """The observer of a run (`types.Observer`), and the keeper of its folder."""

    def __init__(
        self,
        folder: Path,
        experiment: experiment.Experiment,
        console: logs.Console,
        since: float,
        resumed: Any = None,
        *,
        together: int = 1,
        replay: Mapping[str, int] | None = None,
    ) -> None:
        """Open the logs.

        Args:
            folder: The run folder; it exists and holds ``config.json``.
            experiment: What is run.
            console: What a person sees.
            since: ``time.time()`` when the command began.
            resumed: The `checkpoint.Loaded` to continue from.
            together: Seeds that share the program, this one included.
            replay: The summary's words on a replay memory, if there is one.
        """
        self.folder, self._experiment, self._since = folder, experiment, since
        self._together, self._replay = together, replay
        meta: Mapping[str, Any] = resumed.meta if resumed else {}
        self._log = logs.Log(folder, console, meta.get("log_bytes") if resumed else None)
        self._wall_before: float = meta.get("wall_s", 0.0)
        self._train_before: float = meta.get("train_s", 0.0)
        self._faults_before: dict[str, int] = meta.get("faults", {})
        # Alone and together are different programs, which round differently.
        same = meta.get("together", together) == together
        self.exact: bool = meta.get("exact", True) and (not resumed or (same and _resumes_exactly(experiment)))
        self.episodes: int = meta.get("episodes", 0)
        self.solved_at: int | None = meta.get("solved_at_step")
        self.best: float | None = meta.get("best")
        window = max(100, experiment.goal.window if experiment.goal else 0)
        self._window = window
        self._returns: list[tuple[int, int, float]] = [
            tuple(r) for r in meta.get("returns", [])
        ]  # (step, worker, return)
        self._total: float = meta.get("return_total", 0.0)
        self._squares: float = meta.get("return_squares", 0.0)
        self._counted: int = meta.get("returns_counted", 0)
        self.stopped_by: str | None = None
        self.gave_up: str | None = None
        self._latest: types.Progress | None = None
        self._save_every = save_every()
        self._saved = checkpoint.Saved(folder, 0.0, 0)
        self._saved_at = self._wrote_at = self._status_at = time.monotonic()
        self._shown_at = 0.0
        self._rss = (0.0, 0.0)  # when it was looked at, and megabytes
        self._checkpointed_at: float | None = None
        self._wrote_step: int = resumed.step if resumed else 0
        self._recorded = _recorded(folder, meta["tickets"]) if "tickets" in meta else None
        self._rate: collections.deque[tuple[float, int]] = collections.deque(maxlen=10)

    # ---------------------------------------------------------------- types.Observer

    def __call__(self, progress: types.Progress) -> bool:
        """Record, show, save; False when the run should end."""
        self._latest = progress
        self._take(progress)
        now = time.monotonic()
        wall = self.wall_s
        if now - self._wrote_at >= min(max(WRITE_EVERY, wall / 100), 5.0):
            self._wrote_at = now
            if progress.env_steps < self._experiment.steps:  # the last line is left to `finish`: it knows more
                self._write(progress)
        if now - self._shown_at >= SHOW_EVERY:
            self._shown_at = now
            self._log.tick(self._status(progress))
        if now - self._status_at >= 5.0:
            self._status_at = now
            self._write_status(progress)
        pace = self._saved.seconds * self._together if self._save_every else 0.0
        if progress.updates and checkpoint.due(pace, now - self._saved_at, self._save_every):
            self.save(progress)
        return self.stopped_by is None and not self.over

    @property
    def over(self) -> bool:
        """Whether nothing is left to do before the steps are used up: goal met, enough episodes, or diverged."""
        asked = self._experiment.episodes
        enough = asked is not None and self.episodes >= asked
        return self.solved_at is not None or enough or self.gave_up is not None

    def fault(self, kind: str, message: str) -> None:
        """Show what failed and was mended, and keep it in ``faults.log``."""
        self._log.fault(kind, message)
        with contextlib.suppress(OSError), (self.folder / "faults.log").open("a", encoding="utf-8") as file:
            file.write(
                f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} after {self.wall_s:.1f} s: {kind}\n{message.rstrip()}\n\n"
            )

    # ---------------------------------------------------------------- signals

    def listen(self, others: Sequence[Session] = (), say: Callable[[str], None] | None = None) -> None:
        """From here on the first signal asks for an orderly end; a second Ctrl-C leaves at once.

        Args:
            others: Sessions that end with this one.
            say: Shows that it was heard; the run's own console when None.
        """
        if threading.current_thread() is not threading.main_thread():
            return  # signals belong to the program that called us

        def ask(number: int, _: Any) -> None:
            if self.stopped_by and number == signal.SIGINT:
                raise KeyboardInterrupt
            for one in (self, *others):
                one.stopped_by = signal.Signals(number).name
            (say or self._log.note)(f"{self.stopped_by}: finishing the update and saving; Ctrl-C again leaves at once")

        self._handlers = {number: signal.signal(number, ask) for number in SIGNALS}

    def close(self) -> None:
        """Give signals back, close the logs."""
        for number, handler in getattr(self, "_handlers", {}).items():
            signal.signal(number, handler)
        self._log.close()

    # ---------------------------------------------------------------- records

    @property
    def wall_s(self) -> float:
        """Seconds since the command began, those before a resume included."""
        return self._wall_before + time.time() - self._since

    @property
    def return_mean(self) -> float | None:
        """Mean return of the last 100 training episodes; None before the first."""
        last = self._last()
        return sum(last) / len(last) if last else None

    def _last(self, count: int = 100) -> list[float]:
        """The latest returns in the order of steps; once the goal is met, those up to that moment."""
        end = len(self._returns)
        if self.solved_at is not None:
            end = bisect.bisect_right(self._returns, self.solved_at, key=lambda entry: entry[0])
        return [value for _, _, value in self._returns[max(0, end - count) : end]]

    def _take(self, progress: types.Progress) -> None:
        goal, asked = self._experiment.goal, self._experiment.episodes
        # What other environments or seeds finish in the same breath is not counted.
        episodes = progress.episodes if asked is None else progress.episodes[: max(0, asked - self.episodes)]
        for episode in episodes:
            self.episodes += 1
            if math.isfinite(episode.episode_return):  # a simulator that paid NaN: told in episodes.csv, in no mean
                self._total += episode.episode_return
                self._squares += episode.episode_return**2
                self._counted += 1
                bisect.insort(self._returns, (episode.env_steps, episode.worker, episode.episode_return))
            if goal and not progress.watches_goal and self.solved_at is None and goal.met(self._last(goal.window)):
                self.solved_at = episode.env_steps
        if self.solved_at is None:
            self.solved_at = progress.solved_at
        del self._returns[: -4 * self._window]  # late reports of other workers still find their place
        mean = self.return_mean
        if len(self._returns) >= 100 and mean is not None and episodes:
            self.best = mean if self.best is None else max(mean, self.best)
        self._log.episodes(episodes, self.wall_s)
        lost = progress.faults.get("non_finite", 0)
        if lost >= DIVERGED and lost >= DIVERGED_SHARE * progress.updates and self.gave_up is None:
            self.gave_up = f"{lost:,} gradients were not finite; lower the learning rates, or keep their guards"

    def _train_mean(self) -> tuple[float | None, float | None]:
        """Mean and deviation of the returns of all training episodes."""
        if not self._counted:
            return None, None
        mean = self._total / self._counted
        return mean, max(0.0, self._squares / self._counted - mean * mean) ** 0.5

    def _write(self, progress: types.Progress) -> None:
        """A line of metrics, unless its step has one."""
        if progress.env_steps <= self._wrote_step:
            return
        self._wrote_step = progress.env_steps
        self._rate.append((progress.train_s, progress.env_steps))
        self._log.write(
            progress.env_steps,
            self.wall_s,
            {
                "env_steps_per_s": self._speed(),
                "return_mean": self.return_mean,
                "episodes": self.episodes,
                "updates": progress.updates,
                **progress.metrics,
                **{f"split_{name}": seconds for name, seconds in progress.split.items()},
                "rss_mb": self.rss_mb(progress),
                "restarts": self.faults(progress).get("restarts", 0),
                **{name: progress.workers[name] for name in ASYNCHRONY if name in progress.workers},
                **({"stale": progress.faults["stale"]} if "stale" in progress.faults else {}),
            },
        )

    def _speed(self) -> float | None:
        """Steps a second over the last metric lines."""
        if len(self._rate) < 2:
            return None
        (t0, s0), (t1, s1) = self._rate[0], self._rate[-1]
        return (s1 - s0) / (t1 - t0) if t1 > t0 else None

    def _status(self, progress: types.Progress) -> logs.Status:
        made, speed = self._experiment, self._speed()
        return logs.Status(
            preset=made.preset,
            env=made.env,
            runtime=made.runtime,
            seed=made.seed,
            step=progress.env_steps,
            steps=made.steps,
            steps_per_s=speed,
            return_mean=self.return_mean,
            best=self.best,
            episodes=self.episodes,
            split=progress.split,
            workers=progress.workers,
            restarts=self.faults(progress).get("restarts", 0),
            rss_mb=self.rss_mb(progress),
            checkpoint_age_s=time.monotonic() - self._checkpointed_at if self._checkpointed_at else None,
            eta_s=0.0 if self.over else max(0, made.steps - progress.env_steps) / speed if speed else None,
            goal=made.goal.target if made.goal else None,
        )

    def _write_status(self, progress: types.Progress) -> None:
        status = {
            "heartbeat": time.time(),
            "step": progress.env_steps,
            "pid": os.getpid(),
            "workers": progress.workers.get("pids", []),
            "checkpoint": self._saved.folder.name if self._checkpointed_at else None,
        }
        run_folder.write_json(self.folder / "status.json", status)

    def faults(self, progress: types.Progress) -> dict[str, int]:
        """Faults of all lives of the run."""
        before = self._faults_before
        return {name: before.get(name, 0) + progress.faults.get(name, 0) for name in {**before, **progress.faults}}

    def rss_mb(self, progress: types.Progress) -> float:
        """Peak memory of this process, as of a second ago at most, and of its workers, megabytes."""
        seen_at, own = self._rss
        if not seen_at or time.monotonic() - seen_at >= RSS_EVERY:
            own = _peak_mb()
            self._rss = (time.monotonic(), own)
        return own + progress.workers.get("rss_mb", 0.0)

    def train_s(self, progress: types.Progress) -> float:
        """Seconds of training, start-up and compilation apart, all lives of the run."""
        return self._train_before + progress.train_s

    # ---------------------------------------------------------------- checkpoints

    def save(self, progress: types.Progress) -> None:
        """Write a checkpoint; a failure is told, and the run goes on with the older ones."""
        self._write(progress)
        self._log.sync()
        state = progress.save()
        began = time.perf_counter()
        try:
            meta = self._record(progress) | self._meta(progress)
            recording = time.perf_counter() - began
            saved = checkpoint.save(self.folder / "checkpoints", progress.env_steps, state, meta)
            self._saved = saved._replace(seconds=saved.seconds + recording)
        except (checkpoint.NotSaved, checkpoint.NonFiniteError) as error:
            self._log.fault("checkpoint not saved", str(error))
        self._saved_at = self._checkpointed_at = time.monotonic()

    def _meta(self, progress: types.Progress) -> dict[str, Any]:
        """What a checkpoint says of the run besides its state."""
        return {
            "env_steps": progress.env_steps,
            "updates": progress.updates,
            "wall_s": self.wall_s,
            "train_s": self.train_s(progress),
            "episodes": self.episodes,
            "returns": self._returns,
            "return_total": self._total,
            "return_squares": self._squares,
            "returns_counted": self._counted,
            "best": self.best,
            "solved_at_step": self.solved_at,
            "faults": self.faults(progress),
            "log_bytes": self._log.lengths(),
            "config_sha256": run_folder.digest(self._experiment),
            "exact": self.exact,
            "together": self._together,
            "versions": run_folder.versions(),
        }

    def _record(self, progress: types.Progress) -> dict[str, int]:
        """Write the record of a replayable run, at least as long as the checkpoint; what the checkpoint says of it.

        Raises:
            NotSaved: It could not be written; a checkpoint that goes beyond the record could not be resumed.
        """
        if progress.record is None:
            return {}
        record, marks = progress.record()
        about = {"versions": run_folder.versions(), "machine": run_folder.machine()}
        if before := self._recorded:
            record, marks = asynchrony.joined(before.record, record), [*before.marks, *marks]
        try:
            asynchrony.write(self.folder, asynchrony.Kept(record, list(marks), about))
        except OSError as error:
            raise checkpoint.NotSaved(f"{self.folder}/{asynchrony.FILE} could not be written: {error}") from None
        return {"tickets": marks[-1].tickets}

    def finish(self, result: types.Result) -> None:
        """The last metrics line and checkpoint."""
        self._take(result.final)
        self.save(result.final)
        self._log.tick(self._status(result.final))

    def summary(self, status: str, result: types.Result | None, began_s: float) -> dict[str, Any]:
        """The object of ``summary.json``; what could not be measured is null.

        Args:
            status: ``completed``, ``interrupted`` or ``failed``.
            result: What the runtime returned, if it did.
            began_s: Seconds from the command to the start of the runtime.
        """
        made = self._experiment
        final = result.final if result else self._latest
        last, mean = self._last(), self.return_mean
        train_mean, train_std = self._train_mean()
        train_s = self.train_s(final) if final else None
        workers = {k: v for k, v in final.workers.items() if k not in ("pids", "up", "rss_mb")} if final else {}
        return {
            "run": str(self.folder),
            "preset": made.preset,
            "env": made.env,
            "seed": made.seed,
            "runtime": made.runtime,
            "status": status,
            "stopped_by": self.stopped_by,
            "env_steps": final.env_steps if final else 0,
            "updates": final.updates if final else 0,
            "wall_s": self.wall_s,
            "train_s": train_s,
            "startup_s": began_s + result.startup_s if result else None,
            "env_steps_per_s": final.env_steps / train_s if final and train_s else None,
            "return_mean": mean,
            "return_std": (sum((r - mean) ** 2 for r in last) / len(last)) ** 0.5 if mean is not None else None,
            "best_return_mean": self.best,
            "train_return_mean": train_mean,
            "train_return_std": train_std,
            "goal": made.goal.target if made.goal else None,
            "solved_at_step": self.solved_at,
            "eval_return_mean": None,
            "eval_return_std": None,
            "eval_episodes": None,
            "episodes": self.episodes,
            "params_sha256": tree.sha256(result.policy.params) if result else None,
            "peak_rss_mb": _peak_mb() + final.workers.get("rss_mb", 0.0) if final else None,
            "exact": self.exact,
            **({"workers": workers} if workers else {}),
            **({"replay": dict(self._replay)} if self._replay else {}),
            **({name: dict(told) for name, told in final.subsystems.items()} if final else {}),
            "faults": self.faults(final) if final else {},
            "split": dict(final.split) if final else {},
        }

    def evaluated(self, built: experiment.Built, policy: types.Policy, episodes: int) -> dict[str, Any]:
        """The evaluation's keys of the summary; a simulator that raises now does not undo the training."""
        try:
            stop = lambda: self.stopped_by is not None  # noqa: E731
            return evaluation.evaluate(built.parts, policy, episodes, self._experiment.seed, stop=stop).summary()
        except evaluation.Stopped:
            self._log.note("the evaluation was left; `shoal eval` plays it any time")
            return {}
        except Exception:  # noqa: BLE001  whatever the simulator raised is told, and the numbers stay null
            self.fault("the evaluation failed; its numbers are not measured", traceback.format_exc())
            return {}


def _peak_mb() -> float:
    """Peak memory of this process so far, megabytes."""
    import resource

    unit = 1024 if sys.platform != "darwin" else 1024 * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _resumes_exactly(made: experiment.Experiment) -> bool:
    return bool(registry.load("runtime", made.runtime).EXACT_RESUME)


def _recorded(folder: Path, tickets: int) -> asynchrony.Kept:
    """What was recorded up to a checkpoint; what came after it never happened.

    Raises:
        Refused: The record is lost, or shorter.
    """
    kept = asynchrony.read(folder)
    if kept.record.tickets < tickets:
        raise errors.Refused(
            f"{folder}/{asynchrony.FILE} holds {kept.record.tickets} of {tickets} tickets; restore it, or train anew"
        )
    return kept._replace(record=kept.record.first(tickets), marks=[one for one in kept.marks if one.tickets <= tickets])


def save_every() -> float:
    """Seconds between checkpoints at least: `SAVE_EVERY`, or the environment variable SHOAL_SAVE_EVERY.

    0 saves at every report of the runtime, whatever saving costs.

    Raises:
        Refused: The variable does not hold a number of seconds.
    """
    given = os.environ.get("SHOAL_SAVE_EVERY", str(SAVE_EVERY))
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds < float("inf"):
        raise errors.Refused(f"SHOAL_SAVE_EVERY={given!r} is no number of seconds; give e.g. 20, or unset it")
    return seconds
