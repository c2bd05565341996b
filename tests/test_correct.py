"""Correctors against the worked example of the specification, rlax, explicit sums, and against each other."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal.core import options, registry, types
from shoal.formulas import importance, returns

# Step 1 is cut by a time limit, step 3 terminates, the rollout ends after step 4; the 9 must not be used.
RHO = np.array([0.5, 2.0, 1.5, 0.8, 1.0])
PI = np.array([0.3, 0.6, 0.45, 0.4, 0.5])
EXAMPLE = types.Steps(
    log_pi=np.log(PI), log_mu=np.log(PI / RHO), reward=np.array([1.0, 2.0, -1.0, 3.0, 0.5]),
    discount=np.array([0.9, 0.9, 0.9, 0.0, 0.9]), cut=np.array([False, True, False, True, False]),
    value=np.array([1.0, 0.5, 2.0, -1.0, 0.3]), next_value=np.array([0.5, 4.0, -1.0, 9.0, 0.7]),
)  # fmt: skip
TABLE = {  # (corrector, settings) -> targets, advantages (None: not in the table)
    "vtrace": ("vtrace", {}, (3.52, 5.6, 0.98, 2.2, 1.13), (2.52, 5.1, -1.02, 3.2, 0.83)),
    "vtrace-0.95": (
        "vtrace", {"lambda_": 0.95}, (3.40525, 5.6, 0.836, 2.2, 1.13), (2.40525, 5.1, -1.164, 3.2, 0.83),
    ),
    "vtrace-10": ("vtrace", {"clip": 10.0, "rho_pg": 10.0}, (5.815, 10.7, -0.97, 2.2, 1.13), None),
    "control_variate": (
        "importance", {}, (5.815, 10.7, 0.47, 2.2, 1.13), (4.815, 10.2, -1.53, 3.2, 0.83),
    ),
    "plain": ("importance", {"form": "plain"}, (5.54, 11.2, 1.74, 2.4, 1.13), None),
    "retrace": ("retrace", {"lambda_": 0.9}, (5.581, 5.6, 0.692, 3.0, 1.13), None),
    "tree_backup": ("tree_backup", {"lambda_": 0.9}, (3.9286, 5.6, -0.604, 3.0, 1.13), None),
    "q_lambda": ("q_lambda", {"lambda_": 0.9}, (5.581, 5.6, 1.34, 3.0, 1.13), None),
}  # fmt: skip


@pytest.fixture(autouse=True)
def double():
    """Formulas are held against others in double precision, where 1e-6 is a difference."""
    with jax.enable_x64(True):
        yield


def built(name, **settings):
    module = registry.load("corrector", name)
    made = module.build(options.build(module.Config, settings, "corrector"))
    exact = {field: settings.get(field, float(value)) for field, value in made.hyper._asdict().items()
             if field != "axes"}  # fmt: skip
    return made._replace(hyper=made.hyper._replace(**{field: jnp.float64(value) for field, value in exact.items()}))


def correct(name, **settings):
    made = built(name, **settings)
    return functools.partial(made.correct, made.hyper)


def arrays(steps):
    return jax.tree.map(jnp.asarray, steps)


# ------------------------------------------------------------------------------------------------ the worked example


@pytest.mark.parametrize("row", TABLE)
def test_the_worked_example(row):
    name, settings, target, advantage = TABLE[row]
    found = jax.jit(correct(name, **settings))(arrays(EXAMPLE))
    np.testing.assert_allclose(found.target, target, rtol=0, atol=1e-6)
    if advantage is not None:
        np.testing.assert_allclose(found.advantage, advantage, rtol=0, atol=1e-6)


def test_the_worked_example_of_importance_sampling_of_action_values():
    """Unbounded traces: no corrector of ours, the formula alone."""
    at = arrays(EXAMPLE)
    found = returns.action_values(jnp.asarray(RHO), at.reward, at.discount, at.cut, at.value, at.next_value)
    np.testing.assert_allclose(found, (10.63, 5.6, 0.98, 3.0, 1.13), rtol=0, atol=1e-6)


def test_the_effective_sample_size_of_the_worked_example():
    assert importance.effective(jnp.asarray(RHO)) == pytest.approx(33.64 / 40.7, rel=1e-9)  # 0.826536
    told = importance.ratios(jnp.asarray(EXAMPLE.log_pi), jnp.asarray(EXAMPLE.log_mu))
    log_rho = np.log(RHO)
    wanted = {
        "ess": RHO.sum() ** 2 / (5 * (RHO**2).sum()), "weight_mean": RHO.mean(), "chi2": (RHO**2).mean() - 1,
        "log_rho": log_rho.mean(), "log_rho_std": log_rho.std(), "log_rho_max": np.log(2.0),
        "dlogp": np.abs(log_rho).mean(), "dlogp_exp": np.exp(np.abs(log_rho)).mean(),
    }  # fmt: skip
    assert told.keys() == wanted.keys()
    for name, value in wanted.items():
        assert told[name] == pytest.approx(value, rel=1e-9), name


def test_what_is_padding_tells_nothing():
    counts = np.array([True, True, True, False, False])
    few = importance.ratios(jnp.asarray(EXAMPLE.log_pi[:3]), jnp.asarray(EXAMPLE.log_mu[:3]))
    wild = jnp.asarray(np.where(counts, EXAMPLE.log_mu, -50.0))
    for name, value in importance.ratios(jnp.asarray(EXAMPLE.log_pi), wild, jnp.asarray(counts)).items():
        assert value == pytest.approx(float(few[name]), rel=1e-9), name


def test_the_trace_of_vtrace_ends_where_the_stream_is_cut():
    """Seen elsewhere: a trace that is multiplied by the ratios alone, so that values leak from the next episode."""
    rho, leaking, future = np.minimum(1.0, RHO), np.zeros(5), 0.0
    for t in reversed(range(5)):
        delta = EXAMPLE.reward[t] + EXAMPLE.discount[t] * EXAMPLE.next_value[t] - EXAMPLE.value[t]
        future = rho[t] * delta + 0.9 * rho[t] * future
        leaking[t] = EXAMPLE.value[t] + future
    np.testing.assert_allclose(leaking, (3.3247, 5.1661, 1.5178, 2.7976, 1.13), rtol=0, atol=5e-5)
    found = np.asarray(correct("vtrace")(arrays(EXAMPLE)).target)
    assert (np.abs(found - leaking)[:4] > 0.1).all()


def test_the_value_after_a_termination_is_not_used():
    """A time limit stored as a termination, or the other way round, changes what is learned."""
    for name in ("none", "vtrace", "importance", "retrace", "tree_backup", "q_lambda"):
        before = correct(name)(arrays(EXAMPLE)).target
        at = arrays(EXAMPLE)
        after = correct(name)(at._replace(next_value=at.next_value.at[3].set(-77.0))).target
        np.testing.assert_array_equal(before, after)
        stored = correct(name)(at._replace(discount=at.discount.at[1].set(0.0))).target
        assert stored[1] != before[1]


# ------------------------------------------------------------------------------------------------ oracles

LENGTH, COUNT = 8, 1000


@functools.cache
def streams():
    """Steps ``[COUNT, LENGTH]`` in NumPy, with ends of both kinds."""
    rng = np.random.default_rng(0)
    shape = (COUNT, LENGTH)
    terminal, limit = rng.random(shape) < 0.12, rng.random(shape) < 0.12
    limit &= ~terminal
    reward, value, next_value = rng.normal(size=(3, *shape))
    over = terminal | limit
    next_value[:, :-1] = np.where(over[:, :-1], next_value[:, :-1], value[:, 1:])
    log_mu = -np.abs(rng.normal(size=shape)) - 0.05
    log_pi = np.minimum(log_mu + 0.5 * rng.normal(size=shape), -0.01)
    return types.Steps(log_pi, log_mu, reward, 0.9 * ~terminal, over, value, next_value)


def segments():
    """(stream, first, end) of every piece between two cuts, by length."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    for i, cut in enumerate(streams().cut):
        ends = [*(np.flatnonzero(cut[:-1]) + 1), LENGTH]
        for first, end in zip([0, *ends[:-1]], ends, strict=True):
            found.setdefault(end - first, []).append((i, first, end))
    return found


def by_segments(oracle):
    """``[COUNT, LENGTH]`` of what an oracle without masks makes of each segment: (steps of one) -> targets."""
    out, given = np.zeros((COUNT, LENGTH)), streams()
    for pieces in segments().values():
        rows = [jax.tree.map(lambda leaf, at=at: leaf[at[0], at[1] : at[2]], given) for at in pieces]
        together = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *rows)
        for (i, first, end), found in zip(pieces, np.asarray(jax.jit(jax.vmap(oracle))(together)), strict=True):
            out[i, first:end] = found
    return out


def rlax_targets(rlax, kind, lambda_, bound):
    """One segment's targets by rlax, as its functions want their arguments."""

    def oracle(at):
        rho = jnp.exp(at.log_pi - at.log_mu)
        if kind == "none":
            return rlax.lambda_returns(at.reward, at.discount, at.next_value, lambda_)
        if kind in ("vtrace", "advantage"):
            found = rlax.vtrace_td_error_and_advantage(
                at.value, at.next_value, at.reward, at.discount, rho, lambda_, bound, bound
            )
            return found.pg_advantage if kind == "advantage" else at.value + found.errors
        if kind == "importance":
            values = jnp.append(at.value, at.next_value[-1])
            corrected = rlax._src.multistep.importance_corrected_td_errors
            return at.value + corrected(at.reward, at.discount, rho, lambda_, values)
        if kind == "peng":
            return rlax.lambda_returns(at.reward, at.discount, at.next_value, lambda_)
        trace = {"retrace": jnp.minimum(1.0, rho), "tree_backup": jnp.exp(at.log_pi), "q_lambda": jnp.ones_like(rho)}
        c = lambda_ * trace[kind]
        return rlax.general_off_policy_returns_from_q_and_v(at.value[1:], at.next_value, at.reward, at.discount, c[1:])

    return oracle


ORACLES = {  # what rlax has: (corrector, settings, kind there, bound)
    "none": ("none", {"lambda_": 0.8}, "none", 1.0),
    "vtrace": ("vtrace", {"lambda_": 0.8}, "vtrace", 1.0),
    "vtrace-advantage": ("vtrace", {"lambda_": 0.8}, "advantage", 1.0),
    "vtrace-2.5": ("vtrace", {"lambda_": 0.8, "clip": 2.5}, "vtrace", 2.5),
    "importance": ("importance", {"lambda_": 0.8}, "importance", 1.0),
    "retrace": ("retrace", {"lambda_": 0.8}, "retrace", 1.0),
    "tree_backup": ("tree_backup", {"lambda_": 0.8}, "tree_backup", 1.0),
    "q_lambda": ("q_lambda", {"lambda_": 0.8}, "q_lambda", 1.0),
    "peng": ("q_lambda", {"lambda_": 0.8, "form": "peng"}, "peng", 1.0),
}


@pytest.mark.parametrize("row", ORACLES)
def test_rlax_says_the_same_of_a_thousand_streams_segment_by_segment(row, rlax, lenient):
    name, settings, kind, bound = ORACLES[row]
    found = jax.jit(jax.vmap(correct(name, **settings)))(jax.tree.map(jnp.asarray, streams()))
    with lenient():
        expected = by_segments(rlax_targets(rlax, kind, settings["lambda_"], bound))
    mine = found.advantage if kind == "advantage" else found.target
    np.testing.assert_allclose(mine, expected, rtol=1e-6, atol=1e-6)


def explicit(at, weights, trace, values):
    """``start_t + Σ_k (Π γ c) w_k δ_k`` in plain Python, the products written out; c_i between t and k."""
    out = np.zeros(LENGTH)
    for t in range(LENGTH):
        total, product = float(at.value[t]), 1.0
        for k in range(t, LENGTH):
            if k > t:
                product *= float(at.discount[k - 1]) * float(trace[k] if values == "q" else trace[k - 1])
            delta = at.reward[k] + at.discount[k] * at.next_value[k] - at.value[k]
            total += product * float(weights[k]) * float(delta)
            if at.cut[k]:
                break
        out[t] = total
    return out


def plainly(at, rho, lambda_):
    """Plain per-decision importance sampling as the sum over every reward, and over every bootstrap on the way."""
    out = np.zeros(LENGTH)
    for t in range(LENGTH):
        product, discount, total = 1.0, 1.0, 0.0
        for k in range(t, LENGTH):
            product *= float(rho[k])
            total += product * discount * float(at.reward[k])
            discount *= float(at.discount[k])
            last = bool(at.cut[k]) or k == LENGTH - 1
            total += product * discount * (1.0 if last else 1.0 - lambda_) * float(at.next_value[k])
            if last:
                break
            product *= lambda_
        out[t] = total
    return out


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("none", {}), ("vtrace", {}), ("vtrace", {"clip": 3.0, "c_bar": 1.5}), ("importance", {}),
        ("importance", {"form": "plain"}), ("retrace", {}), ("tree_backup", {}), ("q_lambda", {}),
    ],
)  # fmt: skip
def test_the_recursion_is_the_explicit_sum(name, settings):
    lambda_ = 0.7
    made = jax.jit(jax.vmap(correct(name, lambda_=lambda_, **settings)))
    found = made(jax.tree.map(jnp.asarray, streams())).target
    for i in range(40):
        at = jax.tree.map(lambda leaf, i=i: leaf[i], streams())
        rho, pi, one = np.exp(at.log_pi - at.log_mu), np.exp(at.log_pi), np.ones(LENGTH)
        if settings.get("form") == "plain":
            expected = plainly(at, rho, lambda_)
        else:
            weights, trace = {
                "none": (one, one), "importance": (rho, rho), "retrace": (one, np.minimum(1, rho)),
                "vtrace": (np.minimum(settings.get("clip", 1), rho), np.minimum(settings.get("c_bar", 1), rho)),
                "tree_backup": (one, pi), "q_lambda": (one, one),
            }[name]  # fmt: skip
            expected = explicit(at, weights, lambda_ * trace, built(name).of)
        np.testing.assert_allclose(found[i], expected, rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------------------------------------ reductions


def of_all(name, steps=None, **settings):
    given = streams() if steps is None else steps
    return jax.jit(jax.vmap(correct(name, **settings)))(jax.tree.map(jnp.asarray, given))


def close(one, other):
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("lambda_", [1.0, 0.6])
def test_with_equal_policies(lambda_):
    same = streams()._replace(log_mu=streams().log_pi)
    plain = of_all("none", same, lambda_=lambda_)
    for settings in ({}, {"clip": 7.0}, {"rho_pg": 1.0}):
        corrected = of_all("vtrace", same, lambda_=lambda_, **settings)
        close(corrected.target, plain.target)
        close(corrected.advantage, plain.advantage)
    close(of_all("retrace", same, lambda_=lambda_).target, of_all("q_lambda", same, lambda_=lambda_).target)


def test_vtrace_without_bounds_is_per_decision_importance_sampling_with_a_control_variate():
    huge = {"clip": 1e30, "c_bar": 1e30}
    one, other = of_all("vtrace", lambda_=0.8, **huge), of_all("importance", lambda_=0.8)
    close(one.target, other.target)
    close(one.advantage, other.advantage)


def test_without_a_trace_everything_is_one_step():
    at = streams()
    step = at.reward + at.discount * at.next_value
    for name in ("none", "retrace", "tree_backup", "q_lambda"):
        close(of_all(name, lambda_=0.0).target, step)
    rho = np.exp(at.log_pi - at.log_mu)
    close(of_all("vtrace", lambda_=0.0).target, at.value + np.minimum(1, rho) * (step - at.value))
    close(of_all("importance", lambda_=0.0).target, at.value + rho * (step - at.value))
    close(of_all("importance", lambda_=0.0, form="plain").target, rho * step)


def test_retrace_of_actions_that_were_sure_is_tree_backup():
    sure = streams()._replace(log_mu=np.zeros_like(streams().log_mu))
    close(of_all("retrace", sure, lambda_=0.8).target, of_all("tree_backup", lambda_=0.8).target)


def test_tree_backup_of_a_greedy_policy_is_watkins_q_lambda(rlax, lenient):
    """Its trace goes on through greedy actions and ends at any other."""
    rng = np.random.default_rng(2)
    q, action = rng.normal(size=(LENGTH + 1, 3)), rng.integers(0, 3, LENGTH + 1)
    greedy = q.argmax(axis=1) == action
    log_pi = np.where(greedy, 0.0, -np.inf)
    taken = q[np.arange(LENGTH + 1), action]
    at = types.Steps(log_pi[:-1], (), rng.normal(size=LENGTH), np.full(LENGTH, 0.9), np.zeros(LENGTH, bool),
                     taken[:-1], q[1:].max(axis=1))  # fmt: skip
    found = correct("tree_backup", lambda_=0.8)(arrays(at)).target
    with lenient():
        errors = rlax.q_lambda(q[:-1], action[:-1], at.reward, at.discount, q[1:], 0.8 * greedy[1:].astype(float))
    # rlax's mixes λ-returns, where the trace here passes on an error: the same, since V' = Q(x', a') of greedy actions.
    np.testing.assert_allclose(found, taken[:-1] + errors, rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------------------------------------ weights by hand


def weigh(name, rho, cut=None, advantage=None, log_mu=None, counts=(), **settings):
    rho = np.asarray(rho)
    n = len(rho)
    log_mu = np.full(n, -1.0) if log_mu is None else np.asarray(log_mu)
    at = types.Steps(
        log_pi=log_mu + np.log(rho), log_mu=log_mu, reward=np.zeros(n), discount=np.zeros(n),
        cut=np.zeros(n, bool) if cut is None else np.asarray(cut, bool),
        value=np.zeros(n) if advantage is None else -np.asarray(advantage), next_value=np.zeros(n), counts=counts,
    )  # fmt: skip
    module = registry.load("corrector", name)
    made = module.build(options.build(module.Config, settings, "corrector"))
    hyper = jax.tree.map(jnp.float64, made.hyper)
    return made.correct(hyper, arrays(at))


def test_tis_by_hand():
    found = weigh("tis", [0.1, 1.0, 2.0, 5.0])
    np.testing.assert_allclose(found.weight, [0.1, 1.0, 2.0, 2.0])
    np.testing.assert_array_equal(found.told["clip_fraction"], [0, 0, 0, 1])
    np.testing.assert_allclose(weigh("tis", [0.1, 9.0], cap=8.0).weight, [0.1, 8.0])


def test_icepop_by_hand():
    found = weigh("icepop", [0.4, 0.6, 1.0, 4.9, 5.1])
    np.testing.assert_allclose(found.weight, [0.0, 0.6, 1.0, 4.9, 0.0])
    np.testing.assert_array_equal(found.told["rejected_low"], [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(found.told["rejected_high"], [0, 0, 0, 0, 1])


def test_sequences_by_hand():
    # Segments: (0.9, 1.5), product 1.35; (0.6, 0.6), product 0.36; (4), product 4.
    rho, cut = [0.9, 1.5, 0.6, 0.6, 4.0], [0, 1, 0, 1, 0]
    found = weigh("seq_mis", rho, cut)
    np.testing.assert_array_equal(found.weight, [1, 1, 0, 0, 0])
    np.testing.assert_array_equal(found.told["rejected_low"], [0, 0, 1, 1, 0])
    np.testing.assert_array_equal(found.told["rejected_high"], [0, 0, 0, 0, 1])
    # Geometric means: 1.162, 0.6, 4.
    np.testing.assert_array_equal(weigh("geo_rs", rho, cut, mean_low=0.7, mean_high=1.2).weight, [1, 1, 0, 0, 0])
    np.testing.assert_array_equal(weigh("geo_rs", rho, cut, mean_low=0.5, mean_high=1.1).weight, [0, 0, 1, 1, 0])
    np.testing.assert_array_equal(weigh("geo_rs", rho, cut).weight, [0, 0, 0, 0, 0])
    np.testing.assert_allclose(weigh("seq_mis", rho, cut, weight="tis").weight, [0.9, 1.5, 0, 0, 0])
    # The last step of a segment is that of its own, not of the next one.
    np.testing.assert_array_equal(weigh("seq_mis", [1.0, 0.1, 1.0], [0, 1, 0]).weight, [0, 0, 1])


def test_dppo_by_hand():
    # μ = 0.5: π - μ = 0.25, 0.25, -0.25, -0.25, 0.15.
    rho, advantage, log_mu = [1.5, 1.5, 0.5, 0.5, 1.3], [1.0, -1.0, 1.0, -1.0, 1.0], np.full(5, np.log(0.5))
    found = weigh("dppo_tv", rho, advantage=advantage, log_mu=log_mu, penalty=0.1)
    np.testing.assert_array_equal(found.weight, [0, 1, 1, 0, 1])
    np.testing.assert_array_equal(found.told["rejected_high"], [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(found.told["rejected_low"], [0, 0, 0, 1, 0])
    np.testing.assert_allclose(found.advantage, np.array(advantage) - 0.2 * np.log(rho), rtol=1e-6)


def test_the_penalty_of_dppo_is_the_gradient_of_the_square():
    log_mu, beta = jnp.log(jnp.array([0.2, 0.5, 0.3])), 0.05

    def loss(logits, action):
        return beta * (jax.nn.log_softmax(logits)[action] - log_mu[action]) ** 2

    def through_advantage(logits, action):
        log_pi = jax.nn.log_softmax(logits)[action]
        return -log_pi * jax.lax.stop_gradient(-2.0 * beta * (log_pi - log_mu[action]))

    logits = jnp.array([0.3, -0.4, 0.9])
    for action in range(3):
        np.testing.assert_allclose(jax.grad(loss)(logits, action), jax.grad(through_advantage)(logits, action))


def test_m2po_by_hand():
    # (log ρ)²: 0.01, 0.09, 0.25, 1, 0; sorted means: 0, 0.005, 0.0333, 0.0875, 0.27.
    rho = np.exp([0.1, -0.3, 0.5, -1.0, 0.0])
    found = weigh("m2po", rho)
    np.testing.assert_array_equal(found.weight, [1, 1, 0, 0, 1])
    np.testing.assert_array_equal(found.told["rejected_low"], [0, 0, 0, 1, 0])
    np.testing.assert_array_equal(found.told["rejected_high"], [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(weigh("m2po", rho, moment=0.1).weight, [1, 1, 1, 0, 1])
    np.testing.assert_array_equal(weigh("m2po", rho, moment=0.3).weight, np.ones(5))
    # Padding, however likely, makes no mean smaller: without the last step the means are 0.01, 0.05, 0.1167, 0.3375.
    counts = np.array([True, True, True, True, False])
    np.testing.assert_array_equal(weigh("m2po", rho, counts=counts).weight[:4], [1, 0, 0, 0])


def test_log_ratios_are_bounded_before_anything_is_made_of_them():
    wild = weigh("icepop", np.exp([300.0, 20.0]), high=1e12)
    assert wild.weight[0] == wild.weight[1] == pytest.approx(np.exp(20.0))
    assert weigh("m2po", np.exp([300.0, 0.0]), moment=200.0).weight.tolist() == [1, 1], "(20² + 0²) / 2 = 200"
