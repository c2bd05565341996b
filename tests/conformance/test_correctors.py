"""What every file of `shoal/correct` must do, found through the registry."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal.core import errors, options, registry, types
from shoal.formulas import returns

EVERY = pytest.mark.parametrize("name", registry.names("corrector"))
LENGTH, STREAMS = 9, 4
AXES = {"weight": ("none", "tis", "icepop"), "reject": ("none", "seq_mis", "geo_rs", "dppo_tv", "m2po")}
ALONE = (*AXES["weight"][1:], *AXES["reject"][1:])  # correctors that are λ-returns and one choice of an axis
LOOKS = [name for name in registry.names("corrector") if registry.load("corrector", name).build(
    registry.load("corrector", name).Config()).needs_mu]  # fmt: skip


def built(name, **settings):
    module = registry.load("corrector", name)
    return module.build(options.build(module.Config, settings, "corrector"))


def correct(name, **settings):
    """Of one stream: what the corrector makes of it with its numbers as they are at the start."""
    made = built(name, **settings)
    return functools.partial(made.correct, made.hyper)


def fields(name):
    return {field.name for field in dataclasses.fields(registry.load("corrector", name).Config)}


def grid(name):
    """What is a choice, not a number, among a corrector's settings: each changed alone, and once all of them."""
    hints = typing.get_type_hints(registry.load("corrector", name).Config)
    choices = {field: typing.get_args(hint) for field, hint in hints.items() if typing.get_origin(hint) is Literal}
    usual = {field: values[0] for field, values in choices.items()}
    alone = [usual | {field: value} for field, values in choices.items() for value in values[1:]]
    together = [{field: values[-1] for field, values in choices.items()}] if len(choices) > 1 else []
    return [usual, *alone, *together]


def combinations():
    return [pytest.param(name, given, id="-".join([name, *given.values()])) for name in registry.names("corrector")
            for given in grid(name)]  # fmt: skip


def streams(seed=0, log_rho_size=0.5, count=STREAMS):
    """Steps ``[count, LENGTH]`` with terminations and time limits."""
    rng = np.random.default_rng(seed)
    shape = (count, LENGTH)
    terminal, limit = rng.random(shape) < 0.15, rng.random(shape) < 0.15
    limit &= ~terminal
    reward, value, next_value = rng.normal(size=(3, *shape))
    over = terminal | limit
    next_value[:, :-1] = np.where(over[:, :-1], next_value[:, :-1], value[:, 1:])
    log_mu = -np.abs(rng.normal(size=shape)) - 0.05
    steps = types.Steps(
        log_pi=log_mu + log_rho_size * rng.normal(size=shape), log_mu=log_mu, reward=reward, discount=0.9 * ~terminal,
        cut=over, value=value, next_value=next_value,
    )  # fmt: skip
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, bool if leaf.dtype == bool else jnp.float32), steps)


def one(given, i=0):
    return jax.tree.map(lambda leaf: leaf[i], given)


def differ(found, other):
    """In what a rule learns from."""
    return any(not np.array_equal(*pair) for pair in zip(found[:3], other[:3], strict=True))


@EVERY
def test_it_says_what_it_is(name):
    module = registry.load("corrector", name)
    assert "Source:" in module.__doc__
    assert dataclasses.is_dataclass(module.Config)
    assert module.Config.__dataclass_params__.frozen
    made = built(name)
    assert made.of in ("v", "q")
    for flag in (made.needs_mu, made.weighs, made.densities):
        assert isinstance(flag, bool)
    whose = {"v": "for state values", "q": "for action values"}[made.of] if name != "none" else "for every rule"
    assert whose in inspect.getdoc(module).splitlines()[0], "what `shoal list correctors` shows"


@pytest.mark.parametrize(("name", "given"), combinations())
def test_its_numbers_are_settings_of_it(name, given):
    for path, leaf in jax.tree_util.tree_leaves_with_path(built(name, **given).hyper):
        assert (np.shape(leaf), np.asarray(leaf).dtype) == ((), np.float32)
        assert str(path[-1]).strip(".[]'") in fields(name)


@EVERY
def test_it_reads_the_policy_that_acted_if_it_says_so(name):
    given = one(streams(log_rho_size=0.0))
    other = given._replace(log_mu=given.log_mu + jnp.linspace(-1.2, 0.6, LENGTH))
    assert differ(correct(name)(given), correct(name)(other)) == built(name).needs_mu
    if not built(name).needs_mu:
        correct(name)(given._replace(log_mu=()))


@EVERY
def test_its_numbers_may_change_without_compiling_again(name):
    """Each of them matters to some choice of the others."""
    steps, matter = streams(count=16, log_rho_size=0.4), {}
    wide = {"mean_low": 0.5, "mean_high": 2.0} if name == "geo_rs" else {}  # else it keeps ratios of 1 alone
    for given in grid(name):
        made, traces = built(name, **given, **wide), []

        def counted(hyper, steps, made=made, traces=traces):
            traces.append(1)
            return made.correct(hyper, steps)

        compiled = jax.jit(jax.vmap(counted, in_axes=(None, 0)))
        before, (leaves, shape) = compiled(made.hyper, steps), jax.tree.flatten(made.hyper)
        for i, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(made.hyper)):
            for by in (0.2, 1.5, 4.0):
                changed = [*leaves[:i], np.float32(leaf * by), *leaves[i + 1 :]]
                felt = differ(before, compiled(jax.tree.unflatten(shape, changed), steps))
                matter[path] = matter.get(path, False) or felt
        assert len(traces) == 1
    assert [path for path, felt in matter.items() if not felt] == []


@pytest.mark.parametrize(("name", "given"), combinations())
def test_shapes_types_and_finite_values_whatever_is_chosen(name, given):
    found = jax.jit(correct(name, **given))(one(streams()))
    assert isinstance(found, types.Corrected)
    for leaf in (found.target, found.advantage, found.weight, *found.told.values()):
        assert leaf.shape == (LENGTH,)
        assert leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all()
    assert (np.asarray(found.weight) >= 0).all()
    if not built(name, **given).weighs:
        np.testing.assert_array_equal(found.weight, np.ones(LENGTH, np.float32))
    if "rejected_low" in found.told:
        rejected = np.asarray(found.told["rejected_low"] + found.told["rejected_high"]) > 0
        np.testing.assert_array_equal(rejected, np.asarray(found.weight) == 0)


@EVERY
def test_compiled_and_batched_it_is_the_same(name):
    made, given = correct(name), streams()
    batched = jax.jit(jax.vmap(made))(given)
    for i in range(STREAMS):
        alone = made(one(given, i))
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6), batched, alone)


@EVERY
@pytest.mark.parametrize("lambda_", [1.0, 0.6, 0.0])
def test_on_policy_it_is_the_lambda_return(name, lambda_):
    """Of action values: that of Q^π(λ), but for tree-backup, whose trace is λ π."""
    if "lambda_" not in fields(name) and lambda_ != 1.0:
        pytest.skip("has no lambda")
    chosen = built(name, **({"lambda_": lambda_} if "lambda_" in fields(name) else {}))
    made = functools.partial(chosen.correct, chosen.hyper)

    def expected(given):
        plain = given.reward, given.discount, given.cut
        if chosen.of == "v":
            return returns.lambda_returns(*plain, given.next_value, jnp.float32(lambda_))
        trace = jnp.exp(given.log_pi) if name == "tree_backup" else jnp.ones(LENGTH)
        return returns.action_values(jnp.float32(lambda_) * trace, *plain, given.value, given.next_value)

    given = streams(log_rho_size=0.0, count=20)
    found, wanted = jax.jit(lambda given: (jax.vmap(made)(given), jax.vmap(expected)(given)))(given)
    np.testing.assert_allclose(found.target, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.advantage, wanted - given.value, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.weight, 1.0, rtol=1e-6)


@pytest.mark.parametrize(("name", "given"), combinations())
def test_nothing_crosses_an_end(name, given):
    """Bit for bit, whatever happens after it: values, rewards, and what either policy thinks of actions."""
    made = jax.jit(correct(name, **given))
    steps = one(streams(log_rho_size=0.3))
    steps = steps._replace(cut=steps.cut.at[4].set(True))
    later = jax.tree.map(lambda leaf: leaf.at[5:].add(0.5), steps._replace(cut=()))._replace(cut=steps.cut)
    later = later._replace(log_mu=later.log_mu.at[5:].add(-0.8))
    found, other = made(steps), made(later)
    several = 2 if given.get("reject") == "m2po" else 3  # whose weights depend on the whole stream
    for before, after in zip(found[:several], other[:several], strict=True):
        np.testing.assert_array_equal(before[:5], after[:5])
    for before, after in zip(found[:2], other[:2], strict=True):
        assert not np.array_equal(before[5:], after[5:])


@EVERY
def test_a_time_limit_bootstraps_and_a_termination_does_not(name):
    made = jax.jit(correct(name))
    given = one(streams(log_rho_size=0.0))
    given = given._replace(cut=given.cut.at[4].set(True))
    for discount in (0.9, 0.0):
        given = given._replace(discount=given.discount.at[4].set(discount))
        other = given._replace(next_value=given.next_value.at[4].add(10.0))
        moved = made(other).target[4] - made(given).target[4]
        assert moved == pytest.approx(10.0 * discount, rel=1e-4)


@pytest.mark.parametrize(("name", "given"), combinations())
def test_very_unlikely_and_very_likely_actions_stay_finite(name, given):
    steps = one(streams())
    ratios = jnp.linspace(-80.0, 80.0, LENGTH)
    steps = steps._replace(log_pi=jnp.minimum(ratios, 0.0) - 0.01, log_mu=-jnp.maximum(ratios, 0.0) - 0.01)
    impossible = steps._replace(log_pi=steps.log_pi.at[3].set(-jnp.inf))
    compiled = jax.jit(correct(name, **given))
    for each in (steps, impossible):
        for leaf in jax.tree.leaves(compiled(each)):
            assert np.isfinite(leaf).all()


# ------------------------------------------------------------------------------------------------ the two axes


@pytest.mark.parametrize("name", LOOKS)
def test_whoever_looks_at_the_policy_that_acted_has_both_axes(name):
    """But for the choice that it is itself."""
    assert {*AXES} <= {*fields(name)} | {axis for axis, choices in AXES.items() if name in choices}


@pytest.mark.parametrize("name", ALONE)
def test_a_choice_alone_is_that_choice_of_any_other(name):
    """`--corrector tis` weighs as `--corrector retrace --corrector.weight tis` does."""
    axis, given = next(axis for axis in AXES if name in AXES[axis]), streams(3)
    weights = [jax.vmap(correct(name))(given).weight]
    others = [other for other in LOOKS if {*AXES} <= fields(other)]
    weights += [jax.vmap(correct(other, **{axis: name}))(given).weight for other in others]
    assert len(others) >= 3
    assert not (np.asarray(weights[0]) == 1.0).all()
    if name != "dppo_tv":  # it goes by the advantage, which is theirs
        for other in weights[1:]:
            np.testing.assert_array_equal(weights[0], other)


@pytest.mark.parametrize("name", ALONE)
def test_a_choice_alone_leaves_returns_alone(name):
    given = streams(4)
    found, plain = (jax.vmap(correct(each, lambda_=0.7))(given) for each in (name, "none"))
    np.testing.assert_array_equal(found.target, plain.target)
    log_rho = given.log_pi - given.log_mu
    expected = plain.advantage - 2e-3 * log_rho if name == "dppo_tv" else plain.advantage  # β = 1e-3
    np.testing.assert_allclose(found.advantage, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["vtrace", "importance"])
def test_a_weight_takes_the_place_of_the_ratio_of_the_policy_gradient(name):
    """Else it would count twice."""
    given = streams(5)
    plain, weighed = (jax.vmap(correct(name, weight=weight))(given) for weight in ("none", "tis"))
    rho = np.exp(np.asarray(given.log_pi - given.log_mu))
    bound = 1.0 if name == "vtrace" else np.inf
    np.testing.assert_array_equal(plain.target, weighed.target)
    np.testing.assert_allclose(plain.advantage, np.minimum(bound, rho) * weighed.advantage, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weighed.weight, np.minimum(2.0, rho), rtol=1e-6)


@pytest.mark.parametrize("name", LOOKS)
def test_bounds_that_keep_nothing_are_refused(name):
    for axis, low, high in (("weight", "low", "high"), ("reject", "product_low", "product_high"),
                            ("reject", "mean_low", "mean_high")):  # fmt: skip
        choice = {"low": "icepop", "product_low": "seq_mis", "mean_low": "geo_rs"}[low]
        chosen = {axis: choice} if axis in fields(name) else {}
        if not {low, high, *chosen} <= fields(name) or (not chosen and name != choice):
            continue
        with pytest.raises(errors.Refused, match=f"corrector.{low}=3 is above corrector.{high}=2"):
            built(name, **chosen, **{low: 3.0, high: 2.0})
