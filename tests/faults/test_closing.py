"""A simulator that raises when it is closed: told, undoes nothing, and the others are closed as well."""

from __future__ import annotations

import functools
import types as python_types

import numpy as np
import pytest

from shoal import environments
from shoal.environments import _check
from shoal.runs import checkpoint
from shoal.runtimes.crew import closing, crew, life, sharing, turns
from shoal.runtimes.experience import pools, vectors
from shoal.runtimes.map_reduce import mapper
from tests import faults
from tests.faults import envs

ENV = "tests.faults.envs:NeverCloses-v0"
GONE = "the viewer is gone"
FORMS = {"processes": crew.Processes, "turns": turns.Turns}


@pytest.fixture
def told():
    """The faults that were told."""
    return []


@pytest.fixture
def on_fault(told):
    return lambda *fault: told.append(fault)


def the_one(told):
    """The story of the only fault."""
    ((kind, story),) = told
    assert closing.KIND in kind
    assert GONE in story
    return story


class Works(life.Worker):
    """One turn; then it cannot be closed."""

    def __init__(self, job, parent):
        del parent
        self.block, self.worker = job

    @property
    def over(self):
        return bool(self.block["done"][self.worker])

    def turn(self):
        self.block["done"][self.worker] += 1
        return True

    def close(self):
        self.block["closed"][self.worker] += 1
        raise RuntimeError(f"{GONE} {'.' * 200_000}")  # more than a pipe holds


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_worker_that_cannot_be_closed_has_done_its_work(form, told, on_fault):
    block = sharing.Block({"done": ((2,), "i8"), "closed": ((2,), "i8")})
    role = life.Role(name="worker", workers=2, open=Works, job=lambda worker, _: (block, worker))
    with form([role], on_fault) as team:
        team.begin(lambda: True)
        faults.wait(lambda: team.gather() and team.finished("worker"), "both to be done")
        assert team.about("worker")["restarts"] == 0
    assert (block["done"].tolist(), block["closed"].tolist()) == ([1, 1], [1, 1])
    assert len(told) == 2
    assert all(closing.KIND in kind and GONE in story for kind, story in told)


@pytest.fixture
def opener():
    opened = environments.Opener(ENV, environments.Config())
    opened.open()
    envs.NeverCloses.closed = 0
    return opened


def test_all_of_several_are_closed_and_told_in_one_word(opener, told, on_fault):
    vector = vectors.Serial(opener, 0, range(3), 0, on_fault)
    vector.reset()
    closing.told(vector.close, on_fault)
    assert envs.NeverCloses.closed == 3
    assert "(3 of 3 raised when they were closed)" in the_one(told)


def test_what_simulators_in_processes_raise_at_the_end_is_told_here(opener, told, on_fault):
    parts = python_types.SimpleNamespace(environment=opener, spec=opener.open().spec)
    vector = pools.Pooled(parts, 0, 3, 0, 1, on_fault)
    vector.reset()
    vector.step(np.zeros(3, int))
    vector.close()
    assert "(3 of 3 raised when they were closed)" in the_one(told)


def test_finding_out_whether_processes_pay_does_not_fail(opener, told, on_fault, monkeypatch):
    monkeypatch.setattr(vectors.threads, "cores", lambda: 2)
    parts = python_types.SimpleNamespace(environment=opener, spec=opener.open().spec)
    assert vectors.processes_that_pay(parts, 2, 0, on_fault) in (0, 2)
    the_one(told)


def test_samples_are_kept(opener, told, on_fault):
    sums = python_types.SimpleNamespace(behave=lambda chance: int(chance.integers(2)))
    agent = python_types.SimpleNamespace(about=python_types.SimpleNamespace(sums=sums))
    parts = python_types.SimpleNamespace(environment=opener, agent=agent)
    block = sharing.Block(mapper.layout(opener.open().spec, 15))
    broke = functools.partial(pytest.fail, "not a simulator to be replaced")
    assert len(list(mapper.collect(parts, 0, block, broke, on_fault))) == 15
    the_one(told)


def test_check_env_tells_and_finds_no_promise_broken():
    findings = _check.check(ENV, environments.Config(), 30)
    assert findings.ok, findings.problems
    remarks = [remark for remark in findings.remarks if "closing it raised" in remark]
    assert remarks == [f"closing it raised RuntimeError: {GONE}; a run tells that and goes on"]


def test_a_run_is_complete_saved_and_measured(capsys, tmp_path):
    out = tmp_path / "run"
    typed = ("a2c", "--env", ENV, "--steps", 200, "--runtime.processes", 0)
    told = faults.train(capsys, out, *typed, evaluate=3)
    assert (told["status"], told["eval_return_mean"], told["faults"]["restarts"]) == ("completed", envs.LENGTH, 0)
    assert [place.name for place in checkpoint.folders(out / "checkpoints")] == [f"step-{told['env_steps']:012d}"]
    assert (out / "faults.log").read_text().count(closing.KIND) == 2, "once of training, once of the evaluation"
    ended = faults.call(capsys, "eval", out, "--episodes", 2)
    assert ended.code == 0
    assert GONE in ended.err
