"""The pool of processes: who is taken for hung, and who only waits."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time

import pytest

from shoal.core import errors
from shoal.experiment import budget, presets
from shoal.runs import training
from shoal.runtimes.crew import supervise, threads
from tests import faults

SILENCE = 1.0


def answers(link):
    """A worker that is ready, waits for a word, thinks, answers, and then hangs."""
    link.send("ready")
    link.receive()
    time.sleep(0.4)
    link.send("went")
    time.sleep(faults.LONGEST)


def compiles(link):
    """A worker that takes long before its first message, and then hangs."""
    time.sleep(2 * SILENCE)
    link.send("ready")
    time.sleep(faults.LONGEST)


@contextlib.contextmanager
def ready(monkeypatch):
    """A pool whose one worker waits for a word, and the faults that were told."""
    told = []
    pool = supervise.Pool(answers, lambda *_: (), 1, lambda kind, _: told.append(kind))
    try:
        heard(pool, "ready")
        monkeypatch.setattr(supervise, "SILENCE", SILENCE)
        yield pool, told
    finally:
        pool.close(0.0)


def heard(pool, message):
    """Wait for a message."""
    faults.wait(lambda: message in [said for _, _, said in pool.poll(0.1)], message)


def test_a_worker_that_waits_for_its_start_is_not_taken_for_hung(monkeypatch):
    with ready(monkeypatch) as (pool, told):
        pool.rests(0)
        until = time.monotonic() + 2 * SILENCE
        while time.monotonic() < until:
            assert list(pool.poll(0.1)) == []
        assert (told, pool.incarnation(0)) == ([], 0)
        pool.send(0, "go")
        heard(pool, "went")
        faults.wait(lambda: list(pool.poll(0.1)) or told, "a worker that does not rest to be taken for hung")


def test_a_first_message_may_take_longer(monkeypatch):
    monkeypatch.setattr(supervise, "SILENCE", SILENCE)
    told = []
    pool = supervise.Pool(compiles, lambda *_: (), 1, lambda kind, _: told.append(kind))
    try:
        heard(pool, "ready")
        faults.wait(lambda: list(pool.poll(0.1)) or told, "silence after it to count as ever")
    finally:
        pool.close(0.0)
    assert pool.incarnation(0) == 0


def test_whoever_was_just_sent_a_message_has_time_to_answer(monkeypatch):
    with ready(monkeypatch) as (pool, told):
        time.sleep(1.5 * SILENCE)  # the parent had other things to do
        pool.send(0, "go")
        assert list(pool.poll(0.0)) == []
        heard(pool, "went")
        assert (told, pool.incarnation(0)) == ([], 0)


def test_a_silence_in_which_nobody_listened_does_not_count(monkeypatch):
    with ready(monkeypatch) as (pool, told):
        time.sleep(1.5 * SILENCE)  # as for a large checkpoint, while workers hold still
        assert list(pool.poll(0.0)) == []
        assert list(pool.poll(0.1)) == []
        assert (told, pool.incarnation(0)) == ([], 0)
        faults.wait(lambda: list(pool.poll(0.1)) or told, "a worker that is listened to, and silent")


# ------------------------------------------------------------------------------------------------ many


def says_so(link, worker):
    """A worker that is ready at once and stays."""
    link.send(worker)
    time.sleep(faults.LONGEST)


def test_no_more_start_at_once_than_there_are_cores(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 2)
    pool, heard = supervise.Pool(says_so, lambda worker, _: (worker,), 5, pytest.fail), []
    try:
        assert pool.up == 2
        while len(heard) < 5:
            starting = pool.up - len(heard)
            heard += [message for _, _, message in pool.poll(5.0)]
            assert starting <= 2
        assert sorted(heard) == list(range(5))
    finally:
        pool.close(0.0)


def test_those_that_were_not_started_are_left_out_at_a_stop(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 1)
    pool, heard = supervise.Pool(says_so, lambda worker, _: (worker,), 50, pytest.fail), []
    try:
        pool.leave_out()
        faults.wait(lambda: heard.extend(pool.poll(0.1)) or heard, "the one that was started")
        list(pool.poll(0.0))
        assert pool.up == 1
        assert not pool.done(0)
        assert all(pool.done(worker) for worker in range(1, 50))
    finally:
        pool.close(0.0)


class Heavy:
    """Arriving takes long, as what a worker works with does; where it arrives, a file is made."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return import_slowly, (self.place,)


def import_slowly(place):
    with open(place, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(faults.LONGEST)


def holds_a_pool(place):
    supervise.Pool(says_so, lambda *_: (Heavy(place),), 1, print)
    time.sleep(faults.LONGEST)


def alive(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return ") Z" not in file.read()
    return False


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="reads /proc")
def test_a_worker_dies_with_its_parent_while_it_still_imports(tmp_path):
    place = tmp_path / "pid"
    parent = multiprocessing.get_context("spawn").Process(target=holds_a_pool, args=(str(place),))
    parent.start()
    faults.wait(lambda: place.exists() and place.read_text(), "a worker that imports")
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    worker = int(place.read_text())
    faults.wait(lambda: not alive(worker), "the worker to end", faults.ENDING)


# ------------------------------------------------------------------------------------------------ too many


@pytest.mark.parametrize(
    ("typed", "processes", "each"),
    [
        (("a3c", "CartPole-v1", {"workers": 1000}), 1000, threads.COMPUTES),
        (("gorila", "CartPole-v1", {"bundles": 40, "shards": 10}), 50, threads.COMPUTES),
        (("a2c", "CartPole-v1", {"environments": 100, "processes": 1000}), 100, threads.STEPS),
        (("parallel_sarsa", "MountainCar-v0", {"workers": 64}), 64, threads.COMPUTES),
        (("parallel_sarsa", "MountainCar-v0", {"workers": 64, "spawn": False}), 0, 0),
        (("a2c", "CartPole-v1", {"processes": -1}), 0, 0),
        (("collab_a2c", "CartPole-v1", {"parties": 1000}), 1000, threads.COMPUTES),
        (("collab_a2c", "gymnax:CartPole-v1", {"parties": 1000}), 0, 0),
        (("collab_a2c", "gymnax:CartPole-v1", {"parties": 1000, "placement": "processes"}), 1000, threads.COMPUTES),
    ],
)
def test_processes_are_counted_before_anything_is_made(typed, processes, each, monkeypatch):
    preset, env, runtime = typed
    made, _ = presets.resolve(presets.Request(preset, env, 100_000, settings={"runtime": runtime}))
    monkeypatch.setattr(training.threads, "cores", lambda: 2)
    monkeypatch.setattr(budget, "on_host", lambda: processes * each * budget.MB)
    told = training.crowd(made, 1)
    if not processes:
        assert told is None
        return
    assert told.startswith(f"{processes:,} worker processes share 2 cores")
    monkeypatch.setattr(budget, "on_host", lambda: processes * each * budget.MB - 1)
    with pytest.raises(errors.Refused, match=f"give at most {processes - 1:,}, or 2"):
        training.crowd(made, 1)


def test_a_few_processes_a_core_are_not_remarked_on(monkeypatch):
    monkeypatch.setattr(budget, "on_host", lambda: None)
    assert budget.check_processes(8, 200, 2) is None
    assert "9 worker processes" in budget.check_processes(9, 200, 2)
