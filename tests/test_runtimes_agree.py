"""Where theory says that two ways of training are one, they are: the same gradients lead to the same parameters.

A2C with one environment and A3C with one worker differ only in where the gradient is applied: in the learner's state
(`optimise.local`), or in shared memory after `optimise.capture` left it there.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import algorithms, networks
from shoal.algorithms import actor_critic
from shoal.core import seeds, tree, types
from shoal.correct import none
from shoal.formulas import in_place, optimise

STEPS, UPDATES = 500, 50


def _agent(env_spec, optimiser, reduction):
    config = actor_critic.Config(rollout_length=7, reduction=reduction)
    network = networks.Config(hidden=(8,))
    return actor_critic.build(config, algorithms.Ingredients(env_spec, network, optimiser, none.build(none.Config())))


def _rollouts():
    generator = np.random.default_rng(0)
    for _ in range(UPDATES):
        shape = (7, 1)
        over = generator.random(shape) < 0.1
        yield types.Rollout(
            types.Transition(
                generator.normal(size=(*shape, 4)).astype(np.float32),
                generator.integers(0, 2, shape).astype(np.int32),
                generator.normal(size=shape).astype(np.float32),
                np.where(over, 0.0, 1.0).astype(np.float32),
                ~over & (generator.random(shape) < 0.1),
                generator.normal(size=(*shape, 4)).astype(np.float32),
                actor_critic.Remembered(np.full(shape, -0.7, np.float32)),
            ),
            (),
        )


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a2c_with_one_environment_is_a3c_with_one_worker(reduction):
    spec = types.EnvSpec(
        "test", types.ObservationSpec((4,), "float32", False), types.ActionSpec(True, 2, (), (), ()), None, None, True
    )
    config = optimise.Config(learning_rate=1e-2, epsilon=1e-3, max_norm=0.5)
    here, there = (_agent(spec, make(config, STEPS), reduction) for make in (optimise.local, optimise.capture))
    state, worker = here.init(seeds.key(0)), there.init(seeds.key(0))
    flat = tree.flattener(state.params)
    theta, g = np.array(flat.flatten(worker.params)), np.zeros(flat.size, np.float32)
    shared, taken = in_place.SharedRMSProp(flat.size), 0
    update_here, update_there = jax.jit(here.update), jax.jit(there.update)
    for rollout in _rollouts():
        state, _ = update_here(state, rollout, seeds.key(1))
        worker, _ = update_there(worker._replace(params=flat.unflatten(jnp.asarray(theta))), rollout, seeds.key(1))
        hyper = jax.device_get(worker.optimiser.hyper)
        gradient = np.asarray(flat.flatten(worker.optimiser.gradient))
        shared.apply(theta, g, gradient, hyper, float(optimise.rate(hyper, taken)))
        taken += rollout.transitions.reward.size
    np.testing.assert_allclose(theta, np.asarray(flat.flatten(state.params)), rtol=1e-4, atol=1e-6)
    assert not np.allclose(theta, np.asarray(flat.flatten(here.init(seeds.key(0)).params)), rtol=1e-2)
