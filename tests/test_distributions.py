from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from shoal.core import types
from shoal.formulas import distributions

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


SIZES = {"alike": (2, 2), "apart": (3, 1, 2)}
SEVERAL = {
    "alike": np.array([0.3, -1.2, 2.0, 0.0], np.float32),
    "apart": np.array([0.5, -0.2, 1.1, 7.0, -0.4, 0.6], np.float32),
}
OTHERS = {name: np.flip(logits) for name, logits in SEVERAL.items()}
BOTH = pytest.mark.parametrize("name", SIZES)


def joint(logits, sizes):
    """The probability of every combination of choices, ``[*sizes]``, in float64."""
    table = np.ones(())
    for part in np.split(logits, np.cumsum(sizes)[:-1]):
        table = np.multiply.outer(table, softmax(part))
    return table


@WAYS
def test_a_coin_and_a_die_of_four(way):
    both = distributions.multi_categorical((2, 4))
    fair = jnp.zeros(6)
    assert way(both.log_prob)(fair, jnp.array([1, 3])) == pytest.approx(-2.0794415, rel=1e-6)  # log 1/8
    assert way(both.entropy)(fair) == pytest.approx(2.0794415, rel=1e-6)
    bent = jnp.array([0.0, np.log(3.0), 0.0, 0.0, 0.0, 0.0], jnp.float32)
    # ¾ · ¼ of the second side and any face; of KL only the coin's share is not 0, as in `test_a_fair_coin`
    assert way(both.log_prob)(bent, jnp.array([1, 0])) == pytest.approx(-1.6739764, rel=1e-6)
    assert way(both.kl)(fair, bent) == pytest.approx(0.1438410, rel=1e-5)
    np.testing.assert_array_equal(way(both.mode)(bent), [1, 0])


@BOTH
@WAYS
def test_several_choices_are_one_choice_among_all_combinations(way, name):
    sizes, logits = SIZES[name], SEVERAL[name]
    several, table, other = distributions.multi_categorical(sizes), joint(logits, sizes), joint(OTHERS[name], sizes)
    for action, expected in np.ndenumerate(np.log(table)):
        assert way(several.log_prob)(logits, jnp.array(action)) == pytest.approx(expected, rel=1e-5)
    assert way(several.entropy)(logits) == pytest.approx(scipy.stats.entropy(table.ravel()), rel=1e-5)
    expected = scipy.stats.entropy(table.ravel(), other.ravel())
    assert way(several.kl)(logits, OTHERS[name]) == pytest.approx(expected, rel=1e-5)
    best = way(several.mode)(logits)
    assert tuple(np.asarray(best)) == np.unravel_index(table.argmax(), sizes)
    assert best.dtype == jnp.int32


@BOTH
def test_several_choices_are_sampled_with_the_probability_of_every_combination(name):
    sizes, logits = SIZES[name], SEVERAL[name]
    keys = jax.random.split(jax.random.key(0), 20_000)
    actions = jax.jit(jax.vmap(distributions.multi_categorical(sizes).sample, in_axes=(None, 0)))(logits, keys)
    assert (actions.dtype, actions.shape) == (jnp.int32, (20_000, len(sizes)))
    counts = np.bincount(np.ravel_multi_index(np.asarray(actions).T, sizes), minlength=np.prod(sizes))
    assert scipy.stats.chisquare(counts, 20_000 * joint(logits, sizes).ravel()).pvalue > 1e-3


@BOTH
def test_the_gradient_of_several_choices_is_that_of_each(name):
    """Of log π: 1 - π for what was chosen, -π for the others of the same choice."""
    sizes, logits = SIZES[name], SEVERAL[name]
    action = [size - 1 for size in sizes]
    gradient = jax.grad(distributions.multi_categorical(sizes).log_prob)(logits, jnp.array(action))
    parts = zip(np.split(logits, np.cumsum(sizes)[:-1]), action, strict=True)
    expected = [np.eye(len(part))[chosen] - softmax(part) for part, chosen in parts]
    np.testing.assert_allclose(gradient, np.concatenate(expected), atol=1e-6)


@BOTH
def test_several_choices_bear_extreme_logits(name):
    several = distributions.multi_categorical(SIZES[name])
    extreme = jnp.where(jnp.arange(sum(SIZES[name])) % 2 == 0, 1e4, -1e4).astype(jnp.float32)
    assert several.entropy(extreme) <= np.log(2.0) + 1e-6
    worst = several.mode(-extreme)

    def all_of_it(logits):
        return several.entropy(logits) + several.log_prob(logits, worst) + several.kl(logits, -logits)

    assert jnp.isfinite(all_of_it(extreme))
    assert jnp.isfinite(jax.grad(all_of_it)(extreme)).all()


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


@pytest.mark.parametrize("distribution", [CATEGORICAL, distributions.multi_categorical((3, 1)), GAUSSIAN],
                         ids=lambda each: each.name)  # fmt: skip
def test_entropy_is_the_mean_of_minus_log_prob(distribution):
    output = OUTPUT if distribution is GAUSSIAN else LOGITS
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
    several = types.ActionSpec(True, 0, (2,), (), (), sizes=(3, 4))
    names = [distributions.suited(space).name for space in (choices, vector, several)]
    assert names == ["categorical", "gaussian", "multi_categorical"]
    assert (CATEGORICAL.outputs(choices), GAUSSIAN.outputs(vector)) == (5, 6)
    assert distributions.suited(several).outputs(several) == 7
    assert [space.kind for space in (choices, vector, several)] == ["discrete", "continuous", "multi_discrete"]


def squashed_log_prob(output, action):
    """By the change of variables, in float64: of tanh of a normal law."""
    mean, raw = np.split(np.asarray(output, np.float64), 2)
    laws = scipy.stats.norm(mean, np.exp(np.clip(raw, -20, 2)))
    return (laws.logpdf(np.arctanh(action)) - np.log1p(-(np.asarray(action, np.float64) ** 2))).sum()


SQUASHED = np.array([0.5, -1.0, 0.2, -1.5], np.float32)


@WAYS
def test_squashed_log_prob_is_that_of_the_change_of_variables(way):
    for seed in range(5):
        noise = jax.random.normal(jax.random.key(seed), (2,))
        action, log_prob = way(distributions.squashed_sample)(SQUASHED, noise)
        mean, raw = np.split(np.asarray(SQUASHED, np.float64), 2)
        exact = np.tanh(mean + np.exp(raw) * np.asarray(noise, np.float64))
        np.testing.assert_allclose(action, exact, rtol=1e-5)
        assert log_prob == pytest.approx(squashed_log_prob(SQUASHED, exact), rel=1e-4)


def test_the_squashed_density_integrates_to_one():
    """In one dimension; noise is what leads to an action, so each action's density is asked for by its noise."""
    output = jnp.array([0.4, -0.3])

    actions = np.linspace(-0.9999, 0.9999, 20_001)
    noise = jnp.asarray((np.arctanh(actions) - 0.4) / np.exp(-0.3), jnp.float32)[:, None]
    found, log_prob = jax.jit(jax.vmap(distributions.squashed_sample, in_axes=(None, 0)))(output, noise)
    np.testing.assert_allclose(found[:, 0], actions, atol=1e-5)
    assert scipy.integrate.trapezoid(np.exp(log_prob), actions) == pytest.approx(1.0, abs=1e-3)


def test_the_squashed_law_keeps_its_digits_where_the_tanh_is_flat():
    output = jnp.array([30.0, -1.0])
    action, log_prob = distributions.squashed_sample(output, jnp.zeros(1))
    assert action[0] == 1.0
    u = 30.0  # log(1 - tanh² u) = 2 (log 2 - u) to all digits
    assert log_prob == pytest.approx(-0.5 * np.log(2 * np.pi) + 1.0 - 2 * (np.log(2) - u), rel=1e-5)
    gradient = jax.grad(lambda out: distributions.squashed_sample(out, jnp.ones(1))[1])(output)
    assert jnp.isfinite(gradient).all()


def test_the_squashed_deviation_is_held():
    mean, log_deviation = distributions.squashed_moments(jnp.array([0.5, 0.5, 9.0, -50.0]))
    np.testing.assert_array_equal(mean, [0.5, 0.5])
    np.testing.assert_array_equal(log_deviation, [2.0, -20.0])


def test_a_box_is_stretched_and_shrunk_back():
    action = types.ActionSpec(False, 0, (2,), (-1.0, 2.0), (3.0, 2.5))
    box = distributions.bounds(action)
    corners = jnp.array([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]])
    found = jax.vmap(distributions.stretch, in_axes=(None, 0))(box, corners)
    np.testing.assert_allclose(found, [[-1.0, 2.0], [3.0, 2.5], [1.0, 2.25]])
    np.testing.assert_allclose(jax.vmap(distributions.shrink, in_axes=(None, 0))(box, found), corners, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_is_the_probability_of_an_action_that_is_any(epsilon):
    values = jnp.array([0.1, 2.0, -1.0, 1.9])
    keys = jax.random.split(jax.random.key(0), 20_000)
    actions = jax.jit(jax.vmap(distributions.epsilon_greedy, in_axes=(None, None, 0)))(
        values, jnp.float32(epsilon), keys
    )
    assert actions.dtype == jnp.int32
    expected = np.full(4, epsilon / 4)
    expected[1] += 1 - epsilon
    counts = np.bincount(actions, minlength=4)
    assert (counts[expected == 0] == 0).all()
    if epsilon:
        assert scipy.stats.chisquare(counts, 20_000 * expected).pvalue > 1e-3
