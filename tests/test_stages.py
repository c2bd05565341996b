"""What a run tells before its first step and after its last, what a signal does then, and what a resume takes up."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import types as python_types

import numpy as np
import pytest

from shoal import log, report
from shoal.algorithms import actor_critic
from shoal.core import errors, types
from shoal.experiment import presets
from shoal.report import runs as read
from shoal.runs import checkpoint, group, run_folder, session, training
from shoal.runs.session import telling

COMPILING = types.Stage("compiling")
SMALL = presets.Request(
    "a2c",
    "probe:match",
    2560,
    settings={"runtime": {"environments": 4, "chunk_steps": 640}, "network": {"hidden": (8,)}},
)
SOON = 5.0  # seconds in which a signal is answered, the report included, on a machine that is busy otherwise


class Console(log.Quiet):
    """Keeps what it is shown."""

    def __init__(self):
        self.statuses, self.notes = [], []

    def show(self, status):
        self.statuses.append(status)

    def note(self, text):
        self.notes.append(text)

    @property
    def stages(self):
        """What was done, each once and in order."""
        done = [status.stage.doing for status in self.statuses if status.stage]
        return [one for i, one in enumerate(done) if not i or done[i - 1] != one]


@pytest.fixture(scope="module")
def made():
    return presets.resolve(presets.Request("a2c", "probe:constant", 1000))[0]


def progress(step=0, **changes):
    return types.Progress(
        env_steps=step, updates=step, train_s=1.0, episodes=[types.Episode(step, 1.0, 1, 0)], metrics={}, split={},
        workers={}, faults={}, save=lambda: {"theta": np.full(3, step, np.float32)},
    )._replace(**changes)  # fmt: skip


# ------------------------------------------------------------------------------------------------ the session


def test_a_stage_is_shown_and_nothing_is_written_or_saved(made, tmp_path, monkeypatch):
    monkeypatch.setenv("SHOAL_SAVE_EVERY", "0")
    monkeypatch.setattr(telling, "WRITE_EVERY", 0.0)
    run_folder.write_config(tmp_path, made, "shoal train a2c")
    console = Console()
    kept = session.Session(tmp_path, made, console, time.time())
    assert kept(progress(40, stage=COMPILING, save=lambda: pytest.fail("nothing is saved")))
    assert console.statuses[-1].stage == COMPILING
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    assert kept(progress(50))
    assert console.statuses[-1].stage is None, "training is shown at once"
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1
    assert [folder.name for folder in checkpoint.folders(tmp_path / "checkpoints")] == ["step-000000000050"]
    kept.close()


def test_seconds_count_from_the_beginning_of_each_stage(made, tmp_path, monkeypatch):
    clock = python_types.SimpleNamespace(now=0.0, time=time.time)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(telling, "time", clock)
    console = Console()
    kept = session.Session(tmp_path, made, console, time.time())
    for quarter in range(40):
        clock.now = quarter / 4
        done = int(clock.now) if clock.now >= 4 else None
        kept(progress(stage=COMPILING if done is None else types.Stage("starting 2 workers", done, 9)))
    last = {status.stage.doing: status.stage_s for status in console.statuses}
    assert last == {"compiling": 3.75, "starting 2 workers": 5.75}
    told = json.loads((tmp_path / "status.json").read_text())
    assert told["stage"] == "starting 2 workers", "a sign of life is given then too"
    kept.close()


def test_of_several_seeds_what_one_does_between_two_rounds_is_shown_at_once():
    console = Console()
    board = group.Board(console, [3, 4])
    lanes = [board.lane(at) for at in range(2)]
    status = log.Status(
        preset="a2c", env="e", runtime="host", seed=3, step=10, steps=100, steps_per_s=None, return_mean=None,
        best=None, episodes=0, split={}, workers={}, restarts=0, rss_mb=None, checkpoint_age_s=None, eta_s=None,
        goal=None, earlier=((10, 1.0), (20, 2.0), (30, 6.0)),
    )  # fmt: skip
    lanes[0].show(status)
    assert not console.statuses, "once a round"
    lanes[0].show(status._replace(stage=types.Stage("evaluating", 1, 5), stage_s=2.0))
    assert (console.statuses[-1].stage, console.statuses[-1].stage_s) == (types.Stage("evaluating", 1, 5), 2.0)
    lanes[1].show(status._replace(earlier=((10, 3.0), (30, 4.0))))
    assert console.statuses[-1].stage is None
    assert console.statuses[-1].earlier == ((20, 2.0), (60, 5.0)), "steps are sums, returns means"


# ------------------------------------------------------------------------------------------------ whole runs


def test_a_run_tells_what_it_does_from_the_first_moment_to_the_last(tmp_path):
    console = Console()
    run = training.train(SMALL._replace(evaluate_every=1280), tmp_path / "run", console=console, eval_episodes=20)
    assert run.summary["status"] == "completed"
    assert console.stages == ["compiling", "evaluating"]
    assert console.statuses[0].stage == COMPILING
    ends = [status.stage for status in console.statuses if status.stage and status.stage.doing == "evaluating"]
    assert {(stage.done, stage.of) for stage in ends} <= {(0, 10), (0, 20), (16, 20)}, "compiled ones in sixteens"
    assert console.statuses[-1].stage is None, "it is over"
    assert not any("evaluating" in note for note in console.notes), "the screen says it"


class Sluggish:
    """A learning rule that takes for ever to be compiled; a signal comes while it is."""

    def __init__(self, monkeypatch):
        self.enough, self._build, self._patch = threading.Event(), actor_critic.build, monkeypatch
        self.sent = 0.0  # ``time.monotonic()``

    def __enter__(self):
        self._patch.setattr(actor_critic, "build", self._slow)
        return self

    def __exit__(self, *_):
        self.enough.set()
        self._patch.setattr(actor_critic, "build", self._build)

    def _slow(self, *given):
        agent = self._build(*given)

        def update(*learning):
            if not self.enough.is_set():
                threading.Timer(0.3, self._signal).start()
                assert self.enough.wait(60.0), "it was waited for"
            return agent.update(*learning)

        return agent._replace(update=update)

    def _signal(self):
        self.sent = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("runtime", ["on_device", "host"])
def test_a_signal_before_the_first_step_is_answered_at_once_and_the_run_begins_anew(runtime, tmp_path, monkeypatch):
    out, console = tmp_path / "run", Console()
    settings = {"runtime": {"environments": 4}, "network": {"hidden": (8,)}}
    request = SMALL._replace(runtime=runtime, settings=settings)
    with Sluggish(monkeypatch) as slow:
        run = training.train(request, out, console=console, eval_episodes=20)
        assert time.monotonic() - slow.sent < SOON
    assert console.stages[-1] == "compiling"
    assert any(note.startswith("SIGTERM") for note in console.notes)
    summary = run.summary
    assert summary == json.loads((out / "summary.json").read_text())
    assert (summary["status"], summary["stopped_by"]) == ("interrupted", "SIGTERM")
    assert (summary["env_steps"], summary["updates"]) == (0, 0)
    nothing = ("train_s", "env_steps_per_s", "startup_s", "params_sha256", "eval_return_mean")
    assert [summary[key] for key in nothing] == [None] * len(nothing), "what was not measured is no 0"
    assert not list((out / "checkpoints").glob("*"))
    assert run.policy is None
    with pytest.raises(errors.Refused, match="before its first step"):
        run.evaluate()
    if runtime == "host":  # compiled anew it takes long, and is the same
        return
    (out / "summary.json").write_text(json.dumps({**summary, "wall_s": 1000.0}))
    again = training.resume(out, console=log.Quiet(), eval_episodes=0)
    assert again.summary["status"] == "completed"
    assert again.summary["train_s"] > 0
    assert 1000.0 < again.summary["wall_s"] < 1100.0, "the seconds of the life that saved nothing are not lost"
    assert read.read(out).resumed("step").tolist() == [], "nothing was done before"


def test_all_seeds_end_and_all_begin_anew(tmp_path, monkeypatch):
    out = tmp_path / "runs"
    with Sluggish(monkeypatch):
        together = training.train_seeds(SMALL, 2, out, console=log.Quiet(), eval_episodes=20)
    assert (together.summary["status"], together.summary["stopped_by"]) == ("interrupted", "SIGTERM")
    assert [run["status"] for run in together.summary["runs"]] == ["interrupted"] * 2
    assert [run.policy for run in together.runs] == [None] * 2
    again = training.resume(out, console=log.Quiet(), eval_episodes=0)
    assert again.summary["status"] == "completed"
    assert again.summary["env_steps"] == 2 * 2560


def test_a_resumed_run_goes_on_where_it_was_on_the_screen_and_in_the_report(tmp_path, monkeypatch):
    out = tmp_path / "run"
    first = training.train(SMALL, out, console=log.Quiet(), eval_episodes=0).summary
    (saved,) = (out / "checkpoints").glob("step-*2560")
    told = json.loads((saved / "manifest.json").read_text().partition("\n")[2])["meta"]
    assert abs(told["saved_at"] - time.time()) < 60
    with Sluggish(monkeypatch):  # a life that took no step
        stopped = training.resume(out, steps=5120, console=log.Quiet(), eval_episodes=0)
    assert stopped.policy is None
    assert stopped.summary["status"] == "interrupted"
    assert stopped.summary["env_steps"] == 2560, "of the lives before"
    assert stopped.summary["train_s"] == first["train_s"]
    assert stopped.summary["return_mean"] == first["return_mean"]

    console = Console()
    assert training.resume(out, console=console, eval_episodes=0).summary["status"] == "completed"
    shown = console.statuses[0]
    assert shown.step == 2560
    assert shown.return_mean == first["return_mean"]
    assert shown.earlier[-1] == (2560, first["return_mean"]), "the curve goes on"
    assert 0 <= shown.checkpoint_age_s < 120
    assert shown.checkpoint_age_s >= time.time() - told["saved_at"] - 60

    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("life", 0) for line in lines] == [int(line["step"] > 2560) for line in lines]
    run = read.read(out)
    assert run.resumed("step").tolist() == [2560]
    at = next(line["wall_s"] for line in lines if line["step"] == 2560)
    assert run.resumed("wall_s").tolist() == [at]
    page = report.write([out], tmp_path / "report.html").read_text()
    assert page.count('class="moment hue0"') == 2 * len(("step", "wall_s")), "wide and narrow"
    assert ">resumed</text>" in page
    assert "there a run was stopped and resumed" in page


def test_the_age_of_a_checkpoint_that_does_not_say_is_its_folder_s(made, tmp_path):
    run_folder.write_config(tmp_path, made, "shoal train a2c")
    meta = {"env_steps": 40, "updates": 8, "config_sha256": run_folder.digest(made)}
    checkpoint.save(tmp_path / "checkpoints", 40, {"theta": np.zeros(3, np.float32)}, meta)
    (folder,) = checkpoint.folders(tmp_path / "checkpoints")
    os.utime(folder, (time.time() - 4000, time.time() - 4000))
    loaded = checkpoint.newest(tmp_path / "checkpoints", {"theta": np.zeros(3, np.float32)}, print)
    console = Console()
    kept = session.Session(tmp_path, made, console, time.time(), loaded)
    kept(progress(40, stage=COMPILING))
    kept.close()
    assert console.statuses[-1].checkpoint_age_s == pytest.approx(4000, abs=30)
