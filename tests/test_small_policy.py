from __future__ import annotations

import jax
import numpy as np
import pytest
import scipy.stats

from shoal import networks
from shoal.core import types
from shoal.formulas import distributions
from shoal.networks import in_numpy


def vector(size):
    return types.ObservationSpec((size,), "float32", False)


def made(hidden, *, observation=None, outputs=3, seed=0, **config):
    """(network, NumPy parameters with biases that are not 0)"""
    heads = {"policy": (outputs, 0.01), "value": (1, 1.0)}
    network = networks.build(networks.Config(hidden=hidden, **config), observation or vector(4), heads)
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return network, jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)


SPECS = {
    "one": {"hidden": (8,)},
    "two": {"hidden": (16, 8)},
    "relu": {"hidden": (8, 8), "activation": "relu"},
    "linear": {"hidden": ()},
    "separate": {"hidden": (8,), "shared": False},
    "image": {"hidden": (8,), "observation": types.ObservationSpec((3, 2, 2), "float32", True)},
    "bytes": {"hidden": (8,), "observation": types.ObservationSpec((3, 2, 2), "uint8", True)},
    "dqn_2013": {"hidden": (), "observation": types.ObservationSpec((84, 84, 4), "uint8", True), "torso": "dqn_2013"},
    "nature": {"hidden": (), "observation": types.ObservationSpec((40, 37, 2), "float32", True), "torso": "nature"},
    "universe": {"hidden": (), "observation": types.ObservationSpec((42, 42, 1), "uint8", True), "torso": "universe"},
    "elu": {"hidden": (8,), "activation": "elu"},
    "apart": {
        "hidden": (), "observation": types.ObservationSpec((36, 40, 1), "uint8", True), "torso": "dqn_2013",
        "shared": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SPECS)
def test_forward_equals_the_network(name):
    network, params = made(**SPECS[name])
    assert in_numpy.fits(network.spec)
    run = in_numpy.forward(network.spec, params)
    apply = jax.jit(jax.vmap(network.apply, in_axes=(None, 0, None)))
    observed, rng = network.spec.observation, np.random.default_rng(3)
    seen = rng.normal(size=(50, *observed.shape)).astype(np.float32)
    if observed.dtype == "uint8":
        seen = rng.integers(0, 256, seen.shape).astype(np.uint8)
    found = np.stack([run(obs).copy() for obs in seen])
    wanted = np.asarray(apply(params, seen, ())[0]["policy"])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(wanted).max()))


def test_parameters_refilled_in_place_are_followed():
    network, params = made((8,))
    other = made((8,), seed=1)[1]
    run, obs = in_numpy.forward(network.spec, params), np.ones(4, np.float32)
    before = run(obs).copy()
    jax.tree.map(np.copyto, params, other)
    after = run(obs).copy()
    assert (before != after).any()
    np.testing.assert_array_equal(after, in_numpy.forward(network.spec, other)(obs))


@pytest.mark.parametrize(
    ("hidden", "config", "expected"),
    [
        ((128, 128), {}, True),
        ((128, 129), {}, False),
        ((8,), {"lstm": 4}, False),
        ((8,), {"observation": types.ObservationSpec((4, 4, 1), "uint8", True)}, True),
        ((8,), {"observation": types.ObservationSpec((40, 40, 1), "float32", True), "torso": "nature"}, True),
        ((8,), {"observation": types.ObservationSpec((40, 40, 1), "uint8", True), "torso": "nature", "lstm": 4}, False),
        ((8,), {"observation": vector(5000)}, False),
    ],
)
def test_only_small_dense_networks_fit(hidden, config, expected):
    heads = {"policy": (2, 1.0), "value": (1, 1.0)}
    observation = config.pop("observation", vector(4)) if "observation" in config else vector(4)
    spec = networks.specify(networks.Config(hidden=hidden, **config), observation, heads)
    assert in_numpy.fits(spec) is expected


def test_choices_come_with_their_probabilities_and_log_probs():
    logits = np.array([1.0, -0.5, 0.0, 2.0], np.float32)
    expected = np.exp(logits, dtype=np.float64) / np.exp(logits, dtype=np.float64).sum()
    decide = in_numpy.Sampler("categorical", np.random.default_rng(0)).decide
    drawn = [decide(logits) for _ in range(20_000)]  # several blocks of random numbers
    counts = np.bincount([action for action, _ in drawn], minlength=4)
    assert scipy.stats.chisquare(counts, 20_000 * expected).pvalue > 1e-3
    for action, log_prob in drawn[:50]:
        assert log_prob == pytest.approx(float(distributions.CATEGORICAL.log_prob(logits, action)), rel=1e-5)


@pytest.mark.parametrize("most", [in_numpy.MANY, 1], ids=["loop", "arrays"])
def test_several_choices_come_with_the_probability_of_every_combination(most, monkeypatch):
    monkeypatch.setattr(in_numpy, "MANY", most)
    sizes, logits = (3, 2), np.array([1.0, -0.5, 0.0, 2.0, 1.2], np.float32)
    parts = [np.exp(part) / np.exp(part).sum() for part in np.split(logits.astype(np.float64), [3])]
    decide = in_numpy.Sampler("multi_categorical", np.random.default_rng(0), sizes).decide
    drawn = [decide(logits) for _ in range(20_000)]
    actions = np.stack([action for action, _ in drawn])
    assert (actions.dtype, actions.shape) == (np.int32, (20_000, 2))
    counts = np.bincount(np.ravel_multi_index(actions.T, sizes), minlength=6)
    assert scipy.stats.chisquare(counts, 20_000 * np.outer(*parts).ravel()).pvalue > 1e-3
    for action, log_prob in drawn[:50]:
        assert log_prob == pytest.approx(np.log([part[a] for part, a in zip(parts, action, strict=True)]).sum())


def test_choices_in_a_row_are_independent():
    decide = in_numpy.Sampler("categorical", np.random.default_rng(1)).decide
    actions = np.array([decide(np.zeros(2, np.float32)).action for _ in range(3 * in_numpy.NOISE)])
    pairs = np.bincount(2 * actions[:-1] + actions[1:], minlength=4)
    assert scipy.stats.chisquare(pairs).pvalue > 1e-3
    blocks = actions.reshape(3, -1)
    assert (blocks[0] != blocks[1]).any()  # a block is not used twice


def test_extreme_logits_are_borne():
    decide = in_numpy.Sampler("categorical", np.random.default_rng(0)).decide
    assert decide(np.array([1e4, -1e4, 0.0], np.float32)) == (0, 0.0)


def test_vectors_come_with_their_moments_and_log_probs():
    output = np.array([0.5, -1.0, 0.2, -3.0], np.float32)
    decide = in_numpy.Sampler("gaussian", np.random.default_rng(0)).decide
    drawn = [decide(output) for _ in range(3 * in_numpy.NOISE)]
    actions = np.stack([action for action, _ in drawn])
    mean, variance = (np.asarray(moment, np.float64) for moment in distributions.moments(output))
    for i in range(2):
        assert scipy.stats.kstest(actions[:, i], scipy.stats.norm(mean[i], np.sqrt(variance[i])).cdf).pvalue > 1e-3
    assert actions.dtype == np.float32
    for action, log_prob in drawn[:50]:
        assert log_prob == pytest.approx(float(distributions.GAUSSIAN.log_prob(output, action)), rel=1e-4)


def test_a_seed_gives_the_same_decisions():
    logits = np.array([0.2, 0.1, 0.0], np.float32)
    one, two, other = (in_numpy.Sampler("categorical", np.random.default_rng(seed)).decide for seed in (5, 5, 6))
    first = [one(logits).action for _ in range(100)]
    assert first == [two(logits).action for _ in range(100)]
    assert first != [other(logits).action for _ in range(100)]


def test_the_agent_acts_alike_either_way(env_spec, build_agent):
    agent = build_agent(env_spec((4,), choices=3))
    params = made((5,))[1]
    state = agent.init(jax.random.key(0))._replace(params=params)
    act = in_numpy.deciding(agent.about, state, np.random.default_rng(0))
    obs = np.array([0.1, -0.4, 1.0, 0.3], np.float32)
    action, extras = act(obs)
    outputs, _ = agent.about.networks["policy"].apply(params, obs, ())
    expected = distributions.CATEGORICAL.log_prob(outputs["policy"], action)
    assert extras.log_prob == pytest.approx(float(expected), rel=1e-5)
