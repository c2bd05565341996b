"""Gaussian policies act in [-1, 1] and are stretched to the box of actions, wherever they act."""

from __future__ import annotations

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from gymnasium import spaces

import shoal
from shoal import experiment
from shoal.core import types
from shoal.experiment import presets
from shoal.formulas import distributions
from shoal.networks import in_numpy
from tests.conftest import build_agent, env_spec

FAR = {"low": (100.0, -1e6, -np.inf), "high": (200.0, -1e6 + 2, np.inf)}
MIDDLE, HALF = np.array([150.0, -1e6 + 1, 0.0]), np.array([50.0, 1.0, 1.0])


class Far(gymnasium.Env):
    """One decision in a box far from 0; the best is 180, the loss is in units of half the width."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(100, 200, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), -float(((action[0] - 180) / 50) ** 2), True, False, {}


def space(low, high):
    return types.ActionSpec(False, 0, (len(low),), low, high)


@pytest.mark.parametrize(
    ("low", "high", "middle", "half"),
    [
        ((100.0,), (200.0,), (150.0,), (50.0,)),
        ((-2.0, -1.0), (2.0, 1.0), (0.0, 0.0), (2.0, 1.0)),
        ((0.0, -np.inf, 3.0), (1.0, 5.0, np.inf), (0.5, 0.0, 0.0), (0.5, 1.0, 1.0)),
        ((0.0, -3.4e38), (4.0, 3.4e38), (2.0, 0.0), (2.0, 1.0)),  # as gymnax writes "unbounded"
        ((7.0,), (7.0,), (7.0,), (1.0,)),
    ],
)
def test_a_box_is_reached_where_it_has_bounds(low, high, middle, half):
    box = distributions.reach(space(low, high))
    np.testing.assert_array_equal(box.middle, np.float32(middle))
    np.testing.assert_array_equal(box.half, np.float32(half))
    assert box.half.dtype == np.float32


@pytest.mark.parametrize(("low", "high"), [((-1.0, -1.0), (1.0, 1.0)), ((-np.inf,), (np.inf,))])
def test_a_box_that_needs_no_stretching_gets_none(low, high):
    """So results on such boxes have the bits they had."""
    assert distributions.suited(space(low, high)) is distributions.GAUSSIAN
    assert distributions.suited(space((0.0,), (9.0,)), stretches=False) is distributions.GAUSSIAN


def gaussian(output):
    mean, raw = np.split(np.asarray(output, np.float64), 2)
    return mean, np.sqrt(np.logaddexp(raw, 0) + 1e-4)


def begun(rule):
    agent = build_agent(env_spec((4,), **FAR), rule=rule, algorithm={"minibatches": 1} if rule == "ppo" else {})
    return agent, jax.device_get(jax.jit(agent.init)(jax.random.key(0)))


@pytest.mark.parametrize("rule", ["actor_critic", "ppo"])
def test_what_was_drawn_is_stretched_and_its_probability_is_that_of_before(rule):
    agent, state = begun(rule)
    acting, policy = agent.about.acting, agent.snapshot(state)
    output = np.float32([0.3, -0.2, 1.0, -1.0, 0.5, 2.0])
    outputs = {"policy": np.tile(output, (4000, 1)), "value": np.zeros((4000, 1), np.float32)}
    keys = jax.random.split(jax.random.key(1), 4000)
    drawn = jax.jit(jax.vmap(acting.decide, in_axes=(None, 0, 0)))(policy, outputs, keys)
    many = acting.decide_many(policy, outputs, np.random.default_rng(0))
    mean, deviation = gaussian(output)
    for actions, extras in (drawn, many):
        assert actions.dtype == np.float32
        before = (np.asarray(actions, np.float64) - MIDDLE) / HALF
        for i in (0, 2):  # floats around -1e6 have too few digits for the test
            assert scipy.stats.kstest(before[:, i], scipy.stats.norm(mean[i], deviation[i]).cdf).pvalue > 1e-3
        assert before[:, 1].mean() == pytest.approx(mean[1], abs=0.1)
        told = scipy.stats.norm(mean, deviation).logpdf(before).sum(axis=1)
        assert np.abs(extras.log_prob - told).mean() < 0.05
    greedy = policy._replace(explore=np.float32(0.0))
    for one in (acting.decide(greedy, {"policy": output, "value": np.zeros(1)}, keys[0])[0],
                acting.decide_many(greedy, outputs, np.random.default_rng(0))[0][0]):  # fmt: skip
        np.testing.assert_allclose(one, MIDDLE + HALF * mean, rtol=1e-6)


@pytest.mark.parametrize("rule", ["actor_critic", "ppo"])
def test_nothing_is_learned_from_digits_that_the_action_lost(rule):
    """The probability that is kept and the one that is learned with are of the action as it was taken."""
    agent, state = begun(rule)
    head = distributions.suited(env_spec((4,), **FAR).action)
    obs, keys = jnp.float32([[0.1, 0.2, -0.3, 1.0]] * 50), jax.random.split(jax.random.key(1), 50)
    act = jax.jit(jax.vmap(agent.act, in_axes=(None, None, 0, 0)))
    action, extras, _ = act(agent.snapshot(state), (), obs, keys)
    output = jax.vmap(lambda x: agent.about.networks["policy"].apply(state.params, x, ())[0]["policy"])(obs)
    again = jax.jit(jax.vmap(head.log_prob))(output, action)
    np.testing.assert_allclose(extras.log_prob, again, atol=1e-4)


def test_a_worker_that_decides_in_numpy_stretches_too():
    agent, state = begun("actor_critic")
    act = in_numpy.deciding(agent.about, state, np.random.default_rng(0))
    obs = np.float32([0.1, 0.2, -0.3, 1.0])
    actions = np.stack([act(obs)[0] for _ in range(3000)])
    assert actions.dtype == np.float32
    mean, deviation = gaussian(agent.about.networks["policy"].apply(state.params, obs, ())[0]["policy"])
    before = (actions[:, [0, 2]].astype(np.float64) - MIDDLE[[0, 2]]) / HALF[[0, 2]]
    for i, at in enumerate((0, 2)):
        assert scipy.stats.kstest(before[:, i], scipy.stats.norm(mean[at], deviation[at]).cdf).pvalue > 1e-3


def test_a_run_of_an_older_schema_acts_in_the_environments_units():
    made, opened = presets.resolve(presets.Request("ppo", "tests.test_box:Far"))
    older = experiment.from_json({**made.to_json(), "schema": 1})
    actions = []
    for one in (made, older):
        agent = experiment.build(one, opened).parts.agent
        policy = agent.snapshot(agent.init(jax.random.key(0)))._replace(explore=jnp.float32(0.0))
        actions.append(float(agent.act(policy, (), jnp.ones(2), jax.random.key(0))[0][0]))
        assert agent.about.head == ("stretched" if one is made else "gaussian")
    assert actions[0] == pytest.approx(150 + 50 * actions[1], rel=1e-6)
    assert abs(actions[1]) < 1


def test_units_of_a_team_bear_a_box_without_room():
    agent = build_agent(env_spec((3,), low=(0.0, 2.0), high=(1.0, 2.0)), rule="map_propagation", local=True)
    policy = agent.snapshot(agent.init(jax.random.key(0)))
    assert np.isfinite(agent.act(policy, (), jnp.ones(3), jax.random.key(0))[0]).all()
    assert np.isfinite(jax.flatten_util.ravel_pytree(policy.params)[0]).all()


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "least"), [("ppo", -0.2), ("a3c_continuous", -0.05)])
def test_a_box_far_from_zero_is_learned_in(preset, least, tmp_path):
    """Always 100 is worth -2.56, the middle -0.36, always 200 -0.16: `ppo` stays there, as its deviation stays wide and
    what lies beyond the bound costs no more than the bound."""
    more = {"workers": 1, "algorithm": {"entropy_cost": 0.0}} if preset == "a3c_continuous" else {}
    run = shoal.train(preset, "tests.test_box:Far", steps=30_000, out=tmp_path / "run", quiet=True, **more)
    assert run.summary["eval_return_mean"] > least
