"""A disk that fills up: what is lost is said, the run can go on once there is room, and nothing half-written stays."""

from __future__ import annotations

import contextlib
import errno
import json
import os

import numpy as np
import pytest

from shoal import log
from shoal.core import errors, files, types
from shoal.experiment import presets
from shoal.runs import checkpoint, run_folder, session
from shoal.runs.checkpoint import write
from shoal.runs.session import telling
from tests import faults

RUN = ("a2c", "--env", "CartPole-v1", "--runtime.environments", 4, "--runtime.processes", 0, "--steps", 600)
FULL = os.strerror(errno.ENOSPC)


def no_room(*_):
    raise OSError(errno.ENOSPC, FULL)


class Console(log.Quiet):
    """Keeps what is said."""

    def __init__(self):
        self.notes, self.faults = [], []

    def note(self, text):
        self.notes.append(text)

    def fault(self, kind, text):
        self.faults.append((kind, text))


@pytest.fixture(scope="module")
def made():
    return presets.resolve(presets.Request("a2c", "probe:constant", 1000))[0]


@pytest.fixture
def folder(tmp_path, made):
    run_folder.write_config(tmp_path, made, "shoal train a2c")
    return tmp_path


@contextlib.contextmanager
def opened(folder, made, console):
    kept = session.Session(folder, made, console, 0.0)
    try:
        yield kept
    finally:
        kept.close()


def progress(step, value=1.0):
    return types.Progress(
        env_steps=step, updates=step, train_s=0.0, episodes=[], metrics={}, split={}, workers={},
        faults={"restarts": 0}, save=lambda: {"theta": np.full(3, value, np.float32)},
    )  # fmt: skip


def result(step, value=1.0):
    policy = types.Policy(params={}, normaliser=(), explore=np.float32(1.0))
    return types.Result(policy=policy, final=progress(step, value), startup_s=0.0)


def check_lost(kept, folder, console, says):
    """The run has failed, and it stands everywhere that its last state is not saved."""
    assert says in kept.failed
    assert f"shoal resume {folder}" in kept.failed
    assert kept.summary("failed", None, 0.0)["faults"] == {"restarts": 0, "not_saved": 1}
    ((kind, text),) = console.faults
    assert kind == "checkpoint not saved"
    assert says in text
    assert says in (folder / "faults.log").read_text()


# ------------------------------------------------------------------------------------------------ checkpoints


def test_a_last_checkpoint_that_does_not_fit_fails_the_run(folder, made, monkeypatch):
    monkeypatch.setattr(write, "_put", no_room)
    monkeypatch.setattr(telling, "STATUS_EVERY", 0.0)
    with opened(folder, made, console := Console()) as kept:
        kept.finish(result(10))
        check_lost(kept, folder, console, FULL)
        kept(progress(10))
    assert json.loads((folder / "status.json").read_text())["checkpoint"] is None, "no name of what is not there"


def test_a_last_state_that_is_not_finite_fails_the_run(folder, made):
    with opened(folder, made, console := Console()) as kept:
        kept.finish(result(10, np.nan))
        check_lost(kept, folder, console, "NaN")


def test_a_checkpoint_between_that_was_not_saved_is_counted_and_forgiven(folder, made, monkeypatch):
    monkeypatch.setenv("SHOAL_SAVE_EVERY", "0")
    with opened(folder, made, Console()) as kept:
        with monkeypatch.context() as full:
            full.setattr(write, "_put", no_room)
            assert kept(progress(10)), "the run goes on"
        kept.finish(result(20))
        assert kept.failed is None
        assert kept.summary("completed", result(20), 0.0)["faults"]["not_saved"] == 1
    assert checkpoint.newest(folder / "checkpoints", progress(0).save(), print).meta["faults"]["not_saved"] == 1


# ------------------------------------------------------------------------------------------------ files


def half(path, data):
    """What a disk that fills up does: a part is taken."""
    with path.open("wb") as file:
        file.write(data[:3])
    no_room()


@pytest.mark.parametrize("fails", ["write", "rename"])
def test_a_file_that_cannot_be_replaced_is_as_it_was(fails, tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    files.replace(path, b"before")
    if fails == "rename":
        monkeypatch.setattr(files.os, "replace", no_room)
    else:
        monkeypatch.setattr(files.Path, "write_bytes", half)
    with pytest.raises(OSError, match=FULL):
        files.replace(path, b"after")
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["summary.json"]


def test_a_status_that_cannot_be_written_is_said_once(folder, made, monkeypatch):
    monkeypatch.setattr(telling, "STATUS_EVERY", 0.0)
    monkeypatch.setattr(files.os, "replace", no_room)
    with opened(folder, made, console := Console()) as kept:
        assert kept(progress(10))
        assert kept(progress(20))
    assert console.notes == [f"warning: status.json is not written ({FULL}); the run goes on"]
    assert not list(folder.rglob(".tmp-*"))


def test_closing_files_that_cannot_be_written_are_one_line(folder, monkeypatch):
    monkeypatch.setattr(files.os, "replace", no_room)
    said = []
    run_folder.conclude(folder, {"status": "completed"}, [folder], said.append)
    assert said == [
        f"warning: summary.json and report.html could not be written ({FULL}); make room, then "
        f"`shoal resume {folder}` writes them"
    ]
    assert not list(folder.rglob(".tmp-*"))


def test_a_folder_whose_config_does_not_fit_is_refused_and_gone(tmp_path, made):
    place = tmp_path / "runs" / "one"
    with pytest.raises(errors.Refused, match=FULL):
        begin(place, made)
    assert os.listdir(tmp_path) == []


def begin(place, made):
    with run_folder.making(place):
        run_folder.write_config(place, made, "shoal train a2c")
        no_room()


# ------------------------------------------------------------------------------------------------ whole runs


def test_a_run_on_a_full_disk_ends_with_3_and_one_line(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(write, "_put", no_room)
    ended = faults.call(capsys, "train", *RUN, "--out", out, "--quiet")
    assert (ended.code, ended.err.count("\n")) == (3, 1), ended.err
    assert f"shoal resume {out}" in ended.err
    told = faults.summary(out)
    assert (told["status"], told["faults"]["not_saved"]) == ("failed", 1)
    assert FULL in told["error"]


def test_a_run_that_is_saved_is_complete_though_nothing_more_fits(tmp_path, capsys, monkeypatch):
    out, replace = tmp_path / "run", files.replace
    with monkeypatch.context() as full:
        full.setattr(
            files, "replace", lambda path, data: (replace if path.name == "config.json" else no_room)(path, data)
        )
        ended = faults.call(capsys, "train", *RUN, "--out", out, "--json", "--eval-episodes", 0)
    assert ended.code == 0, ended.err
    assert ended.err.count(f"summary.json and report.html could not be written ({FULL})") == 1
    assert not (out / "summary.json").exists()
    again = faults.call(capsys, "resume", out, "--json", "--eval-episodes", 0)
    assert again.code == 0, again.err
    assert again.json["params_sha256"] == ended.json["params_sha256"]
    assert faults.summary(out) == again.json
    assert (out / "report.html").exists()


def test_seeds_whose_last_checkpoints_do_not_fit_fail_together(tmp_path, capsys, monkeypatch):
    out = tmp_path / "runs"
    monkeypatch.setattr(write, "_put", no_room)
    ended = faults.call(capsys, "train", *RUN, "--seeds", 2, "--out", out, "--quiet")
    assert (ended.code, ended.err.count("\n")) == (3, 1), ended.err
    for seed in range(2):
        told = faults.summary(out / f"seed-{seed}")
        assert (told["status"], told["faults"]["not_saved"]) == ("failed", 1)
