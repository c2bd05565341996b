from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from shoal import distributions, types

WAYS = pytest.mark.parametrize("way", [lambda f: f, jax.jit], ids=["plain", "jit"])
CATEGORICAL, GAUSSIAN = distributions.CATEGORICAL, distributions.GAUSSIAN
LOGITS = np.array([0.3, -1.2, 2.0, 0.0], np.float32)
OTHER = np.array([-0.5, 0.4, 0.1, 1.5], np.float32)
OUTPUT = np.array([0.5, -1.0, 0.2, -3.0], np.float32)  # mean of 2, raw scale of 2
SECOND = np.array([0.1, -0.7, 1.1, -2.0], np.float32)


def softmax(logits):
    weights = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return weights / weights.sum()


def normals(output):
    """scipy's, one a dimension, from the definition of the variance: softplus(raw) + 1e-4."""
    mean, raw = np.split(np.asarray(output, np.float64), 2)
    return [scipy.stats.norm(m, np.sqrt(np.log1p(np.exp(r)) + 1e-4)) for m, r in zip(mean, raw, strict=True)]


@WAYS
def test_a_fair_coin(way):
    coin = jnp.zeros(2)
    assert way(CATEGORICAL.log_prob)(coin, 1) == pytest.approx(-0.6931472, rel=1e-6)
    assert way(CATEGORICAL.entropy)(coin) == pytest.approx(0.6931472, rel=1e-6)
    # KL((½, ½) || (¼, ¾)) = ½ log 2 + ½ log ⅔
    assert way(CATEGORICAL.kl)(coin, jnp.log(jnp.array([1.0, 3.0]))) == pytest.approx(0.1438410, rel=1e-5)


@WAYS
def test_categorical_equals_scipy(way):
    p, q = softmax(LOGITS), softmax(OTHER)
    for action in range(4):
        expected = scipy.stats.rv_discrete(values=(range(4), p)).logpmf(action)
        assert way(CATEGORICAL.log_prob)(LOGITS, action) == pytest.approx(expected, rel=1e-5)
    assert way(CATEGORICAL.entropy)(LOGITS) == pytest.approx(scipy.stats.entropy(p), rel=1e-5)
    assert way(CATEGORICAL.kl)(LOGITS, OTHER) == pytest.approx(scipy.stats.entropy(p, q), rel=1e-5)
    assert way(CATEGORICAL.mode)(LOGITS) == 2


def test_categorical_agrees_with_rlax(lenient, rlax):
    with lenient():
        entropy, kl = rlax.softmax().entropy(LOGITS), rlax.categorical_kl_divergence(LOGITS, OTHER)
    assert CATEGORICAL.entropy(LOGITS) == pytest.approx(float(entropy), rel=1e-5)
    assert CATEGORICAL.kl(LOGITS, OTHER) == pytest.approx(float(kl), rel=1e-5)


def test_categorical_samples_with_its_probabilities():
    keys = jax.random.split(jax.random.key(0), 20_000)
    actions = jax.jit(jax.vmap(CATEGORICAL.sample, in_axes=(None, 0)))(LOGITS, keys)
    assert actions.dtype == jnp.int32
    counts = np.bincount(actions, minlength=4)
    assert scipy.stats.chisquare(counts, 20_000 * softmax(LOGITS)).pvalue > 1e-3


def test_categorical_bears_extreme_logits():
    extreme = jnp.array([1e4, -1e4, 0.0])
    assert CATEGORICAL.entropy(extreme) == 0
    assert CATEGORICAL.log_prob(extreme, 0) == 0
    gradient = jax.grad(lambda logits: CATEGORICAL.entropy(logits) + CATEGORICAL.log_prob(logits, 1))(extreme)
    assert jnp.isfinite(gradient).all()


@WAYS
def test_gaussian_log_prob_and_entropy_equal_scipy(way):
    laws = normals(OUTPUT)
    action = np.array([0.9, -1.1], np.float32)
    expected = sum(law.logpdf(float(a)) for law, a in zip(laws, action, strict=True))
    assert way(GAUSSIAN.log_prob)(OUTPUT, action) == pytest.approx(expected, rel=1e-5)
    assert way(GAUSSIAN.entropy)(OUTPUT) == pytest.approx(sum(law.entropy() for law in laws), rel=1e-5)
    np.testing.assert_array_equal(way(GAUSSIAN.mode)(OUTPUT), OUTPUT[:2])


@WAYS
def test_gaussian_kl_equals_the_integral(way):
    expected = 0.0
    for p, q in zip(normals(OUTPUT), normals(SECOND), strict=True):
        low, high = p.mean() - 12 * p.std(), p.mean() + 12 * p.std()
        expected += scipy.integrate.quad(lambda x, p=p, q=q: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), low, high)[0]
    assert way(GAUSSIAN.kl)(OUTPUT, SECOND) == pytest.approx(expected, rel=1e-5)
    assert way(GAUSSIAN.kl)(OUTPUT, OUTPUT) == pytest.approx(0.0, abs=1e-6)


def test_gaussian_samples_with_its_moments():
    keys = jax.random.split(jax.random.key(1), 20_000)
    actions = np.asarray(jax.jit(jax.vmap(GAUSSIAN.sample, in_axes=(None, 0)))(OUTPUT, keys))
    for law, drawn in zip(normals(OUTPUT), actions.T, strict=True):
        assert scipy.stats.kstest(drawn, law.cdf).pvalue > 1e-3
    assert abs(scipy.stats.pearsonr(*actions.T).statistic) < 0.03  # the dimensions are independent


@pytest.mark.parametrize("distribution", [CATEGORICAL, GAUSSIAN], ids=lambda each: each.name)
def test_entropy_is_the_mean_of_minus_log_prob(distribution):
    output = LOGITS if distribution is CATEGORICAL else OUTPUT
    keys = jax.random.split(jax.random.key(2), 20_000)

    def drawn(key):
        return distribution.log_prob(output, distribution.sample(output, key))

    log_prob = np.asarray(jax.jit(jax.vmap(drawn))(keys))
    error = 5 * np.std(log_prob) / np.sqrt(20_000)
    assert distribution.entropy(output) == pytest.approx(-np.mean(log_prob), abs=error)


def test_a_tiny_scale_stays_finite():
    output = jnp.array([0.0, -200.0])
    assert GAUSSIAN.log_prob(output, jnp.array([1.0])) == pytest.approx(-0.5 * 1e4, rel=1e-2)
    gradient = jax.grad(lambda out: GAUSSIAN.log_prob(out, jnp.array([1.0])) + GAUSSIAN.entropy(out))(output)
    assert jnp.isfinite(gradient).all()


def test_the_action_space_picks_the_distribution():
    choices = types.ActionSpec(True, 5, (), (), ())
    vector = types.ActionSpec(False, 0, (3,), (-1.0,) * 3, (1.0,) * 3)
    assert (distributions.suited(choices).name, distributions.suited(vector).name) == ("categorical", "gaussian")
    assert (CATEGORICAL.outputs(choices), GAUSSIAN.outputs(vector)) == (5, 6)
