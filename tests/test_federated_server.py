"""Rounds and buffers: who is asked, what counts, what a step makes of it, and that a resumed server is the same one."""

import collections
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal.core import errors
from shoal.formulas import optimise
from shoal.runtimes.federated import applying, audit, message, rounds, server

SPEC = message.Spec((("policy/head/bias", (2,)), ("policy/trunk/kernel", (2, 2))))
RUN = b"a run of 16 byte"
NAMES = ("anna", "bert", "cora", "dora")
PLAIN = server.Rules(mode="delta")


def made(rules=PLAIN, names=NAMES, theta=0.0, **more):
    return server.Server(SPEC, np.full(6, theta, np.float32), names, rules, RUN, **more)


def said(body, value, **changes):
    """A party's reply to a job: every number of its update is `value`, or it is `value` itself."""
    header = message.decode_down(SPEC, body).header
    vector = np.broadcast_to(np.asarray(value, np.float32), 6).copy()
    return message.encode_up(SPEC, message.Up(header, vector, 5, 1)._replace(**changes))


def held(one, values, now=0.0):
    """A synchronous round in which party i says values[i]; None: nothing comes."""
    outcomes = {}
    for party in one.idle(now):
        body = one.job(party)
        if values[party] is not None:
            outcomes[party] = one.take(party, said(body, values[party]), now)
    return outcomes


# ------------------------------------------------------------------------------------------------ rounds


def test_a_round_of_deltas_is_their_mean_by_the_partys_number():
    one = made(theta=1.0)
    assert held(one, [1.0, 2.0, 3.0, 6.0]) == dict.fromkeys(range(4), "ok")
    assert one.due(0.0)
    closed = one.close(0.0)
    assert (closed.round, closed.version, closed.took, closed.why) == (1, 1, (0, 1, 2, 3), "")
    assert (one.theta == 4.0).all()
    assert (one.round, one.version) == (2, 1)


def test_the_order_of_arrival_changes_no_bit():
    values = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    found = set()
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]):
        one = made()
        bodies = {party: one.job(party) for party in one.idle(0.0)}
        for party in order:
            one.take(party, said(bodies[party], values[party]), 0.0)
        one.close(0.0)
        found.add(one.theta.tobytes())
    assert len(found) == 1


def test_eta_and_fed_adam_step_from_the_mean():
    one = made(PLAIN._replace(eta=0.5))
    held(one, [1.0] * 4)
    one.close(0.0)
    assert (one.theta == 0.5).all()
    # m = 0.1, v = 0.01: 0.01 * 0.1 / (0.1 + 0.001)
    one = made(PLAIN._replace(optimiser=applying.FED_ADAM))
    held(one, [1.0] * 4)
    one.close(0.0)
    np.testing.assert_allclose(one.theta, 0.01 * 0.1 / 0.101, rtol=1e-6)


def test_a_job_says_what_is_to_be_done():
    one = made(PLAIN._replace(settings=message.Settings(10, 1.0, 0.5, 1.0, 0.1)), theta=3.0)
    down = message.decode_down(SPEC, one.job(2))
    assert down.header == message.Header(RUN, 2, 1, 0, message.DELTA)
    assert down.settings == message.Settings(10, 1.0, 0.5, 1.0, 0.1)
    assert (down.vector == 3.0).all()


def test_nobody_is_asked_twice_in_a_round():
    one = made()
    assert one.idle(0.0) == [0, 1, 2, 3]
    one.job(1)
    assert one.idle(0.0) == [0, 2, 3]
    assert not one.due(0.0)


def test_outputs_are_averaged_and_sent_back():
    one = made(server.Rules(mode="outputs", choices=2))
    rows = [[0.5, 0.5, 1.0, 0.0, 0.2, 0.8], [0.7, 0.3, 0.0, 1.0, 0.4, 0.6]]
    bodies = [one.job(party) for party in (0, 1)]
    assert message.decode_down(SPEC, bodies[0]).header.kind == message.OUTPUTS
    for party, body in enumerate(bodies):
        assert one.take(party, said(body, rows[party]), 0.0) == "ok"
    assert one.take(2, said(one.job(2), 0.7), 0.0) == "rejected:outputs"
    one.close(0.0)
    np.testing.assert_allclose(one.theta, [0.6, 0.4, 0.5, 0.5, 0.3, 0.7], rtol=1e-6)


def test_who_has_nothing_to_say_is_no_zero_in_the_mean():
    one = made()
    for party in one.idle(0.0):
        up = {} if party else {"outcome": message.SKIPPED}
        one.take(party, said(one.job(party), float(party), **up), 0.0)
    closed = one.close(0.0)
    assert closed.took == (1, 2, 3)
    assert (one.theta == 2.0).all()
    held_by_none = [one.take(p, said(one.job(p), 0.0, outcome=message.SKIPPED), 0.0) for p in one.idle(0.0)]
    assert held_by_none == ["skipped"] * 4
    closed = one.close(0.0)
    assert (closed.why, closed.failed, one.version) == ("skipped", False, 1)
    assert (one.theta == 2.0).all()
    held(one, [None] * 4)
    assert one.close(1e9).why == "quorum"  # nobody said so in this round


# ------------------------------------------------------------------------------------------------ quorum, deadline


def test_without_a_quorum_the_global_part_stays_and_the_round_counts_as_failed():
    one = made(PLAIN._replace(quorum=3), theta=1.0)
    held(one, [1.0, 1.0, None, None])
    for party in (2, 3):
        assert one.take(party, None, 0.0) == "failed"
    assert one.due(0.0)
    closed = one.close(0.0)
    assert (closed.why, closed.failed, one.version, one.round) == ("quorum", True, 0, 2)
    assert (one.theta == 1.0).all()
    told = one.tally.told()
    assert (told["failed_rounds"], told["participation_min"], told["failed_jobs"]) == (1, None, [0, 0, 1, 1])


def test_unless_it_is_given_half_of_the_cohort_is_a_quorum():
    for came, why in ((1, "quorum"), (2, "")):
        one = made()
        held(one, [1.0] * came + [None] * (4 - came))
        assert one.close(1e9).why == why


def test_a_round_is_over_at_its_deadline_and_what_comes_later_is_late():
    one = made(PLAIN._replace(deadline_s=2.0))
    bodies = {party: one.job(party) for party in one.idle(10.0)}
    for party in (0, 1, 2):
        one.take(party, said(bodies[party], 1.0), 11.0)
    assert not one.due(11.9)
    assert one.due(12.0)
    assert one.close(12.0).took == (0, 1, 2)
    assert one.take(3, said(bodies[3], 9.0), 12.5) == "rejected:late"
    again = one.job(3)
    assert one.take(3, said(bodies[3], 9.0), 12.6) == "rejected:late"  # and its own answer may still come
    assert one.take(3, said(again, 1.0), 12.7) == "ok"
    assert one.tally.told()["rejected"] == {"late": 2}


def test_a_deadline_that_nobody_gave_is_three_median_rounds_but_no_pause_of_the_machine():
    one, now = made(), 0.0
    assert one.deadline_s == server.FIRST_S
    for seconds in (100.0, 20.0, 60.0):
        held(one, [0.0] * 4, now)
        now += seconds
        one.close(now)
    assert one.deadline_s == 180.0
    quick = made()
    held(quick, [0.0] * 4)
    quick.close(0.005)
    assert quick.deadline_s == server.SHORTEST_S


def test_a_party_that_fails_holds_nobody_up():
    one = made()
    bodies = {party: one.job(party) for party in one.idle(0.0)}
    one.take(0, None, 0.0)
    lost = message.Up(message.Header(RUN, 1, 0, 0, message.DELTA), np.zeros(6, np.float32), outcome=message.FAILED)
    assert one.take(1, message.encode_up(SPEC, lost), 0.0) == "failed"
    for party in (2, 3):
        one.take(party, said(bodies[party], 1.0), 0.0)
    assert one.due(0.0)
    assert one.close(0.0).took == (2, 3)


# ------------------------------------------------------------------------------------------------ who takes part


def test_a_cohort_is_drawn_by_secret_coins_each_party_for_itself():
    rules = PLAIN._replace(participation=0.3, coins=b"secret")
    one = made(rules, names=[str(i) for i in range(10)])
    drawn = [one.cohort(round) for round in range(3000)]
    counts = collections.Counter(party for each in drawn for party in each)
    assert all(abs(counts[party] / 3000 - 0.3) < 0.03 for party in range(10))
    sizes = [len(each) for each in drawn]
    assert 1.8 < np.var(sizes) < 2.4  # 10 · 0.3 · 0.7 = 2.1: independent, not a number fixed in advance
    assert drawn == [made(rules, names=one.names).cohort(round) for round in range(3000)]
    other = made(rules._replace(coins=b"another"), names=one.names)
    assert drawn != [other.cohort(round) for round in range(3000)]


def test_without_a_given_secret_no_two_runs_draw_alike_and_a_resumed_one_does():
    rules = PLAIN._replace(participation=0.5)
    one, two = made(rules), made(rules)
    assert [one.cohort(i) for i in range(100)] != [two.cohort(i) for i in range(100)]
    two.resume(one.kept())
    assert [one.cohort(i) for i in range(100)] == [two.cohort(i) for i in range(100)]


def test_who_left_is_not_asked_and_who_joins_is():
    one = made()
    one.admit(2, present=False)
    assert one.idle(0.0) == [0, 1, 3]
    held(one, [1.0] * 4)
    assert one.close(0.0).asked == 3
    one.admit(2)
    assert one.idle(0.0) == [0, 1, 2, 3]


def test_the_first_message_of_a_round_counts_and_no_other():
    one = made()
    body = one.job(0)
    assert one.take(0, said(body, 1.0), 0.0) == "ok"
    assert one.take(0, said(body, 5.0), 0.0) == "rejected:duplicate"
    held(one, [None, 1.0, 1.0, 1.0])
    one.close(0.0)
    assert (one.theta == 1.0).all()
    assert one.take(0, said(body, 5.0), 0.0) == "rejected:duplicate"  # replayed
    assert one.take(0, said(one.job(0), 1.0), 0.0) == "ok"


def test_what_nobody_asked_for_is_turned_away():
    one = made()
    body = one.job(0)
    ahead = message.encode_up(
        SPEC, message.Up(message.Header(RUN, 1, 1, 0, message.DELTA), np.ones(6, np.float32), 1, 1)
    )
    assert one.take(1, ahead, 0.0) == "rejected:unasked"
    assert one.take(1, said(body, 1.0), 0.0) == "rejected:party"
    assert one.take(7, said(body, 1.0), 0.0) == "rejected:party"  # nobody that there is
    assert one.take(0, said(body, 1.0), 0.0) == "ok"
    assert one.tally.told()["rejected"] == {"party": 2, "unasked": 1}


# ------------------------------------------------------------------------------------------------ buffers

ASYNC = server.Rules(mode="delta", asynchronous=True, alpha=0.6, max_lag=2)


def test_an_update_on_arrival_is_weighted_by_its_staleness():
    one = made(ASYNC)
    bodies = {party: one.job(party) for party in one.idle(0.0)}
    want = 0.0
    for party, lag in enumerate((0, 1, 2)):
        assert one.take(party, said(bodies[party], 1.0), 0.0) == "ok"
        assert one.due(0.0)
        assert one.close(0.0).lags == (lag,)
        want += 0.6 / math.sqrt(1 + lag)
        np.testing.assert_allclose(one.theta, want, rtol=1e-6)
    assert one.take(3, said(bodies[3], 1.0), 0.0) == "rejected:stale"  # three versions ago
    told = one.tally.told()
    assert (told["staleness"], told["staleness_max"], told["dropped_stale"]) == ([1, 1, 1], 2, 1)


def test_a_buffer_holds_one_update_of_a_party_and_is_summed_by_its_number():
    one = made(ASYNC._replace(buffer=2))
    bodies = {party: one.job(party) for party in one.idle(0.0)}
    one.take(3, said(bodies[3], 2.0), 0.0)
    assert one.idle(0.0) == []  # three work, one waits in the buffer
    assert one.take(3, said(bodies[3], 2.0), 0.0) == "rejected:duplicate"
    assert not one.due(0.0)
    one.take(0, said(bodies[0], 4.0), 0.0)
    assert one.due(0.0)
    assert one.close(0.0).took == (0, 3)
    np.testing.assert_allclose(one.theta, 0.6 * 3.0, rtol=1e-6)
    assert one.idle(0.0) == [0, 3]


def test_a_job_of_its_own_number_so_that_none_of_an_older_one_counts():
    one = made(ASYNC._replace(deadline_s=5.0))
    old = one.job(0)
    assert one.idle(4.9) == [1, 2, 3]
    assert one.idle(5.0) == [0, 1, 2, 3]  # over its time: it gets another
    new = one.job(0)
    assert message.decode_down(SPEC, new).header.round == message.decode_down(SPEC, old).header.round + 1
    assert one.take(0, said(old, 9.0), 6.0) == "rejected:late"
    assert one.take(0, said(new, 1.0), 6.0) == "ok"


@pytest.mark.parametrize("mode", ["gradient", "delta"])
def test_staleness_shortens_the_step_of_an_optimiser_that_divides_by_the_size_of_what_it_is_given(mode):
    """On what is always the same, Adam's step is its rate however small that is: a weight before it changes nothing."""
    numbers = applying.Numbers("adam", 0.1, applying.NEVER, 0.999, 1e-12)
    one = made(server.Rules(mode=mode, asynchronous=True, alpha=0.6, optimiser=numbers))
    bodies, sign = {party: one.job(party) for party in one.idle(0.0)}, -1.0 if mode == "gradient" else 1.0
    want, moment, square = 0.0, 0.0, 0.0
    for party in range(3):  # lags 0, 1, 2
        one.take(party, said(bodies[party], 1.0), 0.0)
        one.close(0.0)
        moment, square = 0.9 * moment + 0.1, 0.999 * square + 0.001  # of FedAdam; Adam's own is corrected to 1
        ratio = 1.0 if mode == "gradient" else moment / math.sqrt(square)
        want += sign * 0.1 * 0.6 / math.sqrt(1 + party) * ratio
        np.testing.assert_allclose(one.theta, want, rtol=1e-5)


def test_in_a_buffer_staleness_weighs_gradients_beside_each_other():
    rules = server.Rules(asynchronous=True, buffer=2, alpha=0.6, optimiser=applying.Numbers("sgd", 0.1))
    one = made(rules)
    bodies = {party: one.job(party) for party in one.idle(0.0)}
    for party in (0, 1):  # both of version 0
        one.take(party, said(bodies[party], 1.0), 0.0)
    one.close(0.0)
    np.testing.assert_allclose(one.theta, -0.06, rtol=1e-6)
    bodies |= {0: one.job(0)}
    one.take(0, said(bodies[0], 1.0), 0.0)  # of version 1
    one.take(2, said(bodies[2], 4.0), 0.0)  # of version 0
    one.close(0.0)
    np.testing.assert_allclose(one.theta, -0.06 - 0.06 * (1.0 + 4.0 / math.sqrt(2)) / 2, rtol=1e-6)


# ------------------------------------------------------------------------------------------------ optimisers


def jaxs(rule, gradients, steps, **numbers):
    """Parameters after each step of `optimise.local`."""
    config = optimise.Config(rule=rule, max_norm=0.0, **numbers)
    rule_of, params = optimise.local(config, 100), {"w": jnp.ones(64)}
    state, update, found = rule_of.init(params), jax.jit(rule_of.update), []
    for gradient, at in zip(gradients, steps, strict=True):
        params, state, _ = update({"w": jnp.asarray(gradient)}, state, params, at)
        found.append(np.asarray(params["w"]))
    return found


@pytest.mark.parametrize("rule", applying.RULES)
def test_the_servers_optimiser_is_the_experiments(rule):
    gradients = np.random.default_rng(4).standard_normal((6, 64)).astype(np.float32)
    numbers = {"learning_rate": 0.03, "decay": 0.95, "epsilon": 1e-4}
    steps = [0, 20, 40, 60, 80, 100]
    theirs = jaxs(rule, gradients, steps, **numbers)
    kept, theta = applying.first(rule, 64), np.ones(64, np.float32)
    for gradient, at, want in zip(gradients, steps, theirs, strict=True):
        theta, kept = applying.stepped(applying.Numbers(rule, 0.03, 100.0, 0.95, 1e-4), kept, theta, gradient, at)
        np.testing.assert_allclose(theta, want, rtol=0, atol=1e-6)
        assert theta.dtype == np.float32


def test_hand_numbers_of_the_optimisers():
    gradient, theta = np.array([2.0], np.float32), np.array([1.0], np.float32)
    for rule, want in (
        ("sgd", 1 - 0.1 * 2),
        ("momentum", 1 - 0.1 * 0.2),  # m = 0.1 · 2
        ("rmsprop", 1 - 0.1 * 2 / math.sqrt(0.4)),  # v = 0.1 · 4
        ("adagrad", 1 - 0.1 * 2 / 2),
        ("adam", 1 - 0.1),  # the first step of Adam is the rate
    ):
        numbers = applying.Numbers(rule, 0.1, applying.NEVER, 0.9, 0.0)
        after, _ = applying.stepped(numbers, applying.first(rule, 1), theta, gradient, 0.0)
        assert after[0] == pytest.approx(want, rel=1e-6), rule


def test_the_rate_is_annealed_on_a_partys_steps_before_the_round_and_one_liar_moves_it_little():
    rules = server.Rules(optimiser=applying.Numbers("sgd", 1.0, 10.0), env_steps=1000)
    one = made(rules)
    for want in (1.0, 0.5, 0.0):  # 0, 5 and 10 steps of 10
        before = one.theta.copy()
        for party in one.idle(0.0):
            steps = 1000 if party == 3 else 5
            one.take(party, said(one.job(party), 1.0, env_steps=steps), 0.0)
        one.close(0.0)
        np.testing.assert_allclose(before - one.theta, want, rtol=1e-6)


def test_one_update_of_plain_sgd_is_the_same_as_gradient_and_as_delta():
    gradients = np.random.default_rng(5).standard_normal((4, 6)).astype(np.float32)
    push = made(server.Rules(optimiser=applying.Numbers("sgd", 0.1)))
    average = made(PLAIN)
    held(push, list(gradients))
    held(average, list(-np.float32(0.1) * gradients))
    push.close(0.0)
    average.close(0.0)
    np.testing.assert_allclose(push.theta, average.theta, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------ hooks, refusals


def test_a_release_takes_the_place_of_the_rule_and_may_abort():
    seen = []

    def release(came):
        seen.append((came.parties, came.cohort, came.round, came.updates.shape))
        return came.updates.sum(axis=0) / 4 if len(seen) == 1 else None

    one = made(release=release)
    held(one, [1.0, None, 1.0, 2.0])
    assert one.close(1e9).why == ""
    assert (one.theta == 1.0).all()
    held(one, [1.0] * 4, 1e9)
    closed = one.close(1e9)
    assert (closed.why, closed.failed) == ("aborted", True)
    assert (one.theta == 1.0).all()
    assert seen == [((0, 2, 3), (0, 1, 2, 3), 1, (3, 6)), ((0, 1, 2, 3), (0, 1, 2, 3), 2, (4, 6))]


def test_an_empty_cohort_fails_but_where_noise_alone_is_a_release():
    for release, why in ((None, "quorum"), (lambda came: came.updates.sum(axis=0) + np.ones(6, np.float32), "")):
        one = made(PLAIN._replace(participation=1e-9), release=release)
        assert one.idle(0.0) == []
        assert one.due(0.0)
        assert one.close(0.0).why == why
        assert (one.theta == (0.0 if why else 1.0)).all()


def test_masked_updates_are_whole_numbers_both_ways_of_the_release():
    masked = SPEC._replace(dtype="<u4")
    one = made(masked=masked, release=lambda came: (came.updates.sum(axis=0) % 7).astype(np.float32))
    for party in one.idle(0.0):
        header = message.decode_down(SPEC, one.job(party)).header
        assert header.kind == message.MASKED
        body = message.encode_up(masked, message.Up(header, np.full(6, party + 2, np.uint32), 1, 1))
        assert one.take(party, body, 0.0) == "ok"
    one.resume(one.kept())
    one.close(0.0)
    assert (one.theta == 0.0).all()  # 2 + 3 + 4 + 5 = 14


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (PLAIN._replace(mode="weights"), "unknown value of runtime.exchange 'weights'"),
        (PLAIN._replace(hostile=2), "needs 5 updates"),
        (PLAIN._replace(hostile=1, aggregator="krum"), "needs 5 updates"),
        (PLAIN._replace(hostile=1, quorum=2), "give runtime.quorum=3 or more"),
        (ASYNC._replace(hostile=1), "give runtime.buffer=3 or more"),
        (ASYNC._replace(buffer=5), "runtime.buffer=5, but there are 4 parties"),
        (PLAIN._replace(quorum=5), "runtime.quorum=5, but there are 4 parties"),
    ],
)
def test_rules_that_cannot_hold_are_refused(rules, words):
    with pytest.raises(errors.Refused, match=words):
        made(rules)


# ------------------------------------------------------------------------------------------------ another life


def scripted(one, random, turns):
    """Rounds with everything in them; the digest of all that happened."""
    story = []
    for turn in range(turns):
        for party in one.idle(float(turn)):
            body = one.job(party)
            kind = int(random.integers(6))
            if kind == 0:
                story.append(one.take(party, None, float(turn)))
            elif kind == 1:
                story.append(one.take(party, body, float(turn)))
            elif kind < 5 or not one.rules.asynchronous:
                story.append(one.take(party, said(body, random.standard_normal(6)), float(turn)))
        if one.due(float(turn)):
            story.append(one.close(float(turn))._replace(seconds=0.0))
    return story


@pytest.mark.parametrize(
    "rules",
    [
        server.Rules(optimiser=applying.Numbers("adam", 0.01, 100.0), participation=0.7, hostile=1, quorum=3),
        ASYNC._replace(buffer=2),
        PLAIN._replace(optimiser=applying.FED_ADAM, deadline_s=1.0),
    ],
)
def test_a_resumed_server_is_the_same_one(rules):
    one, random = made(rules), np.random.default_rng(6)
    scripted(one, random, 9)
    if rules.asynchronous:  # with work out, and updates waiting
        assert one.kept()["jobs"]["open"].max() > 0
    two, same = made(rules), np.random.default_rng(6)
    same.bit_generator.state = random.bit_generator.state
    two.resume(one.kept())
    first, second = scripted(one, random, 12), scripted(two, same, 12)
    assert first == second
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), one.kept(), two.kept()))
    assert one.tally.told() == two.tally.told()


def test_a_checkpoint_has_the_shapes_of_a_new_server_and_nothing_that_is_not_finite():
    rules = ASYNC._replace(buffer=2)
    one = made(rules)
    scripted(one, np.random.default_rng(7), 5)
    like = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), made(rules).kept())
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), one.kept()) == like
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(one.kept()))


def test_after_a_restart_what_was_out_is_given_out_anew():
    one = made()
    bodies = {party: one.job(party) for party in one.idle(0.0)}
    one.take(0, said(bodies[0], 1.0), 0.0)
    two = made()
    two.resume(one.kept())
    two.forget()
    assert two.idle(50.0) == [1, 2, 3]
    assert two.job(1) == bodies[1]  # the same bytes: a party that has answered sends its answer again
    assert two.take(1, said(bodies[1], 1.0), 50.0) == "ok"


# ------------------------------------------------------------------------------------------------ audit


def test_every_message_has_a_line_that_tells_nothing_of_what_it_held(tmp_path):
    log = audit.Audit(clock=lambda: 12.3456)
    one = made(log=log)
    body = one.job(0)
    reply = said(body, 1.0)
    one.take(0, reply, 0.0)
    one.take(0, reply, 0.0)
    meta = log.write(tmp_path, {})
    lines = [json.loads(line) for line in (tmp_path / audit.FILE).read_text().splitlines()]
    assert [(line["direction"], line["party"], line["bytes"], line["outcome"]) for line in lines] == [
        ("down", 0, len(body), "ok"),
        ("up", 0, len(reply), "ok"),
        ("up", 0, len(reply), "rejected:duplicate"),
    ]
    keys = {"time", "direction", "party", "round", "bytes", "spec", "sha256", "outcome"}
    assert all(line.keys() == keys and line["time"] == 12.346 for line in lines)
    assert len(lines[0]["sha256"]) == 64
    assert one.tally.told()["bytes_up"] == sum(line["bytes"] for line in lines[1:])
    assert meta == {audit.META: (tmp_path / audit.FILE).stat().st_size}


def test_what_came_after_a_checkpoint_never_happened(tmp_path):
    log = audit.Audit()
    log.add("up", 0, 1, b"x", "ok", SPEC.digest)
    meta = log.write(tmp_path, {})
    log.add("up", 1, 1, b"y", "ok", SPEC.digest)
    log.write(tmp_path, {})
    later = audit.Audit()
    later.add("up", 2, 1, b"z", "ok", SPEC.digest)
    later.take_up(tmp_path, meta)
    later.write(tmp_path, {})
    parties = [json.loads(line)["party"] for line in (tmp_path / audit.FILE).read_text().splitlines()]
    assert parties == [0, 2]
    with pytest.raises(errors.Refused, match="restore it"):
        audit.Audit().take_up(tmp_path, {audit.META: 10**6})


def test_a_line_that_could_not_be_written_is_written_later(tmp_path):
    log = audit.Audit()
    log.add("up", 0, 1, b"x", "ok", SPEC.digest)
    with pytest.raises(FileNotFoundError):
        log.write(tmp_path / "not there", {})
    log.write(tmp_path, {})
    assert len((tmp_path / audit.FILE).read_text().splitlines()) == 1


def test_a_step_leaves_what_was_before_alone():
    now = rounds.Global(np.zeros(6, np.float32), applying.first("adam", 6))
    came = rounds.Came(np.ones((1, 6), np.float32), np.array([6**0.5]), (0,))
    rules = server.Rules(aggregator="mean", optimiser=applying.Numbers("adam", 0.1))
    after, why = rounds.step(rules, now, came, 0.0, 0.0, None)
    assert why == ""
    assert (now.theta == 0).all()
    assert now.kept["count"] == 0
    assert after.kept["count"] == 1
