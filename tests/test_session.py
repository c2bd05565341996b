"""The observer of a run: files a runtime hands it are kept beside the checkpoints, whatever they are."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from shoal import log
from shoal.core import errors, types
from shoal.experiment import presets
from shoal.runs import checkpoint, run_folder, session
from shoal.runs.session import telling
from shoal.runtimes import federated

LIKE = {"theta": np.zeros(3, np.float32)}


class Ledger:
    """An artefact known to nobody: one line a checkpoint."""

    def __init__(self, broken=False):
        self.lines, self.calls, self.broken = [], [], broken

    def take_up(self, folder, meta):
        if not meta:  # of a new run
            self.folder = folder
            return
        self.calls.append("take_up")
        try:
            lines = (folder / "ledger.txt").read_text().splitlines()
        except FileNotFoundError:
            raise errors.Refused(f"{folder} holds no ledger.txt; restore it") from None
        self.lines = lines[: meta["ledger_lines"]]

    def write(self, folder, about):
        assert set(about) == {"versions", "machine"}
        if self.broken:
            raise OSError(28, "No space left on device")
        self.calls.append("write")
        self.lines.append(f"entry {len(self.lines)}")
        (folder / "ledger.txt").write_text("\n".join(self.lines))
        return {"ledger_lines": len(self.lines)}


class Console(log.Quiet):
    """Keeps what is said."""

    def __init__(self):
        self.faults = []

    def fault(self, kind, text):
        self.faults.append((kind, text))


@pytest.fixture(scope="module")
def made():
    return presets.resolve(presets.Request("a2c", "probe:constant", 1000))[0]


def progress(step, ledger):
    return types.Progress(
        env_steps=step, updates=step, train_s=1.0, episodes=[types.Episode(step, 1.0, 1, 0)], metrics={}, split={},
        workers={}, faults={}, save=lambda: {"theta": np.full(3, step, np.float32)}, artefacts={"ledger.txt": ledger},
    )  # fmt: skip


def opened(folder, made, resumed=None, console=None):
    return session.Session(folder, made, console or Console(), 0.0, resumed)


@pytest.fixture
def folder(tmp_path, made, monkeypatch):
    """The folder of a run with two checkpoints and three entries."""
    monkeypatch.setenv("SHOAL_SAVE_EVERY", "0")
    run_folder.write_config(tmp_path, made, "shoal train a2c")
    kept, ledger = opened(tmp_path, made), Ledger()
    for step in (10, 20):
        assert kept(progress(step, ledger))
    ledger.write(tmp_path, {"versions": {}, "machine": {}})  # of a checkpoint that a kill prevented
    kept.close()
    assert ledger.calls == ["write"] * 3, "a new run takes nothing up"
    assert ledger.folder == tmp_path, "but it is shown the folder"
    return tmp_path


def newest(folder):
    return checkpoint.newest(folder / "checkpoints", LIKE, print)


def test_a_checkpoint_says_what_its_artefacts_said(folder):
    saved = newest(folder)
    assert (saved.step, saved.meta["ledger_lines"], saved.meta["episodes"]) == (20, 2, 2)


def test_a_resumed_run_takes_up_its_artefacts_once_cut_to_the_checkpoint(folder, made):
    ledger, kept = Ledger(), opened(folder, made, newest(folder))
    assert kept(progress(30, ledger))
    assert kept(progress(40, ledger))
    kept.close()
    assert ledger.calls == ["take_up", "write", "write"]
    assert (folder / "ledger.txt").read_text().splitlines() == [f"entry {n}" for n in range(4)]
    assert newest(folder).meta["ledger_lines"] == 4


def test_a_lost_artefact_is_refused_before_anything_is_saved(folder, made):
    (folder / "ledger.txt").unlink()
    kept = opened(folder, made, newest(folder))
    with pytest.raises(errors.Refused, match="restore it"):
        kept(progress(30, Ledger()))
    kept.close()
    assert newest(folder).step == 20


def test_no_checkpoint_goes_beyond_an_artefact_that_could_not_be_written(folder, made):
    console = Console()
    kept = opened(folder, made, newest(folder), console)
    assert kept(progress(30, Ledger(broken=True))), "the run goes on"
    kept.close()
    assert newest(folder).step == 20
    ((kind, text),) = console.faults
    assert kind == "checkpoint not saved"
    assert "ledger.txt could not be written" in text


def test_the_first_checkpoint_comes_within_two_seconds_of_training(tmp_path, made):
    run_folder.write_config(tmp_path, made, "shoal train a2c")
    kept, saved = opened(tmp_path, made), []
    for step, train_s in ((10, 0.1), (20, 0.9), (30, 1.1), (40, 1.2), (50, 5.0)):
        kept(progress(step, Ledger())._replace(train_s=train_s))
        saved.append(len(checkpoint.folders(tmp_path / "checkpoints")))
    kept.close()
    assert saved == [0, 0, 1, 1, 1], "the next at the usual pace"


@pytest.mark.parametrize("placement", ["server", "party"])
def test_a_side_of_a_deployment_saves_at_every_report(tmp_path, made, placement, monkeypatch):
    configs = {**made.configs, "runtime": federated.Config(placement=placement)}
    side = dataclasses.replace(made, runtime="federated", configs=configs)
    run_folder.write_config(tmp_path, side, "shoal federate server")

    def saved(steps):
        kept = opened(tmp_path, side)
        for step in steps:
            kept(progress(step, Ledger())._replace(train_s=0.01))
        kept.close()
        return checkpoint.newest(tmp_path / "checkpoints", LIKE, print).step

    assert saved((10, 20)) == 20, "the first at once, and the next too, whatever the last one took"
    monkeypatch.setenv("SHOAL_SAVE_EVERY", "20")
    assert saved((30, 40)) == 20, "what a person has set is obeyed"


def test_status_tells_the_newest_checkpoint(folder, made, monkeypatch):
    kept = opened(folder, made, newest(folder))
    monkeypatch.setattr(telling, "STATUS_EVERY", 0.0)
    kept(progress(30, Ledger()))
    kept(progress(40, Ledger()))
    kept.close()
    assert json.loads((folder / "status.json").read_text())["checkpoint"] == "step-000000000030"


def test_the_last_line_of_metrics_is_left_to_the_end_even_if_it_is_saved_before(folder, made):
    """A death may be told after the report of the last step; a checkpoint in between may not take its line."""
    kept, ledger = opened(folder, made, newest(folder)), Ledger()
    kept(progress(made.steps, ledger))
    final = progress(made.steps, ledger)._replace(faults={"restarts": 1})
    kept.finish(types.Result(policy=None, final=final, startup_s=0.0))
    kept.close()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["restarts"] for line in lines if line["step"] == made.steps] == [1]


def test_what_actors_measure_reaches_the_screen(tmp_path, made):
    class Screen(log.Quiet):
        def show(self, status):
            self.status = status

    screen = Screen()
    run_folder.write_config(tmp_path, made, "shoal train a2c")
    kept = opened(tmp_path, made, console=screen)
    told = progress(10, Ledger())._replace(metrics={"loss": 1.0, "staleness": 4.0, "ess": 0.9})
    assert kept(told)
    assert screen.status.acting == {"staleness": 4.0, "ess": 0.9}
    kept.close()
