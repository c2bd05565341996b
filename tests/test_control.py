"""The controller of compression: every transition, its hysteresis, and what the specification promises (11.14)."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.core import errors
from shoal.monitor import control
from shoal.monitor.control import Measured

LEVELS = ("chain", "quantise", "identity")
GOOD, BAD, FAIR = Measured(0.001, 0.95), Measured(0.2, 0.9), Measured(0.03, 0.7)
BROKEN = Measured(0.001, 0.95, finite=False)


START, USUAL = control.State(), control.Config()


def follow(measures, state=START, config=USUAL, levels=LEVELS):
    """Decisions over checks numbered from 1, and the level after each check."""
    controller, decisions, path = control.build(levels, config), [], []
    for update, measured in enumerate(measures, start=1):
        state, decision = controller.check(state, measured, update)
        decisions += [decision] if decision else []
        path.append(levels[state.level])
    return decisions, path, state


def changes(decisions):
    return [(one.update, one.before, one.after) for one in decisions]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (Measured(0.06, 0.9), "KL of compression 0.06 > 0.05, 3 checks in a row"),
        (Measured(0.001, 0.4), "ESS 0.4 < 0.5, 3 checks in a row"),
        (Measured(0.06, 0.4), "KL of compression 0.06 > 0.05 and ESS 0.4 < 0.5, 3 checks in a row"),
        (Measured(None, 0.4), "ESS 0.4 < 0.5, 3 checks in a row"),
        (Measured(float("nan"), 0.9), "KL of compression nan > 0.05, 3 checks in a row"),
    ],
)
def test_lasting_damage_steps_one_level_towards_identity(bad, said):
    decisions, path, _ = follow([bad] * 3)
    assert changes(decisions) == [(3, "chain", "quantise")]
    assert decisions[0].cause == said
    assert path == ["chain", "chain", "quantise"]
    assert decisions[0].told() == {"update": 3, "from": "chain", "to": "quantise", "cause": said}


def test_damage_that_passes_changes_nothing():
    assert follow([BAD, BAD, GOOD, BAD, BAD, FAIR] * 10)[0] == []


def test_a_two_bit_level_is_left_within_m_and_one_checks():
    rng = np.random.default_rng(0)
    for bad_checks in (1, 3, 5):
        config = control.Config(bad_checks=bad_checks)
        coarse = [Measured(float(kl), 0.3) for kl in rng.uniform(0.5, 2.0, bad_checks + 1)]
        decisions, *_ = follow(coarse, config=config)
        assert changes(decisions)[0] == (bad_checks, "chain", "quantise")


def test_no_more_than_one_change_in_a_cooldown_whatever_is_measured():
    rng = np.random.default_rng(1)
    config = control.Config(bad_checks=1, good_checks=2, cooldown=7)
    measures = [(GOOD, BAD, FAIR)[i] for i in rng.choice(3, 3000, p=[0.45, 0.45, 0.1])]
    decisions, *_ = follow(measures, config=config)
    apart = np.diff([one.update for one in decisions])
    assert len(decisions) > 100
    assert apart.min() == config.cooldown + 1, "no change in the cooldown, and the next check may"
    worst, *_ = follow([BAD] * 40)
    assert changes(worst) == [(3, "chain", "quantise"), (14, "quantise", "identity")], "at identity there is no further"


def test_health_that_lasts_steps_back_and_a_healthy_run_ends_most_compressed_and_stays():
    decisions, path, _ = follow([GOOD] * 500, control.State(level=2))
    assert changes(decisions) == [(10, "identity", "quantise"), (21, "quantise", "chain")]
    assert decisions[0].cause == "KL of compression 0.001 < 0.01 and ESS 0.95 > 0.8, 10 checks in a row"
    assert path[21:] == ["chain"] * 479
    assert follow([GOOD] * 500)[0] == [], "one that begins there never leaves"


@pytest.mark.parametrize("level", [0, 1, 2])
def test_between_the_thresholds_nothing_moves(level):
    for between in (FAIR, Measured(0.01, 0.9), Measured(0.05, 0.9), Measured(0.001, 0.8), Measured(0.001, 0.5)):
        assert follow([between] * 100, control.State(level=level))[0] == []


def test_damage_takes_fewer_checks_than_trust():
    """Half good, half bad in turns of five: stepped down, never up again."""
    decisions, path, _ = follow(([GOOD] * 5 + [BAD] * 5) * 20)
    assert [one.after for one in decisions] == ["quantise", "identity"]
    assert path[-1] == "identity"


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (BROKEN, "outputs that are not finite: identity at once"),
        (Measured(0.001, 0.95, agreement=0.49), "action agreement 0.49 < 0.5: identity at once"),
        (Measured(None, None, agreement=0.1), "action agreement 0.1 < 0.5: identity at once"),
    ],
)
def test_harm_goes_to_identity_at_once_also_in_the_cooldown(harm, said):
    decisions, *_ = follow([harm])
    assert changes(decisions) == [(1, "chain", "identity")]
    assert decisions[0].cause == said
    again, path, state = follow([BAD, BAD, BAD, GOOD, harm, harm, harm])
    assert changes(again) == [(3, "chain", "quantise"), (5, "quantise", "identity")]
    assert path[-1] == "identity"
    assert state.resting == 8, "at identity it can do no more, and the cooldown goes on"


def test_agreement_at_the_threshold_is_no_harm():
    assert follow([Measured(0.001, 0.95, agreement=0.5)] * 50)[0] == []


def test_what_was_not_measured_neither_counts_nor_breaks_a_row():
    nothing = Measured(None, None)
    assert changes(follow([BAD, nothing, BAD, nothing, BAD])[0]) == [(5, "chain", "quantise")]
    assert follow([nothing] * 100, control.State(level=1))[0] == []
    half = [Measured(0.001, None), Measured(None, 0.95)]
    assert follow(half * 50, control.State(level=1))[0] == [], "health needs both"


def test_checks_in_the_cooldown_count_for_what_follows():
    decisions, *_ = follow([BAD] * 3 + [GOOD] * 11)
    assert changes(decisions) == [(3, "chain", "quantise"), (14, "quantise", "chain")]
    without, *_ = follow([GOOD] * 25, control.State(level=2), control.Config(cooldown=0))
    assert [one.update for one in without] == [10, 20]


def test_a_run_can_be_repeated_and_continued_from_what_was_kept():
    rng = np.random.default_rng(2)
    measures = [(GOOD, BAD, FAIR)[i] for i in rng.choice(3, 400, p=[0.7, 0.25, 0.05])]
    whole, path, end = follow(measures)
    assert follow(measures) == (whole, path, end)
    _, early, kept = follow(measures[:123])
    _, late, again = follow(measures[123:], control.State(*map(int, kept)))
    assert (early + late, again) == (path, end)


@pytest.mark.parametrize("levels", [(), ("identity",), ("identity", "quantise"), ("a", "a", "identity"), ("a", "b")])
def test_levels_that_do_not_end_in_identity_are_refused(levels):
    with pytest.raises(errors.Refused, match="most compressed first and identity last"):
        control.build(levels, control.Config())


@pytest.mark.parametrize("wrong", [{"kl_low": 0.05}, {"ess_low": 0.9}, {"bad_checks": 10}])
def test_settings_without_hysteresis_are_refused(wrong):
    with pytest.raises(errors.Refused, match="swing between levels"):
        control.build(LEVELS, control.Config(**wrong))
