from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal.formulas import returns


def vtrace(log_rho, reward, discount, cut, value, next_value, lambda_, clip):
    """Targets and advantages with ρ̄ = ρ_pg = clip and c̄ = 1."""
    ratio = jnp.exp(log_rho)
    along = reward, discount, cut, value, next_value
    target, error = returns.vtrace(jnp.minimum(clip, ratio), jnp.minimum(1.0, ratio), *along, lambda_)
    return target, jnp.minimum(clip, ratio) * error


WAYS = pytest.mark.parametrize("way", [lambda f: f, jax.jit], ids=["plain", "jit"])


def f32(*values):
    return jnp.asarray(values, jnp.float32)


def stream(seed, ends=True, length=12):
    """A random stream with terminations and time limits; not cut at the last step."""
    rng = np.random.default_rng(seed)
    terminal, limit = (rng.random(length) < 0.2) & ends, (rng.random(length) < 0.2) & ends
    value, next_value, reward, log_rho = rng.normal(size=(4, length))
    limit &= ~terminal
    next_value[:-1] = np.where((terminal | limit)[:-1], next_value[:-1], value[1:])
    arrays = {
        "log_rho": log_rho,
        "reward": reward,
        "discount": 0.9 * ~terminal,
        "cut": terminal | limit,
        "value": value,
        "next_value": next_value,
    }
    return {name: a if name == "cut" else a.astype(np.float32) for name, a in arrays.items()}


def slow_lambda(reward, discount, cut, next_value, lambda_, **_):
    """Float64: the weighted sum of every n-step return, by the definition."""
    length, out = len(reward), []
    for t in range(length):
        total, kept, running, weight = 0.0, 1.0, 0.0, 1.0
        for k in range(t, length):
            running += kept * float(reward[k])
            kept *= float(discount[k])
            last = bool(cut[k]) or k == length - 1
            share = weight if last else weight * (1 - lambda_)
            total += share * (running + kept * float(next_value[k]))
            weight *= lambda_
            if last:
                break
        out.append(total)
    return np.array(out)


def slow_vtrace(log_rho, reward, discount, cut, value, next_value, lambda_, clip):
    """Float64: equation 1 of arXiv:1802.01561 as a double sum, with the products written out."""
    length, target, advantage = len(reward), [], []
    ratio = np.exp(np.asarray(log_rho, np.float64))
    rho, c = np.minimum(clip, ratio), lambda_ * np.minimum(1.0, ratio)
    for t in range(length):
        total, weight = float(value[t]), 1.0
        for k in range(t, length):
            total += weight * rho[k] * (reward[k] + discount[k] * next_value[k] - value[k])
            if cut[k]:
                break
            weight *= float(discount[k]) * c[k]
        target.append(total)
    for t in range(length):
        alone = cut[t] or t == length - 1
        following = next_value[t] if alone else (1 - lambda_) * next_value[t] + lambda_ * target[t + 1]
        advantage.append(rho[t] * (reward[t] + discount[t] * following - value[t]))
    return np.array(target), np.array(advantage)


@WAYS
@pytest.mark.parametrize(
    ("discount", "cut", "lambda_", "expected"),
    [
        # Nothing ends, λ = 1: 3 + ½·40 = 23, 2 + ½·23 = 13.5, 1 + ½·13.5 = 7.75.
        ((0.5, 0.5, 0.5), (0, 0, 0), 1.0, (7.75, 13.5, 23.0)),
        # Termination at t = 1: nothing but its reward.
        ((0.5, 0.0, 0.5), (0, 1, 0), 1.0, (2.0, 2.0, 23.0)),
        # Time limit at t = 1: bootstraps from its own successor's value, 20, never from 0 nor the next episode.
        ((0.5, 0.5, 0.5), (0, 1, 0), 1.0, (7.0, 12.0, 23.0)),
        # Both, and an end at the last step: λ = ½ mixes only at t = 0: 1 + ½(½·10 + ½·2) = 4.
        ((0.5, 0.0, 0.5), (0, 1, 1), 0.5, (4.0, 2.0, 23.0)),
        # λ = 0: one-step targets.
        ((0.5, 0.5, 0.5), (0, 0, 0), 0.0, (6.0, 12.0, 23.0)),
    ],
)
def test_lambda_returns_by_hand(way, discount, cut, lambda_, expected):
    compute = way(returns.lambda_returns)
    found = compute(f32(1, 2, 3), f32(*discount), jnp.array(cut, bool), f32(10, 20, 40), jnp.float32(lambda_))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@WAYS
def test_vtrace_by_hand(way):
    # ρ = (min(1, 2), ½, min(1, 4)) = (1, ½, 1), c likewise; δ = ρ (r + ½ V' - V) = (1, ½, 0).
    # v_2 = 4, v_1 = 2 + ½ + ½·½·0 = 2.5, v_0 = 1 + 1 + ½·1·(2.5 - 2) = 2.25.
    # A_0 = 1 + ½·2.5 - 1 = 1.25, A_1 = ½ (1 + ½·4 - 2) = ½, A_2 = 1 + 3 - 4 = 0.
    log_rho, half, never = jnp.log(f32(2, 0.5, 4)), f32(0.5, 0.5, 0.5), jnp.zeros(3, bool)
    one = jnp.float32(1)
    target, advantage = way(vtrace)(log_rho, f32(1, 1, 1), half, never, f32(1, 2, 4), f32(2, 4, 6), one, one)
    np.testing.assert_allclose(target, (2.25, 2.5, 4.0), rtol=1e-6)
    np.testing.assert_allclose(advantage, (1.25, 0.5, 0.0), rtol=1e-6, atol=1e-6)


@WAYS
def test_vtrace_lets_a_larger_clip_weigh_the_errors_but_not_the_traces(way):
    # ρ = 3 below a clip of 4, c = min(1, 3) = 1: v_1 = 3·1 = 3, v_0 = 3·1 + 1·1·3 = 6, A_0 = 3 (1 + 3), A_1 = 3.
    log_rho, one, never = jnp.log(f32(3, 3)), f32(1, 1), jnp.zeros(2, bool)
    zero, lambda_, clip = f32(0, 0), jnp.float32(1), jnp.float32(4)
    target, advantage = way(vtrace)(log_rho, one, one, never, zero, zero, lambda_, clip)
    np.testing.assert_allclose(target, (6, 3), rtol=1e-6)
    np.testing.assert_allclose(advantage, (12, 3), rtol=1e-6)


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_lambda_returns_equal_the_definition_across_ends(lambda_):
    compute = jax.jit(returns.lambda_returns)
    for seed in range(20):
        at = stream(seed)
        expected = slow_lambda(lambda_=lambda_, **at)
        found = compute(at["reward"], at["discount"], at["cut"], at["next_value"], jnp.float32(lambda_))
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("lambda_", "clip"), [(1.0, 1.0), (0.6, 1.0), (1.0, 2.5), (0.0, 1.0)])
def test_vtrace_equals_the_definition_across_ends(lambda_, clip):
    compute = jax.jit(vtrace)
    for seed in range(20):
        at = stream(seed)
        found = compute(*at.values(), jnp.float32(lambda_), jnp.float32(clip))
        for ours, theirs in zip(found, slow_vtrace(**at, lambda_=lambda_, clip=clip), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_rlax_agrees_where_nothing_is_cut(lambda_, lenient, rlax):
    at = stream(3, ends=False)
    ratio = np.exp(at["log_rho"])
    found = returns.lambda_returns(at["reward"], at["discount"], at["cut"], at["next_value"], jnp.float32(lambda_))
    target, advantage = vtrace(*at.values(), jnp.float32(lambda_), jnp.float32(1))
    with lenient():
        theirs = rlax.lambda_returns(at["reward"], at["discount"], at["next_value"], lambda_)
        corrected = rlax.vtrace_td_error_and_advantage(
            at["value"], at["next_value"], at["reward"], at["discount"], ratio, lambda_
        )
    np.testing.assert_allclose(found, theirs, rtol=1e-5)
    np.testing.assert_allclose(target, at["value"] + corrected.errors, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(advantage, corrected.pg_advantage, rtol=1e-5, atol=1e-6)


def test_lambda_one_is_rlax_n_step_over_the_whole_segment(lenient, rlax):
    at = stream(4, ends=False)
    found = returns.lambda_returns(at["reward"], at["discount"], at["cut"], at["next_value"], jnp.float32(1))
    with lenient():
        theirs = rlax.n_step_bootstrapped_returns(at["reward"], at["discount"], at["next_value"], n=len(found))
    np.testing.assert_allclose(found, theirs, rtol=1e-5)


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_vtrace_on_policy_is_lambda_returns(lambda_):
    at = stream(5)
    at["log_rho"] = np.zeros_like(at["log_rho"])
    weight = jnp.float32(lambda_)
    plain = returns.lambda_returns(at["reward"], at["discount"], at["cut"], at["next_value"], weight)
    target, advantage = vtrace(*at.values(), weight, jnp.float32(1))
    np.testing.assert_allclose(target, plain, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(advantage, plain - at["value"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", ["lambda_returns", "vtrace"])
def test_nothing_flows_back_across_an_end(function):
    at = stream(6, ends=False)
    at["cut"][4] = True
    other = {name: np.concatenate([array[:5], array[5:] + 1]) if name != "cut" else array for name, array in at.items()}
    # Perturbing everything after the cut leaves the targets up to it bit-identical.
    one, two = (
        returns.lambda_returns(a["reward"], a["discount"], a["cut"], a["next_value"], jnp.float32(1))
        if function == "lambda_returns"
        else vtrace(*a.values(), jnp.float32(1), jnp.float32(1))[1]
        for a in (at, other)
    )
    np.testing.assert_array_equal(one[:5], two[:5])
    assert (one[5:] != two[5:]).all()
