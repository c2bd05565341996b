from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import distributions, losses

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
