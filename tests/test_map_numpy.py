"""The author's loop in NumPy, an oracle: numbers by hand, the gradient of the energy, and the order of the steps."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def loops(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("_map_numpy")


class Fixed:
    """A generator that draws what it was told."""

    def __init__(self, *normal, uniform=0.0):
        self.normal, self.chance = list(normal), uniform

    def uniform(self, _, high, shape):
        return np.full(shape, high)

    def standard_normal(self, size):
        return np.array([self.normal.pop(0) for _ in range(size)])

    def random(self):
        return self.chance


def tiny(loops, sizes, *, choice, rng, variances=(0.5, 0.25), **settings):
    made = loops.Settings(temperature=2.0, trace=0.5, discount=0.8, **settings)
    return loops.Network(sizes, loops.Team(variances, (0.1, 0.01), (0.1, 0.01)), made, choice=choice, rng=rng)


def test_one_step_of_the_map_phase_by_hand(loops):
    # One input 1, one hidden unit, one linear output; all weights sqrt(3), biases 0.
    critic = tiny(loops, (1, 1, 1), choice=False, rng=Fixed(1.0, -2.0), steps=1)
    root = math.sqrt(3.0)
    critic.forward(np.array([1.0]))
    mean = math.log1p(math.exp(root))  # 1.8950
    hidden = mean + math.sqrt(0.5)
    output = root * hidden - 1.0  # the deviation is 0.5, the noise -2
    assert critic.means[0][0] == pytest.approx(mean)
    assert critic.values[0][0] == pytest.approx(hidden)
    assert critic.values[1][0] == pytest.approx(output)
    critic.settle()
    below = (mean - hidden) / 0.5
    above = (-1.0 / 0.25) * root  # (A - mean of A) / σ² W
    moved = hidden + 0.5 * 0.5 * (below + above)
    assert critic.values[0][0] == pytest.approx(moved)
    assert critic.means[1][0] == pytest.approx(root * moved), "every mean follows"
    assert critic.values[1][0] == pytest.approx(output), "the output stays"
    critic.remember(gate=1.0 / (output - root * moved))
    assert critic.traces[1][1][0] == pytest.approx(1 / 0.25), "the gated output learns 1 / σ²"
    assert critic.traces[1][0][0, 0] == pytest.approx(moved / 0.25), "times its input"
    slope = 1 / (1 + math.exp(-root))
    assert critic.traces[0][1][0] == pytest.approx((moved - mean) * slope / 0.5 / (output - root * moved))
    critic.remember()
    decayed = 0.5 * 0.8 / 0.25 + (output - root * moved) / 0.25
    assert critic.traces[1][1][0] == pytest.approx(decayed), "λγ z + e"
    assert critic.traces[1][0][0, 0] == pytest.approx(decayed * moved)


def energy(network, hidden):
    """-log Pr(a, h | s) up to a constant, from its definition."""
    below, total = network.inputs, 0.0
    for layer, value in enumerate([*hidden, network.values[-1]]):
        potential = below @ network.weights[layer] + network.biases[layer]
        if layer < len(hidden):
            total += ((value - np.logaddexp(0, potential)) ** 2).sum() / (2 * network.team.variances[layer])
        elif network.choice:
            scaled = potential / network.settings.temperature
            total -= (value * scaled).sum() - np.log(np.exp(scaled).sum())
        else:
            total += ((value - potential) ** 2).sum() / (2 * network.team.variances[layer])
        below = value
    return total


@pytest.mark.parametrize("choice", [True, False])
def test_every_hidden_layer_moves_down_the_energy_at_once(loops, choice):
    rng = np.random.default_rng(3)
    network = tiny(loops, (4, 6, 5, 3), choice=choice, rng=rng, variances=(0.03, 0.1, 0.2), steps=1)
    network.forward(rng.normal(size=4))
    before = [value.copy() for value in network.values[:-1]]
    network.settle()
    for layer, old in enumerate(before):
        slope = np.zeros_like(old)
        for unit in range(len(old)):
            shifted = [[value.copy() for value in before] for _ in range(2)]
            shifted[0][layer][unit] += 1e-6
            shifted[1][layer][unit] -= 1e-6
            slope[unit] = (energy(network, shifted[0]) - energy(network, shifted[1])) / 2e-6
        expected = old - 0.5 * network.team.variances[layer] * slope
        np.testing.assert_allclose(network.values[layer], expected, rtol=1e-5, atol=1e-8)


def test_softmax_by_hand_and_its_floor(loops):
    actor = tiny(loops, (1, 1, 2), choice=True, rng=Fixed(0.0, uniform=0.6), steps=1)
    actor.weights[1] = np.array([[0.0, 0.0]])
    actor.biases[1] = np.array([2 * math.log(3.0), 0.0])  # divided by the temperature of 2
    action = actor.forward(np.array([1.0]))
    np.testing.assert_allclose(actor.means[1], [0.75, 0.25])
    np.testing.assert_array_equal(action, [1.0, 0.0])  # 0.6 is below 0.75
    np.testing.assert_allclose(actor.error(1), [0.25 / 2, -0.25 / 2])
    np.testing.assert_allclose(loops.softmax(np.array([0.0, -500.0]))[1], math.exp(-30), rtol=1e-9)


def test_adam_by_hand_and_the_jump_at_step_1000(loops):
    rule, rate = loops.Adam((1,)), 0.1
    assert rule.step(np.array([4.0]), rate)[0] == pytest.approx(rate, rel=1e-8)  # the first step is the rate
    assert rule.step(np.array([-4.0]), rate)[0] == pytest.approx(rate * (0.9 * 0.4 - 0.4) / (1 - 0.81) / 4, rel=1e-8)
    steady = loops.Adam((1,))
    steps = [steady.step(np.array([1.0]), rate)[0] for _ in range(1000)]
    assert steps[998] == pytest.approx(rate)
    assert steps[999] / steps[998] == pytest.approx(1 / math.sqrt(1 - 0.999**1000)), "1.26 times as much"


class Scripted:
    """Episodes as written: each a list of (reward, terminated, truncated)."""

    def __init__(self, *episodes):
        self.episodes = list(episodes)

    def reset(self):
        self.left = list(self.episodes.pop(0))
        return np.array([0.0]), {}

    def step(self, _):
        reward, terminated, truncated = self.left.pop(0)
        return np.array([1.0]), reward, terminated, truncated, {}


def test_the_order_of_the_steps_around_a_termination_and_a_time_limit(loops):
    env = Scripted([(1.0, False, False), (2.0, True, False)], [(3.0, False, True)], [(4.0, False, False)])
    made = loops.Settings(
        actor=loops.Team((0.1, 0.1), (0.1, 0.1), (0.0, 0.0)), critic=loops.Team((0.1, 0.1), (0.0, 0.0), (0.0, 0.0)),
        hidden=(2,), discount=0.5, end_t=4, steps=1,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    actor, critic = (loops.Network((1, 2, n), team, made, choice=n > 1, rng=rng)
                     for n, team in ((2, made.actor), (1, made.critic)))  # fmt: skip
    learned = []
    critic.learn = lambda delta, share: learned.append((delta, share))
    walk = loops.loop(env, actor, critic, made)
    steps = [next(walk) for _ in range(6)]
    assert [step.reset for step in steps] == [False, False, True, False, True, False]
    assert [step.reward for step in steps] == [1.0, 2.0, 0.0, 3.0, 0.0, 4.0]
    assert [step.ended for step in steps] == [False, True, False, True, False, False]
    assert [step.cleared for step in steps] == [False, False, False, True, False, True]
    assert steps[0].delta is None, "the first iteration learns nothing"
    assert [step.share for step in steps] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0], "counted in iterations"
    assert steps[3].delta == 0.0, "the step that only reset teaches nothing"
    assert steps[4].delta == 0.0, "nor does a time limit"
    assert steps[2].delta != 0.0, "a termination does, on the final observation"
    assert learned == [(step.delta, step.share) for step in steps[1:]], "and yet the optimiser makes its step"


def test_the_order_within_an_iteration(loops, monkeypatch):
    done = []

    def watch(name, real):
        def noted(self, *given, **more):
            done.append(("actor " if self.choice else "critic ") + name)
            return real(self, *given, **more)

        monkeypatch.setattr(loops.Network, name, noted)

    for name in ("forward", "learn", "clear", "settle", "remember"):
        watch(name, getattr(loops.Network, name))
    made = loops.Settings(hidden=(2,), steps=1, actor=loops.Team((0.1, 0.1), (0.1, 0.1), (0.0, 0.0)),
                          critic=loops.Team((0.1, 0.1), (0.1, 0.1), (0.0, 0.0)))  # fmt: skip
    env = Scripted([(1.0, True, False)], [(1.0, False, False), (1.0, False, False)])
    walk = loops.loop(env, *loops.pair(1, 2, made, np.random.default_rng(0)), made)
    orders = []
    for _ in range(3):
        done.clear()
        next(walk)
        orders.append(list(done))
    drawn = ["actor forward", "critic forward"]
    traced = ["critic settle", "critic remember", "actor settle", "actor remember"]
    assert orders[0] == drawn + traced
    assert orders[1] == [*drawn, "critic learn", "actor learn", *traced], "the iteration that only resets"
    cleared = ["critic clear", *traced[:2], "actor clear", *traced[2:]]
    assert orders[2] == [*drawn, "critic learn", "actor learn", *cleared]


def test_a_termination_cuts_the_bootstrap(loops):
    env = Scripted([(2.0, True, False)], [(1.0, False, False)])
    made = loops.Settings(
        actor=loops.Team((0.1, 0.1), (0.0, 0.0), (0.0, 0.0)), critic=loops.Team((0.1, 0.1), (0.0, 0.0), (0.0, 0.0)),
        hidden=(2,), reward_limit=1.5,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    actor = loops.Network((1, 2, 2), made.actor, made, choice=True, rng=rng)
    critic = loops.Network((1, 2, 1), made.critic, made, choice=False, rng=rng)
    seen, forward = [], critic.forward

    def watched(inputs):
        answer = forward(inputs)
        seen.append(float(critic.means[-1][0]))
        return answer

    critic.forward = watched
    walk = loops.loop(env, actor, critic, made)
    next(walk)
    assert next(walk).delta == pytest.approx(1.5 - seen[0]), "the clipped reward less the value, and no more"


def test_returns_are_of_whole_episodes(loops):
    step = loops.Iteration(0.0, 0.0, False, 1.0, False, False)
    end = step._replace(ended=True)
    idle = step._replace(reward=0.0, reset=True)
    assert loops.returns(iter([step, step, end, idle, end, idle, step]), 2) == [3.0, 1.0]


@pytest.mark.slow
def test_it_learns_cartpole(loops):
    got = loops.returns(loops.cartpole(0), 150)
    assert np.mean(got[-30:]) > 4 * np.mean(got[:20])
