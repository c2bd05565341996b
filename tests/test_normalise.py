from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal.formulas import normalise


def batches():
    rng = np.random.default_rng(0)
    return [rng.normal(3.0, [0.1, 1.0, 20.0], (n, 3)).astype(np.float32) for n in (1, 7, 64, 200)]


def numpy(statistics):
    return jax.tree.map(np.asarray, statistics)


@pytest.mark.parametrize("convert", [lambda s: s, numpy], ids=["jax", "numpy"])
def test_merging_in_pieces_equals_at_once(convert):
    merged = convert(normalise.init((3,)))
    for batch in batches():
        merged = normalise.merge(merged, convert(normalise.of(batch, (3,))))
    everything = np.concatenate(batches()).astype(np.float64)
    assert merged.count == len(everything)
    np.testing.assert_allclose(merged.mean, everything.mean(0), rtol=1e-5)
    np.testing.assert_allclose(merged.m2 / merged.count, everything.var(0), rtol=1e-4)


def test_order_does_not_matter_and_nothing_adds_nothing():
    a, b = (normalise.of(batch, (3,)) for batch in batches()[1:3])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), normalise.merge(a, b), normalise.merge(b, a))
    empty = normalise.init((3,))
    for merged in (normalise.merge(a, empty), normalise.merge(empty, a)):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), merged, a)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(normalise.merge(empty, empty)))


def test_leading_axes_are_all_samples():
    flat = batches()[2]
    one, two = normalise.of(flat, (3,)), normalise.of(flat.reshape(4, 16, 3), (3,))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), one, two)
    assert one.mean.shape == one.m2.shape == (3,)


@pytest.mark.parametrize("way", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_apply_by_hand(way):
    # Mean (1, 2), variance (4, 9) of 10 observations: (5 - 1)/2 = 2, (-1 - 2)/3 = -1.
    seen = normalise.Statistics(jnp.float32(10), jnp.array([1.0, 2.0]), jnp.array([40.0, 90.0]))
    np.testing.assert_allclose(way(normalise.apply)(seen, jnp.array([5.0, -1.0])), [2.0, -1.0], rtol=1e-6)
    np.testing.assert_array_equal(way(normalise.apply)(seen, jnp.array([1e6, -1e6])), [normalise.CLIP, -normalise.CLIP])


def test_statistics_of_nothing_leave_observations_as_they_are():
    obs = jnp.array([0.5, -3.0, 7.0])
    np.testing.assert_allclose(normalise.apply(normalise.init((3,)), obs), obs, rtol=1e-6)


def test_what_was_seen_comes_out_with_zero_mean_and_unit_variance():
    batch = batches()[-1]
    out = jax.vmap(normalise.apply, in_axes=(None, 0))(normalise.of(batch, (3,)), batch)
    np.testing.assert_allclose(out.mean(0), np.zeros(3), atol=1e-4)
    np.testing.assert_allclose(out.std(0), np.ones(3), rtol=1e-4)


def test_a_constant_feature_stays_finite():
    out = normalise.apply(normalise.of(jnp.full((50, 2), 3.0), (2,)), jnp.array([3.0, 4.0]))
    np.testing.assert_allclose(out, [0.0, normalise.CLIP], atol=1e-3)


def test_acting_leaves_the_statistics_frozen_and_learning_moves_them(env_spec, build_agent, rollout):
    spec = env_spec((3,), choices=2)
    agent = build_agent(spec, algorithm={"normalise_observations": True, "rollout_length": 6})
    state = jax.jit(agent.init)(jax.random.key(0))
    assert agent.snapshot(state).normaliser is state.normaliser
    experience = rollout(spec, 6, 2, seed=1)
    following, _ = jax.jit(agent.update)(state, experience, jax.random.key(0))
    expected = normalise.of(experience.transitions.obs, (3,))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), following.normaliser, expected)
    policy = agent.snapshot(following)
    before = jax.tree.map(np.array, policy.normaliser)
    for i in range(3):
        agent.act(policy, (), jnp.full(3, 100.0), jax.random.key(i))
    jax.tree.map(np.testing.assert_array_equal, policy.normaliser, before)


@pytest.mark.parametrize("rule", ["actor_critic", "ppo", "q_learning"])
def test_pictures_are_shifted_and_scaled_by_the_moments_of_all_pixels(rule, env_spec, build_agent, rollout):
    spec = env_spec((10, 10, 2), choices=3)
    spec = spec._replace(observation=spec.observation._replace(low=(0.0,), high=(1.0,)))  # as the wiring gives them
    small = {"ppo": {"minibatches": 1}}.get(rule, {})
    agent = build_agent(
        spec, rule=rule, local=True, streams=2, network={"hidden": (4,)},
        algorithm={"normalise_observations": True, "rollout_length": 5, **small},
    )  # fmt: skip
    experience = rollout(spec, 5, 2, seed=1)
    if rule in ("actor_critic", "ppo"):
        state = agent.init(jax.random.key(0))
        acted = agent.act(agent.snapshot(state), (), experience.transitions.obs[0, 0], jax.random.key(0))[1]
        like = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (5, 2, *leaf.shape)), acted)
        experience = experience._replace(transitions=experience.transitions._replace(extras=like))
    state, _ = jax.jit(agent.update)(jax.jit(agent.init)(jax.random.key(0)), experience, jax.random.key(0))
    pixels = np.asarray(experience.transitions.obs, np.float64)
    assert float(state.normaliser.count) == pixels.size
    assert float(state.normaliser.mean) == pytest.approx(pixels.mean(), rel=1e-4)
    seen = normalise.apply(state.normaliser, experience.transitions.obs[0, 0])
    np.testing.assert_allclose(seen, (pixels[0, 0] - pixels.mean()) / pixels.std(), atol=1e-3)


def test_a_batch_that_is_not_finite_is_passed_over():
    statistics = normalise.of(jnp.arange(8.0).reshape(4, 2), (2,))
    broken = jnp.array([[1.0, 2.0], [jnp.nan, 0.0]])
    for ours, theirs in zip(normalise.update(statistics, broken, (2,)), statistics, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    sound = normalise.update(statistics, jnp.ones((3, 2)), (2,))
    assert float(sound.count) == 7.0


def test_the_deviation_of_returns_is_that_of_a_loop_over_the_streams():
    rng = np.random.default_rng(0)
    reward = rng.normal(1.0, 2.0, (30, 3)).astype(np.float32)
    over = rng.random((30, 3)) < 0.2
    returns, running, seen = normalise.init_returns(3), np.zeros(3), []
    assert normalise.deviation(returns) == pytest.approx(1.0)
    update = jax.jit(normalise.update_returns)
    for begin in (0, 10, 20):  # what is under way goes on from one rollout to the next
        part = slice(begin, begin + 10)
        returns = update(returns, reward[part], over[part], jnp.float32(0.9))
        for r, ended in zip(reward[part], over[part], strict=True):
            running = 0.9 * running + r
            seen.append(running)
            running = np.where(ended, 0.0, running)
        np.testing.assert_allclose(normalise.deviation(returns), np.std(seen), rtol=1e-4)
    np.testing.assert_allclose(returns.running, running, rtol=1e-4)
    assert float(returns.moments.count) == 90


def test_a_reward_that_is_not_finite_does_not_spoil_the_statistics_of_returns():
    reward, over = jnp.ones((4, 2)).at[1, 0].set(jnp.nan), jnp.zeros((4, 2), bool).at[3, 0].set(True)
    returns = normalise.update_returns(normalise.init_returns(2), reward, over, jnp.float32(0.9))
    seen = np.array([[1, 1], [0, 1.9], [1, 2.71], [1.9, 3.439]])  # stream 0 begins anew after it
    assert normalise.deviation(returns) == pytest.approx(np.std(seen))
    np.testing.assert_allclose(returns.running, [0.0, 3.439])
    returns = normalise.update_returns(returns, jnp.ones((4, 2)), ~over, jnp.float32(0.9))
    assert float(returns.moments.count) == 16


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf, 3.0e38])
def test_running_statistics_never_take_what_is_not_finite(bad):
    returns = normalise.init_returns(2)
    for _ in range(2):  # finite rewards may add up to what is not
        reward = jnp.ones((4, 2)).at[1:3, 0].set(bad)
        returns = normalise.update_returns(returns, reward, jnp.zeros((4, 2), bool), jnp.float32(1.0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(returns))
    assert np.isfinite(normalise.deviation(returns))
    seen = jnp.ones((4, 3)).at[2, 1].set(bad).at[3, 1].set(bad)
    statistics = normalise.update(normalise.update(normalise.init((3,)), jnp.ones((2, 3)), (3,)), seen, (3,))
    assert all(np.isfinite(leaf).all() for leaf in statistics)
