"""The rules against hand numbers, an independent slow form, and what hostile updates may do to them."""

import itertools
import statistics

import numpy as np
import pytest

from shoal.core import errors
from shoal.runtimes.federated import robust

HAND = np.array([[0.0, 9.0], [1.0, 5.0], [2.0, 7.0], [3.0, 3.0], [100.0, -100.0]], np.float32)


# ------------------------------------------------------------------------------------------------ slow forms
# Of lists of Python numbers, straight from the papers.


def distance(u, v):
    return sum((a - b) ** 2 for a, b in zip(u, v, strict=True))


def average(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def slow_mean(rows, f):
    del f
    return average(rows)


def slow_median(rows, f):
    del f
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def slow_trimmed(rows, f):
    return average([*zip(*(sorted(column)[f : len(rows) - f] for column in zip(*rows, strict=True)), strict=True)])


def slow_scores(rows, f):
    n = len(rows)
    apart = [[distance(u, v) for j, v in enumerate(rows) if j != i] for i, u in enumerate(rows)]
    return [sum(sorted(each)[: n - f - 2]) for each in apart]


def slow_krum(rows, f):
    scores = slow_scores(rows, f)
    return rows[scores.index(min(scores))]


def slow_multi_krum(rows, f):
    scores = slow_scores(rows, f)
    best = sorted(range(len(rows)), key=lambda i: (scores[i], i))[: len(rows) - f]
    return average([rows[i] for i in sorted(best)])


def slow_mixing(rows, f):
    def mixed(u):
        near = sorted(range(len(rows)), key=lambda j: (distance(u, rows[j]), j))[: len(rows) - f]
        return average([rows[j] for j in near])

    return slow_trimmed([mixed(u) for u in rows], f)


def slow_norm_bound(rows, f):
    del f
    norms = [sum(a * a for a in row) ** 0.5 for row in rows]
    bound = statistics.median(norms)
    return average([[a * min(1.0, bound / max(n, 1e-30)) for a in row] for row, n in zip(rows, norms, strict=True)])


SLOW = {
    "mean": slow_mean,
    "norm_bound": slow_norm_bound,
    "median": slow_median,
    "trimmed_mean": slow_trimmed,
    "krum": slow_krum,
    "multi_krum": slow_multi_krum,
    "nearest_mixing": slow_mixing,
}


def test_every_rule_has_a_slow_form():
    assert SLOW.keys() == robust.RULES.keys()


@pytest.mark.parametrize("rule", robust.RULES)
def test_a_rule_is_its_slow_form(rule):
    random = np.random.default_rng(18)
    for f, d in itertools.product(range(4), (1, 2, 9)):
        n = int(random.integers(robust.needs(rule, f), robust.needs(rule, 3) + 3))
        updates = random.standard_normal((n, d)).astype(np.float32)
        want = SLOW[rule](updates.astype(np.float64).tolist(), f)
        np.testing.assert_allclose(robust.RULES[rule].combine(updates, f), want, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------ hand numbers


@pytest.mark.parametrize(
    ("rule", "want"),
    [
        ("mean", [21.2, -15.2]),
        ("median", [2.0, 5.0]),
        ("trimmed_mean", [2.0, 5.0]),  # of 1, 2, 3 and of 3, 5, 7
        # Of five with f = 1 a score is the two smallest squared distances: 8 + 17, 5 + 8, 5 + 8, 8 + 17, far.
        ("krum", [1.0, 5.0]),  # of equal ones the first
        ("multi_krum", [1.5, 6.0]),  # all but the last
        # Means of the four nearest: all four honest ones see the same; the last one mixes with (1,5), (2,7), (3,3).
        ("nearest_mixing", [1.5, 6.0]),
    ],
)
def test_hand_numbers(rule, want):
    np.testing.assert_allclose(robust.RULES[rule].combine(HAND, 1), want, rtol=1e-6)


def test_the_norm_bound_is_the_median_norm():
    updates = np.array([[3.0, 4.0], [0.0, 1.0], [30.0, 40.0]], np.float32)  # norms 5, 1, 50
    np.testing.assert_allclose(robust.norm_bound(updates), [2.0, 3.0], rtol=1e-6)


def test_of_an_even_number_the_median_is_the_mean_of_the_two_in_the_middle():
    np.testing.assert_allclose(robust.median(HAND[:4]), [1.5, 6.0])


def test_rows_above_a_bound_alone_are_scaled():
    updates = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], np.float32)
    lengths = robust.norms(updates)
    np.testing.assert_allclose(lengths, [5.0, 0.5, 0.0], rtol=1e-6)
    np.testing.assert_allclose(robust.bounded(updates, lengths, 1.0), [[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]], rtol=1e-6)
    assert updates[0, 0] == 3.0
    assert robust.bounded(updates, lengths, 5.0) is updates


# ------------------------------------------------------------------------------------------------ properties


@pytest.mark.parametrize("rule", robust.RULES)
def test_columns_in_blocks_are_as_columns_by_themselves(rule, monkeypatch):
    updates = np.random.default_rng(1).standard_normal((9, 50)).astype(np.float32)
    whole = robust.RULES[rule].combine(updates, 2)
    monkeypatch.setattr(robust, "BLOCK", 7)
    np.testing.assert_allclose(robust.RULES[rule].combine(updates, 2), whole, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rule", robust.RULES)
def test_equal_updates_are_their_own_aggregate(rule):
    updates = np.tile(np.random.default_rng(2).standard_normal(5).astype(np.float32), (7, 1))
    np.testing.assert_allclose(robust.RULES[rule].combine(updates, 2), updates[0], rtol=1e-6)


@pytest.mark.parametrize("rule", [name for name, rule in robust.RULES.items() if rule.withstands])
@pytest.mark.parametrize("lie", [-1e3, 1e6, 3.4028234663852886e38, 0.0])
def test_hostile_updates_move_a_robust_rule_within_what_honest_ones_say(rule, lie):
    f, n = 3, 10
    honest = np.random.default_rng(3).normal(1.0, 0.1, (n - f, 20)).astype(np.float32)
    for places in itertools.islice(itertools.combinations(range(n), f), 0, 120, 17):
        updates = np.full((n, 20), lie, np.float32)
        updates[[i for i in range(n) if i not in places]] = honest
        one = robust.RULES[rule].combine(updates, f)
        assert np.isfinite(one).all()
        assert np.abs(one - 1.0).max() < 0.7, places


def test_the_mean_is_moved_by_one():
    updates = np.ones((10, 4), np.float32)
    updates[0] = 1e6
    assert (robust.mean(updates) > 1e4).all()


@pytest.mark.parametrize("rule", robust.RULES)
def test_the_largest_finite_numbers_make_no_infinity(rule):
    huge = np.full((7, 3), np.finfo(np.float32).max)
    huge[::2] *= -1
    with np.errstate(all="raise"):
        one = robust.RULES[rule].combine(huge, 2)
    assert np.isfinite(one).all()


# ------------------------------------------------------------------------------------------------ how many


@pytest.mark.parametrize(
    ("rule", "f", "n"),
    [
        ("mean", 0, 1),
        ("median", 2, 5),
        ("trimmed_mean", 2, 5),
        ("krum", 1, 5),
        ("multi_krum", 3, 9),
        ("nearest_mixing", 3, 7),
    ],
)
def test_too_few_parties_are_refused_with_the_number_needed(rule, f, n):
    assert robust.needs(rule, f) == n
    robust.check(rule, f, n)
    with pytest.raises(errors.Refused, match=f"needs {n} updates"):
        robust.check(rule, f, n - 1)


def test_a_mean_that_should_withstand_somebody_and_a_rule_there_is_not_are_refused():
    with pytest.raises(errors.Refused, match="withstands no hostile party"):
        robust.check("mean", 1, 10)
    with pytest.raises(errors.Refused, match="did you mean 'median'"):
        robust.check("medain", 0, 10)


def test_auto_is_the_mean_until_somebody_may_be_hostile():
    assert [robust.chosen("auto", 0), robust.chosen("auto", 2), robust.chosen("krum", 2)] == [
        "mean", "nearest_mixing", "krum",
    ]  # fmt: skip
