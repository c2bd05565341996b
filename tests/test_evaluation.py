"""Evaluation: how many simulators it opens, what it says, where it ends."""

from __future__ import annotations

import types as python_types

import jax
import numpy as np
import pytest

from shoal import experiment
from shoal.core import seeds
from shoal.experiment import presets
from shoal.runs import evaluation

SEEDS = 3


@pytest.fixture(scope="module")
def built():
    made, _ = presets.resolve(presets.Request("a2c", "CartPole-v1", 1000, settings={"runtime": {"environments": 4}}))
    return experiment.build(made)


@pytest.fixture(scope="module")
def policy(built):
    state = jax.jit(built.parts.agent.init)(seeds.key(0))
    return jax.device_get(built.parts.agent.snapshot(state))


class Opened:
    """Simulators that are counted; at most so many may be open at once."""

    def __init__(self, parts, most=100, endless=False):
        self.parts, self.most, self.endless = parts, most, endless
        self.open, self.largest, self.made = 0, 0, 0

    def evaluation(self):
        if self.open == self.most:
            raise OSError("the licence is in use")
        env = self.parts.environment.host()
        self.open, self.made = self.open + 1, self.made + 1
        self.largest = max(self.largest, self.open)
        step, opened = env.step, self

        def close():
            opened.open -= 1

        def go_on(action):
            seen, outcome = step(action)
            return seen, outcome._replace(discount=1.0, truncated=False)

        return python_types.SimpleNamespace(reset=env.reset, step=go_on if self.endless else step, close=close)


def play(built, policy, opened, episodes=6, *, free=False, **more):
    spec = built.parts.spec._replace(time_limit=None) if free else built.parts.spec
    parts = built.parts._replace(environment=opened, spec=spec)
    return evaluation.evaluate(parts, policy, episodes, SEEDS, **more)


def test_no_more_simulators_than_training_had(built, policy):
    opened = Opened(built.parts)
    assert len(play(built, policy, opened, streams=4).returns) == 6
    assert (opened.largest, opened.open) == (4, 0)
    counts = {
        ("a2c", "host"): 8, ("a3c", "hogwild"): 2, ("gorila", "parameter_server"): 2, ("parallel_sarsa", "peers"): 1,
        ("batch_linear", "map_reduce"): 1,
    }  # fmt: skip
    for (preset, runtime), count in counts.items():
        made, _ = presets.resolve(presets.Request(preset, steps=1000, runtime=runtime))
        assert evaluation.streams(made) == count, preset


def test_one_where_several_cannot_be_open_and_those_before_it_are_closed(built, policy):
    said, opened = [], Opened(built.parts, most=2)
    played = play(built, policy, opened, streams=4, say=said.append)
    assert len(played.returns) == 6
    assert opened.open == 0
    assert opened.made == 2 + 6, "several are tried once"
    assert said[:1] == [
        "evaluating with one simulator at a time, for another could not be opened (OSError: the licence is in use)"
    ]
    with pytest.raises(OSError, match="licence"):
        play(built, policy, Opened(built.parts, most=0), streams=4)


def test_an_episode_without_an_end_is_given_up_and_that_is_told(built, policy, monkeypatch):
    monkeypatch.setattr(evaluation, "LONGEST_FREE", 30)
    said, opened = [], Opened(built.parts, endless=True)
    played = play(built, policy, opened, 5, streams=4, say=said.append, free=True)
    assert played.lengths == [30] * 5
    assert played.cut == played.summary()["eval_cut"] == 5
    assert [line for line in said if not line.startswith("evaluating")] == [
        "5 of 5 episodes were still going after 30 steps, and count as they stand; --environment.time-limit N ends them"
    ]
    whole = play(built, policy, Opened(built.parts), 5, streams=4)
    assert "eval_cut" not in whole.summary()


def test_it_ends_when_its_time_is_over_and_says_how_far_it_is(built, policy, monkeypatch):
    clock = iter(np.arange(0, 10_000, 1.0))
    monkeypatch.setattr(evaluation.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(evaluation, "SECONDS", 100.0)
    said = []
    played = play(built, policy, Opened(built.parts), 10_000, streams=4, say=said.append)
    assert 0 < len(played.returns) < 100
    assert played.cut == 0, "those under way are left out"
    assert said[0].startswith("evaluating: 0 of 10000 episodes are over, step ")
    assert 8 <= len(said) <= 12
    assert said[-1].startswith(f"the evaluation was ended after 100 s: {len(played.returns)} of 10000 episodes were")


def test_compiled_games_are_given_up_too(monkeypatch):
    monkeypatch.setattr(evaluation, "LONGEST", 9)
    made, _ = presets.resolve(presets.Request("a2c", "gymnax:CartPole-v1", 1000))
    one = experiment.build(made)
    state = jax.jit(one.parts.agent.init)(seeds.key(0))
    played = evaluation.evaluate(one.parts, one.parts.agent.snapshot(state), 20, 0)
    assert max(played.lengths) == 9
    assert 0 < played.cut < 20, "some come to their end"
