"""The pool of processes: who is taken for hung, and who only waits."""

from __future__ import annotations

import contextlib
import time

from shoal.runtimes import _pool
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
    pool = _pool.Pool(answers, lambda *_: (), 1, lambda kind, _: told.append(kind))
    try:
        heard(pool, "ready")
        monkeypatch.setattr(_pool, "SILENCE", SILENCE)
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
    monkeypatch.setattr(_pool, "SILENCE", SILENCE)
    told = []
    pool = _pool.Pool(compiles, lambda *_: (), 1, lambda kind, _: told.append(kind))
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
