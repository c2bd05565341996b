from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal.algorithms import _memory, dqn
from shoal.core import options
from shoal.formulas import distributions, losses, optimise, returns
from tests import reference

WAYS = pytest.mark.parametrize("way", [lambda f: f, jax.jit], ids=["plain", "jit"])


@WAYS
def test_policy_gradient_by_hand(way):
    assert way(losses.policy_gradient)(jnp.float32(-0.5), jnp.float32(4.0)) == 2.0
    # d(-log π A)/d(log π, A) = (-A, 0): the advantage is a constant.
    gradient = way(jax.grad(losses.policy_gradient, argnums=(0, 1)))(jnp.float32(-0.5), jnp.float32(4.0))
    assert gradient == (-4.0, 0.0)


@WAYS
def test_squared_error_by_hand(way):
    assert way(losses.squared_error)(jnp.float32(1.0), jnp.float32(4.0)) == 4.5
    # d(½ (t - p)²)/d(p, t) = (p - t, 0): the target is a constant.
    gradient = way(jax.grad(losses.squared_error, argnums=(0, 1)))(jnp.float32(1.0), jnp.float32(4.0))
    assert gradient == (-3.0, 0.0)


def test_descending_makes_a_good_action_likelier_and_a_bad_one_rarer():
    def probability_change(advantage):
        def loss(logits):
            return losses.policy_gradient(distributions.CATEGORICAL.log_prob(logits, 1), advantage)

        logits = jnp.zeros(3)
        return jax.nn.softmax(logits - 0.1 * jax.grad(loss)(logits))[1] - 1 / 3

    assert probability_change(jnp.float32(1.0)) > 0
    assert probability_change(jnp.float32(-1.0)) < 0


def test_rlax_gives_the_same_policy_gradient(lenient, rlax):
    logits, action = jax.random.normal(jax.random.key(0), (6, 4)), jnp.array([0, 1, 2, 3, 0, 1])
    advantage = jax.random.normal(jax.random.key(1), (6,))

    def ours(logits):
        log_prob = jax.vmap(distributions.CATEGORICAL.log_prob)(logits, action)
        return jax.vmap(losses.policy_gradient)(log_prob, advantage).mean()

    def theirs(logits):
        return rlax.policy_gradient_loss(logits, action, advantage, jnp.ones(6))

    with lenient():
        expected = jax.grad(theirs)(logits)
    np.testing.assert_allclose(jax.grad(ours)(logits), expected, rtol=1e-5, atol=1e-7)


@WAYS
@pytest.mark.parametrize(
    ("rho", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.5, 2.0, -2.4, 0.0),  # further would not pay: held at 1.2
        (0.5, 2.0, -1.0, -1.0),  # the way back is open
        (0.5, -2.0, 1.6, 0.0),  # held at 0.8
        (1.5, -2.0, 3.0, 3.0),
    ],
)
def test_the_clipped_policy_gradient_by_hand(way, rho, advantage, loss, slope):
    def ours(log_rho, advantage):
        return losses.clipped_policy_gradient(log_rho, advantage, jnp.float32(0.2))

    given = jnp.log(jnp.float32(rho)), jnp.float32(advantage)
    assert way(ours)(*given) == pytest.approx(loss, rel=1e-5)
    gradient = way(jax.grad(ours, argnums=(0, 1)))(*given)
    assert gradient[0] == pytest.approx(slope, rel=1e-5), "dρ/d log ρ = ρ"
    assert gradient[1] == 0.0, "the advantage is a constant"


def test_rlax_gives_the_same_clipped_policy_gradient(lenient, rlax):
    log_rho, advantage = (jax.random.normal(jax.random.key(seed), (64,)) for seed in (0, 1))

    def ours(log_rho):
        return jax.vmap(losses.clipped_policy_gradient, in_axes=(0, 0, None))(log_rho, advantage, 0.3).mean()

    with lenient():
        value, gradient = jax.value_and_grad(
            lambda log_rho: rlax.clipped_surrogate_pg_loss(jnp.exp(log_rho), advantage, 0.3)
        )(log_rho)
    np.testing.assert_allclose(ours(log_rho), value, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(ours)(log_rho), gradient, rtol=1e-4, atol=1e-7)


@WAYS
@pytest.mark.parametrize(
    ("value", "target", "loss", "slope"),
    [
        (1.1, 2.0, 0.405, -0.9),  # within the clip around 1: the squared error
        (1.5, 2.0, 0.32, 0.0),  # ½ (1.2 - 2)² is the larger: nothing more to gain
        (1.5, 0.0, 1.125, 1.5),  # away from the target the clip does not hold
        (0.5, 0.0, 0.32, 0.0),
    ],
)
def test_the_clipped_value_by_hand(way, value, target, loss, slope):
    def ours(value, target):
        return losses.clipped_squared_error(value, jnp.float32(1.0), target, jnp.float32(0.2))

    given = jnp.float32(value), jnp.float32(target)
    assert way(ours)(*given) == pytest.approx(loss, rel=1e-5)
    gradient = way(jax.grad(ours, argnums=(0, 1)))(*given)
    assert gradient[0] == pytest.approx(slope, abs=1e-6)
    assert gradient[1] == 0.0, "the target is a constant"


def test_a_clip_that_is_off_leaves_the_squared_error():
    value, before, target = (jax.random.normal(jax.random.key(seed), (32,)) for seed in range(3))
    never = jnp.float32(optimise.LARGEST)
    found = jax.vmap(losses.clipped_squared_error, in_axes=(0, 0, 0, None))(value, before, target, never)
    np.testing.assert_allclose(found, jax.vmap(losses.squared_error)(value, target), rtol=1e-6)


@WAYS
def test_huber_by_hand(way):
    errors, slopes = [0.5, -0.5, 3.0, -3.0, 0.0], [0.5, -0.5, 1.0, -1.0, 0.0]
    expected = [0.125, 0.125, 2.5, 2.5, 0.0]
    for error, loss, slope in zip(errors, expected, slopes, strict=True):
        assert way(losses.huber)(jnp.float32(error), jnp.float32(1.0)) == pytest.approx(loss)
        assert way(jax.grad(losses.huber))(jnp.float32(error), jnp.float32(1.0)) == pytest.approx(slope)


@pytest.mark.parametrize("threshold", [0.3, 1.0])
def test_rlax_gives_the_same_huber_loss(threshold, lenient, rlax):
    error = 2.0 * jax.random.normal(jax.random.key(0), (64,))
    found = jax.vmap(losses.huber, in_axes=(0, None))(error, jnp.float32(threshold))
    slope = jax.vmap(jax.grad(losses.huber), in_axes=(0, None))(error, jnp.float32(threshold))
    with lenient():
        expected = rlax.huber_loss(error, threshold)
        by_error = jax.vmap(jax.grad(lambda e: rlax.huber_loss(e, threshold)))(error)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(slope, by_error, rtol=1e-5, atol=1e-7)
    never = jax.vmap(losses.huber, in_axes=(0, None))(error, jnp.float32(optimise.LARGEST))
    np.testing.assert_allclose(never, 0.5 * error**2, rtol=1e-6)


def test_lambda_returns_less_the_value_are_rlaxs_generalised_advantages(lenient, rlax):
    """Without cuts, where both are defined; terminations count."""
    rng = np.random.default_rng(0)
    reward, discount, values = rng.normal(size=20), 0.9 * rng.integers(0, 2, 20), rng.normal(size=21)
    reward, discount, values = (jnp.asarray(each, jnp.float32) for each in (reward, discount, values))
    target = returns.lambda_returns(reward, discount, jnp.zeros(20, bool), values[1:], 0.8)
    with lenient():
        expected = rlax.truncated_generalized_advantage_estimation(reward, discount, 0.8, values)
    np.testing.assert_allclose(target - values[:-1], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("double", [True, False])
def test_the_error_of_an_action_value_is_rlaxs(double, lenient, rlax, env_spec, build_agent):
    """Priorities are these errors; so `learn` is asked for them as `dqn` calls it."""
    agent = build_agent(env_spec((3,), choices=4), rule="dqn", network={"hidden": (5,)}, local=True)
    config = options.build(dqn.Config, {"double": double}, "algorithm")
    rule = dqn.Rule(
        config=config,
        network=agent.about.networks["policy"],
        optimiser=optimise.local(optimise.Config(), 10),
        arrive=0,
    )
    with lenient():
        state = agent.init(jax.random.key(0))
    state = state._replace(target=reference.shaken(state.params), params=reference.shaken(state.params, 3))
    obs, next_obs = (jax.random.normal(jax.random.key(seed), (6, 3)) for seed in (0, 1))
    action, reward = jnp.array([0, 1, 2, 3, 0, 1]), jnp.linspace(-2.0, 2.0, 6)
    discount = 0.9 * jnp.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    drawn = _memory.Sample(obs, action, reward, discount, next_obs, jnp.ones(6), ())
    error = dqn.learn(rule, state, drawn, jax.random.key(0))[1]

    def q(params, obs):
        return jax.vmap(lambda each: agent.about.networks["policy"].apply(params, each, ())[0]["q"])(obs)

    now, goal = q(state.params, obs), q(state.target, next_obs)
    with lenient():
        if double:
            chooser = q(state.params, next_obs)
            expected = jax.vmap(rlax.double_q_learning)(now, action, reward, discount, goal, chooser)
        else:
            expected = jax.vmap(rlax.q_learning)(now, action, reward, discount, goal)
    np.testing.assert_allclose(error, expected, rtol=1e-5, atol=1e-6)
