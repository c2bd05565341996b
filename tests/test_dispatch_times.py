"""How many updates a candidate is timed for: enough to tell, and no more of those that take long."""

from __future__ import annotations

import pytest

from shoal.runtimes.members import dispatch

WAY = dispatch.Way("vmap", 8)


@pytest.fixture
def timed(monkeypatch):
    """(updates of all calls, seconds told of an update) where one lasts so long; a call costs a millisecond besides."""

    def timed(seconds, most=1000):
        now, calls = [0.0], []
        monkeypatch.setattr(dispatch.time, "perf_counter", lambda: now[0])

        def call(updates):
            calls.append(updates)
            now[0] += 1e-3 + seconds * updates

        clock = dispatch.Clock(10_000)
        clock.take(WAY, call, most, 0.0)
        return calls, clock.timed[0].seconds

    return timed


def test_of_a_long_update_few_are_made(timed):
    calls, told = timed(0.25)
    assert calls == [1, 1, 1, 1], "the first, which is slower, and three to tell"
    assert told == pytest.approx(0.25, rel=0.01)


def test_of_a_short_update_a_call_has_many(timed):
    calls, told = timed(1e-4)
    assert calls[:3] == [1, 1, 8]
    assert len(calls[3:]) == dispatch.CALLS
    assert min(calls[3:]) * 1e-4 > 0.02, "what a call costs is hardly seen"
    assert told == pytest.approx(1e-4, rel=0.1)


def test_no_call_has_more_updates_than_the_run_will_ask_for(timed):
    calls, _ = timed(1e-4, most=3)
    assert max(calls) == 3
