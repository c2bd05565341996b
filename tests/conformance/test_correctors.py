"""What every file of `shoal/correct` must do, found through the registry."""

from __future__ import annotations

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import options, registry, returns, types

EVERY = pytest.mark.parametrize("name", registry.names("corrector"))
LENGTH, STREAMS = 9, 4
ARGUMENTS = ("log_rho", "reward", "discount", "cut", "value", "next_value")


def built(name, **settings):
    module = registry.load("corrector", name)
    return module.build(options.build(module.Config, settings, "corrector"))


def streams(seed=0, log_rho_size=0.5):
    """Arguments ``[STREAMS, LENGTH]`` with terminations and time limits."""
    rng = np.random.default_rng(seed)
    shape = (STREAMS, LENGTH)
    terminal, limit = rng.random(shape) < 0.15, rng.random(shape) < 0.15
    limit &= ~terminal
    reward, value, next_value = rng.normal(size=(3, *shape))
    over = terminal | limit
    next_value[:, :-1] = np.where(over[:, :-1], next_value[:, :-1], value[:, 1:])
    log_rho = log_rho_size * rng.normal(size=shape)
    given = dict(zip(ARGUMENTS, (log_rho, reward, 0.9 * ~terminal, over, value, next_value), strict=True))
    return {name: jnp.asarray(leaf, bool if name == "cut" else jnp.float32) for name, leaf in given.items()}


def one(given, i=0):
    return {name: leaf[i] for name, leaf in given.items()}


@EVERY
def test_it_says_what_it_is(name):
    module = registry.load("corrector", name)
    assert "Source:" in module.__doc__
    assert dataclasses.is_dataclass(module.Config)
    assert module.Config.__dataclass_params__.frozen
    assert tuple(inspect.signature(built(name)).parameters) == ARGUMENTS


@EVERY
def test_shapes_types_and_finite_values(name):
    found = jax.jit(lambda given: built(name)(**given))(one(streams()))
    assert isinstance(found, types.Corrected)
    for leaf in found:
        assert leaf.shape == (LENGTH,)
        assert leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all()


@EVERY
def test_compiled_and_batched_it_is_the_same(name):
    correct, given = built(name), streams()
    batched = jax.jit(jax.vmap(lambda each: correct(**each)))(given)
    for i in range(STREAMS):
        alone = correct(**one(given, i))
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6), batched, alone)


@EVERY
@pytest.mark.parametrize("lambda_", [1.0, 0.6])
def test_on_policy_it_is_the_lambda_return(name, lambda_):
    fields = {field.name for field in dataclasses.fields(registry.load("corrector", name).Config)}
    if "lambda_" not in fields and lambda_ != 1.0:
        pytest.skip("has no lambda")
    correct = built(name, **({"lambda_": lambda_} if "lambda_" in fields else {}))
    for seed in range(5):
        given = one(streams(seed, log_rho_size=0.0))
        plain = {name: given[name] for name in ("reward", "discount", "cut", "next_value")}
        expected = returns.lambda_returns(**plain, lambda_=jnp.float32(lambda_))
        found = correct(**given)
        np.testing.assert_allclose(found.target, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.advantage, expected - given["value"], rtol=1e-5, atol=1e-5)


@EVERY
def test_nothing_crosses_an_end(name):
    correct = jax.jit(lambda given: built(name)(**given))
    given = one(streams(log_rho_size=0.3))
    given["cut"] = given["cut"].at[4].set(True)
    later = {key: leaf if key == "cut" else leaf.at[5:].add(0.5) for key, leaf in given.items()}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:5], b[:5]), correct(given), correct(later))


@EVERY
def test_a_time_limit_bootstraps_and_a_termination_does_not(name):
    correct = jax.jit(lambda given: built(name)(**given))
    given = one(streams(log_rho_size=0.0))
    given["cut"] = given["cut"].at[4].set(True)
    for discount in (0.9, 0.0):
        given["discount"] = given["discount"].at[4].set(discount)
        other = {**given, "next_value": given["next_value"].at[4].add(10.0)}
        moved = correct(other).target[4] - correct(given).target[4]
        assert moved == pytest.approx(10.0 * discount, rel=1e-4)


@EVERY
def test_very_unlikely_and_very_likely_actions_stay_finite(name):
    given = {**one(streams()), "log_rho": jnp.linspace(-80.0, 80.0, LENGTH)}
    for leaf in jax.jit(lambda given: built(name)(**given))(given):
        assert np.isfinite(leaf).all()
