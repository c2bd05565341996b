"""`on_device` acts with what a compressor would compute; and combinations that cannot be are refused at once."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import experiment
from shoal.core import errors, tree, types
from shoal.experiment import presets
from shoal.formulas import distributions
from shoal.runs import evaluation
from shoal.runtimes import on_device
from tests.probes.test_probes import Watch

COARSE = {"bits": 3, "keep": "none"}
PPO = {
    "algorithm": {"rollout_length": 16, "entropy_cost": 0.0, "minibatches": 4},
    "optimiser": {"learning_rate": 3e-3},
    "network": {"hidden": (16,)},
    "runtime": {"environments": 16},
}


def resolved(preset="ppo", env="probe:match", steps=1024, compressor=None, settings=None, **parts):
    given = {**(PPO if preset == "ppo" else {}), "compressor": settings or {}, **parts}
    runtime = given.pop("runs_on", "on_device")
    request = presets.Request(preset, env, steps, runtime=runtime, compressor=compressor, settings=given)
    return presets.resolve(request)


def built(*args, **settings):
    made, opened = resolved(*args, **settings)
    return made, experiment.build(made, opened)


def trained(made, ready):
    experiment.cache()
    return ready.runtime.run(ready.parts, made.seed, made.steps, None, Watch(), None)


def digest(result):
    return tree.sha256(result.final.save().state.params)


def test_who_acts_is_damaged_and_nothing_else_changes():
    """A run with `identity` has the bits of one without a compressor; others learn from other experience."""
    made, ready = built()
    full = digest(trained(made, ready))
    bare = ready._replace(parts=ready.parts._replace(compressor=None))
    assert digest(trained(made, bare)) == full
    found = {full}
    for name, settings in (("quantise", COARSE), ("prune", {}), ("low_rank", {})):
        one = trained(*built(compressor=name, settings=settings))
        assert np.isfinite(list(one.final.metrics.values())).all()
        found.add(digest(one))
    assert len(found) == 4


def test_the_probabilities_remembered_are_those_of_the_damaged_policy():
    """Specification 8.9: log μ of the full-precision network would hide all that compression does."""
    made, ready = built(compressor="quantise", settings=COARSE)
    agent, simulate = ready.parts.agent, ready.parts.compressor.simulate
    network = agent.about.networks["policy"]

    def told(policy, steps):
        def one(obs, action):
            return distributions.CATEGORICAL.log_prob(network.apply(policy.params, obs, ())[0]["policy"], action)

        return jnp.abs(jax.vmap(jax.vmap(one))(steps.obs, steps.action) - steps.extras.log_prob).max()

    def update(state, rollout, key):
        del key
        policy, steps = agent.snapshot(state), rollout.transitions
        metrics = {"damaged": told(simulate(policy, jax.random.key(0)), steps), "full": told(policy, steps)}
        return state._replace(params=jax.tree.map(shaken, state.params)), metrics

    def shaken(leaf):  # at first a policy is nearly indifferent, whatever its weights
        return leaf + 0.5 * jnp.sin(97.0 * jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)

    parts = ready.parts._replace(agent=agent._replace(update=update))
    result = trained(made, ready._replace(parts=parts))
    assert result.final.metrics["damaged"] < 1e-5
    assert result.final.metrics["full"] > 1e-2


@pytest.mark.parametrize(
    ("name", "settings"), [("quantise", {"bits": 3}), ("prune", {"share": 0.5})], ids=["quantise", "prune"]
)
def test_it_learns_what_a_probe_asks_with_a_damaged_actor(name, settings):
    made, ready = built(compressor=name, settings=settings, steps=20_000)
    result = trained(made, ready)
    assert np.mean(evaluation.evaluate(ready.parts, result.policy, 64, 0).returns) > 0.95


def test_several_seeds_in_one_program_are_damaged_like_each_alone():
    made, ready = built(compressor="low_rank", settings={"share": 0.25})
    alone, ends = trained(made, ready).final.save().state.params, {}

    def ended(seed, result):
        ends[seed] = result.final.save().state.params

    places = [types.Place(seed, Watch(), functools.partial(ended, seed), None) for seed in (0, 1)]
    ready.runtime.run_many(ready.parts, places, made.steps, None)
    assert made.seed == 0
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), ends[0], alone)
    assert tree.sha256(ends[0]) != tree.sha256(ends[1])


def test_it_says_that_it_simulates():
    how = experiment.ways("on_device", on_device.Config())
    assert (how.simulates, how.ships_policy) == (True, False)


REFUSED = {
    "a student under a compiled loop": ({"compressor": "distil"}, ["--compressor distil", "on_device", "observations"]),
    "ranges of activations likewise": (
        {"compressor": "quantise", "settings": {"mode": "static"}}, ["--compressor quantise", "observations"],
    ),
    "a chain with one": ({"compressor": "chain"}, ["--compressor chain", "on_device"]),
    "a layer without units": ({"compressor": "prune", "settings": {"share": 0.99}}, ["share=0.99", "16"]),
    "settings that contradict": (
        {"compressor": "quantise", "settings": {"mode": "static", "bits": 4}}, ["mode=static is for 8 bits"],
    ),
    "a chain in a chain": ({"compressor": "chain", "settings": {"members": ["chain"]}}, ["one chain"]),
    "who holds the policy itself": (
        {"compressor": "prune", "runs_on": "host"}, ["--compressor prune", "host", "on_device"],
    ),
    "network and decision in one": (
        {"preset": "map_propagation", "compressor": "prune"}, ["--compressor prune", "one"],
    ),
    "a bit too few": ({"compressor": "quantise", "settings": {"bits": 1}}, ["bits=1", "between 2 and 8"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_combinations_that_cannot_be_are_refused_before_anything_starts(case):
    given, words = REFUSED[case]
    with pytest.raises(errors.Refused) as refused:
        resolved(**given)
    for word in words:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)
