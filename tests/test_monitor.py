"""The monitor's formulas against hand numbers and oracles, and its stopwatch against real sleeps."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import scipy.stats

from shoal import experiment
from shoal.core import options, registry, types
from shoal.experiment import correcting, presets
from shoal.monitor import drift, staleness, timing
from shoal.runtimes.actor_learner import sampling

RNG = np.random.default_rng(0)


# ------------------------------------------------------------------------------------------------ drift


def three(n=1000, apart=0.1):
    """Log-probabilities of actions by the policy that acted, its full-precision version, and the learner's."""
    rng = np.random.default_rng(1)
    mu = rng.normal(-1.0, 0.3, n)
    then = mu + rng.normal(0.0, apart, n)
    return mu, then, then + rng.normal(0.0, apart, n)


def test_the_split_adds_up_exactly_and_is_the_mean_of_the_samples():
    mu, then, now = three()
    measured = drift.sums(mu, now, then).measured()
    for n in range(1, 100):  # exactly, however each of them is rounded
        told = drift.sums(mu[:n], now[:n], then[:n]).measured()
        assert told.kl_total == told.kl_compression + told.kl_staleness
    np.testing.assert_allclose(measured.kl_compression, (mu - then).mean(), rtol=1e-12)
    np.testing.assert_allclose(measured.kl_staleness, (then - now).mean(), rtol=1e-12)
    np.testing.assert_allclose(measured.kl_total, (mu - now).mean(), rtol=1e-10)


def test_hand_numbers_of_the_weights():
    rho = np.array([0.5, 2.0, 1.5, 0.8, 1.0])  # of the specification's worked example
    measured = drift.sums(np.zeros(5), np.log(rho), bounds=types.Bounds(clip=1.0, low=0.6, high=1.9)).measured()
    np.testing.assert_allclose(measured.ess, 5.8**2 / (5 * 8.14), rtol=1e-12)  # 0.826536
    np.testing.assert_allclose(drift.ess(rho), measured.ess, rtol=1e-12)
    np.testing.assert_allclose(measured.ess_corrected, 2.8**2 / (5 * 2.64))  # of 0, 0, 1, 0.8, 1
    np.testing.assert_allclose(measured.weight_mean, 1.16)
    np.testing.assert_allclose(measured.chi2, (0.25 + 4 + 2.25 + 0.64 + 1) / 5 - 1)
    assert (measured.clip_fraction, measured.rejected_low, measured.rejected_high) == (0.4, 0.2, 0.2)
    logs = np.log(rho)
    np.testing.assert_allclose(measured.log_rho_mean, logs.mean())
    np.testing.assert_allclose(measured.log_rho_std, logs.std())
    np.testing.assert_allclose(measured.log_rho_max, math.log(2))
    np.testing.assert_allclose(measured.dlogp, np.abs(logs).mean())
    np.testing.assert_allclose(measured.dlogp_exp, (2 + 2 + 1.5 + 1.25 + 1) / 5)
    assert measured.kl_compression is None, "no snapshot of that version, no split"
    np.testing.assert_allclose(measured.kl_total, -logs.mean())


def test_where_the_corrector_does_not_look_at_the_weights_all_steps_count_alike():
    measured = drift.sums(np.zeros(4), np.log([0.5, 2.0, 1.5, 0.8])).measured()
    assert (measured.ess_corrected, measured.clip_fraction) == (1.0, 0.5)


@pytest.mark.parametrize(
    ("corrector", "settings", "bounds"),
    [
        ("vtrace", {"clip": 10.0}, types.Bounds(clip=10.0)),
        ("vtrace", {"weight": "icepop", "low": 0.4}, types.Bounds(clip=1.0, low=0.4, high=5.0)),
        ("retrace", {}, types.Bounds(clip=1.0)),
        ("importance", {}, types.Bounds()),
        ("tis", {"cap": 8.0}, types.Bounds(clip=8.0)),
        ("icepop", {}, types.Bounds(low=0.5, high=5.0)),
        ("seq_mis", {"weight": "tis"}, types.Bounds(clip=2.0)),
        ("none", {}, None),
        ("tree_backup", {}, None),
        ("q_lambda", {}, None),
    ],
)
def test_correctors_say_what_they_do_to_single_weights(corrector, settings, bounds):
    config = options.build(registry.load("corrector", corrector).Config, settings, "corrector")
    assert correcting.build(corrector, config).bounds == bounds


def test_a_run_is_measured_by_the_bounds_of_its_corrector():
    made, _ = presets.resolve(presets.Request("impala", "probe:match", 64, settings={"corrector": {"clip": 3.0}}))
    parts = experiment.build(made).parts
    assert parts.bounds == types.Bounds(clip=3.0)
    sampler = sampling.Sampler(parts, None, 2, 1)
    sampler.drift.add(np.zeros(4), np.log([2.0, 4.0, 0.5, 1.0]))
    assert sampler.drift.measured().clip_fraction == 0.25


def test_exact_divergences_agree_with_scipy_and_with_what_samples_estimate():
    p, q = RNG.normal(size=(2, 7, 5))
    exact = drift.kl_categorical(p, q)
    oracle = [
        scipy.stats.entropy(np.exp(a) / np.exp(a).sum(), np.exp(b) / np.exp(b).sum()) for a, b in zip(p, q, strict=True)
    ]
    np.testing.assert_allclose(exact, oracle, rtol=1e-10)
    np.testing.assert_allclose(drift.kl_categorical(p, p + 3.0), 0.0, atol=1e-12)
    masked = np.array([0.0, -np.inf, 1.0])
    np.testing.assert_allclose(drift.kl_categorical(masked, masked), 0.0)
    assert drift.kl_categorical(np.zeros(3), masked) == np.inf

    log_p, log_q = drift.log_softmax(p[0]), drift.log_softmax(q[0])
    drawn = RNG.choice(5, size=200_000, p=np.exp(log_p))
    np.testing.assert_allclose(drift.kl_k3(log_p[drawn], log_q[drawn]).mean(), exact[0], rtol=0.02)
    assert (drift.kl_k3(log_p[drawn], log_q[drawn]) >= 0).all()
    assert drift.kl_k3(np.zeros(1), np.log([2.0]))[0] == pytest.approx(2 - 1 - math.log(2))


def test_exact_divergence_of_gaussians():
    mean, std = RNG.normal(size=(2, 4, 3)), RNG.uniform(0.5, 2.0, size=(2, 4, 3))
    exact = drift.kl_gaussian((mean[0], std[0]), (mean[1], std[1]))
    x = mean[0] + std[0] * RNG.normal(size=(100_000, 4, 3))
    log = [scipy.stats.norm(m, s).logpdf(x).sum(axis=-1) for m, s in zip(mean, std, strict=True)]
    np.testing.assert_allclose((log[0] - log[1]).mean(axis=0), exact, rtol=0.03, atol=0.01)
    one = drift.kl_gaussian((np.zeros(1), np.ones(1)), (np.ones(1), np.full(1, 2.0)))
    assert one == pytest.approx(math.log(2) + 2 / 8 - 0.5)


def test_action_agreement():
    full = np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [5.0, 4.0]])
    packed = np.array([[1.0, 1.1], [3.0, 2.9], [1.0, 0.9], [5.0, 4.0]])
    assert drift.action_agreement(packed, full) == 0.75
    assert drift.action_agreement(packed[:0], full[:0]) is None
    assert drift.action_agreement(full + 0.05, full, near=drift.NEAR) == 1.0
    assert drift.action_agreement(full + np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.2], [0.2, 0.0]]), full, 0.1) == 0.5


def test_stretches_and_processes_add_up_and_what_was_taken_is_not_told_twice():
    mu, then, now = three()
    whole, first = drift.sums(mu, now, then).measured(), drift.Drift()
    first.add(mu[:300], now[:300], then[:300])
    early = first.take()
    assert early.steps == 300
    first.add(mu[300:], now[300:], then[300:])
    late = first.take()
    assert late.steps == 700
    np.testing.assert_allclose(late.ess, drift.ess(np.exp(now[300:] - mu[300:])))
    assert first.take().ess is None
    np.testing.assert_allclose(first.measured()[:17], whole[:17], rtol=1e-9)
    both = drift.sums(mu[:9], now[:9], then[:9]).joined(drift.sums(mu[9:], now[9:], then[9:]))
    np.testing.assert_allclose(both.measured()[:17], whole[:17], rtol=1e-9)


def test_padding_is_not_counted_and_what_is_not_finite_is_told():
    mu, then, now = three(10)
    used = np.arange(10) < 6
    mu[9], then[2], now[8] = np.nan, -np.inf, np.inf
    measured = drift.sums(mu, now, then, used).measured()
    kept = np.array([0, 1, 3, 4, 5])
    assert (measured.steps, measured.non_finite) == (5, 1)
    np.testing.assert_allclose(measured.kl_staleness, (then - now)[kept].mean())
    nothing = drift.sums(np.full(3, np.nan), np.zeros(3)).measured()
    assert (nothing.steps, nothing.non_finite, nothing.ess, nothing.log_rho_max) == (0, 3, None, None)
    assert drift.alarms(nothing) == ()


def test_weights_are_clamped_before_they_are_exponentiated():
    measured = drift.sums(np.zeros(2), np.array([0.0, 5000.0])).measured()
    assert measured.weight_mean == pytest.approx((1 + math.exp(20)) / 2)
    assert measured.log_rho_max == 5000.0


def measured(**changed):
    return drift.sums(np.zeros(4), np.zeros(4), np.zeros(4)).measured()._replace(**changed)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ess": 0.29}, "effective sample size 0.29 is below 0.3"),
        ({"weight_mean": 0.49}, "mean weight 0.49 is outside 0.5 to 2"),
        ({"weight_mean": 2.01}, "mean weight 2.01 is outside 0.5 to 2"),
        ({"chi2": 1.01}, "chi-square 1.01 is above 1"),
        ({"dlogp_exp": 1.06}, "1.06 is above 1.05"),
    ],
)
def test_an_alarm_for_every_threshold_and_none_at_it(changed, said):
    assert drift.alarms(measured()) == ()
    assert drift.alarms(measured(ess=0.3, weight_mean=0.5, chi2=1.0, dlogp_exp=1.05)) == ()
    (alarm,) = drift.alarms(measured(**changed))
    assert said in alarm


def test_what_the_summary_and_the_metrics_hold():
    told = drift.sums(np.zeros(2), np.array([0.0, -9.0])).measured().correction("vtrace")
    assert list(told) == [
        "name", "kl_compression", "kl_staleness", "kl_total", "kl_k3", "ess", "ess_corrected", "clip_fraction",
        "weight_mean", "chi2", "dlogp", "rejected_low", "rejected_high", "log_rho", "alarms",
    ]  # fmt: skip
    assert (told["name"], told["kl_k3"], told["log_rho"]["max"], told["kl_total"]) == ("vtrace", None, 0.0, 4.5)
    assert len(told["alarms"]) == 1
    assert measured(action_agreement=0.9).metrics()["action_agreement"] == 0.9


def test_staleness_by_updates():
    counted = staleness.Staleness()
    assert counted.told() == {"median": None, "p95": None, "max": None}
    lags = RNG.integers(0, 40, 501)
    for lag in lags.tolist():
        counted.add(lag)
    counted.add(10**7)
    every = [*lags.tolist(), 10**7]
    for share in (0.05, 0.5, 0.95):
        assert counted.quantile(share) == np.quantile(every, share, method="inverted_cdf")
    assert counted.told()["max"] == 10**7
    assert counted.quantile(1.0) == staleness.EXACT, "no place of its own for every lag there may be"
    bins = counted.histogram()
    assert sum(bins.values()) == counted.rollouts == 502
    assert bins["3"] == int((lags == 3).sum())
    assert bins["16-31"] == int(((lags >= 16) & (lags < 32)).sum())
    assert bins["1024+"] == 1
    many = staleness.Staleness()
    many.add(5, rollouts=3)
    assert (many.told(), many.histogram()["5"]) == ({"median": 5, "p95": 5, "max": 5}, 3)


# ------------------------------------------------------------------------------------------------ time


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_every_stretch_has_a_name_and_the_parts_are_the_whole():
    clock = Clock()
    watch = timing.Stopwatch(timing.ACTOR, clock)
    for name, took in [("inference", 2.0), ("env", 3.0), ("wait", 0.5), ("env", 1.0), ("load", 0.25)]:
        clock.now += took
        assert watch.lap(name) == took
    clock.now += 0.125
    assert watch.split() == {
        "inference_s": 2.0, "env_s": 4.0, "wait_s": 0.5, "load_s": 0.25, "other_s": 0.125,
    }  # fmt: skip
    assert watch.wall_s == 6.875 == sum(watch.split().values())
    learner = timing.Stopwatch(timing.LEARNER, clock)
    assert list(learner.split()) == ["wait_s", "update_s", "publish_s", "other_s"]
    assert timing.joined([watch.split(), watch.split()])["env_s"] == 8.0
    assert timing.joined([]) == {}


@pytest.mark.parametrize("slow", ["env", "load", "wait"])
def test_a_sleep_appears_in_its_column(slow):
    """Specification 11.12: a millisecond in step, load or queue is told within 10 %, and the sums are the wall."""
    begun = time.perf_counter()
    watch, slept = timing.Stopwatch(timing.ACTOR), 0.0
    for _ in range(30):
        for name in timing.ACTOR:
            if name == slow:
                before = time.perf_counter()
                time.sleep(0.001)
                slept += time.perf_counter() - before
            watch.lap(name)
    split = watch.split()
    wall = time.perf_counter() - begun
    assert split[f"{slow}_s"] == pytest.approx(slept, rel=0.1)
    assert sum(split.values()) == pytest.approx(watch.wall_s, rel=1e-9)
    assert sum(split.values()) == pytest.approx(wall, rel=0.02)


def test_a_lap_costs_next_to_nothing():
    """A few laps for every environment step of some microseconds."""
    watch, waited = timing.Stopwatch(timing.ACTOR), timing.Quantiles()
    best = math.inf
    for _ in range(20):
        begun = time.perf_counter()
        for _ in range(500):
            waited.add(watch.lap("inference"))
        best = min(best, (time.perf_counter() - begun) / 500)
    assert best < 5e-6, f"{best * 1e6:.2f} microseconds for a lap and a count"


def test_quantiles_in_bounded_memory():
    times = np.exp(np.random.default_rng(3).normal(math.log(50e-6), 1.0, 5001))
    kept = timing.Quantiles()
    assert kept.told() == {"median": None, "p95": None}
    for one in times.tolist():
        kept.add(one)
    for share in (0.5, 0.95, 0.99):
        exact = np.quantile(times, share, method="inverted_cdf")
        assert kept.quantile(share) == pytest.approx(exact, rel=0.0125)
    assert kept.told(1e-6)["median"] == pytest.approx(50, rel=0.1)
    assert len(kept.counts) == timing.BINS
    for one in (0.0, -1.0, 1e9):
        kept.add(one)
    assert sum(kept.counts) == 5004
    assert (kept.counts[0], kept.counts[-1]) == (2, 1)
    shared = np.zeros(timing.BINS, np.int64)
    timing.Quantiles(shared).add(1e-3)
    assert timing.Quantiles(shared).quantile(0.5) == pytest.approx(1e-3, rel=0.0125)


# ------------------------------------------------------------------------------------------------ Amdahl


@pytest.mark.parametrize(
    ("s", "r", "f"), [(2.0, 0.298, 0.60), (4.13, 0.403, 0.53), (2.0, 0.403, 0.81), (4.13, 0.298, 0.39)]
)
def test_the_shares_behind_the_published_numbers(s, r, f):
    assert timing.share_behind(r, s) == pytest.approx(f, abs=0.006)
    assert timing.reduction(timing.share_behind(r, s), s) == pytest.approx(r)
    assert 1 - 1 / timing.speed_up(f, s) == pytest.approx(timing.reduction(f, s))


def test_amdahl_by_hand():
    assert timing.reduction(0.6, 3.0) == pytest.approx(0.4)
    assert timing.speed_up(0.6, 3.0) == pytest.approx(1 / 0.6)
    assert timing.speed_up(1 - 0.157, 9.9) == pytest.approx(4.13, abs=0.01), "environment 16 % of the actor's time"
    after = 0.2 / (0.4 + 0.2)  # 0.6 became 0.2
    assert timing.share_before(after, 3.0) == pytest.approx(0.6)


PIPELINE = {"inference": 600e-6, "env": 200e-6, "load": 200e-6}  # seconds of a step


def test_a_pipeline_is_bound_by_its_slowest_stage():
    made = timing.stages(PIPELINE, n=1000, actors=2, learner=0.3)
    assert (made.actor, made.wall(), made.wall(synchronous=True)) == pytest.approx((0.5, 0.5, 0.8))
    assert made.inference == pytest.approx(0.3)

    little = timing.predict(made, 2.0, packed=False)  # a' = 0.35, above l
    assert (little.s, little.bound) == (2.0, "actor")
    assert (little.f, little.reduction) == pytest.approx((0.6, 0.3))

    much = timing.predict(made, 100.0, packed=False)  # a' = 0.203: nothing is gained beyond a' = l
    assert (much.bound, much.reduction) == ("learner", pytest.approx(1 - 0.3 / 0.5))

    turns = timing.predict(made, 2.0, packed=False, synchronous=True)
    assert turns.f == pytest.approx(0.3 / 0.8)
    assert turns.reduction == pytest.approx(timing.reduction(turns.f, 2.0))

    bound = timing.predict(made._replace(learner=0.6), 10.0, packed=False)
    assert (bound.reduction, bound.bound) == (0.0, "learner")


@pytest.mark.parametrize("synchronous", [False, True])
def test_the_prediction_is_the_same_from_either_side(synchronous):
    made = timing.stages(PIPELINE, n=1000, actors=2, learner=0.3)
    before = timing.predict(made, 4.0, packed=False, synchronous=synchronous)
    after = timing.predict(made.faster(4.0), 4.0, packed=True, synchronous=synchronous)
    assert after[:3] == pytest.approx(before[:3])
    slower = timing.predict(made, 0.5, packed=False, synchronous=synchronous)
    assert slower.reduction < 0, "a packed policy that is slower costs time, and that is said"


def test_stages_of_a_run():
    actor = {"inference_s": 6.0, "env_s": 2.0, "wait_s": 1.0, "load_s": 0.5, "other_s": 0.5}
    learner = {"wait_s": 4.0, "update_s": 5.0, "publish_s": 0.5, "other_s": 0.5}
    made = timing.measured_stages([actor, actor], learner)
    assert made == (6.0, 3.0, 6.0)
    with pytest.raises(ValueError, match="no actor"):
        timing.measured_stages([], learner)
    predicted = timing.predict(made, 3.0, packed=False)
    assert predicted.reduction == pytest.approx(1 - 6 / 9)
    told = timing.amdahl(predicted, 90.0, 30.0)
    assert told == {
        "f": pytest.approx(6 / 9), "s": 3.0, "predicted_reduction": pytest.approx(1 / 3), "full_us": 90.0,
        "packed_us": 30.0,
    }  # fmt: skip
    assert timing.amdahl(None, 90.0, None)["f"] is None
    empty = timing.predict(timing.Stages(0.0, 0.0, 0.0), 2.0, packed=False)
    assert empty.reduction == 0.0
