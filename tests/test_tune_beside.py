"""Trials beside each other: the same trials as in turn, whoever ends first; a kill loses what it must and no more."""

from __future__ import annotations

import json
import signal
from types import SimpleNamespace

import pytest

from shoal.runs.tuning import optuna_side, searching
from shoal.runs.tuning import plan as plans
from shoal.runtimes.crew import threads
from tests import faults

STEPS = 128  # one update
TINY = ("--env", "probe:match", "--runtime.environments", 8, "--algorithm.rollout-length", 16, "--eval-episodes", 4)
PRIOR = ("--prior", "optimiser.learning_rate=log_uniform(1e-3,1e-1)")


def words(out, method, trials=6, steps=STEPS):
    return (*TINY, *PRIOR, "--method", method, "--budget", trials * steps, "--trial-steps", steps, "--trials", trials,
            "--finalists", 0, "--confirm", 0, "--out", out)  # fmt: skip


def rows(folder):
    return json.loads((folder / "trials.json").read_text())["trials"]


def told(folder):
    return [(row["settings"], row["score"], row["status"]) for row in rows(folder)]


# ------------------------------------------------------------------------------------------------ before it begins


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (("--method", "random", "--parallel", 0), "--parallel 0 is too small; give at least 1"),
        (("--parallel", 2), "--method pbt trains all of its members at the same time"),
        (("--method", "tpe", "--parallel", 99), "this machine has 2 cores; give at most 2"),
        (("--method", "tpe", "--parallel", "two"), "--parallel"),
        (("--method", "tpe", "--parallel", 2, "--runtime", "hogwild"), "runtime hogwild starts others"),
    ],
)
def test_what_cannot_be_done_beside_each_other_is_refused(typed, says, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(threads, "cores", lambda: 2)
    rule = "a3c" if "hogwild" in typed else "ppo"
    out = ("--budget", 10_000, "--out", tmp_path / "no")
    ended = faults.call(capsys, "tune", rule, "--env", "probe:match", *typed, *out)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert says in ended.err
    assert not (tmp_path / "no").exists()


def test_a_search_in_turn_is_written_as_it_always_was():
    wanted = plans.Wanted(method="tpe", budget=1_000_000)
    assert "parallel" not in plans.make(wanted, 100_000, {}).to_json()
    several = plans.make(wanted._replace(parallel=2), 100_000, {})
    assert plans.from_json(several.to_json()) == several
    assert several.parallel == 2


# ------------------------------------------------------------------------------------------------ who is asked when


class Study:
    """Hands out numbers."""

    def __init__(self, given=0):
        self.given = given

    def asked(self):
        return {number: {} for number in range(self.given)}

    def ask(self):
        self.given += 1
        return optuna_side.Given(self.given - 1, {})


@pytest.fixture
def search(monkeypatch):
    def begin(search, given):
        search.rows.append({"trial": given.number, "status": "running", "rungs": []})
        return search.rows[-1]

    monkeypatch.setattr(searching, "_begin", begin)
    return lambda method, parallel, rows=(): SimpleNamespace(
        plan=SimpleNamespace(method=method, parallel=parallel, trials=6), rows=list(rows)
    )


def number(queue):
    row = queue.next()
    return row and row["trial"]


def test_tpe_is_asked_for_as_many_as_run_together_once_all_before_them_have_ended(search):
    made, study = search("tpe", 2), Study()
    queue = searching.Queue(made, study, 0)
    assert number(queue) == 0
    assert study.given == 2, "the other one before anything is known of the first"
    assert [number(queue), number(queue)] == [1, None]
    made.rows[1]["status"] = "completed"
    assert queue.next() is None
    made.rows[0]["status"] = "failed"
    assert [number(queue), number(queue), queue.empty] == [2, 3, False]
    for row in made.rows:
        row["status"] = "completed"
    assert [number(queue), number(queue), number(queue), queue.empty] == [4, 5, None, True]


def test_after_a_kill_tpe_is_asked_for_the_others_at_once(search):
    under_way = {"trial": 2, "status": "running", "rungs": []}
    over = [{"trial": one, "status": "completed", "rungs": [1]} for one in (0, 1)]
    made, study = search("tpe", 2, [*over, under_way]), Study(3)
    queue = searching.Queue(made, study, 0)
    assert study.given == 4
    under_way["status"] = "completed"
    assert number(queue) == 2
    assert number(queue) == 3
    alone = Study(3)
    assert number(searching.Queue(search("tpe", 1, [*over, under_way | {"status": "running"}]), alone, 0)) == 2
    assert alone.given == 3, "in turn nobody is asked before there is room"


def test_random_search_waits_for_nobody(search):
    study = Study()
    queue = searching.Queue(search("random", 2), study, 0)
    assert [number(queue) for _ in range(7)] == [0, 1, 2, 3, 4, 5, None]


# ------------------------------------------------------------------------------------------------ in processes


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A search by TPE, two at a time, that nothing interrupted."""
    out = tmp_path_factory.mktemp("beside") / "whole"
    with faults.Process("tune", "ppo", *words(out, "tpe"), "--parallel", 2, "--quiet") as process:
        ended = process.ended()
        assert ended.code == 0, ended.err
        assert process.left() == []
    return out


@pytest.mark.slow
def test_random_trials_beside_each_other_are_those_in_turn(tmp_path):
    for name, more in (("turn", ()), ("beside", ("--parallel", 2))):
        with faults.Process("tune", "ppo", *words(tmp_path / name, "random"), *more, "--quiet") as process:
            assert process.ended().code == 0
    assert [one[0] for one in told(tmp_path / "beside")] == [one[0] for one in told(tmp_path / "turn")]
    assert {one[2] for one in told(tmp_path / "beside")} == {"completed"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "SIGTERM"])
def test_a_search_that_was_stopped_asks_and_finds_the_same(number, whole, tmp_path):
    out = tmp_path / "stopped"
    with faults.Process("tune", "ppo", *words(out, "tpe"), "--parallel", 2) as process:
        process.says("trial 1: ")
        process.signal(number)
        code = process.ended().code
        faults.wait(lambda: not process.left(), "the processes of trials to go", faults.ENDING)
    assert code == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    assert 2 <= sum(row["status"] == "completed" for row in rows(out)) < 6
    with faults.Process("resume", out, "--quiet") as process:
        assert process.ended().code == 0
    assert told(out) == told(whole)


@pytest.mark.slow
def test_a_process_that_is_killed_loses_its_trial_alone(tmp_path):
    out = tmp_path / "lost"
    with faults.Process("tune", "ppo", *words(out, "random", 4, 1000 * STEPS), "--parallel", 2) as process:
        faults.wait_for_training(process, out / "trials" / "0000", STEPS)
        faults.os.kill(process.workers()[0], signal.SIGKILL)
        ended = process.ended()
    assert ended.code == 0, ended.err
    found = rows(out)
    assert [row["status"] for row in found].count("failed") == 1
    assert [row["status"] for row in found].count("completed") == 3
    lost = next(row for row in found if row["status"] == "failed")
    assert "died" in lost["why"]
    assert f"trial {lost['trial']} failed: its process died" in ended.err


@pytest.mark.slow
def test_a_trial_that_fails_beside_another_is_told_and_the_search_goes_on(tmp_path):
    out = tmp_path / "fails"
    prior = ("--prior", "algorithm.minibatches=choice(1,3)", "--seed", 1, "--parallel", 2)
    with faults.Process("tune", "ppo", *words(out, "random"), *prior) as process:
        ended = process.ended()
    assert ended.code == 0, ended.err
    failed = [row for row in rows(out) if row["settings"]["algorithm.minibatches"] == 3]
    assert failed
    assert {row["status"] for row in failed} == {"failed"}
    assert "does not divide" in ended.err
