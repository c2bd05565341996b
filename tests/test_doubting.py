"""A run that will hardly learn is told of before it begins, in one line."""

from __future__ import annotations

import re

import pytest

from shoal.experiment import doubting, presets

PONG, CART_POLE = "ALE/Pong-v5", "CartPole-v1"


def said(preset, env=PONG, steps=None, **settings):
    request = presets.Request(preset, env=env, steps=steps, settings=settings)
    made, opened = presets.resolve(request)
    return presets.doubts(request, made, opened.spec)


def test_few_pictures_at_a_time_are_told_of():
    told = said("a3c", runtime={"workers": 2}, algorithm={"rollout_length": 5})
    assert re.fullmatch(r"segments of 5 with 2 workers show 10 pictures .*rollout-length 20", told)
    assert said("a3c", runtime={"workers": 2}, algorithm={"rollout_length": 10}) is None
    assert said("a3c", CART_POLE, runtime={"workers": 2}, algorithm={"rollout_length": 5}) is None
    assert said("ppo", algorithm={"rollout_length": 16}, runtime={"environments": 1}) is None


def test_the_papers_short_segments_are_told_of_with_few_workers():
    assert "segments of 5 with 2 workers show 10 pictures" in said("a3c_paper")
    assert said("a3c_paper", runtime={"workers": 16}, network={"lstm": 256}) is None


def test_one_worker_of_a_method_that_lives_from_several_is_told_of():
    assert "--workers 2" in said("async_q", CART_POLE, runtime={"workers": 1})
    assert said("async_q", CART_POLE, runtime={"workers": 2}) is None
    assert said("dqn", CART_POLE) is None


@pytest.mark.parametrize(("steps", "short"), [(100_000, True), (1_000_000, False), (None, False)])
def test_a_run_far_shorter_than_its_preset_is_told_of(steps, short):
    told = said("a3c_lstm", steps=steps)
    assert told == ("100,000 steps are few: a3c_lstm is given 4,000,000 for ALE/Pong-v5" if short else None)


def test_doubts_stand_in_one_line():
    told = said("a3c", steps=1_000, runtime={"workers": 1}, algorithm={"rollout_length": 5})
    assert told.count("; ") == 2
    assert "\n" not in told
    assert doubting.FEW == 20
