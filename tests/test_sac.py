"""SAC against float64 arithmetic written out, for a linear policy and linear critics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal.algorithms import _memory, sac
from shoal.core import options
from tests import reference

T, B, N = 5, 2, 16
TERMINAL = np.zeros((T, B), bool)
LIMIT = TERMINAL.copy()
TERMINAL[1, 0] = LIMIT[3, 1] = True
LOW, HIGH = (-2.0, 0.0), (1.0, 3.0)
MIDDLE, HALF = np.array([-0.5, 1.5]), np.array([1.5, 1.5])
BASE = {
    "rollout_length": T, "batch": N, "capacity": 64, "learning_starts": 0, "discount": 0.9, "tau": 0.3,
    "critic_rate": 2.0, "temperature": 0.4, "entropy_target": -0.7, "reward_scale": 1.5,
}  # fmt: skip


@pytest.fixture
def learner(env_spec, build_agent, rollout, ends):
    """settings -> (spec, agent, config, state, rollout)"""

    def made(**settings):
        spec = env_spec((3,), low=LOW, high=HIGH)
        agent = build_agent(
            spec, rule="sac", streams=B, network={"hidden": ()}, algorithm=BASE | settings, local=True,
            optimiser=reference.RMSPROP,
        )  # fmt: skip
        state = agent.init(jax.random.key(0))
        params = {name: reference.shaken(state.params[name]) for name in ("policy", "critics")}
        state = state._replace(params=state.params | params, target=reference.shaken(state.target, 8))
        config = options.build(sac.Config, BASE | settings, "algorithm")
        return spec, agent, config, state, rollout(spec, T, B, seed=3, ends=ends(TERMINAL, LIMIT))

    return made


def sampled(params, obs, noise):
    """(actions in (-1, 1), log probabilities, deviations, whether those are free to move)"""
    mean, raw = np.split(reference.linear(params["policy"], obs), 2, axis=1)
    log_deviation = np.clip(raw, -20.0, 2.0)
    action = np.tanh(mean + np.exp(log_deviation) * noise)
    log_normal = -0.5 * noise**2 - log_deviation - 0.5 * np.log(2 * np.pi)
    log_prob = (log_normal - np.log(1 - action**2)).sum(axis=1)
    return action, log_prob, np.exp(log_deviation), np.abs(raw + 9.0) < 11.0


def expected(state, drawn, key, config):
    """(parameters, target, loss) after one gradient step."""
    now, target = reference.double((state.params, state.target))
    noises = [np.asarray(jax.random.normal(each, (N, 2)), np.float64) for each in jax.random.split(key)]
    alpha = np.exp(now["log_alpha"])
    following, log_prob, _, _ = sampled(now["policy"], drawn.next_obs, noises[0])
    y = drawn.reward + drawn.discount * (reference.slopes(target, drawn.next_obs, following)[0] - alpha * log_prob)
    action = (drawn.action - MIDDLE) / HALF
    gradient, loss = reference.critics_gradient(now["critics"], drawn.obs, action, y, drawn.weight)
    critics = reference.RMSProp(config.critic_rate)(now["critics"], gradient)
    chosen, log_prob, deviation, free = sampled(now["policy"], drawn.obs, noises[1])
    by_action = reference.slopes(critics, drawn.obs, chosen)[1]
    # d/du of α log π - Q(tanh u): 2 α tanh u - Q' (1 - tanh² u); u = μ + σ ε, and log π falls by log σ itself.
    d_u = 2 * alpha * chosen - by_action * (1 - chosen**2)
    d_raw = np.where(free, -alpha + d_u * deviation * noises[1], 0.0)
    gradient = {"policy": reference.linear_gradient(drawn.obs, np.concatenate([d_u, d_raw], axis=1) / N)}
    policy = reference.RMSProp()(now["policy"], gradient)
    surplus = -log_prob.mean() - config.entropy_target * 2
    log_alpha = reference.RMSProp()(now["log_alpha"], surplus) if config.learn_temperature else now["log_alpha"]
    params = {"policy": policy, "critics": critics, "log_alpha": log_alpha}
    return params, jax.tree.map(lambda a, b: 0.7 * a + 0.3 * b, target, critics), loss


def batch(spec, state, given, key, n_step=1):
    steps = given.transitions._replace(reward=1.5 * given.transitions.reward)
    return reference.draw(_memory.Plan(64, N, n_step, B, False, T), spec, state, given._replace(transitions=steps), key)


@pytest.mark.parametrize(
    "settings",
    [{}, {"n_step": 3, "critics": 3}, {"learn_temperature": False, "critics": 1}],
    ids=["two", "three", "fixed_temperature"],
)
def test_an_update_equals_the_arithmetic_written_out(settings, learner):
    spec, agent, config, state, given = learner(**settings)
    after, metrics = jax.jit(agent.update)(state, given, jax.random.key(11))
    drawn, key = batch(spec, state, given, jax.random.key(11), config.n_step)
    params, target, loss = expected(state, drawn, key, config)
    reference.assert_close(after.params, params)
    reference.assert_close(after.target, target)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-4)
    assert metrics["temperature"] == pytest.approx(0.4)
    assert (float(after.params["log_alpha"]) != float(state.params["log_alpha"])) == config.learn_temperature


def test_a_deviation_at_its_bound_is_not_pushed_further(learner):
    spec, agent, config, state, given = learner()
    head = state.params["policy"]["policy"]
    head["bias"] = head["bias"].at[2].set(8.0)
    after = jax.jit(agent.update)(state, given, jax.random.key(11))[0]
    drawn, key = batch(spec, state, given, jax.random.key(11))
    reference.assert_close(after.params, expected(state, drawn, key, config)[0], rtol=1e-3)
    held = after.params["policy"]["policy"]["kernel"][:, 2]
    np.testing.assert_array_equal(held, head["kernel"][:, 2])


def test_the_temperature_falls_with_entropy_to_spare_and_rises_without(learner):
    for target, rises in ((-5.0, False), (3.0, True)):
        _, agent, _, state, given = learner(entropy_target=target)
        after = jax.jit(agent.update)(state, given, jax.random.key(0))[0]
        assert (float(after.params["log_alpha"]) > float(state.params["log_alpha"])) == rises


@pytest.mark.parametrize(("terminated", "truncated"), [(False, False), (False, True), (True, False)])
def test_only_a_termination_ends_the_bootstrap(terminated, truncated, env_spec, build_agent, rollout):
    """One transition in memory, critics of constants, hardly any price of entropy: y = r + 0.9 · 4, or r."""
    spec = env_spec((3,), low=LOW, high=HIGH)
    algorithm = {
        "rollout_length": 1, "capacity": 4, "batch": 2, "learning_starts": 0, "discount": 0.9, "temperature": 1e-8,
    }  # fmt: skip
    agent = build_agent(spec, rule="sac", network={"hidden": ()}, local=True, algorithm=algorithm)
    state = agent.init(jax.random.key(0))
    zeros = {name: jax.tree.map(jnp.zeros_like, state.params[name]) for name in ("policy", "critics")}
    target = jax.tree.map(jnp.zeros_like, state.target)
    for each, constant in zip(target, (5.0, 4.0), strict=True):
        each["q"]["bias"] = jnp.full(1, constant)
    given = rollout(spec, 1, 1, seed=2)
    steps = given.transitions._replace(
        discount=jnp.full((1, 1), 0.0 if terminated else 1.0), truncated=jnp.full((1, 1), truncated)
    )
    state = state._replace(params=state.params | zeros, target=target)
    metrics = jax.jit(agent.update)(state, given._replace(transitions=steps), jax.random.key(0))[1]
    y = float(steps.reward[0, 0]) + (0.0 if terminated else 0.9 * 4.0)
    assert metrics["loss"] == pytest.approx(2 * 0.5 * y**2, rel=1e-5)


def test_actions_are_random_at_first_then_of_the_policy_then_greedy(learner):
    _, agent, _, state, _ = learner(learning_starts=100)
    act, obs = jax.jit(jax.vmap(agent.act, in_axes=(None, None, None, 0))), jnp.array([0.3, -0.2, 0.1])
    keys = jax.random.split(jax.random.key(0), 4000)
    mean, raw = np.split(
        reference.linear(reference.double(state.params)["policy"]["policy"], np.asarray(obs, np.float64)), 2
    )
    random = np.asarray(act(agent.snapshot(state), (), obs, keys)[0])
    np.testing.assert_allclose(random.mean(axis=0), MIDDLE, atol=0.06)
    np.testing.assert_allclose(random.std(axis=0), 2 * HALF / np.sqrt(12), rtol=0.04)
    later = agent.snapshot(state._replace(env_steps=jnp.int32(100)))
    u = np.arctanh((np.asarray(act(later, (), obs, keys)[0], np.float64) - MIDDLE) / HALF)
    np.testing.assert_allclose(np.median(u, axis=0), mean, atol=5 * np.exp(raw).max() / np.sqrt(4000))
    np.testing.assert_allclose(u.std(axis=0), np.exp(raw), rtol=0.06)
    for given in (later, agent.snapshot(state)):
        still = np.asarray(act(given._replace(explore=jnp.float32(0.0)), (), obs, keys)[0])
        np.testing.assert_allclose(still, np.tile(MIDDLE + HALF * np.tanh(mean), (4000, 1)), rtol=1e-5)


def test_nothing_is_learned_before_its_time(learner):
    _, agent, _, state, given = learner(learning_starts=2 * T * B, updates=3)
    update = jax.jit(agent.update)
    once = update(state, given, jax.random.key(0))[0]
    jax.tree.map(np.testing.assert_array_equal, (once.params, once.target), (state.params, state.target))
    twice = update(once, given, jax.random.key(1))[0]
    assert (int(once.updates), int(twice.updates)) == (0, 3)
