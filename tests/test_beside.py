"""What takes long is done in a thread beside; whoever waits is told, and may leave."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest

from shoal.core import errors, types
from shoal.runtimes import map_reduce
from shoal.runtimes.crew import beside
from shoal.runtimes.experience import vectors

STAGE = types.Stage("compiling")
LONG = 30.0  # seconds that nobody should wait
SOON = 2.0


def test_what_is_made_is_returned_and_what_is_raised_is_raised_here():
    assert beside.done(threading.get_ident, STAGE, lambda _: True) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        beside.done(lambda: 1 // 0, STAGE, lambda _: True)
    assert not beside.left()


def test_it_looks_up_until_it_is_done_and_tells_what_is_being_done():
    enough, told = threading.Event(), []

    def look(stage):
        told.append(stage)
        if len(told) == 3:
            enough.set()
        return True

    assert beside.done(lambda: enough.wait(LONG), STAGE, look)
    assert told[:3] == [STAGE] * 3


def test_a_no_ends_the_wait_and_the_thread_is_known_to_be_left():
    enough, answers, began = threading.Event(), iter([True, False]), time.monotonic()
    with pytest.raises(errors.NotBegun):
        beside.done(lambda: enough.wait(LONG), STAGE, lambda _: next(answers))
    assert time.monotonic() - began < SOON
    assert beside.left()
    enough.set()
    until = time.monotonic() + LONG
    while beside.left():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_no_before_it_begins_leaves_nothing_behind():
    made = []
    with pytest.raises(errors.NotBegun):
        beside.done(lambda: made.append(1), STAGE, lambda _: False)
    assert (made, beside.left()) == ([], False)


def test_a_signal_is_heard_while_a_call_that_knows_none_goes_on():
    heard, enough = [], threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1))
    try:
        timer.start()
        began = time.monotonic()
        with pytest.raises(errors.NotBegun):
            beside.done(lambda: enough.wait(LONG), STAGE, lambda _: not heard)
        assert time.monotonic() - began < SOON
    finally:
        enough.set()
        timer.join()
        signal.signal(signal.SIGUSR1, before)


def test_an_observer_is_told_where_earlier_lives_ended_and_that_nothing_can_be_saved():
    told = []
    look = beside.first(lambda progress: told.append(progress) is None, 400, 7)
    assert look(STAGE)
    (progress,) = told
    assert (progress.env_steps, progress.updates, progress.train_s, progress.stage) == (400, 7, 0.0, STAGE)
    with pytest.raises(RuntimeError, match="nothing to save"):
        progress.save()


def test_of_several_observers_all_are_told_and_one_no_is_enough():
    told = []
    looks = [lambda stage, i=i: told.append((i, stage)) is None and i != 1 for i in range(3)]
    assert not beside.together(looks)(STAGE)
    assert told == [(i, STAGE) for i in range(3)]
    assert beside.together(looks[::2])(STAGE)


class Opener:
    """Simulators of one number each, and how many of them are open."""

    def __init__(self):
        self.open = 0

    def host(self):
        self.open += 1
        return self

    def reset(self, seed):
        del seed
        return np.zeros(1, np.float32)

    def close(self):
        self.open -= 1


def test_simulators_are_opened_one_by_one_and_those_that_are_open_can_be_closed():
    opener, told = Opener(), []

    def look(stage):
        told.append(stage)
        return stage.done < 3

    vector = vectors.Serial(opener, 0, range(5), 0, lambda *_: None, look)
    with pytest.raises(errors.NotBegun):
        vector.reset()
    assert told == [types.Stage("opening 5 simulators", i, 5) for i in range(4)]
    assert opener.open == 3
    vector.close()
    assert opener.open == 0


def test_mappers_that_are_to_end_finish_no_shard():
    """In the middle of a long shard they hear no message, but a word that crosses at any moment."""
    parent = type("Parent", (), {"stopped": False})()
    mapper = map_reduce.mapper.Mapper.__new__(map_reduce.mapper.Mapper)
    mapper._ended, mapper._parent = False, parent
    assert not mapper.over
    parent.stopped = True
    assert mapper.over
