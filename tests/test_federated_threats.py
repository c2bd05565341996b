"""What hostile parties can do to a server: every threat with its outcome."""

import pathlib

import jax
import numpy as np
import pytest

from shoal import experiment
from shoal.core import errors
from shoal.experiment import presets
from shoal.runtimes.federated import applying, guard, hostile, message, network, server
from tests.conformance import test_runtimes

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"
SPEC = message.Spec((("policy/head/bias", (4,)), ("policy/trunk/kernel", (4, 4))))
RUN = b"a run of 16 byte"
LARGEST = np.finfo(np.float32).max
FAULTS = (
    "empty", "truncated", "oversized", "twice", "a pickle", "a pickle of the length", "an archive bomb", "text",
    "an extra key", "a missing key", "a renamed key", "a path in a key", "another shape", "another order",
    "whole numbers", "wide numbers", "another byte order", "another hash", "NaN", "infinity", "NaN in counts",
    "a negative count", "a count of 1e12", "no updates", "an unknown outcome", "failed, with tensors",
    "another protocol", "a download", "an unknown kind", "another kind", "another run", "another's name",
    "a round to come", "a version to come", "an older round",
)  # fmt: skip


@pytest.fixture
def wire(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _wire_faults

    return _wire_faults


def made(parties=4, theta=0.0, **rules):
    names = [f"party {i}" for i in range(parties)]
    return server.Server(SPEC, np.full(20, theta, np.float32), names, server.Rules(**{"mode": "delta"} | rules), RUN)


def answer(job, vector):
    header = message.decode_down(SPEC, job).header
    return message.encode_up(SPEC, message.Up(header, np.asarray(vector, np.float32), 5, 1))


# ------------------------------------------------------------------------------------------------ the wire


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_wire_is_counted_and_the_round_goes_on(wire, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = made(theta=1.0)
    one.close(1e9)  # a round before, so that there is an older one
    jobs = {party: one.job(party) for party in one.idle(0.0)}
    body, reason = wire.faults(SPEC, answer(jobs[0], np.ones(20)))[name]
    assert one.take(0, body, 0.0) == f"rejected:{reason}"
    for party in (1, 2, 3):
        assert one.take(party, answer(jobs[party], np.ones(20)), 0.0) == "ok"
    if reason in server.STILL_OWED:
        assert one.take(0, answer(jobs[0], np.ones(20)), 0.0) == "ok"
    assert one.due(0.0)
    assert not one.close(0.0).failed
    assert (one.theta == 2.0).all()
    told = one.tally.told()
    assert (told["rejected"], told["rejected_by"]) == ({reason: 1}, [1, 0, 0, 0])
    assert not [*tmp_path.iterdir()], "something was executed"


def test_every_fault_is_tried(wire):
    assert wire.faults(SPEC, answer(made().job(0), np.ones(20))).keys() == {*FAULTS}


def test_a_thousand_mutated_messages_neither_crash_the_server_nor_get_in(wire):
    one, random = made(theta=1.0), np.random.default_rng(18)
    for _ in range(1000):
        job = one.job(0)  # anew: a bad answer is an answer
        outcome = one.take(0, wire.mutated(SPEC, answer(job, np.ones(20)), random), 0.0)
        assert outcome.partition(":")[::2] in {("rejected", reason) for reason in guard.REASONS}
    assert sum(one.tally.told()["rejected"].values()) == 1000
    assert (one.theta == 1.0).all()


# ------------------------------------------------------------------------------------------------ numbers


def test_denormals_pass_and_raise_nothing():
    one = made(hostile=1)
    with np.errstate(all="raise", under="ignore"):
        for party in one.idle(0.0):
            assert one.take(party, answer(one.job(party), np.full(20, 1e-45)), 0.0) == "ok"
        assert not one.close(0.0).failed
    assert np.isfinite(one.theta).all()


@pytest.mark.parametrize("mode", ["delta", "gradient"])
@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_the_largest_numbers_leave_no_infinity_even_with_the_plain_mean(mode, rule):
    numbers = applying.Numbers(rule, 1.0)
    one = made(theta=LARGEST, mode=mode, optimiser=numbers)
    for _ in range(2):
        for party in one.idle(0.0):
            one.take(party, answer(one.job(party), np.full(20, LARGEST if mode == "delta" else -LARGEST)), 0.0)
        closed = one.close(0.0)
        assert (closed.why, closed.failed) == ("not_finite", True)
    assert (one.theta == LARGEST).all()
    assert all(np.isfinite(array).all() for array in one.kept()["optimiser"].values())


def test_a_declared_bound_turns_away_and_the_automatic_one_scales_down():
    one = made(max_norm=10.0)
    assert one.take(0, answer(one.job(0), np.full(20, 1e6)), 0.0) == "rejected:norm"
    one = made(hostile=1, aggregator="norm_bound")
    for party, value in zip(one.idle(0.0), (1.0, 1.0, 1.0, 1e6), strict=True):
        assert one.take(party, answer(one.job(party), np.full(20, value)), 0.0) == "ok"
    closed = one.close(0.0)
    assert (closed.bounded, closed.took) == (1, (0, 1, 2, 3))
    assert (one.theta < 1.01).all()
    assert one.tally.told()["bounded_fraction"] == 0.25


def test_nothing_is_no_update_where_parties_may_be_hostile():
    random = np.random.default_rng(0)
    one = made(10, hostile=3)
    for party in one.idle(0.0):
        said = np.zeros(20) if party == 2 else np.full(20, 1e-4) if party == 5 else 1.0 + random.standard_normal(20)
        assert one.take(party, answer(one.job(party), said), 0.0) == "ok"
    closed = one.close(0.0)
    assert (closed.took, closed.silent, closed.why) == ((0, 1, 3, 4, 6, 7, 8, 9), 2, "")
    assert one.tally.told()["silent"] == 2
    for party in one.idle(0.0):
        one.take(party, answer(one.job(party), np.zeros(20) if party < 4 else np.ones(20)), 0.0)
    assert one.close(0.0).why == "quorum"  # six cannot withstand three
    for party in one.idle(0.0):
        one.take(party, answer(one.job(party), np.zeros(20)), 0.0)
    assert one.close(0.0).why == "skipped"
    trusting = made(2)
    for party in trusting.idle(0.0):
        trusting.take(party, answer(trusting.job(party), np.full(20, party)), 0.0)
    assert trusting.close(0.0).took == (0, 1)  # where nobody is hostile a zero counts
    assert (trusting.theta == 0.5).all()


def test_a_bound_follows_honest_updates_that_grow():
    one = made(hostile=1)
    for value in (1.0, 2.0, 8.0, 30.0, 100.0, 300.0):
        before = one.theta.copy()
        for party in one.idle(0.0):
            one.take(party, answer(one.job(party), np.full(20, value)), 0.0)
        one.close(0.0)
        assert (one.theta > before).all()
    assert one.tally.told()["failed_rounds"] == 0


# ------------------------------------------------------------------------------------------------ hostile parties


class Quadratic:
    """Parties each of which descends to an optimum of its own, near 1; a network."""

    def __init__(self, parties, seed=0):
        self.optima = np.random.default_rng(seed).normal(1.0, 0.2, (parties, 20))
        self._replies = []

    def parties(self):
        return [f"party {i}" for i in range(len(self.optima))]

    def send(self, party, body):
        down = message.decode_down(SPEC, body)
        noise = np.random.default_rng([party, down.header.round]).normal(0, 0.05, 20)
        vector = 0.2 * (self.optima[party] - down.vector) + noise
        self._replies.append(network.Reply(party, down.header.round, answer(body, vector)))
        return down.header.round

    def poll(self, seconds):
        del seconds
        found, self._replies = self._replies, []
        return found

    def close(self):
        """There is nothing to let go of."""


def trained(attacks=(), rounds=40, **rules):
    """How far θ ends from the mean of the honest optima, in units of where it began; and the server."""
    honest = Quadratic(10)
    given = hostile.parsed(attacks, 10)
    net, one = hostile.Hostile(honest, SPEC, given, 0), made(10, **rules)
    for _ in range(rounds):
        for party in one.idle(0.0):
            net.send(party, one.job(party))
        for reply in net.poll(0.0):
            one.take(reply.party, reply.body, 0.0)
        one.close(0.0)
    goal = honest.optima[[i for i in range(10) if i not in [attack.party for attack in given]]].mean(axis=0)
    return float(np.linalg.norm(one.theta.astype(np.float64) - goal) / np.linalg.norm(goal)), one


@pytest.mark.parametrize("kind", hostile.ATTACKS)
def test_with_the_default_rule_three_hostile_of_ten_do_little(kind):
    far, one = trained([f"{party}:{kind}" for party in (2, 5, 7)], hostile=3)
    assert far < 0.2
    told = one.tally.told()
    reasons = {"nan": {"not_finite": 120}, "false_counts": {"counts": 120}}
    assert told["rejected"] == reasons.get(kind, {})
    assert told["failed_rounds"] == 0


@pytest.mark.parametrize("kind", ["scaling", "noise", "ipm", "sign_flip:3"])
def test_the_plain_mean_fails_under_the_same(kind):
    assert trained()[0] < 0.05
    assert trained([f"{party}:{kind}" for party in (2, 5, 7)])[0] > 0.25


@pytest.mark.parametrize("kind", ["nan", "false_counts"])
def test_what_is_turned_away_hurts_not_even_the_mean(kind):
    assert trained([f"{party}:{kind}" for party in (2, 5, 7)])[0] < 0.05


def test_a_hostile_party_sends_its_lie_and_the_honest_what_they_computed():
    honest, attacks = Quadratic(10), hostile.parsed(["3:sign_flip", "8:scaling:1e3", "9:nan"], 10)
    one = made(10)
    for party in one.idle(0.0):
        honest.send(party, one.job(party))
    true = honest.poll(0.0)
    sent = hostile.lies(SPEC, attacks, true, 0)
    vectors = [
        (message.decode_up(SPEC, a.body).vector, np.frombuffer(b.body[76:-17], "<f4"))
        for a, b in zip(true, sent, strict=True)
    ]
    for party, (was, now) in enumerate(vectors):
        if party == 3:
            np.testing.assert_array_equal(now, -was)
        elif party == 8:
            np.testing.assert_allclose(now, 1e3 * was, rtol=1e-6)
        elif party == 9:
            assert np.isnan(now).all()
        else:
            np.testing.assert_array_equal(now, was)
    assert all(len(a.body) == len(b.body) for a, b in zip(true, sent, strict=True))


def test_lies_of_the_whole_round_and_of_chance():
    honest, one = Quadratic(10), made(10)
    for party in one.idle(0.0):
        honest.send(party, one.job(party))
    true = honest.poll(0.0)
    every = np.array([message.decode_up(SPEC, reply.body).vector for reply in true], np.float64)

    def lie(text, seed=0):
        sent = hostile.lies(SPEC, hostile.parsed([text], 10), true, seed)[4].body
        return np.frombuffer(sent[76:-17], "<f4")

    np.testing.assert_allclose(lie("4:alie"), every.mean(axis=0) - 1.5 * every.std(axis=0), rtol=1e-5)
    np.testing.assert_allclose(lie("4:ipm"), -3 * every.mean(axis=0), rtol=1e-5)
    assert np.linalg.norm(lie("4:noise")) == pytest.approx(10 * np.linalg.norm(every[4]), rel=1e-5)
    np.testing.assert_array_equal(lie("4:noise"), lie("4:noise"))
    assert (lie("4:noise") != lie("4:noise", seed=1)).any()
    assert (lie("4:zero") == 0).all()
    assert (np.abs(lie("4:scaling:1e39")) <= LARGEST).all()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["10:nan"], "a party from 0 to 9"),
        (["x:nan"], "PARTY:KIND"),
        (["1:sign_flp"], "did you mean 'sign_flip'"),
        (["1:scaling:much"], "must be a number"),
        (["1:scaling:nan"], "must be a number"),
        (["1:nan", "1:zero"], "a party twice"),
    ],
)
def test_attacks_that_are_none_are_refused(given, words):
    with pytest.raises(errors.Refused, match=words):
        hostile.parsed(given, 10)


# ------------------------------------------------------------------------------------------------ a whole run


def test_a_run_whose_parties_attack_counts_what_was_turned_away_and_ends_finite():
    experiment.cache()
    runtime = {"parties": 5, "hostile": 1, "attack": ("4:nan",), "environments": 1}
    settings = {"runtime": runtime, "network": {"hidden": (8,), "form": "A"}}
    request = presets.Request("a2c", "probe:match", 100, runtime="federated", settings=settings)
    built = experiment.build(presets.resolve(request)[0])
    result = built.runtime.run(built.parts, 0, 100, None, test_runtimes.Observer(), None)
    told = result.final.subsystems["federation"]
    assert (told["aggregator"], told["simulated"]) == ("nearest_mixing", ["attacks (4:nan)"])
    assert told["rejected"] == {"not_finite": told["rounds"]}
    assert told["took"] == [told["rounds"]] * 4 + [0]
    assert told["failed_rounds"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.policies))
