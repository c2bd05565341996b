"""Decisions in NumPy: of few numbers in Python's floats, of many in arrays, the same of both."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shoal.formulas import deciding

LOGITS = (3 * np.random.default_rng(3).normal(size=(300, 3))).astype(np.float32)


def in_pieces(decide, rows, generator):
    """As decided a handful at a time."""
    drawn = [decide(rows[i : i + 4], generator) for i in range(0, len(rows), 4)]
    return deciding.Drawn(*(np.concatenate(parts) for parts in zip(*drawn, strict=True)))


@pytest.mark.parametrize("explore", [np.float32(1.0), np.float32(0.0)])
def test_few_choices_are_drawn_as_many_are(explore):
    def decide(rows, generator):
        return deciding.categorical(rows, explore, generator)

    many = decide(LOGITS, np.random.default_rng(5))
    few = in_pieces(decide, LOGITS, np.random.default_rng(5))
    assert LOGITS.size > deciding.FEW >= 4 * LOGITS.shape[1], "both ways are taken"
    np.testing.assert_array_equal(few.action, many.action)
    np.testing.assert_allclose(few.log_prob, many.log_prob, rtol=1e-6, atol=1e-7)
    assert [leaf.dtype for leaf in few] == [leaf.dtype for leaf in many] == [np.int32, np.float32]


@pytest.mark.parametrize("epsilon", [np.float32(0.0), np.float32(0.3), np.float32(1.0)])
def test_few_values_are_chosen_from_as_from_many(monkeypatch, epsilon):
    each = np.broadcast_to(epsilon, len(LOGITS))
    many = deciding.epsilon_greedy(LOGITS, epsilon, np.random.default_rng(5))
    monkeypatch.setattr(deciding, "FEW", LOGITS.size)
    for rate in (epsilon, each):
        few = deciding.epsilon_greedy(LOGITS, rate, np.random.default_rng(5))
        np.testing.assert_array_equal(few.action, many.action)
        np.testing.assert_allclose(few.log_prob, many.log_prob, rtol=1e-6, atol=1e-7)
        assert [leaf.dtype for leaf in few] == [leaf.dtype for leaf in many] == [np.int32, np.float32]


def test_a_choice_that_cannot_be_is_never_drawn_and_what_is_no_number_is_told_as_such():
    masked = np.float32([[-np.inf, 0.0, math.log(3.0), -np.inf]])
    generator = np.random.default_rng(0)
    drawn = [deciding.categorical(masked, 1.0, generator) for _ in range(400)]
    chosen = np.array([one.action.item() for one in drawn])
    assert {*chosen.tolist()} == {1, 2}
    assert 0.68 < (chosen == 2).mean() < 0.82, "three quarters"
    for one in drawn:
        assert one.log_prob.item() == pytest.approx(math.log(0.25 if one.action.item() == 1 else 0.75), rel=1e-6)
    assert np.isnan(deciding.categorical(np.float32([[np.nan, 1.0]]), 1.0, generator).log_prob).all()
