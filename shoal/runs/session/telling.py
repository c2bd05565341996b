"""What a run tells while it goes on: lines of metrics, the status on the screen, ``status.json``; each at its pace."""

from __future__ import annotations

import collections
import os
import time

from shoal import log
from shoal.core import files, types
from shoal.runs import run_folder
from shoal.runs.session import accounts

WRITE_EVERY = 0.1  # seconds between metric lines at first; grows to 1 % of the run so far, 5 s at most
SHOW_EVERY = 0.1  # seconds between looks at the screen, which has a pace of its own
STATUS_EVERY = 5.0  # seconds between two writes of status.json
ASYNCHRONY = ("lag_mean", "lag_max", "overlapped", "contended_share")  # of the workers' numbers, those in the metrics
ACTING = ("staleness", "ess", "actor_inference_share")  # metrics that are shown too


class Telling:
    """Of one run."""

    def __init__(self, kept: accounts.Accounts, step: int) -> None:
        """Args: `kept`, what it tells from; `step`, environment steps that have their line already."""
        self._kept, self._wrote_step = kept, step
        self._earlier = kept.log.earlier("return_mean") if step else ()
        self._stage: types.Stage | None = None
        self._stage_at = 0.0
        self._status: log.Status | None = None  # the last that was no stage's
        self._wrote_at = self._status_at = time.monotonic()
        self._shown_at = 0.0
        self._status_lost = False  # the last status.json could not be written
        self._rate: collections.deque[tuple[float, int]] = collections.deque(maxlen=10)

    def take(self, progress: types.Progress, now: float, *, over: bool) -> None:
        """Tell what it is time to tell.

        Args:
            progress: Of now.
            now: ``time.monotonic()``.
            over: Whether nothing is left to do.
        """
        if self._stage is not None:
            self._stage, self._shown_at = None, 0.0
        if now - self._wrote_at >= min(max(WRITE_EVERY, self._kept.lives.wall_s / 100), 5.0):
            self._wrote_at = now
            self.write(progress)
        if now - self._shown_at >= SHOW_EVERY:
            self._shown_at = now
            self.show(progress, over=over)
        self._sign_of_life(progress, now)

    def doing(self, progress: types.Progress, stage: types.Stage) -> None:
        """Show what is done while no step is taken; a sign of life is given as always, and nothing else written.

        Args:
            progress: The last report.
            stage: What is done.
        """
        now = time.monotonic()
        if self._stage is None or self._stage.doing != stage.doing:
            self._stage_at, self._shown_at = now, 0.0
        self._stage = stage
        if now - self._shown_at >= SHOW_EVERY:
            self._shown_at = now
            status = self._look(progress, over=False)
            self._kept.log.tick(status._replace(stage=stage, stage_s=now - self._stage_at))
        self._sign_of_life(progress, now)

    def done(self) -> None:
        """What was done at last is over: the screen shows what it showed before."""
        self._stage = None
        if self._status is not None:
            self._kept.log.tick(self._status)

    def _sign_of_life(self, progress: types.Progress, now: float) -> None:
        if now - self._status_at >= STATUS_EVERY:
            self._status_at = now
            self._write_status(progress)

    def write(self, progress: types.Progress, *, last: bool = False) -> None:
        """A line of metrics, unless its step has one; the last line is left to the end, which knows more.

        Args:
            progress: Of now.
            last: Whether this is the end.
        """
        if progress.env_steps <= self._wrote_step or (progress.env_steps >= self._kept.made.steps and not last):
            return
        kept = self._kept
        self._wrote_step = progress.env_steps
        self._rate.append((progress.train_s, progress.env_steps))
        kept.log.write(
            progress.env_steps,
            kept.lives.wall_s,
            {
                "env_steps_per_s": self._speed(),
                "return_mean": kept.scores.mean,
                "episodes": kept.scores.episodes,
                "updates": progress.updates,
                **progress.metrics,
                **{f"split_{name}": seconds for name, seconds in progress.split.items()},
                "rss_mb": kept.memory.lately_mb(progress),
                "restarts": kept.lives.faults(progress).get("restarts", 0),
                **({"life": kept.lives.number} if kept.lives.number else {}),
                **{name: progress.workers[name] for name in ASYNCHRONY if name in progress.workers},
                **({"stale": progress.faults["stale"]} if "stale" in progress.faults else {}),
            },
        )

    def show(self, progress: types.Progress, *, over: bool) -> None:
        """The status to the screen, which draws it when it likes."""
        self._stage, self._status = None, self._look(progress, over=over)
        self._kept.log.tick(self._status)

    def _speed(self) -> float | None:
        """Steps a second over the last metric lines."""
        if len(self._rate) < 2:
            return None
        (t0, s0), (t1, s1) = self._rate[0], self._rate[-1]
        return (s1 - s0) / (t1 - t0) if t1 > t0 else None

    def _look(self, progress: types.Progress, *, over: bool) -> log.Status:
        kept, speed = self._kept, self._speed()
        made = kept.made
        return log.Status(
            preset=made.preset,
            env=made.env,
            runtime=made.runtime,
            seed=made.seed,
            step=progress.env_steps,
            steps=made.steps,
            steps_per_s=speed,
            return_mean=kept.scores.mean,
            best=kept.scores.best,
            episodes=kept.scores.episodes,
            split=progress.split,
            workers=progress.workers,
            acting={name: float(value) for name in ACTING if (value := progress.metrics.get(name)) is not None},
            restarts=kept.lives.faults(progress).get("restarts", 0),
            rss_mb=kept.memory.lately_mb(progress),
            checkpoint_age_s=kept.saver.age_s,
            eta_s=0.0 if over else max(0, made.steps - progress.env_steps) / speed if speed else None,
            goal=made.goal.target if made.goal else None,
            evaluated=kept.evaluations.latest,
            earlier=self._earlier,
        )

    def _write_status(self, progress: types.Progress) -> None:
        status = {
            "heartbeat": time.time(),
            "step": progress.env_steps,
            "pid": os.getpid(),
            "workers": progress.workers.get("pids", []),
            "checkpoint": self._kept.saver.newest,
            "stage": self._stage.doing if self._stage else None,
        }
        try:
            run_folder.write_json(self._kept.folder / "status.json", status)
            self._status_lost = False
        except OSError as error:
            if not self._status_lost:
                self._kept.log.note(f"warning: status.json is not written ({files.reason(error)}); the run goes on")
            self._status_lost = True
