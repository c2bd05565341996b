"""TD3 against float64 arithmetic written out, for a linear policy under a tanh and linear critics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal.algorithms import _memory, td3
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
    "critic_rate": 2.0, "target_noise": 0.6, "target_noise_clip": 0.4, "reward_scale": 1.5,
}  # fmt: skip


@pytest.fixture
def learner(env_spec, build_agent, rollout, ends):
    """settings -> (spec, agent, config, state, rollout)"""

    def made(**settings):
        spec = env_spec((3,), low=LOW, high=HIGH)
        agent = build_agent(
            spec, rule="td3", streams=B, network={"hidden": ()}, algorithm=BASE | settings, local=True,
            optimiser=reference.RMSPROP,
        )  # fmt: skip
        state = agent.init(jax.random.key(0))
        state = state._replace(params=reference.shaken(state.params), target=reference.shaken(state.target, 8))
        config = options.build(td3.Config, BASE | settings, "algorithm")
        return spec, agent, config, state, rollout(spec, T, B, seed=3, ends=ends(TERMINAL, LIMIT))

    return made


def policy(params, obs):
    return np.tanh(reference.linear(params["policy"], obs))


def lerp(old, new, weight=0.3):
    return jax.tree.map(lambda a, b: (1 - weight) * a + weight * b, old, new)


def expected(state, drawn, key, config, *, due):
    """(parameters, target, loss) after one gradient step."""
    now, target = reference.double((state.params, state.target))
    noise = config.target_noise * np.asarray(jax.random.normal(key, (N, 2)), np.float64)
    noise = np.clip(noise, -config.target_noise_clip, config.target_noise_clip)
    following = np.clip(policy(target["policy"], drawn.next_obs) + noise, -1.0, 1.0)
    y = drawn.reward + drawn.discount * reference.slopes(target["critics"], drawn.next_obs, following)[0]
    action = (drawn.action - MIDDLE) / HALF
    gradient, loss = reference.critics_gradient(now["critics"], drawn.obs, action, y, drawn.weight)
    critics = reference.RMSProp(config.critic_rate)(now["critics"], gradient)
    params = {"policy": now["policy"], "critics": critics}
    if not due:
        return params, target, loss
    chosen = policy(now["policy"], drawn.obs)
    by_action = -critics[0]["q"]["kernel"][3:, 0] / N  # of the first critic, as it is after its step
    gradient = {"policy": reference.linear_gradient(drawn.obs, by_action * (1 - chosen**2))}
    params["policy"] = reference.RMSProp()(now["policy"], gradient)
    return params, lerp(target, params), loss


def batch(spec, state, given, key, n_step=1):
    steps = given.transitions._replace(reward=1.5 * given.transitions.reward)
    return reference.draw(_memory.Plan(64, N, n_step, B, False, T), spec, state, given._replace(transitions=steps), key)


@pytest.mark.parametrize("due", [False, True])
@pytest.mark.parametrize("settings", [{}, {"n_step": 3, "critics": 3}, {"critics": 1}], ids=["two", "three", "one"])
def test_an_update_equals_the_arithmetic_written_out(due, settings, learner):
    spec, agent, config, state, given = learner(**settings)
    state = state._replace(updates=jnp.int32(1 if due else 0))  # the policy learns at every second update
    after, metrics = jax.jit(agent.update)(state, given, jax.random.key(11))
    drawn, key = batch(spec, state, given, jax.random.key(11), config.n_step)
    params, target, loss = expected(state, drawn, key, config, due=due)
    reference.assert_close(after.params, params)
    reference.assert_close(after.target, target)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-4)
    assert int(after.updates) == int(state.updates) + 1
    if not due:
        jax.tree.map(np.testing.assert_array_equal, after.optimiser.rule, state.optimiser.rule)


@pytest.mark.parametrize(("terminated", "truncated"), [(False, False), (False, True), (True, False)])
def test_only_a_termination_ends_the_bootstrap(terminated, truncated, env_spec, build_agent, rollout):
    """One transition in memory, critics of constants: Q goes to r + 0.9 · 4, the lower of 4 and 5, or to r."""
    spec = env_spec((3,), low=LOW, high=HIGH)
    algorithm = {"rollout_length": 1, "capacity": 4, "batch": 2, "learning_starts": 0, "discount": 0.9}
    agent = build_agent(spec, rule="td3", network={"hidden": ()}, local=True, algorithm=algorithm)
    state = agent.init(jax.random.key(0))
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    target = jax.tree.map(jnp.zeros_like, state.params)
    for each, constant in zip(target["critics"], (5.0, 4.0), strict=True):
        each["q"]["bias"] = jnp.full(1, constant)
    given = rollout(spec, 1, 1, seed=2)
    steps = given.transitions._replace(
        discount=jnp.full((1, 1), 0.0 if terminated else 1.0), truncated=jnp.full((1, 1), truncated)
    )
    state = state._replace(params=zeros, target=target)
    metrics = jax.jit(agent.update)(state, given._replace(transitions=steps), jax.random.key(0))[1]
    y = float(steps.reward[0, 0]) + (0.0 if terminated else 0.9 * 4.0)
    assert metrics["loss"] == pytest.approx(2 * 0.5 * y**2, rel=1e-5)


def test_actions_are_random_at_first_then_noisy_then_greedy(learner):
    _, agent, _, state, _ = learner(learning_starts=100, noise=0.1)
    act, obs = jax.jit(jax.vmap(agent.act, in_axes=(None, None, None, 0))), jnp.array([0.3, -0.2, 0.1])
    keys = jax.random.split(jax.random.key(0), 4000)
    greedy = MIDDLE + HALF * policy(reference.double(state.params)["policy"], np.asarray(obs, np.float64))
    random = np.asarray(act(agent.snapshot(state), (), obs, keys)[0])
    np.testing.assert_allclose(random.mean(axis=0), MIDDLE, atol=0.06)
    np.testing.assert_allclose(random.std(axis=0), 2 * HALF / np.sqrt(12), rtol=0.04)
    later = agent.snapshot(state._replace(env_steps=jnp.int32(100)))
    noisy = np.asarray(act(later, (), obs, keys)[0])
    inside = (greedy - 0.5 > LOW) & (greedy + 0.5 < HIGH)
    np.testing.assert_allclose(noisy.mean(axis=0)[inside], greedy[inside], atol=0.02)
    np.testing.assert_allclose(noisy.std(axis=0)[inside], 0.1 * HALF[inside], rtol=0.1)
    assert (noisy >= LOW).all()
    assert (noisy <= HIGH).all()
    for given in (later, agent.snapshot(state)):
        still = np.asarray(act(given._replace(explore=jnp.float32(0.0)), (), obs, keys)[0])
        np.testing.assert_allclose(still, np.tile(greedy, (4000, 1)), rtol=1e-5)


def test_nothing_is_learned_before_its_time(learner):
    _, agent, _, state, given = learner(learning_starts=2 * T * B, updates=3)
    update = jax.jit(agent.update)
    once = update(state, given, jax.random.key(0))[0]
    jax.tree.map(np.testing.assert_array_equal, (once.params, once.target), (state.params, state.target))
    twice = update(once, given, jax.random.key(1))[0]
    assert (int(once.updates), int(twice.updates)) == (0, 3)
