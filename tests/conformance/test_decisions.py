"""The decision of every rule apart from its network: of one observation by XLA, of many in NumPy; how likely it was."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest
import scipy.special
import scipy.stats

from shoal.core import types
from tests.conformance import test_algorithms as rules

ACTING = [each for each in rules.ALL if rules.build(each).about.acting]
DRAWS = 4000
SHOWN = {"training": {}, "greedy": {"explore": np.float32(0.0)}}  # of a policy


def shown(case: rules.Case, outputs: int) -> tuple[types.Policy, dict[str, np.ndarray]]:
    """A policy that acts as in training, and one observation's outputs for its decision, a row for each draw."""
    policy, about = jax.device_get(case.agent.snapshot(case.init(jax.random.key(0)))), case.agent.about
    if about.head == "greedy":
        training, evaluation = policy.exploration
        chances = np.full_like(training, 0.3), np.full_like(evaluation, 0.1)
        policy = policy._replace(exploration=jax.tree.unflatten(jax.tree.structure(policy.exploration), chances))
    if about.head == "deterministic":  # much noise: some of it leads out of the box
        policy = policy._replace(exploration=(np.float32(0.6), policy.exploration[1]))
    shapes = jax.eval_shape(about.networks[about.acting.network].apply, policy.params, obs_of(case), about.carry)[0]
    rng = np.random.default_rng(outputs)
    rows = {head: rng.normal(0, 0.7, shapes[head].shape).astype(np.float32) for head in about.acting.heads}
    return policy, {head: np.tile(row, (DRAWS, 1)) for head, row in rows.items()}


def obs_of(case: rules.Case) -> Any:
    return case.env.init(jax.random.key(1))[1]


def probability(case: rules.Case, policy: types.Policy, output: np.ndarray, action: np.ndarray) -> np.ndarray:
    """log of the density, or the probability, of actions, written out; NaN where an action has too few digits."""
    head, explore = case.agent.about.head, policy.explore > 0
    output = np.asarray(output, np.float64)
    if not explore and head != "greedy":
        return np.zeros(len(action))
    whole = head in ("categorical", "multi_categorical", "greedy")
    mean, raw = (output, output) if whole or head == "deterministic" else np.split(output, 2, axis=-1)
    action = np.asarray(action, np.int64 if whole else np.float64)
    normal = scipy.stats.norm
    if head in ("categorical", "multi_categorical"):
        each = np.split(output, np.cumsum(case.env.spec.action.sizes)[:-1], axis=-1)
        told, chosen = [scipy.special.log_softmax(part, axis=-1) for part in each], action.reshape(len(action), -1).T
        return sum(part[np.arange(len(action)), one] for part, one in zip(told, chosen, strict=True))
    if head == "greedy":
        training, evaluation = policy.exploration
        epsilon = float(np.ravel(training)[0] if explore else evaluation)
        best = action == output.argmax(axis=-1)
        return np.log(np.where(best, 1.0 - epsilon, 0.0) + epsilon / output.shape[-1])
    low, high = np.array(case.env.spec.action.low), np.array(case.env.spec.action.high)
    if head != "gaussian":
        action = (action - (low + high) / 2) / ((high - low) / 2)
    if head in ("gaussian", "stretched"):
        return normal.logpdf(action, mean, np.sqrt(np.logaddexp(raw, 0.0) + 1e-4)).sum(axis=-1)
    if head == "squashed":
        inner = np.arctanh(np.where(np.abs(action) < 0.99, action, np.nan))
        each = normal.logpdf(inner, mean, np.exp(np.clip(raw, -20, 2))) - np.log1p(-(action**2))
        return each.sum(axis=-1)
    mean, noise = np.tanh(output), float(policy.exploration[0])
    beyond = np.where(action > 0, normal.logsf(1.0, mean, noise), normal.logcdf(-1.0, mean, noise))
    return np.where(np.abs(action) < 1.0, normal.logpdf(action, mean, noise), beyond).sum(axis=-1)


def decided(case: rules.Case, policy: types.Policy, outputs: Any) -> tuple[Any, Any]:
    """What `decide` gives for each row with a key of its own, and `decide_many` for all."""
    acting = case.agent.about.acting
    keys = jax.random.split(jax.random.key(7), DRAWS)
    each = jax.device_get(jax.jit(jax.vmap(acting.decide, in_axes=(None, 0, 0)))(policy, outputs, keys))
    same = policy if isinstance(policy.stream, tuple) else policy._replace(exploration=alike(policy))
    return each, acting.decide_many(same, outputs, np.random.default_rng(3))


def alike(policy: types.Policy) -> Any:
    """The first stream's chance of a random action in all of them: rows are of one stream after the other."""
    training, evaluation = policy.exploration
    return type(policy.exploration)(np.full(DRAWS, training[0]), evaluation)


@pytest.mark.parametrize("name", ACTING, ids="-".join)
@pytest.mark.parametrize("how", SHOWN)
def test_many_decisions_in_numpy_are_those_of_the_agent(name, how):
    case = rules.made(name)
    for seed in range(2):
        policy, outputs = shown(case, seed)
        policy = policy._replace(**SHOWN[how])
        one, many = decided(case, policy, outputs)
        for (action, extras), found in ((one, many), (many, one)):
            assert (action.shape, action.dtype) == (found[0].shape, found[0].dtype)
            assert type(extras) is type(found[1])
            for leaf, other in zip(extras, found[1], strict=True):
                assert isinstance(leaf, np.ndarray)
                assert (leaf.shape, leaf.dtype.name) == (other.shape, "float32")
                assert leaf.shape == (DRAWS,)
        head = outputs[case.agent.about.acting.heads[0]]
        for action, extras in (one, many):
            assert np.isfinite(extras.log_prob).all()
            expected = probability(case, policy, head, action)
            known = np.isfinite(expected)
            assert known.mean() > 0.3
            np.testing.assert_allclose(extras.log_prob[known], expected[known], rtol=2e-3, atol=2e-3)
            if "value" in extras._fields:
                np.testing.assert_array_equal(extras.value, outputs["value"][:, 0])
        same_law(case, one[0], many[0], greedy=how == "greedy" and case.agent.about.head != "greedy")


def same_law(case: rules.Case, one: np.ndarray, many: np.ndarray, *, greedy: bool) -> None:
    """Two samples of actions are of one distribution."""
    if greedy:
        assert len(np.unique(many, axis=0)) == 1
        np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-6)
    elif case.env.spec.action.discrete:
        sizes = case.env.spec.action.sizes or (case.env.spec.action.n,)
        numbers = [np.ravel_multi_index(each.reshape(DRAWS, -1).T, sizes) for each in (one, many)]
        shares = [np.bincount(each, minlength=np.prod(sizes)) / DRAWS for each in numbers]
        np.testing.assert_allclose(*shares, atol=5 * np.sqrt(0.5 / DRAWS))
    else:
        for i in range(one.shape[1]):
            assert scipy.stats.ks_2samp(one[:, i], many[:, i]).pvalue > 1e-4


@pytest.mark.parametrize(
    "name", [each for each in ACTING if "learning_starts" in rules.SETTINGS[each[0]]], ids="-".join
)
def test_random_actions_at_first_are_told_as_such(name):
    case = rules.made(name)
    if case.env.spec.action.discrete:
        return  # its ε is 1 then, and the mixture says so
    policy, outputs = shown(case, 0)
    random = np.float32(1.0)
    early = random if isinstance(policy.exploration, np.ndarray | np.generic) else (policy.exploration[0], random)
    one, many = decided(case, policy._replace(exploration=early), outputs)
    for action, extras in (one, many):
        np.testing.assert_allclose(extras.log_prob, -np.log(2.0) * action.shape[1], rtol=1e-5)
    same_law(case, one[0], many[0], greedy=False)
    low, high = case.env.spec.action.low[0], case.env.spec.action.high[0]
    assert scipy.stats.kstest(many[0][:, 0], scipy.stats.uniform(low, high - low).cdf).pvalue > 1e-4


@pytest.mark.parametrize("name", ACTING, ids="-".join)
def test_the_decision_is_the_one_the_agent_acts_by(name):
    """With the network's outputs; rules that learn from nothing else remember nothing else."""
    case = rules.made(name)
    agent, about, obs = case.agent, case.agent.about, obs_of(case)
    policy = agent.snapshot(case.init(jax.random.key(0)))
    outputs, after = about.networks[about.acting.network].apply(policy.params, obs, about.carry)
    for i in range(20):
        key = jax.random.key(i)
        action, extras, carry = jax.jit(agent.act)(policy, about.carry, obs, key)
        found, said = jax.jit(about.acting.decide)(policy, outputs, key)
        np.testing.assert_allclose(found, action, rtol=1e-5, atol=1e-6)
        if extras:
            np.testing.assert_allclose(said.log_prob, extras.log_prob, rtol=1e-4, atol=1e-5)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), carry, after)
