"""The aggregates of the report: hand numbers, an oracle, and what a 95 % interval promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from shoal.report import statistics


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 5.0], 3.0),  # nothing to cut: the mean
        ([1.0, 2.0, 6.0], 3.0),
        ([0.0, 2.0, 4.0, 1000.0], 3.0),  # one cut from each end
        ([-50.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 900.0], 3.5),  # two from each end
    ],
)
def test_iqm_by_hand(values, expected):
    assert statistics.iqm(values) == pytest.approx(expected)
    assert statistics.iqm(values[::-1]) == pytest.approx(expected)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 10, 11, 40])
def test_iqm_is_scipys_trimmed_mean(n):
    values = np.random.default_rng(n).normal(size=n)
    assert statistics.iqm(values) == pytest.approx(stats.trim_mean(values, 0.25))
    table = np.random.default_rng(n).normal(size=(n, 3))
    assert statistics.iqm(table) == pytest.approx(stats.trim_mean(table, 0.25, axis=None))


def test_iqm_ignores_one_stray_seed():
    assert statistics.iqm([10.0, 11.0, 12.0, 13.0, 1e9]) == pytest.approx(12.0)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf, 1.0]])
def test_a_lost_run_is_refused_not_averaged_away(values):
    with pytest.raises(ValueError, match=r"least 1|NaN"):
        statistics.iqm(values)


def test_interval_needs_two_seeds():
    with pytest.raises(ValueError, match="at least 2 values"):
        statistics.interval([1.0])


def test_interval_by_hand():
    # Two seeds: the resampled means are 0, 1/2 and 1 with chances 1/4, 1/2, 1/4, so both ends are beyond 2.5 %.
    assert statistics.interval([0.0, 1.0]) == (0.0, 1.0)
    assert statistics.interval([4.0, 4.0, 4.0]) == (4.0, 4.0)


def test_interval_is_repeatable_and_holds_the_middle():
    values = np.random.default_rng(3).normal(100.0, 10.0, size=12)
    low, high = statistics.interval(values)
    assert (low, high) == statistics.interval(values)
    assert low < statistics.iqm(values) < high
    assert statistics.interval(values, seed=1) == pytest.approx((low, high), abs=2.0)


def test_interval_agrees_with_scipys_bootstrap():
    values = np.random.default_rng(5).normal(size=20)

    def middle(x, axis):
        return stats.trim_mean(x, 0.25, axis=axis)

    oracle = stats.bootstrap((values,), middle, n_resamples=5000, method="percentile", rng=1).confidence_interval
    assert statistics.interval(values, reps=5000) == pytest.approx((oracle.low, oracle.high), abs=0.05)


def test_interval_is_stratified_by_task():
    # Each task is constant over seeds: whatever is drawn, a stratified resample is the same table.
    table = np.array([[0.0, 5.0, 9.0]] * 4)
    assert statistics.interval(table) == (statistics.iqm(table), statistics.iqm(table))


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(300):
        low, high = statistics.interval(rng.normal(size=20), reps=400, seed=trial)
        inside += low <= 0.0 <= high
    # A percentile bootstrap of 20 values falls a little short of 95 %; 300 trials have a standard error of 1.5 %.
    assert 0.86 <= inside / 300 <= 0.99


def test_interval_shrinks_with_more_seeds():
    rng = np.random.default_rng(1)
    few, many = (np.diff(statistics.interval(rng.normal(size=n)))[0] for n in (10, 160))
    assert many < few / 2


def _curve(x, y, until=0.0):
    return statistics.Curve(np.array(x, float), np.array(y, float), until)


def test_resample_by_hand():
    run = _curve([10, 20, 40], [0, 1, 3], until=45)
    got = statistics.resample(run, np.array([5.0, 10, 15, 30, 40, 45, 50]))
    np.testing.assert_allclose(got, [np.nan, 0, 0.5, 2, 3, 3, np.nan])


def test_resample_of_an_empty_run_is_missing():
    assert np.isnan(statistics.resample(_curve([], []), np.arange(3.0))).all()


def test_curve_is_the_iqm_at_every_point():
    rng = np.random.default_rng(2)
    grid = np.linspace(0, 10, 7)
    values = rng.normal(size=(8, 7)).cumsum(axis=1)
    band = statistics.curve([_curve(grid, row) for row in values], grid)
    np.testing.assert_allclose(band.middle, [statistics.iqm(column) for column in values.T])
    for i, column in enumerate(values.T):
        assert (band.low[i], band.high[i]) == pytest.approx(statistics.interval(column), abs=0.35)
        assert band.low[i] <= band.middle[i] <= band.high[i]


def test_a_solved_run_counts_on_and_a_lost_one_does_not():
    grid = np.array([0.0, 1.0, 2.0, 3.0])
    solved = _curve([0, 1], [0, 10], until=math.inf)
    lost = _curve([0, 1], [0, 0], until=1.0)
    long = _curve([0, 3], [0, 6], until=3.0)
    held = statistics.curve([solved, long], grid)
    np.testing.assert_allclose(held.middle, [0, 6, 7, 8])
    dropped = statistics.curve([lost, long], grid)
    np.testing.assert_allclose(dropped.middle, [0, 1, np.nan, np.nan])  # one run alone is no aggregate
    assert np.isnan(dropped.low[2:]).all()


def test_curve_in_pieces_is_the_same(monkeypatch):
    grid = np.linspace(0, 1, 50)
    runs = [_curve(grid, np.random.default_rng(i).normal(size=50)) for i in range(5)]
    whole = statistics.curve(runs, grid)
    monkeypatch.setattr(statistics, "BOOTSTRAP_FLOATS", 2000 * 5 * 7)
    np.testing.assert_array_equal(np.stack(whole[1:]), np.stack(statistics.curve(runs, grid)[1:]))
