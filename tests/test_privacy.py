"""What happens to an update before it leaves its owner: the clip, the noise, the epsilon ledger, what is refused."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import types as python_types

import numpy as np
import pytest

from shoal.core import errors
from shoal.runtimes.federated import accounting, leaving, ledger, privacy

# Specification: delta = 1e-5, (z, rounds, epsilon by PLD, by Rényi), all with q = 1.
VECTORS = [
    (1, 1, 4.3772, 4.7285), (10, 100, 4.3772, 4.7285), (10, 50, 2.9432, 3.1890), (20, 100, 1.9931, 2.1657),
    (5, 100, 9.9973, 10.7255), (1, 10, 17.9, 19.1), (2, 100, 33.0, 35.0), (1, 100, 92.0, 96.0),
]  # fmt: skip
TWICE = leaving.Settings(clip=2.0, noise=0.5)


def settings(**changes):
    """The runtime's config, the fields that promises of privacy are about."""
    fields = {
        "parties": 8, "exchange": "delta", "local_updates": 1, "asynchronous": False, "aggregator": "auto",
        "hostile": 0, "participation": 1.0, "max_norm": 0.0, "clip": 0.0, "noise": 0.0, "privacy": "none",
        "unit": "party", "max_epsilon": 0.0, "delta": 1e-5, "secure_sum": False, "placement": "auto",
    }  # fmt: skip
    return python_types.SimpleNamespace(**fields | changes)


def event(party=0, turn=0, z=5.0, unit="trajectory"):
    return leaving.event(leaving.Settings(1.0, z, unit), party=party, turn=turn)


def opened(folder, most=0.0, unit="trajectory"):
    return ledger.Ledger(folder, delta=1e-5, max_epsilon=most, unit=unit)


# ------------------------------------------------------------------------------------------------ clip and noise


@pytest.mark.parametrize(
    ("vector", "most", "expected"),
    [
        ([3.0, 4.0], 1.0, [0.6, 0.8]),
        ([3.0, 4.0], 10.0, [3.0, 4.0]),
        ([3.0, 4.0], 0.0, [3.0, 4.0]),
        ([0.0, 0.0], 1.0, [0.0, 0.0]),
        ([3e38, 0.0], 1.0, [1.0, 0.0]),  # its square is beyond float32
    ],
)
def test_an_update_is_scaled_down_to_its_norm(vector, most, expected):
    clipped = leaving.clip(np.array(vector, np.float32), most)
    np.testing.assert_allclose(clipped.vector, expected, rtol=1e-6)
    assert clipped.norm == pytest.approx(math.hypot(*vector), rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_does_not_leave_and_costs_nothing(tmp_path, bad):
    book = opened(tmp_path, unit="party")
    leave = leaving.Leaving(TWICE, leaving.Seeded(0), book)
    with pytest.raises(errors.Unfit):
        leave(np.array([1.0, bad], np.float32), party=0, turn=0)
    assert ledger.read(tmp_path) == []


@pytest.mark.parametrize("draws", [leaving.Secure(), leaving.Seeded(3)], ids=["secure", "seeded"])
def test_noise_has_the_scale_that_the_ledger_is_charged_for(draws):
    leave = leaving.Leaving(TWICE, draws, opened(None, unit="party"))
    update = np.linspace(-1.0, 1.0, 100_000, dtype=np.float32)
    noise = leave(update, party=1, turn=2) - 2.0 * update / np.linalg.norm(update)
    assert noise.std() == pytest.approx(0.5 * 2.0, rel=0.02)
    assert abs(noise.mean()) < 0.02
    inside = [np.mean(np.abs(noise) < sigmas) for sigmas in (1.0, 2.0, 3.0)]
    np.testing.assert_allclose(inside, [0.6827, 0.9545, 0.9973], atol=0.006)  # a normal distribution


def test_seeded_noise_is_the_same_for_the_same_release_alone():
    draws = leaving.Seeded(3)
    assert np.array_equal(draws.normal(5, 1, 2), leaving.Seeded(3).normal(5, 1, 2))
    others = [draws.normal(5, 1, 3), draws.normal(5, 2, 2), leaving.Seeded(4).normal(5, 1, 2)]
    assert not any(np.array_equal(draws.normal(5, 1, 2), other) for other in others)


def test_secure_noise_is_never_the_same_and_is_what_it_says():
    assert not np.array_equal(leaving.Secure().normal(7, 0, 0), leaving.Secure().normal(7, 0, 0))
    assert leaving.Secure().normal(7, 0, 0).shape == (7,)
    assert not leaving.Secure.simulated
    assert leaving.Seeded.simulated


def test_what_was_clipped_is_told():
    leave = leaving.Leaving(leaving.Settings(clip=1.0), leaving.Seeded(0), None)
    for length in (0.5, 2.0, 4.0):
        leave(np.array([length, 0.0], np.float32), party=0, turn=0)
    assert leave.told() == {"clip_fraction": 2 / 3, "update_norm_median": 2.0, "update_norm_max": 4.0}
    assert set(leaving.summed([], 0).values()) == {None}


def test_central_noise_is_of_the_sum_over_a_number_of_owners_that_is_fixed():
    rule = leaving.Settings(clip=1.0, noise=0.5, unit=ledger.OWNER)
    book = opened(None, unit=ledger.OWNER)
    release = leaving.Central(rule, 4, leaving.Seeded(0), book)
    updates = np.zeros((3, 100_000), np.float32)  # of 4 that were asked 3 answered
    updates[0, 0] = 1e6
    mean = release(updates, turn=1)
    assert mean[1:].std() == pytest.approx(0.5 / 4, rel=0.02)
    assert abs(mean[0]) < 1.0, "one owner moves the sum by C at most"
    assert book.total().epsilon_rdp == pytest.approx(accounting.epsilon({0.5: 1}, 1e-5))


# ------------------------------------------------------------------------------------------------ epsilon


@pytest.mark.parametrize(("z", "rounds", "pld", "rdp"), VECTORS)
def test_epsilon_is_that_of_the_specification(z, rounds, pld, rdp):
    book = opened(None)
    for turn in range(rounds):
        book.charge([event(turn=turn, z=z)])
    if pld > 20.0:  # seconds of composing, for what promises nothing
        assert accounting.epsilon({float(z): rounds}, 1e-5) == pytest.approx(rdp, rel=0.01)
        return
    total = book.total()
    assert total.epsilon_rdp == pytest.approx(rdp, rel=0.01)
    assert total.epsilon == pytest.approx(pld, rel=0.01)
    assert (total.releases, total.party, total.delta) == (rounds, 0, 1e-5)


def test_an_epsilon_that_promises_nothing_is_told_by_the_quick_bound():
    book = opened(None)
    book.charge([event(z=0.05)])
    assert book.total().epsilon == book.total().epsilon_rdp > ledger.NOTHING


def _exact(multiplier, delta):
    """Epsilon of one Gaussian mechanism, from the closed form of Balle and Wang 2018, theorem 8."""
    from scipy import optimize, stats

    def spent(epsilon):
        a, b = 0.5 / multiplier, epsilon * multiplier
        return stats.norm.cdf(a - b) - math.exp(epsilon) * stats.norm.cdf(-a - b) - delta

    return optimize.brentq(spent, 1e-6, 60.0)


@pytest.mark.parametrize("seed", range(5))
def test_epsilon_of_any_schedule_is_that_of_the_closed_form(seed):
    rng = np.random.default_rng(seed)
    multipliers = {float(z): int(times) for z, times in zip(rng.uniform(3, 20, 3), rng.integers(1, 20, 3), strict=True)}
    together = 1.0 / math.sqrt(sum(times / z**2 for z, times in multipliers.items()))
    assert accounting.epsilon(multipliers, 1e-5, by="pld") == pytest.approx(_exact(together, 1e-5), rel=0.01)
    assert accounting.epsilon(multipliers, 1e-5) > accounting.epsilon(multipliers, 1e-5, by="pld")


def test_what_neighbours_differ_by_is_in_the_event():
    of = {
        unit: leaving.event(leaving.Settings(3.0, 4.0, unit), party=0, turn=0).multiplier for unit in ledger.RELATIONS
    }
    assert of == {"party": 2.0, "owner": 4.0, "trajectory": 4.0}  # one message by any other differs by 2 C


def test_every_release_has_a_line_that_is_there_before_it(tmp_path):
    book = opened(tmp_path, unit="party")
    leave = leaving.Leaving(TWICE, leaving.Seeded(0), book)
    leave(np.ones(3, np.float32), party=2, turn=9)
    (line,) = map(json.loads, (tmp_path / ledger.FILE).read_text().splitlines())
    assert line | {"epsilon": 0} == {
        "party": 2, "turn": 9, "multiplier": 0.25, "noise": 0.5, "clip": 2.0, "unit": "party", "q": 1.0,
        "event": "Gaussian(0.25)", "relation": "replace one update of the owner by any other", "epsilon": 0,
        "delta": 1e-5,
    }  # fmt: skip
    assert line["epsilon"] == pytest.approx(accounting.epsilon({0.25: 1}, 1e-5), rel=1e-6)


def test_the_recorded_events_give_the_printed_epsilon_again(tmp_path):
    book = opened(tmp_path)
    for turn in range(12):
        book.charge([event(party, turn, z=4.0 + party) for party in range(3)])
    again = opened(tmp_path).total()
    assert again == book.total()
    assert again.party == 0, "that of the owner who spent most"
    assert again.releases == 36


def test_nothing_is_charged_past_the_budget_and_nothing_left(tmp_path):
    book, done = opened(tmp_path, 8.0), 0
    while book.affords([event(turn=done)]):
        book.charge([event(turn=done)])
        done += 1
    assert done == 61  # of z = 5 within epsilon 8 (specification)
    with pytest.raises(ledger.Spent, match="max_epsilon=8 "):
        book.charge([event(turn=done)])
    assert len(ledger.read(tmp_path)) == done
    assert book.total().epsilon_rdp <= 8.0
    assert opened(None, 8.0).left(event()) == 61


def test_a_round_of_which_one_party_has_spent_all_is_charged_to_nobody(tmp_path):
    book = opened(tmp_path, 8.0)
    book.charge([event(0, turn) for turn in range(61)])
    with pytest.raises(ledger.Spent, match="party 0"):
        book.charge([event(1, 61), event(0, 61)])
    assert len(ledger.read(tmp_path)) == 61
    book.charge([event(1, 61)])


def test_the_budget_holds_in_a_resumed_run_which_also_keeps_what_came_after_its_checkpoint(tmp_path):
    first = opened(None, 8.0)
    first.take_up(tmp_path, {})
    first.charge([event(turn=turn) for turn in range(40)])
    meta = first.write(tmp_path, {})
    first.charge([event(turn=turn) for turn in range(40, 55)])
    second = opened(None, 8.0)
    second.take_up(tmp_path, meta)
    assert second.total().releases == 55
    assert second.left(event()) == 6
    with pytest.raises(ledger.Spent):
        second.charge([event(turn=turn) for turn in range(40, 47)])


def test_a_ledger_that_lost_lines_is_refused(tmp_path):
    book = opened(tmp_path)
    book.charge([event(turn=turn) for turn in range(3)])
    meta = book.write(tmp_path, {})
    lines = (tmp_path / ledger.FILE).read_text().splitlines(keepends=True)
    (tmp_path / ledger.FILE).write_text("".join(lines[:2]))
    with pytest.raises(errors.Refused, match="holds 2 of 3 releases"):
        opened(None).take_up(tmp_path, meta)
    (tmp_path / ledger.FILE).write_text("".join([lines[0], "{}\n", lines[2]]))
    with pytest.raises(errors.Refused, match="line 2 is no release"):
        opened(tmp_path)


def test_releases_before_the_folder_is_known_are_written_when_it_is(tmp_path):
    book = opened(None)
    book.charge([event(turn=0)])
    book.take_up(tmp_path, {})
    book.charge([event(turn=1)])
    assert [one.turn for one in ledger.read(tmp_path)] == [0, 1]
    assert book.total().releases == 2


def test_a_line_that_a_crash_cut_is_no_release_and_the_next_one_is_whole(tmp_path):
    book = opened(tmp_path)
    book.charge([event(turn=0)])
    with (tmp_path / ledger.FILE).open("a") as file:
        file.write('{"party": 0, "tu')
    again = opened(tmp_path)
    again.charge([event(turn=1)])
    assert [one.turn for one in ledger.read(tmp_path)] == [0, 1]


KILLED = """
    import os, signal, sys
    import numpy as np
    from shoal.runtimes.federated import leaving, ledger

    class Dies(leaving.Seeded):
        def normal(self, size, party, turn):
            if turn == 2:
                os.kill(os.getpid(), signal.SIGKILL)  # after the line, before anything leaves
            return super().normal(size, party, turn)

    book = ledger.Ledger(sys.argv[1], delta=1e-5, max_epsilon=0.0, unit="party")
    leave = leaving.Leaving(leaving.Settings(1.0, 5.0), Dies(0), book)
    for turn in range(5):
        sys.stdout.buffer.write(leave(np.ones(3, np.float32), party=0, turn=turn).tobytes())
        sys.stdout.flush()
"""


def test_a_kill_between_line_and_release_counts_as_spent(tmp_path):
    script = textwrap.dedent(KILLED).replace("sys.argv[1]", "__import__('pathlib').Path(sys.argv[1])")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(done.stdout) == 2 * 3 * 4, "two releases left"
    assert [one.turn for one in ledger.read(tmp_path)] == [0, 1, 2]
    assert opened(tmp_path, unit="party").total().releases == 3


LIVES = """
    import os, pathlib, random, select, signal, sys, time
    import numpy as np
    from shoal.runtimes.federated import accounting, leaving, ledger

    folder, lives, moments = pathlib.Path(sys.argv[1]), int(sys.argv[2]), random.Random(0)

    class Slow(leaving.Seeded):
        def normal(self, size, party, turn):
            time.sleep(0.002)  # the moment between the line and the release is long enough to be met
            return super().normal(size, party, turn)

    def live(out):
        book = ledger.Ledger(folder, delta=1e-5, max_epsilon=0.0, unit="party")
        leave, turn = leaving.Leaving(leaving.Settings(1.0, 5.0), Slow(0), book), len(ledger.read(folder))
        while True:
            os.write(out, leave(np.ones(3, np.float32), party=0, turn=turn).tobytes())
            turn += 1

    def left(pipe):
        found = b""
        while more := os.read(pipe, 1 << 16):
            found += more
        return len(found) // 12

    accounting.epsilon({2.5: 1}, 1e-5)  # imported before the first life, not in each
    released = 0
    for _ in range(lives):
        pipe, out = os.pipe()
        child = os.fork()  # nothing here has threads
        if not child:
            os.close(pipe)  # so that it ends with whoever reads
            live(out)
        os.close(out)
        select.select([pipe], [], [])  # the first release of this life
        time.sleep(moments.uniform(0.0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        released += left(pipe)
        os.close(pipe)
        print(released, len(ledger.read(folder)), flush=True)
"""


@pytest.mark.slow
def test_a_hundred_kills_around_a_release_never_leave_less_spent_than_was_released(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    given = [sys.executable, "-c", textwrap.dedent(LIVES), tmp_path, "100"]
    done = subprocess.run(given, capture_output=True, text=True, env=environment, check=True)
    told = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(told) == 100
    for life, (released, spent) in enumerate(told, 1):
        assert released <= spent <= released + life, "a kill may cost one release that never left, and none for nothing"
    released, spent = told[-1]
    assert 0 < spent - released < 100, "kills before the line, and between the line and the release"
    events = ledger.read(tmp_path)
    assert [one.turn for one in events] == list(range(spent)), "no line is lost, none is there twice"
    assert opened(tmp_path, unit="party").total().releases == spent


# ------------------------------------------------------------------------------------------------ what is refused

LOCAL = {"privacy": "local", "clip": 1.0, "noise": 1.0}
CENTRAL = LOCAL | {"privacy": "central"}
SUM = {"secure_sum": True, "clip": 1.0}


@pytest.mark.parametrize(
    "changes",
    [{}, LOCAL, CENTRAL, SUM, SUM | LOCAL, SUM | CENTRAL, LOCAL | {"max_epsilon": 8.0}, {"clip": 1.0},
     LOCAL | {"asynchronous": True}, LOCAL | {"hostile": 2},
     LOCAL | {"unit": "trajectory", "exchange": "gradient"}],
)  # fmt: skip
def test_what_goes_together_is_taken(changes):
    privacy.check(settings(**changes))


@pytest.mark.parametrize(
    ("changes", "one", "other"),
    [
        *((SUM | {"aggregator": rule}, "secure_sum", f"aggregator={rule}") for rule in privacy.SEES_EACH),
        (SUM | {"hostile": 2}, "secure_sum", "aggregator=nearest_mixing"),
        (SUM | {"hostile": 2, "aggregator": "mean"}, "secure_sum", "hostile=2"),
        (SUM | {"max_norm": 3.0}, "secure_sum", "max_norm=3"),
        (SUM | {"asynchronous": True}, "secure_sum", "asynchronous"),
        (SUM | {"clip": 0.0}, "secure_sum", "clip=0"),
        (SUM | {"exchange": "outputs"}, "secure_sum", "exchange=outputs"),
        (SUM | {"parties": 2}, "secure_sum", "parties=2"),
        (LOCAL | {"clip": 0.0}, "noise=1", "clip=0"),
        (LOCAL | {"privacy": "none"}, "noise=1", "privacy=none"),
        (LOCAL | {"noise": 0.0}, "privacy=local", "noise=0"),
        ({"max_epsilon": 3.0}, "max_epsilon=3", "noise=0"),
        (LOCAL | {"delta": 0.0}, "delta=0", "noise"),
        (CENTRAL | {"asynchronous": True}, "privacy=central", "asynchronous"),
        (CENTRAL | {"aggregator": "median"}, "privacy=central", "aggregator=median"),
        (CENTRAL | {"hostile": 1}, "privacy=central", "aggregator=nearest_mixing"),
        (CENTRAL | {"unit": "trajectory"}, "privacy=central", "unit=trajectory"),
        (CENTRAL | {"exchange": "outputs"}, "privacy=central", "exchange=outputs"),
        (LOCAL | {"unit": "trajectory"}, "unit=trajectory", "exchange=delta"),
        (LOCAL | {"unit": "trajectory", "exchange": "gradient", "local_updates": 4}, "unit=trajectory",
         "local_updates=4"),
        (LOCAL | {"exchange": "none"}, "privacy=local", "exchange=none"),
        ({"clip": 1.0, "exchange": "none"}, "clip=1", "exchange=none"),
    ],
)  # fmt: skip
def test_what_cannot_be_together_is_refused_with_both_named(changes, one, other):
    with pytest.raises(errors.Refused) as refused:
        privacy.check(settings(**changes))
    assert refused.value.exit_code == 2
    assert one in str(refused.value)
    assert other in str(refused.value)
    assert "\n" not in str(refused.value)


def test_few_owners_with_noise_on_their_level_are_warned_of():
    assert "fewer than 20" in privacy.warning(settings(**LOCAL))
    assert "fewer than 20" in privacy.warning(settings(**CENTRAL))
    assert privacy.warning(settings()) == ""
    assert privacy.warning(settings(**CENTRAL | {"parties": 20})) == ""
    assert privacy.warning(settings(**LOCAL | {"unit": "trajectory"})) == ""
