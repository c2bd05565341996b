from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal.formulas import in_place, optimise, rules

STEPS = 1000


def config(**values):
    return optimise.Config(**({"anneal": False, "max_norm": 0.0, "epsilon": 0.1} | values))


def start():
    return {"w": jnp.array([[0.5, -1.0], [2.0, 0.1]]), "b": jnp.array([1.5, -0.3])}


def gradients(count=STEPS, seed=0):
    """Of very different sizes, so that epsilon matters for some and not for others."""
    rng = np.random.default_rng(seed)
    size = np.array([1e-3, 0.1, 1.0, 30.0, 0.01, 3.0])
    return (rng.normal(0.1, 1.0, (count, 6)) * size).astype(np.float32)


def as_tree(flat):
    return {"w": flat[..., :4].reshape(*flat.shape[:-1], 2, 2), "b": flat[..., 4:]}


def flat(tree):
    return np.concatenate([np.ravel(tree["w"]), np.ravel(tree["b"])])


def statistics(vector):
    """One number a parameter, in the order of `flat`; the vector's is that of sorted names."""
    return np.concatenate([vector[2:], vector[:2]])


def walk(optimiser, sequence, dtype=jnp.float32):
    """Parameters after every gradient of a sequence, in one compiled loop."""
    cast = lambda tree: jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf, tree)  # noqa: E731
    params = cast(start())

    def step(at, gradient):
        params, state = at
        params, state, norm = optimiser.update(as_tree(gradient), state, params, jnp.int32(0))
        return (params, state), norm

    run = jax.jit(lambda params, state, sequence: jax.lax.scan(step, (params, state), sequence)[0])
    return run(params, cast(optimiser.init(params)), jnp.asarray(sequence, dtype))


def rmsprop(theta, sequence, given, outside=False):
    """Scalar loop of equation S2 in the dtype of `theta`; `outside` is the slip the test must see."""
    kind = theta.dtype.type
    rate, decay, epsilon = kind(given.learning_rate), kind(given.decay), kind(given.epsilon)
    theta, square = theta.copy(), np.zeros_like(theta)
    for gradient in sequence.astype(kind):
        for i, g in enumerate(gradient):
            square[i] = decay * square[i] + (kind(1) - decay) * (g * g)
            root = np.sqrt(square[i]) + epsilon if outside else np.sqrt(square[i] + epsilon)
            theta[i] -= rate * (g / root)
    return theta


def momentum(theta, sequence, given, undamped=False):
    """Scalar loop of momentum SGD in the dtype of `theta`; `undamped` is the form without 1 - α."""
    kind = theta.dtype.type
    rate, decay = kind(given.learning_rate), kind(given.decay)
    theta, m = theta.copy(), np.zeros_like(theta)
    for gradient in sequence.astype(kind):
        for i, g in enumerate(gradient):
            m[i] = decay * m[i] + (g if undamped else (kind(1) - decay) * g)
            theta[i] -= rate * m[i]
    return theta


def adam(theta, sequence, given):
    """Scalar loop of Kingma & Ba 2015, algorithm 1."""
    theta, m, v = theta.copy(), np.zeros_like(theta), np.zeros_like(theta)
    for t, gradient in enumerate(sequence.astype(np.float64), start=1):
        for i, g in enumerate(gradient):
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = given.decay * v[i] + (1 - given.decay) * g * g
            corrected = m[i] / (1 - 0.9**t), v[i] / (1 - given.decay**t)
            theta[i] -= given.learning_rate * corrected[0] / (np.sqrt(corrected[1]) + given.epsilon)
    return theta


def test_rmsprop_equals_a_scalar_loop_over_1000_steps(lenient):
    given = config(learning_rate=1e-3)
    sequence, theta = gradients(), flat(start()).astype(np.float64)
    expected, slip = rmsprop(theta, sequence, given), rmsprop(theta, sequence, given, outside=True)
    with lenient(), jax.enable_x64(True):  # the step count meets float64
        found = flat(walk(optimise.local(given, STEPS), sequence, jnp.float64)[0])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (np.abs(found - slip) > 1e-4).all()
    single = flat(walk(optimise.local(given, STEPS), sequence)[0])
    np.testing.assert_allclose(single, expected, rtol=1e-5)


def test_momentum_equals_a_scalar_loop_over_1000_steps(lenient):
    given = config(rule="momentum", learning_rate=1e-3)
    sequence, theta = gradients(), flat(start()).astype(np.float64)
    expected, slip = momentum(theta, sequence, given), momentum(theta, sequence, given, undamped=True)
    with lenient(), jax.enable_x64(True):
        found = flat(walk(optimise.local(given, STEPS), sequence, jnp.float64)[0])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (np.abs(found - slip) > 1e-4).all()
    single = flat(walk(optimise.local(given, STEPS), sequence)[0])
    np.testing.assert_allclose(single, expected, rtol=1e-5)


def test_adam_equals_a_scalar_loop_over_1000_steps(lenient):
    given = config(rule="adam", learning_rate=1e-3, decay=0.995, epsilon=1e-3)
    sequence, theta = gradients(), flat(start()).astype(np.float64)
    expected = adam(theta, sequence, given)
    with lenient(), jax.enable_x64(True):  # optax raises a float to the step's number
        found = flat(walk(optimise.local(given, STEPS), sequence, jnp.float64)[0])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    with lenient():
        single = flat(walk(optimise.local(given, STEPS), sequence)[0])
    np.testing.assert_allclose(single, expected, rtol=1e-5)


def test_adagrad_equals_a_scalar_loop_over_1000_steps(lenient):
    given = config(rule="adagrad", learning_rate=0.1)
    theta, square = flat(start()).astype(np.float64), np.zeros(6)
    for gradient in gradients().astype(np.float64):
        for i, g in enumerate(gradient):
            square[i] += g * g
            theta[i] -= 0.1 * g / np.sqrt(square[i] + given.epsilon)
    with lenient(), jax.enable_x64(True):
        found = flat(walk(optimise.local(given, STEPS), gradients(), jnp.float64)[0])
    np.testing.assert_allclose(found, theta, rtol=1e-6)


def test_adagrad_without_epsilon_leaves_what_never_had_a_gradient():
    theta, square = np.ones(2, np.float32), np.zeros(2, np.float32)
    rule = in_place.AdaGrad(2)
    for _ in range(2):
        rule.apply(theta, square, np.array([0.0, 3.0], np.float32), config(epsilon=0.0), 0.5)
    np.testing.assert_allclose(theta, [1.0, 1.0 - 0.5 - 0.5 / 2**0.5], rtol=1e-6)


def in_shared_memory(given):
    """(parameters, statistics) after all the gradients, written in place."""
    state = jax.device_get(optimise.capture(given, STEPS).init(start()))
    rule, room = in_place.build(state.rule, 6), in_place.room(state.rule, 6)
    theta, kept = flat(start()).astype(np.float32), np.zeros(room, np.float32)
    for gradient in gradients():
        rule.apply(theta, kept, gradient, state.hyper, float(optimise.rate(state.hyper, 0)))
    assert theta.dtype == kept.dtype == np.float32
    return theta, kept


@pytest.mark.parametrize("rule", ["rmsprop", "momentum", "adagrad"])
def test_the_rule_in_place_is_the_local_rule(rule):
    given = config(rule=rule, learning_rate=1e-3)
    params, state = walk(optimise.local(given, STEPS), gradients())
    theta, kept = in_shared_memory(given)
    np.testing.assert_allclose(theta, flat(params), rtol=1e-5)
    np.testing.assert_allclose(kept, statistics(state.rule[0]), rtol=2e-5, atol=1e-6)


def test_adam_in_place_is_the_local_rule(lenient):
    given = config(rule="adam", learning_rate=1e-3, decay=0.995, epsilon=1e-3)
    with lenient(), jax.enable_x64(True):
        params, state = walk(optimise.local(given, STEPS), gradients(), jnp.float64)
        expected, count = flat(params), int(state.rule.count)
        mu, nu = (statistics(moment) for moment in (state.rule.mu, state.rule.nu))
    theta, kept = in_shared_memory(given)
    np.testing.assert_allclose(theta, expected, rtol=1e-5)
    np.testing.assert_allclose(kept[:6], mu, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(kept[6:12], nu, rtol=1e-4, atol=1e-6)
    assert kept[12] == count == len(gradients())


@pytest.mark.parametrize(
    ("rule", "loop", "slip"), [("rmsprop", rmsprop, "outside"), ("momentum", momentum, "undamped")]
)
def test_the_rule_in_place_equals_a_scalar_loop_over_1000_steps(rule, loop, slip):
    given, theta = config(rule=rule, learning_rate=1e-3), flat(start()).astype(np.float32)
    found = in_shared_memory(given)[0]
    np.testing.assert_allclose(found, loop(theta, gradients(), given), rtol=1e-6)
    assert (np.abs(found - loop(theta, gradients(), given, **{slip: True})) > 1e-4).all()


def test_the_rate_falls_in_a_line_to_zero_and_stays_there():
    hyper = optimise.local(config(anneal=True, learning_rate=0.5), 200).init(start()).hyper
    at = [0, 50, 100, 200, 201, 10_000]
    expected = [0.5, 0.375, 0.25, 0.0, 0.0, 0.0]
    np.testing.assert_allclose([optimise.rate(hyper, jnp.float32(t)) for t in at], expected, rtol=1e-6)
    on_host = jax.tree.map(np.asarray, hyper)
    np.testing.assert_allclose([optimise.rate(on_host, t) for t in at], expected, rtol=1e-6)
    constant = optimise.local(config(learning_rate=0.5), 200).init(start()).hyper
    assert optimise.rate(constant, jnp.float32(1e9)) == 0.5


def test_a_step_is_taken_at_the_annealed_rate():
    optimiser = optimise.local(config(anneal=True, learning_rate=1e-2), 100)
    update = jax.jit(optimiser.update)
    params, state = start(), optimiser.init(start())
    gradient = as_tree(gradients(1)[0])
    moved = [flat(params) - flat(update(gradient, state, params, jnp.int32(t))[0]) for t in (0, 25, 100, 500)]
    np.testing.assert_allclose(moved[1], 0.75 * moved[0], rtol=1e-3)
    assert (moved[0] != 0).any()
    assert not np.any(moved[2:])


def test_the_clip_is_by_the_global_norm_and_keeps_the_direction():
    optimiser = optimise.capture(config(max_norm=2.0), STEPS)
    gradient = {"w": jnp.array([[3.0, 0.0], [0.0, 0.0]]), "b": jnp.array([0.0, 4.0])}
    _, state, norm = optimiser.update(gradient, optimiser.init(start()), start(), jnp.int32(0))
    assert norm == 5.0  # before clipping
    # 2/5 of everything: the norm of all leaves together, not of each (which would leave 2 and 2), nor of elements.
    np.testing.assert_allclose(flat(state.gradient), 0.4 * flat(gradient), rtol=1e-6)
    small = jax.tree.map(lambda leaf: leaf / 10, gradient)
    np.testing.assert_array_equal(flat(optimiser.update(small, state, start(), jnp.int32(0))[1].gradient), flat(small))


def test_local_clips_before_its_statistics_see_the_gradient():
    optimiser = optimise.local(config(max_norm=2.0), STEPS)
    gradient = {"w": jnp.array([[3.0, 0.0], [0.0, 0.0]]), "b": jnp.array([0.0, 4.0])}
    _, state, _ = optimiser.update(gradient, optimiser.init(start()), start(), jnp.int32(0))
    np.testing.assert_allclose(statistics(state.rule.nu), 0.01 * (0.4 * flat(gradient)) ** 2, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("max_norm", [0.0, 0.5])
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(bad, max_norm):
    optimiser = optimise.local(config(max_norm=max_norm), STEPS)
    update = jax.jit(optimiser.update)
    good = as_tree(gradients(1)[0])
    params, state, _ = update(good, optimiser.init(start()), start(), jnp.int32(0))
    spoilt = {
        **good,
        "w": good["w"].at[0, 1].set(bad) if hasattr(good["w"], "at") else jnp.asarray(good["w"]).at[0, 1].set(bad),
    }
    after, kept, norm = update(spoilt, state, params, jnp.int32(0))
    assert not np.isfinite(norm)
    jax.tree.map(np.testing.assert_array_equal, after, params)
    jax.tree.map(np.testing.assert_array_equal, kept.rule, state.rule)
    assert (state.skipped, kept.skipped) == (0, 1)
    moved, kept, _ = update(good, kept, after, jnp.int32(0))  # and it goes on
    assert np.any(flat(moved) != flat(after))
    assert kept.skipped == 1


def test_capture_leaves_parameters_alone_and_the_gradient_in_the_state():
    optimiser = optimise.capture(config(), STEPS)
    gradient = as_tree(gradients(1)[0])
    state = optimiser.init(start())
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0), state.gradient)
    params, state, norm = jax.jit(optimiser.update)(gradient, state, start(), jnp.int32(0))
    jax.tree.map(np.testing.assert_array_equal, params, start())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7), state.gradient, gradient)
    assert norm == pytest.approx(np.linalg.norm(flat(gradient)), rel=1e-6)
    assert state.rule == rules.RMSProp(()), "only named"


@pytest.mark.parametrize("make", [optimise.local, optimise.capture])
def test_hyperparameters_change_without_recompilation(make):
    optimiser = make(config(max_norm=1.0, anneal=True), STEPS)
    traces = []

    @jax.jit
    def update(gradient, state, params, env_steps):
        traces.append(None)
        return optimiser.update(gradient, state, params, env_steps)

    state, gradient = optimiser.init(start()), as_tree(gradients(1)[0])
    seen = set()
    for name in ("learning_rate", "anneal_steps", "decay", "epsilon", "max_norm"):
        hyper = state.hyper._replace(**{name: getattr(state.hyper, name) * 0.5})
        params, after, _ = update(gradient, state._replace(hyper=hyper), start(), jnp.int32(10))
        seen.add(flat(params if make is optimise.local else after.gradient).tobytes())
    assert len(traces) == 1
    assert len(seen) == (5 if make is optimise.local else 2)  # and they do something


def test_faster_multiplies_the_step_and_nothing_else():
    optimiser = optimise.local(config(learning_rate=1e-2), STEPS)
    gradient, state = as_tree(gradients(1)[0]), optimiser.init(start())
    plain = optimiser.update(gradient, state, start(), jnp.int32(0))
    fast = optimiser.update(gradient, optimise.faster(state, 3.0), start(), jnp.int32(0))
    np.testing.assert_allclose(flat(fast[0]) - flat(start()), 3.0 * (flat(plain[0]) - flat(start())), rtol=2e-3)
    jax.tree.map(np.testing.assert_array_equal, fast[1].rule, plain[1].rule)


def test_skipped_is_the_sum_over_all_the_optimisers_of_a_learner():
    one, two = (optimise.local(config(), STEPS).init(start())._replace(skipped=jnp.int32(n)) for n in (2, 5))
    assert int(optimise.skipped({"policy": one, "rest": (two, jnp.ones(3))})) == 7
    assert int(optimise.skipped(one)) == 2
