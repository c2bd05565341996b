"""A secure sum: exact with a party that drops out, one message like random numbers, aborted below its threshold."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from shoal.core import errors
from shoal.runtimes.federated import agreement, masks, shares, unmasking

COHORT = (0, 2, 3, 5, 6)


def fixed():
    """Keys as in a deployment, with secrets that are the same in every run of the tests."""
    rng = np.random.default_rng(11)
    return agreement.deployed()._replace(draw=lambda: rng.bytes(32))


KITS = {"deployed": lambda _: agreement.deployed(), "simulated": lambda one: agreement.simulated(7, one, 4)}


def settings(size=40, cohort=COHORT, bits=32):
    return masks.Settings(cohort, masks.threshold(len(cohort)), 0.5, size, 4, b"run", bits)


def updates(size=40, cohort=COHORT):
    rng = np.random.default_rng(0)
    return {one: rng.normal(0.0, 0.3, size).astype(np.float32) for one in cohort}


class Round:
    """Both sides until every party has its inbox."""

    def __init__(self, kit, rule, silent=()):
        self.rule, self.members = rule, {one: masks.Member(one, rule, kit(one)) for one in rule.cohort}
        self.server = unmasking.Sum(rule, kit("server"))
        for one, member in self.members.items():
            self.server.hello(one, member.hello())
        for one, member in self.members.items():
            if one not in silent:
                self.server.shared(one, member.shared(self.server.hellos()))

    def sent(self, one, vector):
        return self.members[one].masked(vector, self.server.inbox(one))

    def total(self):
        arrived, lost = self.server.asks()
        for one in arrived:
            self.server.shown(one, self.members[one].shown(arrived, lost))
        return self.server.total()


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("lost", [(), (3,), (0,), (6,)])
@pytest.mark.parametrize("kit", KITS)
def test_the_sum_is_that_of_the_whole_numbers_exactly(kit, lost, bits):
    rule, given = settings(bits=bits), updates()
    going = Round(KITS[kit], rule)
    for one, vector in given.items():
        sent = going.sent(one, vector)
        if one not in lost:
            going.server.take(one, sent)
    there = [one for one in COHORT if one not in lost]
    plain = sum(masks.quantised(given[one], rule).astype(object) for one in there)
    total = going.total()
    assert total.astype(object).tolist() == plain.tolist()
    clipped = sum(np.clip(given[one].astype(np.float64), -0.5, 0.5) for one in there)
    np.testing.assert_allclose(masks.restored(total, len(there), rule), clipped, atol=1e-8)


def test_a_party_that_never_shared_is_left_out_from_the_beginning():
    going, given = Round(KITS["deployed"], settings(), silent=(5,)), updates()
    for one in (0, 2, 3, 6):
        going.server.take(one, going.sent(one, given[one]))
    assert going.server.asks() == ((0, 2, 3, 6), ())
    plain = sum(masks.quantised(given[one], settings()).astype(np.uint64) for one in (0, 2, 3, 6))
    assert np.array_equal(going.total(), plain)


@pytest.mark.parametrize("kit", KITS)
def test_one_message_is_like_uniform_numbers(kit):
    rule, keys = settings(size=60_000, cohort=(0, 1, 2)), fixed()
    going = Round((lambda _: keys) if kit == "deployed" else KITS[kit], rule)
    sent = going.sent(1, np.zeros(60_000, np.float32))  # of an update whose whole numbers are all the same
    for byte in range(4):
        counts = np.bincount((sent >> np.uint32(8 * byte)) & 255, minlength=256)
        assert stats.chisquare(counts).pvalue > 0.001
    # Nor with its neighbours: the top bits of two numbers in turn.
    pairs = (sent[::2] >> np.uint32(28)) * 16 + (sent[1::2] >> np.uint32(28))
    assert stats.chisquare(np.bincount(pairs, minlength=256)).pvalue > 0.001


def test_whole_numbers_are_those_of_the_formula():
    rule = settings(size=5)
    levels = (2**32 - 1) // 5
    found = masks.quantised(np.array([-9.0, -0.5, 0.0, 0.25, 9.0], np.float32), rule)
    assert found.tolist() == [0, 0, round(0.5 * levels), round(0.75 * levels), levels]
    assert len(COHORT) * rule.levels < 2**32


def test_below_the_threshold_the_round_is_aborted():
    going, given = Round(KITS["deployed"], settings()), updates()
    for one in (0, 2, 3):
        going.server.take(one, going.sent(one, given[one]))
    with pytest.raises(masks.Aborted, match="3 parties are left, and 4 are needed"):
        going.total()


def test_no_party_gives_both_secrets_of_another_away():
    going, given = Round(KITS["deployed"], settings()), updates()
    for one in COHORT:
        going.server.take(one, going.sent(one, given[one]))
    with pytest.raises(masks.Aborted, match="asks for both"):
        going.members[0].shown(COHORT, (2,))
    shown = going.members[2].shown((0, 2, 3, 6), (5,))
    assert set(shown.alone) & set(shown.keys) == set()
    with pytest.raises(masks.Aborted, match="twice"):
        going.members[2].shown((0, 2, 3, 5), (6,))
    with pytest.raises(masks.Aborted, match="are needed"):
        going.members[3].shown((0, 3), (2, 5, 6))


def test_a_share_that_was_changed_on_its_way_aborts_the_round():
    going = Round(KITS["deployed"], settings())
    inbox = going.server.inbox(2)
    inbox[3] = bytes([inbox[3][0] ^ 1]) + inbox[3][1:]
    with pytest.raises(masks.Aborted, match="of party 3 cannot be opened"):
        going.members[2].masked(updates()[2], inbox)


def test_a_wrong_share_aborts_the_round_and_no_wrong_sum_is_told():
    going, given = Round(KITS["simulated"], settings()), updates()
    for one in (0, 2, 3, 6):
        going.server.take(one, going.sent(one, given[one]))
    arrived, lost = going.server.asks()
    for one in arrived:
        shown = going.members[one].shown(arrived, lost)
        going.server.shown(one, shown._replace(keys={5: shown.keys[5] ^ (one == 0)}))
    with pytest.raises(masks.Aborted, match="missing or wrong"):
        going.server.total()


def test_a_party_that_shared_another_key_than_it_showed_aborts_the_round_it_drops_out_of():
    class Lies(agreement.Pretended):
        def __init__(self, secret):
            super().__init__(secret)
            self.secret = bytes(32)  # what is cut into shares

    def kit(one):
        honest = agreement.simulated(7, one, 4)
        return honest._replace(keys=Lies) if one == 5 else honest

    going, given = Round(kit, settings()), updates()
    for one in (0, 2, 3, 6):
        going.server.take(one, going.sent(one, given[one]))
    with pytest.raises(masks.Aborted, match="missing or wrong"):
        going.total()


def test_what_is_not_finite_does_not_leave():
    with pytest.raises(errors.Unfit):
        masks.quantised(np.array([np.nan] * 40, np.float32), settings())


@pytest.mark.parametrize("threshold", [1, 3, 5])
def test_shares_give_their_secret_back_and_fewer_do_not(threshold):
    secret, rng = bytes(range(32)), np.random.default_rng(1)
    cut = shares.cut(secret, [1, 2, 3, 4, 7], threshold, lambda most: int.from_bytes(rng.bytes(70), "big") % most)
    values = {share.at: share.value for share in cut}
    for places in ([1, 2, 3, 4, 7][:threshold], [7, 4, 3, 2, 1][:threshold]):
        assert shares.joined(values, shares.weights(places)) == secret
    if threshold > 1:
        fewer = shares.weights([1, 2, 3, 4, 7][: threshold - 1])
        with pytest.raises(ValueError, match="not of one secret"):
            shares.joined(values, fewer)


def test_a_simulation_is_a_round_of_its_own():
    given, simulated = updates(), unmasking.Simulated(7, 40, 0.5)
    for round_ in (1, 2):
        simulated.begin(round_, COHORT)
        sent = {one: simulated.masked(round_, one, vector) for one, vector in given.items() if one != 5}
        total = simulated.total(round_, sent)
        plain = sum(np.clip(given[one].astype(np.float64), -0.5, 0.5) for one in sent)
        np.testing.assert_allclose(total, plain, atol=1e-8)
    again = unmasking.Simulated(7, 40, 0.5)
    again.begin(2, COHORT)
    assert np.array_equal(again.masked(2, 0, given[0]), sent[0]), "a resumed run sends the same bytes"
    simulated.begin(3, COHORT)
    with pytest.raises(masks.Aborted):
        simulated.total(3, {0: sent[0]})
