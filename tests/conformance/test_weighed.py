"""What the rules that learn through a corrector make of the weights it gives."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import algorithms, experiment
from shoal.core import registry, types
from shoal.formulas import optimise
from tests.conformance import test_algorithms as rules


def corrected(name: str, streams: int, weigh: Any, **settings: Any) -> types.Agent:
    """A rule whose gradient is left in its state, with a corrector that weighs steps by `weigh`."""
    module = registry.load("algorithm", name)
    config = rules.small(module, **rules.ONE_STEP | settings)
    plain = registry.load("corrector", {"v": "none", "q": "q_lambda"}[experiment.traits(name, config).corrects])
    made = plain.build(plain.Config())

    def correct(hyper: Any, steps: types.Steps) -> types.Corrected:
        found = made.correct(hyper, steps)
        return found._replace(weight=weigh(steps), told={"odd": steps.reward})

    given = algorithms.Ingredients(
        rules.opened("discrete").spec, rules.network("none"), optimise.capture(optimise.Config(max_norm=0.0), 1000),
        made._replace(correct=correct, weighs=True), streams=streams,
    )  # fmt: skip
    return module.build(config, given)


WHOLE = {"target": "n_step"}  # settings with which a rule learns through a corrector, if it does not anyway
CORRECTED = pytest.mark.parametrize(
    "name",
    [n for n in rules.ROLLOUTS if experiment.traits(n, rules.small(registry.load("algorithm", n), **WHOLE)).corrects],
)


def test_the_rules_that_learn_through_a_corrector_are_found():
    assert CORRECTED.args[1] == ["actor_critic", "ppo", "q_learning"]


@CORRECTED
def test_a_step_that_weighs_nothing_is_as_if_it_were_not_there(name):
    """A mean over the streams that are left: not a sum with zeros over all of them."""
    settings = {"reduction": "mean", **WHOLE}
    agent = corrected(name, 3, lambda steps: jnp.where(steps.reward > 50.0, 0.0, 1.0), **settings)
    state = agent.init(jax.random.key(0))
    rollout = jax.jit(functools.partial(rules.experience, agent, rules.opened("discrete")))(state, jax.random.key(1))
    steps = rollout.transitions
    marked = rollout._replace(transitions=steps._replace(reward=steps.reward.at[:, 1].set(100.0)))
    found, metrics = jax.jit(agent.update)(state, marked, jax.random.key(2))
    few = corrected(name, 2, lambda steps: jnp.ones_like(steps.reward), **settings)
    left = jax.tree.map(lambda leaf: leaf[:, np.array([0, 2])], rollout.transitions)
    expected, wanted = jax.jit(few.update)(state, rollout._replace(transitions=left), jax.random.key(2))
    for ours, theirs in rules.pairs(found.optimiser.gradient, expected.optimiser.gradient):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    for measured in {"loss", "q", "entropy", "value", "policy_loss", "value_loss"} & metrics.keys():
        assert metrics[measured] == pytest.approx(float(wanted[measured]), rel=1e-4, abs=1e-6)
    reward = marked.transitions.reward
    if name != "q_learning":  # whose rewards are scaled
        assert metrics["odd"] == pytest.approx(float(reward.mean()), rel=1e-4), "of all steps, rejected ones included"
    assert "odd" in metrics, "what the corrector tells is told"
    nothing = corrected(name, 3, lambda steps: jnp.zeros_like(steps.reward), **settings)
    still = jax.jit(nothing.update)(state, marked, jax.random.key(2))[0]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(still.optimiser.gradient)), "all rejected: no step"


@CORRECTED
def test_half_a_weight_is_half_a_gradient(name):
    whole, half = (
        corrected(name, rules.BATCH, lambda steps, w=w: jnp.full_like(steps.reward, w), **WHOLE) for w in (1.0, 0.5)
    )
    state = whole.init(jax.random.key(0))
    rollout = jax.jit(functools.partial(rules.experience, whole, rules.opened("discrete")))(state, jax.random.key(1))
    one, other = (
        jax.jit(each.update)(state, rollout, jax.random.key(2))[0].optimiser.gradient for each in (whole, half)
    )
    for ours, theirs in rules.pairs(other, one):
        np.testing.assert_allclose(ours, 0.5 * theirs, rtol=1e-4, atol=1e-7)
